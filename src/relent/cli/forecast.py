"""`relent forecast`: rolls a trained run out."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from relent.cli.options import CODE
from relent.cli.train import limit_threads
from relent.errors import ConfigError
from relent.manifest.fingerprint import fingerprint
from relent.manifest.steps import check_code


@click.command("forecast")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--from",
    "start",
    multiple=True,
    default=("test",),
    show_default=True,
    help="test, validation, train, a time (2018-01-01T00) or a period FIRST/LAST; may be repeated.",
)
@click.option("--every", default=1, show_default=True, type=click.IntRange(1), help="Take every Nth of these times.")
@click.option("--leads", required=True, type=click.IntRange(1), help="Steps ahead.")
@click.option("--members", default=20, show_default=True, type=click.IntRange(1), help="Ensemble members.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the members' noise.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The zarr store that is written.")
@click.option(
    "--batch", default=0, type=click.IntRange(0), help="Members computed together [all]; changes memory only."
)
@click.option(
    "--keep-bits", default=12, show_default=True, type=click.IntRange(1, 23), help="Bits of the mantissa that are kept."
)
@click.option("--device", help="cpu, cuda, cuda:1 … [cuda where there is one].")
@click.option("--dataset", type=click.Path(path_type=Path), help="Prepared data set [the one it was trained with].")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="CPU threads.")
@CODE
def forecast_command(
    run: Path,
    start: tuple[str, ...],
    every: int,
    leads: int,
    members: int,
    seed: int,
    out: Path,
    batch: int,
    keep_bits: int,
    device: str | None,
    dataset: Path | None,
    threads: int,
    code: str | None,
) -> None:
    """Forecast with the trained RUN (its folder): any lead, any number of members, into one zarr store.

    The store opens with xarray. A forecast that was stopped goes on where it was. Members are the same however they are
    batched; a method that has members of its own (one, if it is deterministic) gives these.
    """
    if members == 1:
        raise ConfigError(
            "one member has no fair CRPS and no spread: ask for two or more (a deterministic method gives its one "
            "member whatever is asked for)",
            key="--members",
        )
    if code is not None:
        check_code(out, code, fingerprint(["relent.tasks.ensemble_forecast.rollout"]))
    limit_threads(threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    import torch

    from relent.tasks.ensemble_forecast.rollout import Request, forecast_run

    torch.set_num_threads(threads)
    request = Request(start, leads, members, seed, every, keep_bits)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    click.echo(forecast_run(run, out, request, batch=batch, device=device, dataset=dataset))
