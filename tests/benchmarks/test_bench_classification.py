"""What the benchmarks of classification compare is what they say: peers' forms, steps of output layers, crossings."""

from __future__ import annotations

import math

import pytest
import torch


def test_every_objective_has_a_finite_loss_and_gradient(load):
    bench = load("bench_objectives")
    x = bench.tensors(10, 12)
    for name, (_, loss, _) in bench.OBJECTIVES.items():
        found = torch.autograd.grad(loss(x), x.leaves, allow_unused=True)
        given = [gradient for gradient in found if gradient is not None]
        assert given, name
        assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in given), name


def test_tensors_are_the_same_at_every_call(load):
    bench = load("bench_objectives")
    assert torch.equal(bench.tensors(10, 12).logits, bench.tensors(10, 12).logits)


def test_peers_compute_what_ours_computes(load):
    bench = load("bench_objectives")
    x = bench.tensors(50, 12, torch.float64)
    here = {name: loss for name, (_, loss) in bench.peers().items() if not isinstance(loss, str)}
    assert {"cross_entropy", "label_smoothing", "dkd"} <= here.keys()
    for name, loss in here.items():
        # DIST divides by small norms, to which ours and the peer add ε in other places.
        assert bench.difference(loss, bench.OBJECTIVES[name][1], x) < (1e-4 if name == "dist" else 1e-12), name


def test_ratios_are_taken_within_a_round(load):
    bench = load("bench_objectives")
    samples = [
        {"a": (1.0, 2.0), "b": (9.0, 1.0)},
        {"a": (1.0, 8.0), "b": (9.0, 2.0)},
        {"a": (1.0, 3.0), "b": (9.0, 1.0)},
    ]
    assert bench.row_of(samples, "a", "b") == {
        "seconds": 1.0,
        "cpu_seconds": 3.0,
        "cpu_seconds_ratio": 3.0,
        "ratio_lowest": 2.0,
        "ratio_highest": 4.0,
    }


def test_the_factored_step_is_that_of_the_dense_layer(load):
    bench = load("bench_output_layer")
    step, layer = bench.factored_step(40, 6)
    dense = bench.layer_weight(40, 6, torch.float64).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    from relent.methods.representation.z_loss import z_loss

    for seed in range(4):
        features = torch.randn(bench.BATCH, 6, generator=generator)
        labels = bench.zipf_labels(40, bench.BATCH, seed)
        step(features, labels)
        z_loss(features.double() @ dense.T, labels, 0.3, 0.5 * math.sqrt(39)).mean().backward()
        with torch.no_grad():
            dense -= bench.RATE * dense.grad
        dense.grad = None
        if seed == 1:
            layer.fold()
    torch.testing.assert_close(layer.weight, dense.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["softmax cross-entropy", "Z-loss, all outputs", "adaptive softmax", "sampled softmax"]
)
def test_a_step_of_each_layer_gives_the_features_a_gradient(load, name):
    bench = load("bench_output_layer")
    step, layer = bench.build(name, 300, 32)
    assert layer is None
    features = torch.randn(bench.BATCH, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    step(features, bench.zipf_labels(300, bench.BATCH, 0))
    assert bool(features.grad.isfinite().all())
    assert bool(features.grad.any())


def test_labels_follow_zipfs_law(load):
    bench = load("bench_output_layer")
    labels = bench.zipf_labels(100, 200_000, 0)
    shares = torch.bincount(labels, minlength=100).double() / len(labels)
    expected = torch.log1p(1 / (torch.arange(100).double() + 1)) / math.log(101)
    torch.testing.assert_close(shares, expected, rtol=0.1, atol=2e-4)


def test_the_crossing_is_interpolated_on_logarithmic_scales(load):
    crossing = load("bench_output_layer").crossing
    sizes, flat = (100, 1_000, 10_000), (1.0, 1.0, 1.0)
    assert crossing(sizes, flat, (0.1, 1.0, 10.0)) == pytest.approx(1_000)
    assert crossing(sizes, flat, (0.05, 0.5, 5.0)) == pytest.approx(2_000)
    assert crossing(sizes, flat, (2.0, 3.0, 4.0)) == 0.0
    assert crossing(sizes, flat, (0.2, 0.3, 0.4)) is None
    assert crossing(sizes, flat, (2.0, 0.5, 2.0)) == pytest.approx(math.sqrt(1e7))


def test_operations_of_a_linear_layer_are_those_by_hand(load):
    bench = load("bench_harmonic")
    features, weight = torch.randn(3, 5), torch.randn(7, 5)
    with bench.Operations() as seen:
        features @ weight.T
    assert seen.count == 2 * 3 * 5 * 7
    with bench.Operations() as seen:
        torch.cdist(features, weight, compute_mode="donot_use_mm_for_euclid_dist")
        features.view(-1)
        features + 1
    assert seen.count == 3 * 3 * 5 * 7 + 3 * 5


def test_every_distance_of_the_harmonic_loss_is_counted(load):
    bench = load("bench_harmonic")
    work = bench.Work(10)
    counts = {name: bench.counted(work, name) for name in work.layers}
    assert set(bench.DISTANCES) == set(bench.Config.model_fields["distance"].annotation.__args__)
    assert min(counts, key=counts.get) == bench.LINEAR
