"""A further process of a run, started by the first one: it is told by its standard input, and writes nothing."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path


def main() -> None:
    """Read what to do, train, end. The end of standard input is the end of the first process, and of this one."""
    message = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_first_process, daemon=True).start()
    from relent.errors import RelentError, StoppedError
    from relent.runspec import RunSpec
    from relent.train.processes import Processes
    from relent.train.stage import run_process
    from relent.train.stopping import Stop

    spec, resume = RunSpec(**message["spec"]), message["resume"]
    processes = Processes(*message["place"])
    status = 0
    try:
        with Stop(spec) as stop:
            run_process(spec, processes, stop, message["threads"], Path(resume) if resume else None)
    except StoppedError as stopped:
        status = stopped.status
    except RelentError as error:
        print(f"relent: process {processes.rank}: {error}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_with_the_first_process() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
