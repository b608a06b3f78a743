"""Checks the claims of the methods in one comparison: each gets a verdict from its runs, with its numbers.

A verdict comes from the confidence interval of the paired difference over seeds, at the level at which Holm's procedure
stops over all claims of the comparison that can be tested. A claim that fails is reported as failing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relent.compare.results import RunResult
from relent.compare.statistics import Difference, Sample, check_comparable, difference, pair, samples, seeds_to_decide
from relent.manifest.models import Claim, Method, Task
from relent.scores.inference import (
    Interval,
    Kind,
    decision_p_value,
    holm,
    holm_confidence,
    paired_difference,
    verdict,
)

NOT_CHECKED = "not checked"


@dataclass
class _Check:
    """A claim with the scores that decide it."""

    method: Method
    claim: Claim
    label: str
    baseline: str
    first: Sample | None = None
    second: Sample | None = None
    found: Difference | None = None
    reason: str = ""

    @property
    def kind(self) -> Kind:
        """Mechanism and scaling claims state a direction, and are tested as differences in it."""
        return "non-inferiority" if self.claim.kind == "non_inferiority" else "superiority"

    @property
    def null(self) -> float:
        """Difference at which the claim turns from false to true."""
        sign = 1 if self.claim.direction == "higher" else -1
        return -sign * self.claim.margin if self.kind == "non-inferiority" else sign * self.claim.margin


def check_claims(
    task: Task, methods: Mapping[str, Method], runs: Sequence[RunResult], confidence: float
) -> list[dict[str, Any]]:
    """Verdicts on every claim that the methods of a comparison make for this task.

    Args:
        task: The task of the runs.
        methods: Manifests by name; those of the runs and of the baselines are read.
        runs: The runs of the comparison.
        confidence: `1 - confidence` is the chance that any verdict of the comparison is wrong by the seeds' noise.

    Returns:
        One dictionary a claim: what it says, the paired difference with its interval, `p` (that the claim is decided
        either way) and `p_holm`, `verdict` (`reproduced`, `not reproduced`, `inconclusive`, `not checked`), the reason,
        the seeds behind it and `seeds_needed` to decide it with a power of 80 %.

    Raises:
        DataError: The runs may not be compared.
    """
    check_comparable(task, runs)
    scores, names = samples(runs), dict.fromkeys(run.method for run in runs)
    checks = [
        _prepare(task, methods, scores, methods[name], claim, confidence)
        for name in names
        if name in methods
        for claim in methods[name].claims
        if (task.name in claim.tasks if claim.tasks else claim.metric in task.metrics)
    ]
    tested = [check for check in checks if check.found and check.found.testable]
    p = [_p_value(check) for check in tested]
    adjusted, levels = (holm(p), holm_confidence(p, confidence)) if p else (np.empty(0), np.empty(0))
    decided = {
        id(check): _decide(check, confidence, *numbers)
        for check, *numbers in zip(tested, p, adjusted.tolist(), levels.tolist(), strict=True)
    }
    return [_described(task, check) | (decided.get(id(check)) or _undecided(check, confidence)) for check in checks]


def _prepare(
    task: Task,
    methods: Mapping[str, Method],
    scores: Mapping[str, Mapping[str, Sample]],
    method: Method,
    claim: Claim,
    confidence: float,
) -> _Check:
    """Find the scores on both sides of a claim, or the reason why it cannot be checked."""
    label = _label(methods, method.name, claim.variant or "")
    check = _Check(method, claim, label, _label(methods, *claim.baseline.partition(":")[::2]))
    if claim.metric not in task.metrics:
        check.reason = f"task {task.name} has no metric {claim.metric}"
        return check
    for side in (check.label, check.baseline):
        if side not in scores:
            check.reason = f"{side} is not in this comparison"
            return check
        if claim.metric not in scores[side]:
            check.reason = f"the runs of {side} have no {claim.metric}"
            return check
    check.first, check.second = scores[check.label][claim.metric], scores[check.baseline][claim.metric]
    check.found = difference(check.first, check.second, confidence)
    if check.found is None:
        check.reason = f"{check.label} and {check.baseline} have no seed in common"
    return check


def _label(methods: Mapping[str, Method], name: str, variant: str) -> str:
    """`method`, or `method:variant` where it is not the method's default variant."""
    default = methods[name].default_variant if name in methods else ""
    return name if variant in ("", default) else f"{name}:{variant}"


def _sides(check: _Check) -> tuple[list[float], list[float]]:
    assert check.first is not None
    assert check.second is not None
    return pair(check.first, check.second)[1:]


def _p_value(check: _Check) -> float:
    claim = check.claim
    return decision_p_value(*_sides(check), check.kind, claim.margin, claim.direction)


def _decide(check: _Check, confidence: float, p: float, p_holm: float, level: float) -> dict[str, Any]:
    """Verdict of a claim with two or more seeds, from the interval at its Holm level."""
    assert check.found is not None
    claim, found = check.claim, check.found
    interval = paired_difference(*_sides(check), level)
    said = verdict(interval, check.kind, claim.margin, claim.direction)
    needed = seeds_to_decide(found.mean - check.null, found.sd, level) if said == "inconclusive" else None
    return _numbers(check) | {
        "verdict": said,
        "reason": _reason(found),
        "confidence": confidence,
        "p": p,
        "p_holm": p_holm,
        "holm_confidence": level,
        "holm_low": interval.low,
        "holm_high": interval.high,
        "seeds_needed": needed,
    }


def _reason(found: Difference) -> str:
    if found.sd == 0:
        return "the difference is the same at every seed"
    return "a side that trains nothing was run once and set against every seed of the other" if found.broadcast else ""


def _undecided(check: _Check, confidence: float) -> dict[str, Any]:
    """A claim without a test: not checked, one seed, or an exact difference."""
    nothing = dict.fromkeys(("p", "p_holm", "holm_confidence", "holm_low", "holm_high", "seeds_needed"))
    if check.found is None:
        return _numbers(check) | nothing | {"verdict": NOT_CHECKED, "reason": check.reason, "confidence": confidence}
    if check.found.exact:
        d = check.found.mean
        exact = Interval(d, d, d, 1.0, 1, "exact", confidence)
        said: str = verdict(exact, check.kind, check.claim.margin, check.claim.direction)
        reason = "neither side depends on the seed: the difference is exact on these data"
    else:
        said, reason = "inconclusive", "one common seed gives no interval; run two or more"
    return _numbers(check) | nothing | {"verdict": said, "reason": reason, "confidence": confidence}


def _numbers(check: _Check) -> dict[str, Any]:
    found = check.found
    return {
        "seeds": len(found.seeds) if found else 0,
        "difference": found.mean if found else None,
        "low": found.low if found else None,
        "high": found.high if found else None,
        "sd": found.sd if found else None,
    }


def _described(task: Task, check: _Check) -> dict[str, Any]:
    claim, paper = check.claim, check.method.paper
    metric = task.metrics.get(claim.metric)
    return {
        "task": task.name,
        "method": check.method.name,
        "label": check.label,
        "baseline": check.baseline,
        **claim.model_dump(mode="json", include={"id", "text", "source", "kind", "metric", "direction", "margin"}),
        "metric_title": metric.title if metric else claim.metric,
        "unit": metric.unit if metric else "",
        "digits": metric.digits if metric else 3,
        "paper": paper.title if paper else "",
        "arxiv": paper.arxiv if paper else "",
    }
