"""Time stamps that agree with what files say: a copied results tree is neither trained again nor wrongly kept.

Snakemake runs a job whose input is younger than its output. After a copy or a jump of the clock, ages say nothing; the
files do: `config.json` and `scores.json` hold the plan that they were made by and a digest of each input that was read.
Where these are what the configuration asks for, the outputs are dated not before their inputs; where they are not, the
output is dated back to 1970, so that it is made again even if Snakemake's own records (`.snakemake/`) were not copied.
Nothing but time stamps is changed.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relent.errors import DataError
from relent.files import mark_digest, read_json
from relent.manifest.paths import RUN_FILES, Layout

if TYPE_CHECKING:
    from relent.project import Project
    from relent.runspec import RunSpec

_OUTDATED = 1_000_000_000
"""One second after 1970 in nanoseconds: Snakemake takes zero for a file that is not there."""


def settle(project: Project) -> None:
    """Bring the time stamps of everything that the comparisons read and make into the order of the workflow."""
    stamps = _Stamps(project)
    for comparison in project.comparisons:
        stamps.dataset(comparison.task, comparison.scale)
        for teacher in project.used_teachers(comparison):
            stamps.stage(project.catalogue.teacher_spec(comparison.task, teacher, comparison.scale), "outputs.zarr")
        for run in comparison.runs:
            for name in project.catalogue.methods[run.method].stages:
                stamps.stage(project.catalogue.stage_spec(run, name), "predictions.zarr")
            stamps.scores(project.catalogue.stage_spec(run))
        stamps.page(Path(project.layout.comparison(comparison.task)))


@dataclass
class _Stamps:
    """Decides for one project; the digests of its marks are read once."""

    project: Project
    now: int = field(default_factory=time.time_ns)

    def __post_init__(self) -> None:
        self.digest = cache(mark_digest)

    def dataset(self, task: str, scale: str) -> None:
        """Receipts: of the sources, then of the data set that was prepared from them."""
        layout, manifest = self.project.layout, self.project.catalogue.tasks[task]
        sources = [Path(layout.source(source), "receipt.json") for source in manifest.sources]
        receipt = Path(layout.dataset(task, scale), "receipt.json")
        for path in filter(Path.is_file, [*sources, receipt]):
            _date(path, min(_stamp(path), self.now))
        held = _held(receipt)
        if held and held.get("plan"):
            valid = held["plan"] == self.project.catalogue.data_plan(manifest, scale)
            self._decide(valid, sources, [receipt, Path("logs", "prepare", task, f"{scale}.tsv")])

    def stage(self, spec: RunSpec, outputs: str) -> None:
        """The files of one training."""
        folder = Path(spec.output)
        held = _held(folder / "config.json")
        if held and held.get("read"):
            marks = {name: Path(Layout.mark(folder, name)) for name, folder in spec.inputs.items()}
            valid = held["plan"] == spec.plan() and self._reads(held["read"], marks)
            files = [folder / name for name in (*RUN_FILES, outputs)]
            self._decide(valid, marks.values(), [*files, _benchmark(spec)])

    def scores(self, spec: RunSpec) -> None:
        """Scores and figures of one run."""
        folder = Path(spec.output)
        held = _held(folder / "scores.json")
        if held and held.get("read"):
            marks = {k: Path(v) for k, v in self.project.evaluation_inputs(spec.task, spec.scale).items()}
            marks["run"] = folder / "config.json"
            valid = held["code"] == self.project.step_code(spec.task, "evaluate") and self._reads(held["read"], marks)
            files = [folder / "scores.json", folder / "figures", _benchmark(spec, "evaluate")]
            inputs = [*marks.values(), folder / "predictions.zarr"]
            self._decide(valid, inputs, files)

    def page(self, folder: Path) -> None:
        """The page holds its figures; a folder has no checksum by which Snakemake could know that they are these."""
        page, figures = folder / "comparison.html", folder / "figures"
        made = min(filter(None, map(_stamp, (page, Path("logs", "page", f"{folder.name}.tsv")))), default=0)
        if page.is_file() and _stamp(figures) > made:
            text = page.read_text(encoding="utf-8")
            if all(base64.b64encode(png.read_bytes()).decode() in text for png in figures.glob("*.png")):
                _date(figures, made)

    def _reads(self, read: dict[str, str], marks: dict[str, Path]) -> bool:
        return read.keys() == marks.keys() and all(self.digest(path) == read[name] for name, path in marks.items())

    def _decide(self, valid: bool, inputs: Iterable[Path], outputs: list[Path]) -> None:
        """Date what is valid between its inputs and now, and what is not back to 1970."""
        if not valid:
            _date(outputs[0], _OUTDATED)
            return
        youngest = max(map(_stamp, inputs), default=0)
        for path in outputs:
            stamp = _stamp(path)
            if stamp and not youngest <= stamp <= self.now:
                _date(path, max(youngest, min(stamp, self.now)))


def _benchmark(spec: RunSpec, step: str = "") -> Path:
    """What Snakemake measured of a job: it counts the file among the job's outputs when it asks for their age."""
    if spec.stage == "teacher":
        return Path("logs", "teacher", spec.task, Path(spec.output).parent.name, f"{spec.scale}.tsv")
    step = step or ("student" if spec.final else "stage")
    run = Path("logs", step, spec.task, spec.method, spec.variant, spec.scale)
    return run / (f"seed{spec.seed}/{spec.stage}.tsv" if step == "stage" else f"seed{spec.seed}.tsv")


def _held(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None where there is none or it is not whole (the job that reads it says so)."""
    try:
        content = read_json(path)
    except DataError:
        return None
    return content if isinstance(content, dict) else None


def _dated(path: Path) -> Path:
    """What Snakemake looks at: a folder's age is that of a file in it."""
    marker = path / ".snakemake_timestamp"
    return marker if marker.is_file() else path


def _stamp(path: Path) -> int:
    try:
        return _dated(path).stat().st_mtime_ns
    except OSError:
        return 0


def _date(path: Path, stamp: int) -> None:
    """Set a time stamp; one that may not be set (somebody else's file) is left, and Snakemake decides by it."""
    with suppress(OSError):
        if path.exists() and _stamp(path) != stamp:
            os.utime(_dated(path), ns=(stamp, stamp))
