"""Where a model is: a path, the name of a shipped one, or a hub id fetched before. Nothing is downloaded here."""

from __future__ import annotations

import re
from pathlib import Path

from ldm.errors import Code, LdmError

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"


def shipped() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(p.name for p in _PRETRAINED.iterdir() if (p / "model_index.json").is_file())


def find_model(where: str) -> Path:
    """The folder or file of a model; an error lists what there is."""
    path = Path(where).expanduser()
    if "\0" not in where and path.exists():
        return path
    if where in shipped():
        return _PRETRAINED / where
    if HUB_ID.fullmatch(where) and (found := fetched(where)) is not None:
        return found
    names = ", ".join(shipped()) or "none"
    pulled = ", ".join(fetched_ids()) or "none"
    fix = f"Run `ldm models pull {where}`" if HUB_ID.fullmatch(where) else "Check the path"
    raise LdmError(
        Code.FILE,
        f"The model '{where}' was not found.",
        f"It is no path here, no shipped model ({names}) and no fetched hub id ({pulled}).",
        f"{fix}, or use one of those names.",
    )


def fetched(repo: str) -> Path | None:
    """The snapshot of a hub id in the local cache, or None; never touches the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def fetched_ids() -> list[str]:
    """The hub ids in the local cache."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if not cache.is_dir():
        return []
    return sorted(
        p.name.removeprefix("models--").replace("--", "/", 1)
        for p in cache.glob("models--*")
        if (p / "snapshots").is_dir()
    )
