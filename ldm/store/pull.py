"""Fetches a model from the hub, only when asked to: safetensors and small texts, size and licence first, then verified.

Nothing else in this project downloads. The place is huggingface_hub's cache, so that other programs share it, and its
settings (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE) are honoured.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ldm.errors import Code, LdmError
from ldm.store.find import HUB_ID
from ldm.store.header import printable, read_header

_TEXTS = ("model_index.json", "config.json", "scheduler_config.json", "tokenizer_config.json", "tokenizer.json",
          "special_tokens_map.json", "vocab.json", "merges.txt")  # fmt: skip
T = TypeVar("T")
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "onnx", "openvino")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository: its name there, its bytes, and the hash that it must have."""

    name: str
    size: int
    sha256: str | None  # of large files
    blob: str | None  # git's sha1 of small ones


@dataclass(frozen=True)
class Plan:
    """What `pull` would fetch."""

    repo: str
    revision: str
    commit: str
    licence: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def plan(repo: str, *, revision: str = "main", variant: str | None = None, endpoint: str | None = None) -> Plan:
    """Asks the hub what there is; fetches nothing. `variant` picks weights such as "fp16"."""
    if not HUB_ID.fullmatch(repo) or ".." in repo:
        raise LdmError(
            Code.USAGE,
            f"'{printable(repo)}' is not a hub id.",
            "An id is AUTHOR/NAME, of letters, digits, dots, dashes and underscores.",
            "Copy the id from the page of the model.",
        )
    from huggingface_hub import HfApi

    _untracked()
    info = _asked(repo, lambda: HfApi(endpoint=endpoint).model_info(repo, revision=revision, files_metadata=True))
    files = [_remote(sibling) for sibling in info.siblings or []]
    chosen = _choose(repo, files, variant)
    card = info.card_data
    licence = str((card and (card.get("license_name") or card.get("license"))) or "not stated")
    return Plan(repo, revision, str(info.sha), licence, tuple(chosen))


def _remote(sibling: Any) -> RemoteFile:
    large = sibling.lfs
    return RemoteFile(sibling.rfilename, int(sibling.size or 0), large.sha256 if large else None, sibling.blob_id)


def _choose(repo: str, files: list[RemoteFile], variant: str | None) -> list[RemoteFile]:
    """Safetensors and the texts beside them; of a model folder its parts, not root checkpoints of the same weights."""
    safe = [f for f in files if _plain(f.name) and not f.name.startswith(_UNUSED)]
    folder = any(f.name == "model_index.json" for f in safe)
    weights = [
        f
        for f in safe
        if f.name.endswith((".safetensors", ".safetensors.index.json")) or ".safetensors.index." in f.name
    ]
    if folder:
        weights = [f for f in weights if "/" in f.name]
    _refuse_unknown(repo, weights, variant)
    weights = _of_variant(weights, variant)
    if not any(f.name.endswith(".safetensors") for f in weights):
        pickles = [f.name for f in files if f.name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
        raise LdmError(
            Code.REFUSED if pickles else Code.FILE,
            f"{repo} offers no safetensors weights.",
            f"It has only pickles ({pickles[0]}), which can run code."
            if pickles
            else "No file of it ends in .safetensors.",
            "Choose another repository of the same model.",
        )
    return [*(f for f in safe if PurePosixPath(f.name).name in _TEXTS), *weights]


def _plain(name: str) -> bool:
    """A name that stays below the folder of the model."""
    parts = PurePosixPath(name).parts
    return bool(parts) and name.isprintable() and ".." not in parts and parts[0] != "/" and not set(name) & set("\\:%")


def _refuse_unknown(repo: str, weights: list[RemoteFile], variant: str | None) -> None:
    """A variant that no file has is a mistake: fetching the plain files instead would hide it."""
    offered = sorted({_variant(f.name) for f in weights} - {""})
    if variant and weights and variant not in offered:
        raise LdmError(
            Code.USAGE,
            f"{repo} has no weights of the variant '{printable(variant)}'.",
            f"It offers {', '.join(map(printable, offered))}." if offered else "It offers plain weights only.",
            f"Write --variant {printable(offered[0])}, or leave it out." if offered else "Leave --variant out.",
        )


def _of_variant(weights: list[RemoteFile], variant: str | None) -> list[RemoteFile]:
    """Per folder the files of the wanted variant, or else the plain ones, or else all."""
    chosen = []
    for folder in sorted({str(PurePosixPath(f.name).parent) for f in weights}):
        here = [f for f in weights if str(PurePosixPath(f.name).parent) == folder]
        same = [f for f in here if _variant(f.name) == (variant or "")]
        plain = [f for f in here if _variant(f.name) == ""]
        chosen += same or plain or here
    return chosen


def _variant(name: str) -> str:
    """`model.fp16.safetensors` -> fp16; `model-00001-of-00002.safetensors` and `model.safetensors` -> none."""
    middle = PurePosixPath(name).name.replace(".safetensors.index", "").replace(".json", "").replace(".safetensors", "")
    _, dot, variant = middle.partition(".")
    return variant.split("-")[0] if dot and not variant[:1].isdigit() else ""


def pull(wanted: Plan, *, endpoint: str | None = None) -> Path:
    """Fetches what a plan lists, continuing where an earlier try stopped, checks each file, and returns the folder."""
    from huggingface_hub import snapshot_download

    _untracked()
    for file in wanted.files:
        if file.sha256 is not None:
            _asked(wanted.repo, partial(_large, wanted, file, file.sha256, endpoint))
    names = [file.name for file in wanted.files]
    fetch = partial(snapshot_download, wanted.repo, revision=wanted.revision, allow_patterns=names, endpoint=endpoint)
    folder = Path(_asked(wanted.repo, fetch))
    for file in wanted.files:
        verify(folder, file)
    return folder


def _untracked() -> None:
    """The library reads this switch when it is imported, maybe before our default was set; with it off, it asks the hub
    about the calling program with the first request."""
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_DISABLE_TELEMETRY", "1")  # ours, unless the user chose otherwise
    constants.HF_HUB_DISABLE_TELEMETRY = said.upper() in ("1", "ON", "YES", "TRUE")


def _large(wanted: Plan, file: RemoteFile, sha256: str, endpoint: str | None) -> None:
    """Puts a large file into the blob store of the cache, where the library finds it by its hash.

    The library's own download starts a file again after a broken run; this partial file keeps its name, and goes on.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    if constants.HF_HUB_OFFLINE:
        return  # the library says so
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{wanted.repo.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    part = blobs / f"{sha256}.ldm-partial"
    with WeakFileLock(blobs / f"{sha256}.ldm-lock"):
        if (blobs / sha256).exists():
            return
        with part.open("ab") as stream:
            url = hf_hub_url(wanted.repo, file.name, revision=wanted.commit, endpoint=endpoint)
            http_get(url, stream, resume_size=stream.tell(), headers=build_hf_headers(), expected_size=file.size)
        if _sha256(part) != sha256:
            part.unlink()
            raise _arrived_damaged(file, sha256)
        part.rename(blobs / sha256)
    (blobs / f"{sha256}.ldm-lock").unlink(missing_ok=True)


def verify(folder: Path, file: RemoteFile) -> None:
    """Size, hash and, of weights, the header; a file that fails is removed, so that the next pull fetches it again."""
    path = folder / file.name
    data_hash = _sha256(path) if file.sha256 else _git_sha1(path)
    expected = file.sha256 or file.blob
    if path.stat().st_size == file.size and (expected is None or data_hash == expected):
        if file.name.endswith(".safetensors"):
            read_header(path)
        return
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise _arrived_damaged(file, str(expected))


def _arrived_damaged(file: RemoteFile, expected: str) -> LdmError:
    return LdmError(
        Code.FILE,
        f"{file.name} arrived damaged and was removed.",
        f"It has not the {file.size} bytes with the hash {expected[:12]}... that the hub states.",
        "Run the same `ldm models pull` again.",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_sha1(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _asked(repo: str, question: Callable[[], T]) -> T:
    """The hub's many errors as one of ours."""
    try:
        return question()
    except LdmError:
        raise
    except Exception as error:  # huggingface_hub and its HTTP client raise a dozen unrelated types
        name = type(error).__name__
        whys = {
            "RepositoryNotFoundError": "the hub knows no such public model, or it needs a token",
            "GatedRepoError": "its author asks for consent first: accept it on the model's page, and set HF_TOKEN",
            "RevisionNotFoundError": "the model has no such revision",
            "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set",
        }
        why = whys.get(name, f"the hub could not be asked ({name}: {printable(str(error), 120)})")
        raise LdmError(
            Code.FILE,
            f"{repo} was not fetched.",
            f"Cause: {why}.",
            "Check the id, the connection and HF_ENDPOINT, then run the command again: it continues where it stopped.",
        ) from error
