"""How far a long data step is: a bar on a terminal; in a log a line now and then, and the last one."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Counts finished parts of a step and says how far it is, how fast, and when it will end.

    Args:
        what: What is done, a participle.
        total: Parts.
        unit: What the parts are.
        mb: Size of a part in MB, where a rate is of interest.
    """

    def __init__(self, what: str, total: int, unit: str, mb: float = 0.0):
        self.what, self.total, self.unit, self.mb = what, total, unit, mb
        self.done = 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        self._began = self._said = time.monotonic()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total)
        return self

    def step(self) -> None:
        """One more part is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=self.line())
            return
        now = time.monotonic()
        if self.done == self.total or now - self._said > max(5.0, (now - self._began) / 20):
            self._said = now
            print(self.line(), flush=True)

    def line(self) -> str:
        """Where it stands, in words."""
        seconds = max(time.monotonic() - self._began, 1e-6)
        left = seconds / max(self.done, 1) * (self.total - self.done)
        rate = f", {self.mb * self.done / seconds:,.0f} MB/s" if self.mb else ""
        wait = f", {left / 60:.0f} min left" if left > 60 else f", {left:.0f} s left" if self.done < self.total else ""
        return f"{self.what}: {self.done} of {self.total} {self.unit}{rate}{wait}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
