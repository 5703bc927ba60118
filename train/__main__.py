"""`python -m train FILE section.key=value ...`: what `ldm train` does, for launchers that start several processes.

accelerate launch --num_processes 2 -m train FILE.yaml run.steps=2000
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence

from ldm.config import find, load
from ldm.errors import LdmError
from train.config import RunFile
from train.processes import leave
from train.run import finished, opened
from train.signals import Stop, Stopped, resume_command

log = logging.getLogger("train")
USAGE = "usage: python -m train FILE.yaml [section.key=value ...]   (ldm train has bars, forecasts and reports)"
PAUSE = 10.0  # seconds between two lines about a cache that is filled


def main(argv: Sequence[str]) -> int:
    """The exit status: that of the error, 143 or 130 when it was stopped."""
    if not argv or argv[0].startswith("-"):
        sys.stderr.write(f"{USAGE}\n")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO if first else logging.ERROR)
    begun = False
    try:
        settings = load(find(argv[0]), RunFile, argv[1:])
        if (step := finished(settings)) is not None:
            log.info("finished already: %d steps are done; the model is in %s", step, settings.run.out / "model")
            return 0
        with Stop() as stop, opened(settings, stop=stop, progress=ready()) as run:
            begun = True
            for done in run.steps():
                if done.step % settings.run.log == 0:
                    log.info("step %d/%d: %s", done.step, settings.run.steps, told(done.figures))
    except Stopped as stopped:
        if not begun:  # else the trainer has said so
            log.warning("Stopped before the first step; what was done is safe. Go on with: %s", resume_command())
        return int(stopped.code or 143)
    except LdmError as error:
        sys.stderr.write(f"error: {error}\n")
        return int(error.code)
    finally:
        leave()
    return 0


def ready() -> Callable[[str, int, int], None]:
    """Tells now and then of what is made ready before the first step."""
    last = time.monotonic() - PAUSE

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PAUSE:
            last = time.monotonic()
            log.info("%s: %d of %d are made ready", what, done, total)

    return tell


def told(figures: object) -> str:
    """Losses in a line."""
    pairs = figures.items() if isinstance(figures, dict) else ()
    return ", ".join(f"{name} {value:.4g}" for name, value in pairs if name.rpartition("/")[2] == "loss")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
