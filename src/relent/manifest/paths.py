"""Where every file lies: the one place that knows the layout of `data/`, `teachers/` and `results/`."""

from __future__ import annotations

from dataclasses import dataclass

RUN_FILES = ("config.json", "metrics.csv", "weights.safetensors")


@dataclass(frozen=True)
class Layout:
    """Folders of a project, relative to the working directory unless absolute."""

    data: str = "data"
    teachers: str = "teachers"
    results: str = "results"

    def source(self, source: str) -> str:
        """Folder of the files of one source."""
        return f"{self.data}/sources/{source}"

    def dataset(self, task: str, scale: str) -> str:
        """Folder of a prepared data set: `dataset.zarr` and `receipt.json`."""
        return f"{self.data}/{task}/{scale}"

    def teacher(self, task: str, teacher: str, scale: str) -> str:
        """Folder of a trained teacher: `weights.safetensors`, `outputs.zarr`, `config.json`, `metrics.csv`."""
        return f"{self.teachers}/{task}/{teacher}/{scale}"

    def run(self, task: str, method: str, variant: str, scale: str, seed: int | str) -> str:
        """Folder of a run."""
        return f"{self.results}/{task}/{method}/{variant}/{scale}/seed{seed}"

    def comparison(self, task: str) -> str:
        """Folder of a task's comparison."""
        return f"{self.results}/{task}"
