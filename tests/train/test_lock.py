"""One writer for a run folder: of two that come at once one wins, the other leaves at once and names it."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ldm.errors import Code, LdmError
from train.lock import NAME, Lock, started

ROOT = Path(__file__).parent.parent.parent
# Waits for a moment, tries to take the lock, says what came of it, and holds it until its input ends.
RIVAL = """
import os, sys, time
from pathlib import Path
from ldm.errors import LdmError
from train.lock import Lock
folder, moment = Path(sys.argv[1]), float(sys.argv[2])
print("ready", flush=True)
while time.time() < moment:
    pass
began = time.monotonic()
try:
    with Lock(folder):
        print("won", os.getpid(), flush=True)
        sys.stdin.read()
except LdmError as error:
    print("lost", time.monotonic() - began, error.what, flush=True)
    sys.exit(int(error.code))
"""


def rival(folder: Path, moment: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RIVAL, str(folder), str(moment)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_two_at_once_exactly_one_wins(tmp_path: Path, torture: int) -> None:
    for turn in range(min(2 * torture, 20)):
        folder = tmp_path / str(turn)
        folder.mkdir()
        moment = time.time() + 0.4
        pair = [rival(folder, moment) for _ in range(2)]
        assert [line(process) for process in pair] == ["ready", "ready"]
        told = [line(process) for process in pair]
        assert sorted(text.split()[0] for text in told) == ["lost", "won"]
        loser, winner = (pair[i] for i in sorted(range(2), key=lambda i: told[i]))
        lost, won = sorted(told)
        assert loser.wait(60) == Code.BUSY == 4
        assert float(lost.split()[1]) < 1
        assert f"process {won.split()[1]} on" in lost
        assert winner.poll() is None
        winner.communicate(timeout=60)
        assert winner.returncode == 0


def test_a_killed_owner_locks_nobody_out(tmp_path: Path) -> None:
    owner = rival(tmp_path)
    assert line(owner) == "ready"
    assert line(owner).startswith("won")
    with pytest.raises(LdmError, match=f"process {owner.pid} on") as caught, Lock(tmp_path):
        pass
    assert caught.value.code is Code.BUSY
    assert f"kill {owner.pid}" in caught.value.fix
    assert re.search(r"started 20\d\d-\d\d-\d\d \d\d:\d\d UTC", caught.value.what)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == owner.pid  # the name is left over, the lock is not
    with Lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert (tmp_path / NAME).read_text() == ""


def test_the_same_process_does_not_get_it_twice(tmp_path: Path) -> None:
    with Lock(tmp_path):
        with pytest.raises(LdmError, match=f"process {os.getpid()} on"), Lock(tmp_path):
            pass
        with pytest.raises(LdmError, match="is in use"), Lock(tmp_path):  # the failed try has not let it go
            pass
    with Lock(tmp_path):
        pass


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    """As the worker of a loader that outlives its killed parent by some seconds."""
    context = multiprocessing.get_context("fork")
    awake = context.Event()

    def work() -> None:
        awake.set()
        time.sleep(60)

    with Lock(tmp_path):
        worker = context.Process(target=work)
        worker.start()
        assert awake.wait(60)
    try:
        with Lock(tmp_path):
            pass
    finally:
        worker.kill()
        worker.join()


def test_who_has_just_taken_it_is_named_and_not_the_dead_owner_before(tmp_path: Path) -> None:
    """The new owner has the lock, and its name is not in the file yet."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / NAME
    path.write_text(json.dumps({"pid": dead.pid, "host": socket.gethostname()}))
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writes = threading.Timer(0.1, lambda: path.write_text(json.dumps({"pid": 1, "host": socket.gethostname()})))
        writes.start()
        with pytest.raises(LdmError, match="process 1 on"), Lock(tmp_path):
            pass
        writes.join()


def test_a_file_that_was_removed_meanwhile_locks_nobody_out_and_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking it the owner before may have removed it; a lock on a nameless file is none."""
    flock, calls = fcntl.flock, []

    def late(file: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            (tmp_path / NAME).unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        with pytest.raises(LdmError, match="is in use"), Lock(tmp_path):
            pass
    assert len(calls) == 3


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    (tmp_path / NAME).symlink_to(tmp_path / "other")
    with pytest.raises(LdmError, match="cannot be locked"), Lock(tmp_path):
        pass


def test_a_start_time_is_told_of_a_living_process() -> None:
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", started(os.getpid()))
    assert started(2**22 + 1) == ""
