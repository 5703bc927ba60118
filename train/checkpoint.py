"""Checkpoints that survive a crash: a folder that is whole and verified, or no folder at all.

    state/<step>/   model.safetensors  ema.safetensors  optimizer.safetensors  state.json  MANIFEST.json

A folder is built as `state/.tmp-<step>-<pid>`. Its files are on the disk before the manifest is written, the manifest
before the folder gets its name, and the name before anything older goes: whenever the power fails, what bears a final
name is complete. Which checkpoint is the newest is read from manifests, never from names. Only safetensors and JSON are
read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.store.header import printable, read_header
from ldm.store.shards import read_json
from ldm.store.weights import load_weights
from ldm.store.write import remove, sync, write_weights
from train.disk import check_owner, discard, put, sweep

log = logging.getLogger("train.checkpoint")
FORMAT = "ldm-state-1"
PARTS = ("model", "ema", "optimizer")
FILES = (*(f"{part}.safetensors" for part in PARTS), "state.json")
MANIFEST = "MANIFEST.json"
SPARE = 1.2  # room asked for, as a multiple of what is written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DAMAGED = "Remove that folder; an older checkpoint is used where there is one."


@dataclass(frozen=True, eq=False)
class State:
    """Everything that a run is after `step` steps: named tensors of its networks, their averages and its optimisers."""

    step: int
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)  # plain JSON: counters, scales, learning rates

    def part(self, name: str) -> Mapping[str, Tensor]:
        return {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}[name]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of: size and SHA-256 of each file, the step, and the hash of the run's settings."""

    step: int
    config: str
    files: Mapping[str, tuple[int, str]]

    def text(self) -> str:
        files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(self.files.items())}
        told = {"format": FORMAT, "step": self.step, "config": self.config, "files": files}
        return json.dumps(told, indent=2) + "\n"


def save_state(run_folder: Path, state: State, keep: int, config_hash: str) -> Path:
    """Writes `state/<step>/` and then removes all but the `keep` newest; a failure leaves what was there as it was."""
    states = Path(run_folder) / "state"
    goal = states / str(state.step)
    if _is_saved(goal, state.step, config_hash):
        return goal
    stage = states / f".tmp-{state.step}-{os.getpid()}"
    try:
        states.mkdir(parents=True, exist_ok=True)
        sweep(run_folder)
        _check_room(states, state)
        stage.mkdir()
        _fill(stage, state, config_hash)
        put(stage, goal)  # what is there is damaged, or of other settings: `_is_saved` said so
    except OSError as error:
        raise _unwritten(states, state, error) from error
    except LdmError as error:
        if error.code is Code.NUMERIC:
            raise _not_finite(run_folder, state.step, error) from None
        raise
    finally:
        with contextlib.suppress(OSError):
            remove(stage)
    for old in _older(run_folder, state.step)[keep:]:
        try:
            discard(old)
        except OSError as error:
            log.warning("%s cannot be removed: %s", old, error.strerror or error)
    return goal


def newest_state(run_folder: Path) -> Path | None:
    """The checkpoint of the highest step that verifies, byte by byte. None: there is none yet. Damaged ones are passed
    over with a warning; that all are damaged is an error, since starting anew would lose the run without a word."""
    found = None
    for path in candidates(run_folder):
        try:
            verify(path)
            return path
        except LdmError as error:
            if error.code is Code.REFUSED:
                raise
            log.warning("%s is passed over: %s %s", path, error.what, error.why)
            found = found or path
    if found is not None:
        raise LdmError(
            Code.FILE,
            f"No checkpoint in {found.parent} can be used.",
            f"All of them are damaged; the newest is {found.name}.",
            f"Restore {found.parent} from a copy, or remove it to start again at step 0.",
        )
    return None


def candidates(run_folder: Path) -> list[Path]:
    """Folders that claim to be checkpoints, the highest step first; before them those that cannot say which step."""
    states = Path(run_folder) / "state"
    steps: list[tuple[int, str, Path]] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in states.iterdir():
            if path.name.startswith(".") or not path.is_dir():
                continue
            if any(os.path.lexists(path / name) for name in (*FILES, MANIFEST)):
                with contextlib.suppress(LdmError):
                    steps.append((read_manifest(path).step, path.name, path))
                    continue
                steps.append((sys.maxsize, path.name, path))
    return [path for *_, path in sorted(steps, reverse=True)]


def verify(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all there, ours, and hash to what it says."""
    folder = Path(folder)
    _check_ours(folder, stat.S_ISDIR)
    manifest = read_manifest(folder)
    for name, (size, digest) in manifest.files.items():
        path = folder / name
        _check_ours(path, stat.S_ISREG)
        try:
            found, told = path.stat().st_size, ""
            if found == size:
                told = _sha256(path)
        except OSError as error:  # a bad block, or no right to read
            raise _damaged(folder, f"{name} cannot be read ({error.strerror}).") from None
        if found != size:
            raise _damaged(folder, f"{name} has {found} bytes, and the manifest says {size}.")
        if told != digest:
            raise _damaged(folder, f"{name} has the sha256 {told[:12]}..., and the manifest says {digest[:12]}....")
    state = _read_state(folder)
    if (state["step"], state["config"]) != (manifest.step, manifest.config):
        raise _damaged(folder, "MANIFEST.json and state.json contradict each other.")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest, in exactly the bytes in which it was written; nothing is said about the files it names."""
    path = folder / MANIFEST
    _check_ours(path, stat.S_ISREG)
    try:
        told = read_json(path, 100_000)
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in told["files"].items()}
        manifest = Manifest(told["step"], told["config"], files)
        whole = set(files) == set(FILES) and type(manifest.step) is int and manifest.step >= 0
        whole = whole and path.read_text("utf-8") == manifest.text()
    except (LdmError, KeyError, TypeError, AttributeError, ValueError, OSError):
        whole = False
    if not whole:
        raise _damaged(folder, f"{MANIFEST} is cut, changed, or of another program.")
    return manifest


def load_state(path: Path) -> State:
    """A checkpoint, verified and read into memory: it may be pruned while its tensors are in use."""
    path = Path(path)
    verify(path)
    return read_state(path)


def read_state(path: Path) -> State:
    """As `load_state`, for a folder that has just been verified: hashing several gigabytes twice takes seconds."""

    def part(name: str) -> dict[str, Tensor]:
        weights = load_weights(path / f"{name}.safetensors")
        return {key: weights[key].clone() for key in weights}

    told = _read_state(path)
    return State(told["step"], part("model"), part("ema"), part("optimizer"), told["meta"])


def check_fits(
    where: Path, part: str, saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor], told: str = ""
) -> None:
    """Every tensor that is wanted is saved with its shape, and none is left over; else the first five that differ."""
    lines = [
        f"{printable(name)}: checkpoint {_shape(saved.get(name))}, run {_shape(wanted.get(name))}"
        for name in dict.fromkeys([*wanted, *saved])
        if _shape(saved.get(name)) != _shape(wanted.get(name))
    ]
    if lines:
        count = len({*wanted, *saved})
        raise LdmError(
            Code.MODEL,
            f"{where} holds another architecture: {len(lines)} of {count} tensors of its {part} differ.",
            f"First differences: {'; '.join(lines[:5])}.{f' This run: {told}.' if told else ''}",
            "Choose another run.out, or put back the architecture that this run began with.",
        )


def _fill(stage: Path, state: State, config_hash: str) -> None:
    """The files, each on the disk, and then the manifest."""
    files: dict[str, tuple[int, str]] = {}
    for part in PARTS:
        path, digest = stage / f"{part}.safetensors", hashlib.sha256()
        write_weights(path, state.part(part), {"ldm.step": str(state.step)}, fed=digest)
        files[path.name] = read_header(path).size, digest.hexdigest()  # our own limits (names, counts) hold on reading
    told = {"step": state.step, "config": config_hash, "meta": dict(state.meta)}
    try:
        text = json.dumps(told, indent=1, allow_nan=False)
    except ValueError:
        raise LdmError(Code.NUMERIC, "state.json would hold numbers that are not finite.", "", "") from None
    (stage / "state.json").write_text(text + "\n", "utf-8")
    files["state.json"] = (stage / "state.json").stat().st_size, _sha256(stage / "state.json")
    for name in FILES:
        sync(stage / name)
    (stage / MANIFEST).write_text(Manifest(state.step, config_hash, files).text(), "utf-8")
    sync(stage / MANIFEST)
    sync(stage)


def _read_state(folder: Path) -> dict[str, Any]:
    told = read_json(folder / "state.json", 100_000_000)
    if set(told) != {"step", "config", "meta"} or not isinstance(told["meta"], dict):
        raise _damaged(folder, "state.json does not hold exactly step, config and meta.")
    return told


def _is_saved(goal: Path, step: int, config_hash: str) -> bool:
    """Whether this very state is there already: a run that is stopped where it was resumed has nothing to write."""
    if not os.path.lexists(goal):
        return False
    try:
        manifest = verify(goal)
    except (LdmError, OSError):
        return False
    return (manifest.step, manifest.config) == (step, config_hash)


def _older(run_folder: Path, step: int) -> list[Path]:
    """Checkpoints up to `step` whose files are all there in their sizes, the newest first."""

    def whole(path: Path) -> Iterator[bool]:
        manifest = read_manifest(path)
        yield manifest.step <= step
        yield from ((path / name).stat().st_size == size for name, (size, _) in manifest.files.items())

    found = []
    for path in candidates(run_folder):
        with contextlib.suppress(LdmError, OSError):
            if all(whole(path)):
                found.append(path)
    return found


def _needed(state: State) -> int:
    """Bytes of a checkpoint, with 300 for each tensor's place in the headers."""
    tensors = [tensor for part in PARTS for tensor in state.part(part).values()]
    return 8192 + sum(300 + tensor.numel() * tensor.element_size() for tensor in tensors)


def warn_of_room(run_folder: Path, state: State) -> None:
    """Before the first step: a disk that has no room for one checkpoint would keep nothing of hours of work."""
    need, free = _room(run_folder, state)
    if free < need:
        log.warning(
            "no checkpoint fits on the disk of %s: one needs at least %s bytes, and %s are free. Free some space, or "
            "set run.out to another disk: as it is, nothing of this run can be kept",
            run_folder,
            f"{need:,}",
            f"{free:,}",
        )


def _room(folder: Path, state: State) -> tuple[int, int]:
    """Bytes that must be free before a checkpoint is written, and those that are."""
    return round(SPARE * _needed(state)), shutil.disk_usage(folder).free


def _check_room(states: Path, state: State) -> None:
    need, free = _room(states, state)
    if free < need:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _unwritten(states: Path, state: State, error: OSError) -> LdmError:
    """Why there is no checkpoint of this step, with the bytes needed and free, and what is still there."""
    full, said = error.errno in FULL, error.strerror or str(error)
    need, free = round(SPARE * _needed(state)), "an unknown number of"
    with contextlib.suppress(OSError):
        free = f"{shutil.disk_usage(states).free:,}"
    return LdmError(
        Code.RESOURCE if full else Code.FILE,
        f"The checkpoint of step {state.step} was not written into {states}: {said}.",
        f"It needs {need:,} bytes free (1.2 times its size), {free} are there. {_left(states.parent)}",
        "Free some space, lower run.keep, or move the run to another disk and set run.out."
        if full
        else "Check the folder and your right to write there; then give the same command again.",
    )


def _not_finite(run_folder: Path, step: int, error: LdmError) -> LdmError:
    return LdmError(
        Code.NUMERIC,
        f"The checkpoint of step {step} was not written. {error.what}",
        f"Nothing that is not finite is ever saved. {_left(run_folder)}",
        "Give the same command again to go on from there, with a lower optim.lr or run.precision=fp32.",
    )


def _left(run_folder: Path) -> str:
    """What a failed save has left untouched, in a sentence."""
    for path in candidates(run_folder):
        with contextlib.suppress(LdmError):
            return f"The last good checkpoint, of step {read_manifest(path).step}, is untouched."
    return "There is no earlier checkpoint."


def _check_ours(path: Path, kind: Any) -> None:
    """It is there, of this kind, no link that leads elsewhere, and ours."""
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise _damaged(path.parent, f"{path.name} cannot be read ({error.strerror}).") from None
    if not kind(mode):
        raise _damaged(path.parent, f"{path.name} is a link, or neither file nor folder as it should be.")
    check_owner(path)


def _damaged(folder: Path, why: str) -> LdmError:
    return LdmError(Code.FILE, f"The checkpoint {folder} is damaged.", why, _DAMAGED)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"[{','.join(map(str, tensor.shape))}]"
