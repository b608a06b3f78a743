"""How a run is asked to stop (SIGTERM of SLURM, SIGINT of the keyboard), and how all its processes agree to."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import distributed

from relent.errors import StoppedError
from relent.runspec import RunSpec

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AGREE_EVERY = 0.5
"""Seconds between two agreements of several processes."""
MOST_BATCHES = 100
"""Batches between two agreements, at most: later ones may be much slower than those that were timed."""


class Stop:
    """Turns signals into a request that training answers between two batches.

    While `training` is false (data are read, outputs are written) the request is answered at once, by an exception: all
    that is written is written by rename. So is a second SIGINT: who presses Ctrl-C twice does not want to wait.

    Args:
        spec: The run, for messages.
    """

    def __init__(self, spec: RunSpec):
        self.spec = spec
        self.training = False
        self.signal: signal.Signals | None = None
        self.kept: dict[signal.Signals, Any] = {}
        self.group: Any = None
        self.batches, self.stride, self.since = 0, 1, time.monotonic()

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self.kept = {number: signal.signal(number, self._asked) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.kept.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        again = self.signal is signal.SIGINT
        self.signal = signal.Signals(number)
        if not self.training or (again and self.signal is signal.SIGINT):
            raise self.error("; give the same command to go on")

    def error(self, what: str) -> StoppedError:
        """The error that ends the run; `what` says what is left of it."""
        # Where another process was asked, this one ends as if it had been.
        number = self.signal or signal.SIGTERM
        return StoppedError(f"{self.spec.output}: stopped by {number.name}{what}", 128 + number)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """An error that follows from the end of another process, which was asked to stop too, is told as such."""
        try:
            yield
        except RuntimeError as error:
            if self.signal is None or self.spec.processes == 1:
                raise
            raise self.error("; another process had ended before; give the same command to go on") from error

    def asked(self) -> bool:
        """Whether any process of the run was asked to stop; all of them call this at the same places."""
        return self.largest(int(self.signal is not None)) != [0]

    def asked_between_batches(self) -> bool:
        """The same for a place that is passed often: there several processes ask each other every half second.

        How many batches that are is part of what they agree on.
        """
        self.batches += 1
        if self.spec.processes > 1 and self.batches < self.stride:
            return False
        pace = self.batches / max(time.monotonic() - self.since, 1e-6)
        proposed = min(max(1, int(AGREE_EVERY * pace)), MOST_BATCHES)
        asked, self.stride = self.largest(int(self.signal is not None), proposed)
        self.batches, self.since = 0, time.monotonic()
        return bool(asked)

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over all processes."""
        if self.spec.processes == 1:
            return list(values)
        if self.group is None:
            # On the CPU, so that asking never waits for what a GPU still has to do.
            self.group = distributed.new_group(backend="gloo")
        agreed = torch.tensor(values)
        distributed.all_reduce(agreed, distributed.ReduceOp.MAX, self.group)
        return [int(value) for value in agreed]
