"""Options of a gridded source are refused before any job starts, with one line that says what would be right."""

from __future__ import annotations

import pytest
from synthetic_era5 import SPLITS, options

from relent.data.gridded.variables import CONVERSIONS, normal_units
from relent.data.options import GriddedOptions, checked
from relent.errors import ConfigError
from relent.manifest.yamlfile import read_yaml


def refused(message: str, **changes: object) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        checked(GriddedOptions, options("era5.zarr", **changes))
    assert "\n" not in str(caught.value)


def test_good_options_are_read() -> None:
    found = checked(GriddedOptions, options("gs://bucket/era5.zarr", storage_options={"token": "anon"}))
    assert [v.name for v in found.source.variables] == ["2m_temperature", "10m_u_component_of_wind", "geopotential"]
    assert found.source.variables[2].channels == [("geopotential_500", 500), ("geopotential_850", 850)]
    assert str(found.source.span[1]) == "2020-01-10 23:59:59"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stor": 1}, r"data.source.stor: unknown key \(did you mean 'store'\?\)"),
        ({"variables": []}, "at least 1 item"),
        ({"variables": ["a", "a"]}, "variable 'a' stands twice"),
        ({"variables": [{"name": "z", "levels": [500, 500]}]}, "a level stands twice"),
        ({"variables": [{"name": "z", "role": "input"}]}, "'prognostic', 'forced', 'diagnostic' or 'accumulated'"),
        ({"splits": {**SPLITS, "test": ["2020-01-05", "2020-01-10"]}}, r"before train has ended .*must be apart"),
        ({"splits": {**SPLITS, "test": ["2020-01-10", "2020-01-08"]}}, "test ends .* before it begins"),
        ({"splits": {**SPLITS, "validation": ["2020-01-07", "2020-01-07"]}, "step": 24}, "fewer than three steps"),
        ({"period": ["2020-01-01", "2020-01-08"]}, "test .* does not lie within the period"),
        ({"region": {"south": 10, "north": 0, "west": 0, "east": 9}}, r"south \(10\) must be less than north"),
        ({"store": "ftp://host/era5"}, "'ftp' is none of file, http, https, gs"),
        ({"store": "simplecache::s3://bucket/era5"}, "is none of"),
        ({"store": "https://me:word@host/era5"}, "holds a user or password"),
        ({"storage_options": {"secret": "abc"}}, "looks like a secret"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, object], message: str) -> None:
    if "store" in changes:
        store = changes.pop("store")
        with pytest.raises(ConfigError, match=message):
            checked(GriddedOptions, options(str(store)))
    else:
        refused(message, **changes)


def test_dates_of_a_manifest_stay_text(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "m.yaml").write_text("train: [2020-01-01, 2020-01-05]\n")
    assert read_yaml(tmp_path / "m.yaml").data == {"train": ["2020-01-01", "2020-01-05"]}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("m s**-1", "m s-1"),
        ("m/s", "m s-1"),
        ("m^2/s^2", "m2 s-2"),
        ("m**2 s**-2", "m2 s-2"),
        ("kg kg**-1", "kg kg-1"),
        ("degrees_Celsius", "degC"),
        ("millibars", "hPa"),
        ("(0 - 1)", "1"),
        ("K", "K"),
        ("J m**-2", "J m-2"),
    ],
)
def test_spellings_of_units(written: str, meant: str) -> None:
    assert normal_units(written) == meant


def test_conversions_and_their_inverses() -> None:
    for (start, end), (factor, offset) in CONVERSIONS.items():
        assert (start, end) == (normal_units(start), normal_units(end))
        if (end, start) in CONVERSIONS:
            back, shift = CONVERSIONS[end, start]
            assert (factor * back, offset * back + shift) == pytest.approx((1, 0))
