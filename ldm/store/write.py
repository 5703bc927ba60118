"""Writes weights and models: staged beside the goal, synced, renamed; nothing is ever overwritten.

A safetensors file is streamed tensor by tensor, so saving a mapped model needs no second copy of it. Its metadata holds
`modelspec.hash_sha256` of the data, by which a later flip of a bit is found (`check_content`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.store.find import PEFT_CONFIG, PEFT_WEIGHTS
from ldm.store.header import HASH, read_header
from ldm.store.weights import TORCH

_NAMES = {dtype: name for name, dtype in TORCH.items()}
_ELSEWHERE = "Choose another folder or name."
_DENIED = "Choose a folder that you may write into, or change its permissions."
_REMEDIES = {
    errno.ENOSPC: "Free some space, or choose a folder on another disk.",
    errno.EDQUOT: "Free some space, or choose a folder on another disk.",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: "Choose a folder on a disk that can be written.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextmanager
def staged(goal: Path) -> Iterator[Path]:
    """A path beside `goal` to build a file or a folder at; renamed to `goal` when all of it is on the disk."""
    if "\0" in str(goal):  # the system raises no OSError for it
        raise _unwritten(goal, OSError(errno.EINVAL, "the name holds a NUL character"))
    refuse_existing(goal)
    stage = goal.with_name(f".{goal.name}.tmp-{os.getpid()}")
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        remove(stage)
        yield stage
        for path in [*sorted(stage.rglob("*")), stage] if stage.is_dir() else [stage]:
            sync(path)
        refuse_existing(goal)  # somebody else was faster
        stage.rename(goal)
        sync(goal.parent)
    except OSError as error:
        raise _unwritten(goal, error) from error
    finally:
        with contextlib.suppress(OSError):  # where nothing could be written there is nothing to remove
            remove(stage)


def free(wish: Path) -> Path:
    """The path, or the first of NAME-2, NAME-3, ... that is not there: nothing is overwritten."""
    names = itertools.chain([wish], (wish.with_name(f"{wish.name}-{i}") for i in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


def refuse_existing(goal: Path) -> None:
    """For whoever works long before it writes: what is in the way is said first."""
    if os.path.lexists(goal):
        what, why = f"{goal} exists already.", "Nothing is ever overwritten."
        raise LdmError(Code.FILE, what, why, "Choose another name, or remove it first.")


def _unwritten(goal: Path, error: OSError) -> LdmError:
    """Why nothing is at `goal`, with the remedy for that cause; the staged name beside it is no concern of a user."""
    blocking = next((p for p in goal.parents if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        why, fix = f"{blocking} is a file, not a folder.", "Choose a folder to write into."
    else:
        why, fix = f"The system says: {error.strerror or error}.", _REMEDIES.get(error.errno or 0, _ELSEWHERE)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return LdmError(Code.RESOURCE if full else Code.FILE, f"{goal} could not be written.", why, fix)


def remove(path: Path) -> None:
    """A file, a link or a whole folder; fine where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """What was written to a file, or which names a folder has, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, fed: Any = None
) -> None:
    """Streams tensors into a new safetensors file, widest type first so that each is aligned; all must be finite.

    A hash object `fed` gets every byte of the file; then the file carries no hash of its own, which saves a pass.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    digest = hashlib.sha256()
    header: dict[str, object] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        _check_finite(name, tensor)
        if fed is None:
            digest.update(_bytes(tensor))
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    told = {"format": "pt", **(metadata or {})} | ({HASH: f"0x{digest.hexdigest()}"} if fed is None else {})
    text = json.dumps({"__metadata__": told, **header}, ensure_ascii=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        parts = (_bytes(tensors[name]) for name in order)
        for data in itertools.chain([memoryview(len(text).to_bytes(8, "little") + text)], parts):
            file.write(data)
            if fed is not None:
                fed.update(data)


def write_peft(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A new folder that peft opens: weights, and a configuration where alone their rank and alpha are told."""
    folder.mkdir(parents=True)
    write_weights(folder / PEFT_WEIGHTS, tensors, metadata)
    (folder / PEFT_CONFIG).write_text(metadata["lora_adapter_metadata"] + "\n", "utf-8")


def _check_finite(name: str, tensor: Tensor) -> None:
    """By the extremes, which NaN and infinities always reach: seven times as fast as asking each number."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    quick = tensor.element_size() > 1  # eight-bit floats have no extremes
    if not torch.isfinite(torch.stack(torch.aminmax(tensor.detach())) if quick else tensor).all():
        raise LdmError(
            Code.NUMERIC,
            f"The tensor {name} holds numbers that are not finite.",
            "Such weights give black pictures, so they are not saved.",
            "Go back to the last good weights.",
        )


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def check_content(path: str | Path) -> str | None:
    """Compares the data of a file with the hash in its metadata: raises when they differ, None when it has none."""
    path = Path(path)
    header = read_header(path)
    said = header.metadata.get(HASH, "").removeprefix("0x")
    if not said:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(header.start)
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != said:
        raise LdmError(
            Code.FILE,
            f"{path} is damaged.",
            f"Its data has the sha256 {digest.hexdigest()[:12]}..., its metadata says {said[:12]}....",
            "Fetch or copy the file again.",
        )
    return said
