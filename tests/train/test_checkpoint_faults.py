"""What happens to checkpoints: full disks, failing writes, damaged, planted and foreign files; the old one stays."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm.errors import Code, LdmError
from tests.train.states import content, differences, names, state
from train.checkpoint import FILES, MANIFEST, Manifest, load_state, newest_state, read_manifest, save_state, verify
from train.disk import check_owner, sweep


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A run folder with the checkpoint of step 1."""
    save_state(tmp_path, state(1), 2, "")
    return tmp_path


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow beyond `size` bytes (EFBIG), as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Both orders of magnitude: while the first file is written, the second, and between the blocks of one.
LIMITS = [*range(0, 4000, 500), 6000, 9000, 12_000, 15_000]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_write_that_fails_leaves_the_old_one_bit_for_bit(old: Path, limit: int) -> None:
    before = content(old)
    with file_limit(limit), pytest.raises(LdmError) as caught:
        save_state(old, state(2, size=256), 1, "")
    assert caught.value.code is Code.RESOURCE
    assert "1.2 times" in caught.value.why
    assert "of step 1, is untouched" in caught.value.why
    assert content(old) == before
    assert names(old) == ["1"]
    save_state(old, state(2, size=256), 1, "")  # and the next try does it
    assert names(old) == ["2"]


@pytest.mark.parametrize("call", range(8))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_system_call_that_fails_leaves_the_old_one(
    old: Path, monkeypatch: pytest.MonkeyPatch, call: int, number: int
) -> None:
    """Each of the calls that make it last: six fsync, the rename, the folder."""
    before, seen = content(old / "state" / "1"), [0]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **others: Any) -> Any:
            seen[0] += 1
            if seen[0] == call + 1:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **others)

        return wrapped

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "rename", failing(os.rename))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    with pytest.raises(LdmError) as caught:
        save_state(old, state(2), 2, "")
    monkeypatch.undo()
    assert caught.value.code is (Code.RESOURCE if number == errno.ENOSPC else Code.FILE)
    assert content(old / "state" / "1") == before
    assert not [name for name in names(old) if name.startswith(".")]
    newest = newest_state(old)
    assert newest is not None
    assert newest.name == ("1" if call < 7 else "2")  # the eighth call syncs the folder, and the name is given already


def test_an_old_one_that_cannot_be_removed_does_not_cost_the_new_one(
    old: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    save_state(old, state(2), 1, "")
    assert newest_state(old) == old / "state" / "2"
    assert "cannot be removed" in caplog.text


def test_each_thing_is_on_the_disk_before_the_next_relies_on_it(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power failure may not reorder: data, manifest, folder, final name, and then the end of the old one."""
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(handle: int) -> None:
        fsync(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        there = "" if path.name == "state" else f", manifest {(path.parent / MANIFEST).exists()}"
        seen.append(f"sync {path.name}{there}, old {(old / 'state' / '1').exists()}")

    def renamed(source: Path, goal: Path) -> None:
        rename(source, goal)
        seen.append(f"{Path(source).name} -> {Path(goal).name}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", renamed)
    save_state(old, state(2), 1, "")
    pid = os.getpid()
    assert seen == [
        *(f"sync {name}, manifest False, old True" for name in FILES),
        f"sync {MANIFEST}, manifest True, old True",
        f"sync .tmp-2-{pid}, manifest False, old True",  # the folder itself
        f".tmp-2-{pid} -> 2",
        "sync state, old True",
        f"1 -> .tmp-old-1-{pid}",
    ]


def test_too_little_room_is_seen_before_anything_is_written(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(old)
    usage = shutil.disk_usage(old)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12_345))
    with file_limit(0), pytest.raises(LdmError) as caught:  # a write would raise EFBIG, which has other words
        save_state(old, state(2, size=256), 2, "")
    assert os.strerror(errno.ENOSPC) in caught.value.what
    needed = int(caught.value.why.split(" bytes")[0].rpartition(" ")[2].replace(",", ""))
    monkeypatch.undo()
    written = sum(p.stat().st_size for p in save_state(old, state(2, size=256), 2, "").iterdir())
    assert written <= needed / 1.2 <= 2 * written
    assert "12,345 are there" in caught.value.why
    assert {k: v for k, v in content(old).items() if k.startswith("state/1/")} == before


def test_a_full_disk_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small tmpfs, filled up by the run itself."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1800k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount")
    try:
        failed = 0
        for step in range(1, 30):
            if step == 15:  # from here on the room is gone between the question and the write
                usage = shutil.disk_usage(disk)
                monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage._replace(free=10**9))
            try:
                save_state(disk, state(step, size=4000), 3, "")  # 0.5 MB; three of them fit, and no fourth beside them
            except LdmError as error:
                failed += 1
                assert error.code is Code.RESOURCE
            newest = newest_state(disk)
            assert newest is not None
            assert not [name for name in names(disk) if name.startswith(".")]
        assert failed >= 20
        assert differences(load_state(newest), state(int(newest.name), size=4000)) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def damage(path: Path, kind: str, chance: random.Random) -> None:
    """Changes a file of a checkpoint in one of the ways in which files are damaged."""
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data))
    if kind == "cut":
        path.write_bytes(data[:place])
    elif kind == "flip":
        data[place] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    elif kind == "head":
        data[chance.randrange(min(200, len(data)))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    elif kind == "zeros":
        data[place : place + 512] = bytes(len(data[place : place + 512]))
        data[place - 1] ^= 0x40
        path.write_bytes(data)
    elif kind == "more":
        path.write_bytes(data + chance.randbytes(chance.randrange(1, 64)))
    elif kind == "html":
        path.write_bytes(b"<!doctype html><title>Sign in</title>")
    elif kind == "lfs":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    elif kind == "bloat":
        entries = ",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(100_000))
        path.write_bytes((len(entries) + 2).to_bytes(8, "little") + b"{" + entries.encode() + b"}")
    elif kind == "link":
        path.rename(path.parent.parent / f".elsewhere-{path.name}")
        path.symlink_to(path.parent.parent / f".elsewhere-{path.name}")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()


KINDS = ("cut", "flip", "head", "zeros", "more", "html", "lfs", "bloat", "link", "folder", "gone")


def test_every_damage_is_found_and_the_one_before_is_used(
    old: Path, tmp_path: Path, torture: int, caplog: pytest.LogCaptureFixture
) -> None:
    """200 of them under torture: files times kinds, at random places."""
    chance = random.Random(7)
    copy = old / "whole"
    shutil.copytree(save_state(old, state(2), 2, ""), copy)
    for turn in range(11 * torture):
        name, kind = [*FILES, MANIFEST][turn % 5], KINDS[turn % len(KINDS)]
        folder = old / "state" / "2"
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        damage(folder / name, kind, chance)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert newest_state(old) == old / "state" / "1", (name, kind)
        assert str(folder) in caplog.text
        with pytest.raises(LdmError) as caught:
            load_state(folder)
        assert caught.value.code in (Code.FILE, Code.REFUSED)
        assert "Traceback" not in str(caught.value)
        for left in (old / "state").glob(".elsewhere-*"):
            left.unlink()


def test_a_file_that_cannot_be_read_is_damaged_like_others(
    old: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a disk with a bad block."""
    save_state(old, state(2), 2, "")
    digest, calls = hashlib.file_digest, []

    def failing(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest(*given)

    monkeypatch.setattr(hashlib, "file_digest", failing)
    assert newest_state(old) == old / "state" / "1"
    assert os.strerror(errno.EIO) in caplog.text


@pytest.mark.parametrize(
    ("before", "after"),
    [('"step": 2', '"step": 3'), ('"config": "a"', '"config": "b"'), ('"step": 2', '"step":  2'), ("{", '{"more": 1,')],
)
def test_a_manifest_is_believed_in_its_own_bytes_only(tmp_path: Path, before: str, after: str) -> None:
    path = save_state(tmp_path, state(2), 2, "a") / MANIFEST
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(LdmError, match=r"contradict|cut, changed"):
        load_state(path.parent)


class Canary:
    """Unpickling one writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def forge(folder: Path) -> None:
    """A manifest that fits whatever the files hold now, as somebody would write it who plants a checkpoint."""
    from train.checkpoint import _sha256

    files = {name: ((folder / name).stat().st_size, _sha256(folder / name)) for name in FILES}
    (folder / MANIFEST).write_text(Manifest(read_manifest(folder).step, "", files).text())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_refused_also_with_a_manifest_that_fits(tmp_path: Path, name: str, protocol: int) -> None:
    path, canary = save_state(tmp_path, state(2), 2, ""), tmp_path / "canary"
    (path / name).write_bytes(pickle.dumps(Canary(canary), protocol=protocol))
    forge(path)
    with pytest.raises(LdmError) as caught:
        load_state(path)
    assert caught.value.code in (Code.REFUSED, Code.FILE)
    assert not canary.exists()


def test_pickles_beside_a_checkpoint_are_not_looked_at(old: Path) -> None:
    canary = old / "canary"
    for name in ("rng_state_0.pth", "custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.pt", "model.ckpt"):
        (old / "state" / "1" / name).write_bytes(pickle.dumps(Canary(canary)))
        (old / name).write_bytes(pickle.dumps(Canary(canary)))
    newest = newest_state(old)
    assert newest is not None
    assert differences(load_state(newest), state(1)) == []
    assert not canary.exists()


@pytest.mark.parametrize("what", [".", "state/1", "state/1/model.safetensors", f"state/1/{MANIFEST}"])
def test_what_belongs_to_somebody_else_is_refused(old: Path, what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(old / what, 1234, -1)
    with pytest.raises(LdmError, match=r"number 1234") as caught:
        check_owner(old / what)
    assert caught.value.code is Code.REFUSED
    if what != ".":
        with pytest.raises(LdmError, match=r"number 1234"):
            verify(old / "state" / "1")
        with pytest.raises(LdmError, match=r"number 1234"):  # refused, and not passed over as if it were damaged
            newest_state(old)


def test_only_the_leftovers_of_the_dead_are_swept(old: Path) -> None:
    """Of a living process it is removed when we hold the run's lock: then nobody else writes there."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (child.pid, dead.pid, os.getpid()):
        (old / "state" / f".tmp-9-{pid}").mkdir()
    (old / "state" / ".tmp-old-3-x").mkdir()
    sweep(old)
    assert names(old) == [f".tmp-9-{child.pid}", "1"]
    (old / "state" / f".tmp-2-{dead.pid}").mkdir()
    save_state(old, state(2), 2, "")
    assert names(old) == [f".tmp-9-{child.pid}", "1", "2"]
    sweep(old, alone=True)
    assert names(old) == ["1", "2"]
    child.communicate(b"\n", timeout=60)
