"""What the workflow prints: jobs in words and when it will probably end."""

import pytest

from snakemake_logger_plugin_relent import Estimate, describe, spoken


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (100, "2 min"), (3600, "60 min"), (7500, "2 h 05 min")]
)
def test_durations_in_words(seconds, words):
    assert spoken(seconds) == words


def test_jobs_in_words():
    run = {"task": "images", "method": "pld", "variant": "cifar100", "scale": "laptop", "seed": "2"}
    assert describe("student", run) == "student · images · pld · cifar100 · seed 2"
    assert describe("student", run | {"variant": "default"}) == "student · images · pld · seed 2"
    assert describe("fetch", {"source": "mnist_5k"}) == "fetch · mnist_5k"


def test_remaining_time_uses_each_rules_own_duration(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("snakemake_logger_plugin_relent.time.monotonic", lambda: clock[0])
    estimate = Estimate({"student": 5, "evaluate": 5})
    assert estimate.remaining() is None
    clock[0] = 10.0
    estimate.finish("student", 10.0)
    assert estimate.remaining() == pytest.approx(4 * 10 + 5 * 10)  # no evaluation seen yet: the overall mean
    clock[0] = 12.0
    estimate.finish("evaluate", 2.0)
    assert estimate.remaining() == pytest.approx(4 * 10 + 4 * 2)
    clock[0] = 12.0
    estimate.finish("student", 12.0)  # two jobs at once: 24 seconds of work in 12
    assert estimate.remaining() == pytest.approx((3 * 11 + 4 * 2) / 2)
