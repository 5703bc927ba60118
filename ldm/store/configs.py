"""The configurations that ship with the package: found from a checkout and from an installed wheel alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from ldm.store.shards import read_json

_PACKAGE = Path(__file__).resolve().parent.parent


def config_path(name: str) -> Path:
    """`configs/NAME`, with or without its suffix: in the wheel it lies in `ldm/configs`, in a checkout beside `ldm`."""
    for root in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        for suffix in ("", ".json", ".yaml"):
            path = root / f"{name}{suffix}"
            if path.exists() and path.resolve().is_relative_to(root.resolve()):
                return path
    raise LdmError(
        Code.USAGE,
        f"There is no configuration '{name}'.",
        "Nothing of that name ships with this package.",
        "Use one of those under configs/.",
    )


def family_config(family: str, part: str) -> dict[str, Any]:
    """The shipped configuration of a part (unet, vae, text_encoder, text_encoder_2, scheduler) of a known family."""
    file = "scheduler_config.json" if part == "scheduler" else "config.json"
    return read_json(config_path(f"models/{family}") / part / file)
