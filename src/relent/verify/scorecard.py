r"""The scorecard of two forecasts: in which pairs of variable and lead time A beats B, and where it is more than luck.

FuXi-ENS (arXiv 2405.05925) reports the share of such pairs with a lower CRPS than the reference. A share alone says
little: pairs are alike, and half of them are won by an equal forecast. Here each pair has an interval and a p-value
from a block bootstrap over the initial times that both have, drawn alike for both and for all pairs; p-values are
adjusted by Holm's method over all pairs of the card; and the share itself gets the interval of its replicates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from relent.errors import ConfigError, DataError, nearest
from relent.scores.inference import holm
from relent.scores.resampling import (
    FEWEST,
    block_counts,
    interval_block_length,
    replicate_interval,
    replicates,
)
from relent.scores.streaming import Means, Totals
from relent.verify.engine import FieldScores, Verification
from relent.verify.report import RESAMPLES, SEED, Row, summed
from relent.verify.statistics import LOWER_IS_BETTER


@dataclass(frozen=True)
class Card:
    """A scorecard: `rows`, one a field and lead, and `summary`."""

    rows: list[Row]
    summary: dict[str, Any]


def compare(
    first: Verification,
    second: Verification,
    labels: tuple[str, str],
    *,
    score: str = "crps",
    region: str | None = None,
    confidence: float = 0.95,
    block_length: float | None = None,
) -> Card:
    """Score A (first) relative to B (second) on the pairs of field, lead and initial time that both have.

    Args:
        first, second: Verifications against the same truth.
        labels: What to call them.
        score: One of which less is better: crps, rmse, brier_above_p90, twcrps_above_p90 …
        region: Default: the first.
        confidence: 1 − α of the family of all pairs.
        block_length: Mean block length in initial times; None: estimated for each lead, the longest of all fields.

    Raises:
        ConfigError: The score is unknown, or more of it is better.
        DataError: The two have no pair in common, or other truths.
    """
    _check(first, second, score)
    name = region or next(iter(first.regions))
    for verification in (first, second):
        if name not in verification.regions:
            raise ConfigError(f"no region {name!r}{nearest(name, verification.regions)}")
    pairs = _pairs(first, second, score, name)
    if not pairs:
        raise DataError("the two forecasts have no variable, lead and initial time in common")
    alpha = 1 - confidence
    length = _block_length(pairs) if block_length is None else block_length
    n = pairs[0].known.size
    length = float(np.clip(length, 1, n))
    counts = block_counts(n, length, RESAMPLES, seed=SEED)
    rows, wins = zip(*(_row(pair, counts, length, confidence) for pair in pairs))
    adjusted = holm([row["p"] for row in rows])
    for row, p_holm in zip(rows, adjusted):
        row["p_holm"] = float(p_holm)
        better = row["difference"] < 0
        row["verdict"] = "no difference" if p_holm > alpha else "better" if better else "worse"
    summary: dict[str, Any] = {"a": labels[0], "b": labels[1], "members": {"a": first.members, "b": second.members}}
    summary |= {"score": score, "region": name, "confidence": confidence, "resamples": RESAMPLES}
    return Card(list(rows), summary | {"block_length": round(length, 2)} | _counts(list(rows), list(wins), confidence))


def _check(first: Verification, second: Verification, score: str) -> None:
    known = sorted(
        {e.name for f in first.fields for e in f.entries} & {e.name for f in second.fields for e in f.entries}
    )
    usable = [name for name in known if name.startswith(LOWER_IS_BETTER)]
    if score not in usable:
        raise ConfigError(f"a scorecard needs a score of which less is better, not {score!r}{nearest(score, usable)}")
    truths = [v.settings.get("truth_checksum") or v.settings.get("truth") for v in (first, second)]
    if all(truths) and truths[0] != truths[1]:
        raise DataError(
            f"the two were verified against different truths ({truths[0]} and {truths[1]}); use one for both"
        )
    grids = [v.settings.get("grid") for v in (first, second)]
    if all(grids) and grids[0] != grids[1]:
        raise DataError(f"the two lie on different grids ({grids[0]} and {grids[1]}); bring both to one grid first")


@dataclass(frozen=True)
class _Pair:
    """Totals (n,) of both forecasts at one field and lead, over the initial times that both have.

    `known` (n,) says at which of them both have a score; the totals of the others are zero and weigh nothing.
    """

    field: FieldScores
    hours: float
    final: Callable[[Means], np.ndarray]
    first: Totals
    second: Totals
    known: np.ndarray


def _pairs(first: Verification, second: Verification, score: str, region: str) -> list[_Pair]:
    others = {(f.variable, f.level): f for f in second.fields}
    _, ours, theirs = np.intersect1d(first.init_time, second.init_time, return_indices=True)
    shared = [(a, b) for a, h in enumerate(first.lead_hours) for b, g in enumerate(second.lead_hours) if h == g]
    regions = [list(verification.regions).index(region) for verification in (first, second)]
    found = []
    for field in first.fields:
        other = others.get((field.variable, field.level))
        if other is None:
            continue
        final = next(e.statistic.final for e in field.entries if e.name == score)
        for a, b in shared:
            one = _chosen(field.by_init[score], ours, a, regions[0])
            two = _chosen(other.by_init[score], theirs, b, regions[1])
            known = (next(iter(one.weights.values())) > 0) & (next(iter(two.weights.values())) > 0)
            if known.any():
                hours = float(first.lead_hours[a])
                found.append(_Pair(field, hours, final, _where(one, known), _where(two, known), known))
    return found


def _chosen(totals: Totals, initials: np.ndarray, lead: int, region: int) -> Totals:
    sums, weights = (
        {name: value[initials, lead, region] for name, value in part.items()} for part in (totals.sums, totals.weights)
    )
    return Totals(sums, weights)


def _where(totals: Totals, known: np.ndarray) -> Totals:
    sums, weights = (
        {name: np.where(known, value, 0) for name, value in part.items()} for part in (totals.sums, totals.weights)
    )
    return Totals(sums, weights)


def _block_length(pairs: list[_Pair]) -> float:
    """One length for all pairs: of the leads the longest, of the fields of a lead the median estimate."""
    by_lead: dict[float, list[float]] = {}
    for pair in pairs:
        by_lead.setdefault(pair.hours, []).append(interval_block_length(_difference(pair)))
    return float(max(np.median(lengths) for lengths in by_lead.values()))


def _difference(pair: _Pair) -> np.ndarray:
    """Difference of the first term by initial time: the series whose memory sets the block length."""
    term, known = next(iter(pair.first.sums)), pair.known
    one, two = ((t.sums[term][known], t.weights[term][known]) for t in (pair.first, pair.second))
    series: np.ndarray = one[0] / one[1] - two[0] / two[1]
    return series


def _row(pair: _Pair, counts: np.ndarray, length: float, confidence: float) -> tuple[Row, np.ndarray]:
    """Numbers of one pair, and in which replicates A is better; all pairs share the replicates."""
    a, b = (float(pair.final(summed(totals).means())) for totals in (pair.first, pair.second))
    draws = replicates(pair.first, counts, pair.final) - replicates(pair.second, counts, pair.final)
    cases = int(pair.known.sum())
    interval = replicate_interval(a - b, draws, cases, length, confidence)
    bounded = bool(np.isfinite(interval.low) and np.isfinite(interval.high))
    row = {
        "variable": pair.field.name,
        "units": pair.field.units,
        "lead_hours": pair.hours,
        "a": a,
        "b": b,
        "difference": a - b,
        "low": interval.low if bounded else None,
        "high": interval.high if bounded else None,
        "relative": (a - b) / abs(b) if b else None,
        "p": interval.p_value,
        "cases": cases,
    }
    return row, draws < 0


def _counts(rows: list[Row], wins: list[np.ndarray], confidence: float) -> dict[str, Any]:
    """How many pairs are won, with the interval of the share, and what the numbers stand on."""
    cases = [row["cases"] for row in rows]
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = np.quantile(np.mean(wins, axis=0), tails).tolist() if min(cases) >= FEWEST else (None, None)
    verdicts = [row["verdict"] for row in rows]
    return {
        "pairs": len(rows),
        "share_better": float(np.mean([row["difference"] < 0 for row in rows])),
        "share_low": low,
        "share_high": high,
        "significantly_better": verdicts.count("better"),
        "significantly_worse": verdicts.count("worse"),
        "initial_times": [min(cases), max(cases)],
        "multiplicity": f"Holm over {len(rows)} pairs, family-wise error at most {1 - confidence:.2g}",
        "intervals": "stationary block bootstrap over initial times, all pairs and both forecasts drawn alike",
        "note": "" if min(cases) >= FEWEST else f"fewer than {FEWEST} initial times: no pair can be called significant",
    }


def in_words(summary: dict[str, Any]) -> str:
    """The summary as a sentence or two."""
    won = (
        f"{summary['a']} has the lower {summary['score']} in {summary['share_better']:.1%} of {summary['pairs']} pairs"
    )
    interval = "" if summary["share_low"] is None else f" [{summary['share_low']:.1%}, {summary['share_high']:.1%}]"
    found = f"significantly better in {summary['significantly_better']}, worse in {summary['significantly_worse']}"
    note = f" ({summary['note']})" if summary["note"] else ""
    return f"{won}{interval} against {summary['b']}; {found} ({summary['multiplicity']}){note}"
