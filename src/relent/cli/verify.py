"""`relent verify` and `relent scorecard`: scores of any forecast against any truth, and two forecasts side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from relent.cli.options import CODE
from relent.cli.train import limit_threads
from relent.manifest.fingerprint import fingerprint
from relent.manifest.steps import check_code

_OPTIONS = (
    click.option(
        "--variable", "variables", multiple=True, help="NAME or FORECAST=TRUTH; may be repeated [all that match]."
    ),
    click.option("--region", "regions", multiple=True, help="NAME=SOUTH,NORTH[,WEST,EAST]; may be repeated."),
    click.option(
        "--climatology",
        nargs=2,
        metavar="FIRST LAST",
        help="Period of the truth that anomalies and events refer to [the training split, where it has one].",
    ),
    click.option(
        "--percentile",
        "percentiles",
        multiple=True,
        type=click.FloatRange(0, 100),
        default=(90, 95, 98),
        show_default=True,
        help="Thresholds of events; below 50: less than. May be repeated.",
    ),
    click.option(
        "--confidence", default=0.95, show_default=True, type=click.FloatRange(0.5, 1, min_open=True, max_open=True)
    ),
    click.option(
        "--block-length", type=click.FloatRange(1), help="Mean block length in initial times [estimated from the data]."
    ),
    click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Blocks scored side by side."),
)


def _verification_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _ready(threads: int) -> None:
    """Blocks run side by side; each statistic on one thread."""
    limit_threads(1)
    import dask
    import torch

    torch.set_num_threads(1)
    dask.config.set(scheduler="threads", num_workers=threads)


@click.command("verify")
@click.argument("forecast")
@click.argument("truth")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the results.")
@_verification_options
@CODE
def verify_command(
    forecast: str,
    truth: str,
    out: Path,
    variables: tuple[str, ...],
    regions: tuple[str, ...],
    climatology: tuple[str, str] | None,
    percentiles: tuple[float, ...],
    confidence: float,
    block_length: float | None,
    threads: int,
    code: str | None,
) -> None:
    """Score FORECAST against TRUTH by variable, level, region and lead time, with intervals.

    FORECAST is a zarr store of this project or laid out as WeatherBench 2's, a netCDF or a GRIB file. TRUTH is a
    prepared data set (a folder with dataset.zarr), a zarr store, netCDF or GRIB. Written are scores.csv, scores.json,
    totals.zarr (for scorecards) and figures/.
    """
    if code is not None:
        check_code(out, code, fingerprint(["relent.verify.command"]))
    _ready(threads)
    from relent.verify.command import Choice, run_verify
    from relent.verify.report import Resampling

    choice = Choice(variables, regions, climatology, percentiles)
    rows = run_verify(forecast, truth, choice, Resampling(confidence, block_length=block_length), out)
    first = rows[0]["region"]
    for row in rows:
        if row["score"] == "crps" and row["region"] == first:
            level = "" if row["level"] is None else f" {row['level']:g}"
            interval = "" if row["low"] is None else f" [{row['low']:.4g}, {row['high']:.4g}]"
            click.echo(
                f"{row['variable']}{level} {row['lead_hours']:g} h: CRPS {row['value']:.4g}{interval} {row['units']}"
            )
    click.echo(f"{out}/scores.csv")


@click.command("scorecard")
@click.argument("a")
@click.argument("b")
@click.option("--truth", help="Truth of forecasts that are not verified yet [a run has its own].")
@click.option("--label", "labels", nargs=2, help="What to call them.")
@click.option("--score", default="crps", show_default=True, help="crps, rmse, brier_above_p90, twcrps_above_p90 …")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the results.")
@_verification_options
def scorecard_command(
    a: str,
    b: str,
    truth: str | None,
    labels: tuple[str, str] | None,
    score: str,
    out: Path,
    variables: tuple[str, ...],
    regions: tuple[str, ...],
    climatology: tuple[str, str] | None,
    percentiles: tuple[float, ...],
    confidence: float,
    block_length: float | None,
    threads: int,
) -> None:
    """In which pairs of variable and lead time A beats B, and where significantly.

    A and B are each a run's folder, a folder of `relent verify`, or a forecast with --truth. Written are scorecard.csv,
    scorecard.json and scorecard.png.
    """
    _ready(threads)
    from relent.verify.command import Choice, label_of, run_scorecard
    from relent.verify.report import Resampling
    from relent.verify.scorecard import in_words

    first = label_of(a)
    names = labels or (first, label_of(b, [first]))
    choice = Choice(variables, regions, climatology, percentiles)
    how = Resampling(confidence, block_length=block_length)
    click.echo(in_words(run_scorecard((a, b), names, truth, choice, score, how, out)))
    click.echo(f"{out}/scorecard.png")
