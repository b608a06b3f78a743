"""Latitude weights, weighted means, anomaly correlation, spectra."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.scores import spatial


class TestLatitudeWeights:
    def test_cosine_values(self):
        weights = spatial.latitude_weights(torch.tensor([90.0, 45, 0, -45, -90], dtype=torch.float64))
        expected = torch.tensor([0, 1.4644660941, 2.0710678119, 1.4644660941, 0], dtype=torch.float64)
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-10)
        assert weights[0] == 0

    def test_weighted_rmse(self):
        weights = spatial.latitude_weights(torch.tensor([90.0, 45, 0, -45, -90], dtype=torch.float64))
        error = torch.tensor([3.0, 1, 2, 1, 3], dtype=torch.float64)
        assert spatial.weighted_mean(error.square(), weights).sqrt().item() == pytest.approx(1.4975448865, abs=1e-10)
        assert spatial.weighted_mean(error.square()).sqrt().item() == pytest.approx(2.1908902300, abs=1e-10)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(2, 40), st.booleans(), st.sampled_from(["cosine", "cell_area"]))
    def test_mean_one_and_mirror_symmetric(self, count, poles, method):
        edge = 90.0 if poles else 90 - 90 / count
        latitude = torch.linspace(-edge, edge, count, dtype=torch.float64)
        if poles and count == 2 and method == "cosine":
            return  # both rows are points
        weights = spatial.latitude_weights(latitude, method=method)
        assert weights.mean().item() == pytest.approx(1)
        torch.testing.assert_close(weights, weights.flip(0))
        torch.testing.assert_close(spatial.latitude_weights(latitude.flip(0), method=method), weights.flip(0))

    def test_cell_areas_are_areas(self):
        """An equiangular grid without poles: cells of equal width fill the sphere; with poles the caps count."""
        centres = torch.arange(-87.5, 90, 5, dtype=torch.float64)
        edges = torch.deg2rad(torch.arange(-90.0, 91, 5, dtype=torch.float64))
        area = torch.sin(edges).diff() / 2 * len(centres)
        torch.testing.assert_close(spatial.latitude_weights(centres, method="cell_area"), area)
        with_poles = spatial.latitude_weights(torch.linspace(-90, 90, 5, dtype=torch.float64), method="cell_area")
        assert with_poles[0].item() == pytest.approx((1 - math.sin(math.radians(67.5))) / 2 * 5)

    @pytest.mark.parametrize(
        ("latitude", "method"),
        [
            ([0.0, 91], "cosine"),
            ([[0.0]], "cosine"),
            ([0.0, 10, 5], "cell_area"),
            ([0.0], "cell_area"),
            ([0.0], "area"),
        ],
    )
    def test_errors(self, latitude, method):
        with pytest.raises(ValueError, match=r"latitude|method"):
            spatial.latitude_weights(torch.tensor(latitude), method=method)


class TestWeightedMean:
    def test_mask_hides_even_nan(self):
        values = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
        mean = spatial.weighted_mean(values, torch.tensor([1.0, 5, 3]), mask=torch.tensor([True, False, True]))
        assert mean.item() == 2.5
        mean.backward()
        assert values.grad.tolist() == [0.25, 0, 0.75]

    def test_nan_policy(self):
        values = torch.tensor([1.0, math.nan, 3.0])
        assert spatial.weighted_mean(values).isnan()
        assert spatial.weighted_mean(values, nan_policy="omit").item() == 2
        with pytest.raises(ValueError, match="1 NaN of 3"):
            spatial.weighted_mean(values, nan_policy="raise")
        assert spatial.weighted_mean(values, mask=torch.zeros(3, dtype=torch.bool)).isnan()

    def test_against_numpy(self, draw):
        values, weights = draw(3, 4, 5), draw(4, 1).exp()
        expected = np.average(values, axis=(1, 2), weights=weights.expand(3, 4, 5))
        np.testing.assert_allclose(spatial.weighted_mean(values.numpy(), weights.numpy(), dim=(1, 2)), expected)


class TestAnomalyCorrelation:
    def test_is_pearson_where_centred(self, draw):
        forecast, truth, climatology = draw(3, 6, 8), draw(3, 6, 8), draw(6, 8)
        score = spatial.anomaly_correlation(forecast, truth, climatology, centred=True)
        for k in range(3):
            pair = [(field[k] - climatology).flatten() for field in (forecast, truth)]
            assert score[k].item() == pytest.approx(np.corrcoef(*pair)[0, 1])

    def test_bounds_and_definition(self, draw):
        truth, climatology, weights = draw(6, 8), draw(6, 8), draw(6, 1).exp()
        perfect = spatial.anomaly_correlation(truth, truth, climatology, weights=weights)
        opposite = spatial.anomaly_correlation(2 * climatology - truth, truth, climatology, weights=weights)
        assert (perfect.item(), opposite.item()) == (pytest.approx(1), pytest.approx(-1))
        forecast = draw(6, 8)
        f, o = forecast - climatology, truth - climatology
        expected = (weights * f * o).sum() / ((weights * f * f).sum() * (weights * o * o).sum()).sqrt()
        torch.testing.assert_close(spatial.anomaly_correlation(forecast, truth, climatology, weights=weights), expected)

    def test_omit_is_the_score_without_the_points(self, draw):
        forecast, truth = draw(1, 9), draw(1, 9)
        truth[0, :3] = math.nan
        zero = torch.zeros(1, dtype=torch.float64)
        for centred in (False, True):
            ours = spatial.anomaly_correlation(forecast, truth, zero, nan_policy="omit", centred=centred)
            expected = spatial.anomaly_correlation(forecast[:, 3:], truth[:, 3:], zero, centred=centred)
            torch.testing.assert_close(ours, expected)
        assert spatial.anomaly_correlation(forecast, truth, zero).isnan()


class TestSpectra:
    @pytest.mark.parametrize("width", [7, 8])
    def test_zonal_parseval(self, width, draw):
        field, weights = draw(2, 5, width), draw(5).exp()
        spectrum = spatial.zonal_spectrum(field, weights=weights)
        expected = spatial.weighted_mean(field.square(), weights[:, None], dim=(-2, -1))
        torch.testing.assert_close(spectrum.power.sum(-1), expected)

    def test_zonal_wave(self):
        longitude = torch.arange(16, dtype=torch.float64) * 2 * math.pi / 16
        field = (1 + 3 * torch.cos(5 * longitude)).expand(4, 16)
        power = spatial.zonal_spectrum(field).power
        expected = torch.zeros(9, dtype=torch.float64)
        expected[0], expected[5] = 1, 4.5
        torch.testing.assert_close(power, expected, rtol=0, atol=1e-12)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 5), st.floats(0.1, 5))
    def test_isotropic_parseval(self, height, width, dy, dx):
        field = torch.from_numpy(np.random.default_rng(height * 13 + width).normal(size=(2, height, width)))
        spectrum = spatial.isotropic_spectrum(field, spacing=(dy, dx))
        torch.testing.assert_close(spectrum.power.sum(-1), field.square().mean((-2, -1)))
        assert len(spectrum.wavenumber) == spectrum.power.shape[-1]

    def test_isotropic_waves(self):
        """Waves of one length in x, y and, 3–4–5, across: all in shell 5, whatever the direction."""
        y, x = torch.meshgrid(*[torch.arange(32, dtype=torch.float64) / 32] * 2, indexing="ij")
        for kx, ky in ((5, 0), (0, 5), (3, 4), (-4, 3)):
            field = torch.cos(2 * math.pi * (kx * x + ky * y))
            wavenumber, power = spatial.isotropic_spectrum(field, spacing=2.0)
            assert power.argmax() == 5
            assert (power[5].item(), wavenumber[5].item()) == (pytest.approx(0.5), pytest.approx(5 / 64))

    def test_errors(self):
        for call in (spatial.zonal_spectrum, spatial.isotropic_spectrum):
            with pytest.raises(ValueError, match="field must be"):
                call(torch.zeros(4))
        with pytest.raises(ValueError, match="spacing positive"):
            spatial.isotropic_spectrum(torch.zeros(4, 4), spacing=0.0)
