"""How to install what only some commands need: into this environment, and of this very program."""

from __future__ import annotations

import shlex
import sys


def install(extra: str) -> str:
    """The command. pip takes the ldm that is installed already, also that of a clone, and adds what the extra names."""
    return f"{shlex.quote(sys.executable)} -m pip install 'ldm[{extra}]'"
