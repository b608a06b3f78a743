"""What everybody on the machine can read of every process."""

from __future__ import annotations

import threading
from pathlib import Path


class ProcessList:
    """Looks for a secret in every command line of the machine while the block lasts."""

    def __init__(self, secret: str):
        self.secret, self.seen, self._over = secret.encode(), set[bytes](), threading.Event()

    def __enter__(self) -> ProcessList:
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:
                    continue
                if self.secret in line:
                    self.seen.add(line)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
