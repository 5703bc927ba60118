"""The process of a training: behind the server, never after it. python -m app.server.learning.child PARENT WORDS..."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from threading import Thread

LOOK = 1.0  # seconds between two looks whether the server is still there
NICE = 10  # the server draws while it trains
EXPENDABLE = 500  # of 1000, to the system


def main() -> None:
    parent, words = int(sys.argv[1]), sys.argv[2:]
    with contextlib.suppress(AttributeError, OSError):  # a system without, or that does not allow it
        os.nice(NICE)
    with contextlib.suppress(OSError):  # where memory runs out, the training ends, and not the server
        Path("/proc/self/oom_score_adj").write_text(str(EXPENDABLE), "ascii")
    Thread(target=watch, args=(parent,), daemon=True).start()
    sys.argv = ["ldm", *words]
    from app.entry import main as run

    run()


def watch(parent: int) -> None:
    """A server that was killed tells nobody; its children are given to another process. Then what was learned is saved,
    and this process ends."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
