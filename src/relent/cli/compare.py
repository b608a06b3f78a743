"""`relent compare`, `claims`, `figures`, `page`, `overview`, `track`, `summary`: from finished runs to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from relent.cli.options import CODE, catalogue_options, find
from relent.errors import nearest
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.models import Group
from relent.manifest.steps import check_code, step_code
from relent.project import CONFIG, Project

RUNS_HELP = "Run folders (results/TASK/METHOD/VARIANT/SCALE/seedN), two or more."


def labelled(catalogue: Catalogue, runs: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """Run folders with their labels."""
    pairs = []
    for folder in runs:
        if len(folder.parts) < 5 or not folder.name.startswith("seed"):
            raise click.BadParameter(
                f"{folder} is no run folder; it looks like results/TASK/METHOD/VARIANT/SCALE/seedN"
            )
        task, method, variant, scale = folder.parts[-5:-1]
        find(catalogue, "method", method)
        pairs.append(
            (folder, catalogue.label(Run(task, method, variant, scale, int(folder.name.removeprefix("seed")))))
        )
    return pairs


def _comparison_options(command: Any) -> Any:
    for option in (
        click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path)),
        click.argument("task"),
        CODE,
    ):
        command = option(command)
    return catalogue_options(command)


CONFIDENCE = click.option(
    "--confidence", default=0.95, show_default=True, type=click.FloatRange(0.5, 1, min_open=True, max_open=True)
)


@click.command("compare")
@CONFIDENCE
@_comparison_options
def compare_command(
    task: str, runs: tuple[Path, ...], confidence: float, code: str | None, catalogue: Catalogue
) -> None:
    """Compare evaluated RUNS of TASK: paired differences over seeds, as comparison.csv and comparison.json."""
    manifest = find(catalogue, "task", task)
    check_code(catalogue.layout.comparison(task), code, step_code("compare", manifest.kind))
    from relent.compare.command import run_compare

    out = Path(catalogue.layout.comparison(task))
    run_compare(manifest, labelled(catalogue, runs), confidence, out, catalogue.methods)
    click.echo(f"{out}/comparison.csv\n{out}/comparison.json")


@click.command("claims")
@CONFIDENCE
@_comparison_options
def claims_command(
    task: str, runs: tuple[Path, ...], confidence: float, code: str | None, catalogue: Catalogue
) -> None:
    """Check the methods' claims on RUNS of TASK: a verdict each, with its numbers, in claims.json."""
    manifest = find(catalogue, "task", task)
    check_code(catalogue.layout.comparison(task), code, step_code("claims", manifest.kind))
    from relent.compare.command import run_claims

    pairs = labelled(catalogue, runs)
    out = Path(catalogue.layout.comparison(task))
    for claim in run_claims(manifest, catalogue.methods, pairs, confidence, out):
        click.echo(f"{claim['verdict']:16s} {claim['method']}: {claim['text']}")


@click.command("figures")
@_comparison_options
def figures_command(task: str, runs: tuple[Path, ...], code: str | None, catalogue: Catalogue) -> None:
    """Draw the comparison's figures from RUNS of TASK, with captions."""
    manifest = find(catalogue, "task", task)
    check_code(catalogue.layout.comparison(task), code, step_code("figures", manifest.kind))
    from relent.compare.command import run_figures

    run_figures(manifest, labelled(catalogue, runs), Path(catalogue.layout.comparison(task)))


@click.command("page")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@CODE
def page_command(folder: Path, code: str | None) -> None:
    """Write comparison.html from the tables, verdicts and figures in FOLDER (results/TASK)."""
    check_code(folder / "comparison.html", code, step_code("page"))
    from relent.compare.command import run_page

    click.echo(run_page(folder))


@click.command("overview")
@click.argument("group")
@click.option("--settings", help="The group as JSON: title, tasks, goals, reference [the one in config/config.yaml].")
@CODE
@catalogue_options
def overview_command(group: str, settings: str | None, code: str | None, catalogue: Catalogue) -> None:
    """Put the comparisons of GROUP together: what to use when, as overview.html, overview.csv and overview.json."""
    out = Path(catalogue.layout.overview(group))
    check_code(out, code, step_code("overview"))
    from relent.compare.overview import run_overview

    chosen = _group(group, settings)
    folders = {task: Path(catalogue.layout.comparison(task)) for task in chosen.tasks}
    click.echo(run_overview(group, chosen, catalogue.tasks, folders, out))


def _group(name: str, settings: str | None) -> Group:
    """A group from its settings, or as the configuration file has it."""
    if settings is not None:
        return Group.model_validate_json(settings)
    groups = Project.load().config.groups
    if name not in groups:
        raise click.BadParameter(f"no group {name!r} in {CONFIG}{nearest(name, groups)}")
    return groups[name]


@click.command("track")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--comparison", "comparisons", multiple=True, type=click.Path(path_type=Path), help="results/TASK; may be repeated."
)
@click.option(
    "--overview", "overviews", multiple=True, type=click.Path(path_type=Path), help="results/GROUP; may be repeated."
)
@click.option(
    "--uri", envvar="RELENT_TRACKING_URI", required=True, help="MLflow tracking address [$RELENT_TRACKING_URI]."
)
@click.option("--artifacts", type=click.Path(path_type=Path), help="Folder of artifacts beside a SQLite store.")
@click.option("--receipt", default="results/tracking.json", show_default=True, type=click.Path(path_type=Path))
def track_command(
    runs: tuple[Path, ...],
    comparisons: tuple[Path, ...],
    overviews: tuple[Path, ...],
    uri: str,
    artifacts: Path | None,
    receipt: Path,
) -> None:
    """Replay RUNS into MLflow; doing it twice adds nothing. Give an address with a password by the variable."""
    from relent.compare.command import run_track

    run_track(runs, comparisons, uri, artifacts, receipt, overviews)


@click.command("summary")
@click.argument("names", nargs=-1)
@click.option("--results", default="results", show_default=True, help="Folder of runs.")
def summary_command(names: tuple[str, ...], results: str) -> None:
    """Say in words which method was best in each comparison, and where the report lies.

    NAMES are tasks or groups; default: all that are there.
    """
    from relent.compare.words import best_in_words
    from relent.files import read_json

    places = [Path(results) / name for name in names]
    if not names:
        places = sorted(
            path.parent for kind in ("comparison", "overview") for path in Path(results).glob(f"*/{kind}.json")
        )
    for folder in sorted(places, key=lambda place: (place / "overview.json").exists()):
        if (folder / "overview.json").exists():
            overview = read_json(folder / "overview.json")
            click.echo(f"{overview['group']}: {overview['answer']}")
            click.echo(f"  {folder}/overview.html")
        else:
            click.echo(best_in_words(read_json(folder / "comparison.json")))
            click.echo(f"  {folder}/comparison.html")
