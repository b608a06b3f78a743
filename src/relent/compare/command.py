"""The steps of a comparison as the command line calls them: files in, files out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relent.compare.claims import check_claims
from relent.compare.results import RunResult, read_run
from relent.compare.statistics import check_comparable, compare
from relent.errors import DataError
from relent.files import read_json, whole, write_json
from relent.manifest.models import Method, Task

LabelledRuns = Sequence[tuple[Path | str, str]]
"""Run folders with their labels (`method` or `method:variant`)."""


def _read(runs: LabelledRuns) -> list[RunResult]:
    return [read_run(folder, label) for folder, label in runs]


def run_compare(
    task: Task, runs: LabelledRuns, confidence: float, out: Path | str, methods: Mapping[str, Method] | None = None
) -> dict[str, Any]:
    """Write `comparison.csv` and `comparison.json` into `out`; returns the latter's content.

    Raises:
        DataError: A run is missing, not whole, or may not be compared with the others.
    """
    return compare(task, _read(runs), confidence, Path(out), methods)


def run_claims(
    task: Task, methods: Mapping[str, Method], runs: LabelledRuns, confidence: float, out: Path | str
) -> list[dict[str, Any]]:
    """Write `claims.json` into `out`; returns its content.

    Raises:
        DataError: A run is missing, not whole, or may not be compared with the others.
    """
    claims = check_claims(task, methods, _read(runs), confidence)
    write_json(Path(out) / "claims.json", claims)
    return claims


def run_figures(task: Task, runs: LabelledRuns, out: Path | str) -> dict[str, str]:
    """Draw the comparison's figures into `out/figures`, which is replaced as a whole; returns file name → caption.

    Raises:
        DataError: A run is missing, not whole or may not be compared, or a captioned figure was not drawn.
    """
    results = _read(runs)
    check_comparable(task, results)
    draw = importlib.import_module(f"relent.tasks.{task.kind}.comparison").draw
    with whole(Path(out) / "figures") as folder:
        folder.mkdir()
        captions: dict[str, str] = draw(results, folder)
        for name in captions:
            if not (folder / name).is_file():
                raise DataError(f"relent.tasks.{task.kind}.comparison.draw captions {name!r} but did not draw it")
        write_json(folder / "captions.json", captions)
    return captions


def run_page(folder: Path | str) -> Path:
    """Write `comparison.html` from the `comparison.json`, `claims.json` and `figures` in a comparison's folder.

    Raises:
        DataError: One of them is missing or not whole.
    """
    from relent.compare.page import write_page

    folder = Path(folder)
    comparison, claims = read_json(folder / "comparison.json"), read_json(folder / "claims.json")
    return write_page(comparison, claims, folder / "figures", folder / "comparison.html")


def run_track(
    runs: Sequence[Path | str],
    comparisons: Sequence[Path | str],
    uri: str,
    artifacts: Path | str | None,
    receipt: Path | str,
    overviews: Sequence[Path | str] = (),
) -> dict[str, Any]:
    """Replay runs, comparisons and overviews into MLflow, one experiment a task or group; returns the receipt.

    Args:
        runs: Run folders.
        comparisons: Comparison folders.
        uri: MLflow tracking address.
        artifacts: Folder of artifacts beside a local store; a server uses its own.
        receipt: The JSON file of counts.
        overviews: Folders of groups.

    Raises:
        DataError: A run is missing or not whole.
        RelentError: The store or server cannot be used.
    """
    from relent.track.replay import replay_all

    folders = ([Path(folder) for folder in group] for group in (runs, comparisons, overviews))
    runs, comparisons, overviews = folders
    return replay_all(runs, comparisons, uri, artifacts, Path(receipt), overviews)
