"""What `ldm serve` needs besides the core: the extra `ui`."""

from __future__ import annotations

from importlib.util import find_spec

from ldm.errors import Code, LdmError
from ldm.extras import install

NEEDED = ("fastapi", "gradio", "multipart", "prometheus_client", "uvicorn")


def needed() -> None:
    """Says how to get what is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        why = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed."
        raise LdmError(Code.USAGE, "ldm serve needs the extra ui.", why, f"Run {install('ui')}.")
