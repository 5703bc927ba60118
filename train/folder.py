"""A run's folder: one writer, one configuration, one log in which each step stands once, and checkpoints to go on from.

    config.yaml   log.jsonl   previews/<step>/<name>.png   state/<step>/   model/   .lock

All processes of a run may hold one; only the first of them (`writer`) locks and writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from ldm.config import dump, loads
from ldm.errors import Code, LdmError
from ldm.images import from_rgb, save_image
from ldm.images.picture import from_tensor
from ldm.store.write import remove, sync
from train.checkpoint import FULL, State, check_fits, newest_state, read_manifest, read_state, save_state
from train.disk import check_owner, put, sweep
from train.lock import Lock

log = logging.getLogger("train.folder")
OURS = ("config.yaml", "log.jsonl", "previews", "state", "model")
# What may change when a run goes on: how long, how fast, on what, what is written and how often. All else is the run.
FREE = (
    *(f"run.{key}" for key in ("out", "steps", "micro", "precision", "device", "threads", "compile")),
    *(f"run.{key}" for key in ("checkpointing", "sharding")),
    *(f"run.{key}" for key in ("save", "keep", "preview", "evaluate", "log", "cache", "trackers")),
    *(f"optim.{key}" for key in ("lr", "muon_lr", "weight_decay", "warmup", "decay", "decay_from", "floor", "clip")),
    *(f"data.{key}" for key in ("workers", "prefetch", "memory", "index")),
)
Record = Mapping[str, Any]


class RunFolder:
    """`with RunFolder(path, settings) as folder:` holds the lock, and has refused what belongs to another run.

    `settings` is the whole run file as a record; without it (tests, small loops) no configuration is kept or compared.
    """

    def __init__(
        self, path: Path | str, settings: BaseModel | None = None, *, writer: bool = True, begins: bool = True
    ) -> None:
        self.path, self.settings, self.writer = Path(path), settings, writer
        self.begins = begins  # whether steps follow; else the configuration is compared, and stays as it is
        self.config_hash = _hash(settings)
        self._lock: Lock | None = None
        self._log: int | None = None

    @property
    def log_path(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def __enter__(self) -> RunFolder:
        if self._lock is None and self.writer:
            _make(self.path)
            check_owner(self.path)
            self._lock = Lock(self.path).__enter__()
            try:
                self._begin()
            except OSError as error:
                self.close()
                raise _unusable(self.path, error) from error
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._close_log()
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None

    def resume(self, **wanted: Mapping[str, Tensor]) -> State | None:
        """The newest checkpoint that verifies, or None: a new run. Log lines of steps that are done again are cut off.

        `wanted` names tensors that the run has, by part (model, ema, optimizer): another architecture is refused.
        """
        path = newest_state(self.path)
        if path is not None and self.config_hash and read_manifest(path).config not in ("", self.config_hash):
            raise LdmError(
                Code.USAGE,
                f"The checkpoint {path} belongs to another run.",
                "It was written with another task, data, seed or batch than config.yaml beside it says.",
                "Put back the config.yaml that was there, or choose another run.out.",
            )
        state = None if path is None else read_state(path)
        if path is not None and state is not None:
            told = self._architecture()
            for part, tensors in wanted.items():
                check_fits(path, part, state.part(part), tensors, told)
        if self.writer:
            self._close_log()  # a new file may take its place
            try:
                trim_log(self.log_path, 0 if state is None else state.step)
            except OSError as error:
                raise _unusable(self.path, error) from error
        return state

    def save(self, state: State, keep: int) -> Path | None:
        """A checkpoint; the log up to it is on the disk before it is. Not the writer: nothing happens."""
        if not self.writer:
            return None
        if self._log is not None:
            with contextlib.suppress(OSError):  # of a full disk: what matters is the checkpoint, which tells by itself
                os.fsync(self._log)
        return save_state(self.path, state, keep, self.config_hash)

    def log(self, record: Record) -> None:
        """Appends one line; it must hold `step`, the number of steps that are done. A number that is not finite is
        written as null, and a full disk costs lines of the log, never the run."""
        if not self.writer:
            return
        if type(record.get("step")) is not int:
            raise ValueError(f"a line of the log names its step as a whole number, not {record.get('step')!r}")
        line = json.dumps(_plain(dict(record)), allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"
        try:
            if self._log is None:
                self._log = os.open(self.log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            _append(self._log, line.encode())
        except OSError as error:
            log.warning("%s: a line of step %s is lost (%s)", self.log_path, record["step"], error.strerror or error)

    def preview(self, step: int, name: str, pictures: Tensor) -> Path | None:
        """Pictures [n,3,H,W] in [-1,1] as one sheet, `previews/<step>/<name>.png`; a step that is done again replaces
        its own."""
        if not self.writer:
            return None
        path = self.path / "previews" / str(step) / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name) or 'preview'}.png"
        try:
            path.unlink(missing_ok=True)
            return save_image(from_rgb(sheet(pictures)), path)
        except LdmError as error:
            if error.code not in (Code.RESOURCE, Code.NUMERIC):
                raise
            log.warning("%s is left out: %s", path, error.why)  # neither a full disk nor an overflow ends a run here
            return None

    def publish(self, write: Callable[[Path], None], name: str = "model") -> Path | None:
        """Lets `write` fill a new folder, and gives it its name when all of it is on the disk; an earlier one goes.

        All processes call it, since `write` may need them all (to gather split weights); only the writer's is kept.
        """
        if not self.writer:
            write(self.path / f".tmp-{name}-{os.getpid()}")
            return None
        goal, stage = self.path / name, self.path / f".tmp-{name}-{os.getpid()}"
        try:
            remove(stage)
            write(stage)
            for path in [*sorted(stage.rglob("*")), stage]:
                sync(path)
            put(stage, goal)
        except OSError as error:
            raise LdmError(
                Code.RESOURCE if error.errno in FULL else Code.FILE,
                f"{goal} could not be written.",
                f"The system says: {error.strerror or error}. The last checkpoint is in {self.path / 'state'}.",
                "Make room or mend the folder, and give the same command again: only this is left to do.",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                remove(stage)
        return goal

    def _close_log(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _begin(self) -> None:
        """What the writer does once the lock is its own."""
        sweep(self.path, alone=True)
        if self.settings is None:
            return
        path, text = self.path / "config.yaml", dump(self.settings)
        if path.exists():
            check_owner(path)
            _check_same(path, self.settings)
            if path.read_text("utf-8") == text or not self.begins:
                return
        _replace(path, text)

    def _architecture(self) -> str:
        """The task's section in a line, for an error about tensors."""
        told = flat(self.settings) if self.settings is not None else {}
        return ", ".join(f"{key}={value}" for key, value in told.items() if key.startswith("task.") and value)[:400]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log in order; a line that was torn by a crash is left out."""
    return [record for _, record in _lines(path)]


def trim_log(path: Path, step: int) -> None:
    """Cuts off the lines of steps after `step`, which are done again, and whatever a crash has torn. They are the last
    ones, as a rule; then it needs no room on the disk."""
    kept = b"".join(raw for raw, record in _lines(path) if record["step"] <= step)
    there = path.read_bytes() if path.exists() else b""
    if there == kept:
        return
    if there.startswith(kept):
        os.truncate(path, len(kept))
    else:
        _replace(path, kept.decode())


def sheet(pictures: Tensor) -> np.ndarray:
    """Pictures [n,3,H,W] in [-1,1] side by side, in rows of about sqrt(n), as [H',W',3] in 0..1 on grey."""
    tiles = torch.from_numpy(np.stack(from_tensor(pictures)))
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = -(-len(tiles) // columns)
    empty = tiles.new_full((rows * columns - len(tiles), *tiles.shape[1:]), 0.5)
    height, width = tiles.shape[1:3]
    grid = torch.cat([tiles, empty]).view(rows, columns, height, width, 3).permute(0, 2, 1, 3, 4)
    return np.asarray(grid.reshape(rows * height, columns * width, 3).numpy())


def flat(settings: BaseModel, *, without_defaults: bool = False) -> dict[str, Any]:
    """`section.key` -> value, as JSON has it."""

    def walk(value: Any, way: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from walk(inner, f"{way}.{key}" if way else str(key))
        else:
            yield way, value

    return dict(walk(settings.model_dump(mode="json", exclude_defaults=without_defaults), ""))


def is_free(key: str) -> bool:
    """Whether a key may change when a run goes on."""
    return any(key == free or key.startswith(free + ".") for free in FREE)


def _hash(settings: BaseModel | None) -> str:
    """Of what may not change. Defaults are left out, so that a later version with more keys finds the same hash."""
    if settings is None:
        return ""
    told = {key: value for key, value in flat(settings, without_defaults=True).items() if not is_free(key)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _check_same(path: Path, settings: BaseModel) -> None:
    """The configuration that lies in the folder is of this run: what differs may change."""
    before, now = flat(loads(path.read_bytes(), type(settings), name=str(path))), flat(settings)
    other = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    fixed = [key for key in other if not is_free(key)]
    if fixed:
        lines = [f"{key}: was {_shown(before, key)}, now {_shown(now, key)}" for key in fixed[:8]]
        more = f"; and {len(fixed) - 8} more" if len(fixed) > 8 else ""
        raise LdmError(
            Code.USAGE,
            f"{path.parent} holds a run of another configuration.",
            f"These keys make a run what it is, and differ: {'; '.join(lines)}{more}.",
            "Choose another run.out for the new run, or put these values back to go on with the old one.",
        )
    for key in other:
        log.info("%s changed since the last start: was %s, now %s", key, _shown(before, key), _shown(now, key))


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False)[:60] if key in values else "absent"


def _make(path: Path) -> None:
    """The folder, if it is new, empty or a run's; one with other things in it is somebody else's."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]  # a lock is nobody's mark
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None
    if names and not set(names) & set(OURS):
        raise LdmError(
            Code.USAGE,
            f"{path} is not empty, and is not a run folder.",
            f"It holds {len(names)} other things ({', '.join(sorted(names)[:3])}), and nothing that a run wrote.",
            "Choose a new or empty folder as run.out.",
        )


def _unusable(path: Path, error: OSError | ValueError) -> LdmError:
    return LdmError(
        Code.RESOURCE if getattr(error, "errno", None) in FULL else Code.FILE,
        f"The run folder {path} cannot be used.",
        f"The system says: {getattr(error, 'strerror', None) or error}.",
        "Choose a folder that you may write into, on a disk with room, as run.out.",
    )


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Whole lines that are objects with a step, as bytes and as what they say."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for raw in file:
            with contextlib.suppress(ValueError):
                record = json.loads(raw)
                if raw.endswith(b"\n") and isinstance(record, dict) and type(record.get("step")) is int:
                    yield raw, record


def _append(file: int, data: bytes) -> None:
    """The whole line, or none of it."""
    before = os.fstat(file).st_size
    try:
        if os.write(file, data) != len(data):
            raise OSError("the disk took a part of the line only")
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file, before)
        raise


def _plain(value: Any) -> Any:
    """What JSON has words for: numbers that are not finite become null, and tensors of one element numbers."""
    if isinstance(value, Tensor | np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _replace(path: Path, text: str) -> None:
    """The new content or the old one, whatever happens."""
    stage = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with stage.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    stage.replace(path)
    sync(path.parent)
