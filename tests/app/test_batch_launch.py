"""`ldm batch` as `accelerate launch` starts it: every picture once, and the same ones as one process makes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
from torch.distributed import TCPStore

from app.batch.launch import AGENT, ENDED, advice, ended, mine
from ldm.errors import Code
from tests.app.conftest import Ldm
from tests.app.test_batch import SHORT, lines_of, written
from tests.train.test_launch import LOCAL

WORDS = ("batch", "prompts.jsonl", "--chunk", "1", *SHORT)


def launched(folder: Path, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command of docs/scale.md, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "named").mkdir()
    (folder / "named" / "sitecustomize.py").write_text(LOCAL)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", str(port), "-m", "app.entry", *words]
    paths = os.pathsep.join([str(folder / "named"), str(root), os.environ["PYTHONPATH"]])
    environment = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=240)


@pytest.mark.torture
@pytest.mark.loopback
def test_a_launch_makes_each_picture_once_and_those_of_one_process(ldm: Ldm, tmp_path: Path, root: Path) -> None:
    """A line that cannot be made ends its process with an error, but not before the other one is done."""
    slow = {"prompt": "a red circle", "steps": 60}
    written(tmp_path, slow, {"prompt": "a", "stps": 2}, *({"prompt": f"{n} stars", "steps": 60} for n in range(5)))
    done = launched(tmp_path, root, *WORDS, "--out", "two")
    assert done.returncode == 1 and "1 request could not be made" in done.stderr, done.stderr
    said = [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("chunk ")]
    assert sorted(said) == [f"chunk {number}" for number in range(7)]  # each by one process, each to its end
    assert ldm(*WORDS, "--out", "one").status == 2
    assert lines_of(tmp_path / "two") == lines_of(tmp_path / "one")
    two, one = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("pictures/*/*")} for name in ("two", "one")
    )
    assert len(two) == 6 and two == one


@pytest.mark.loopback
def test_a_process_that_cannot_begin_does_not_end_before_the_others(
    ldm: Ldm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the launcher ends them. Here it is a store of the same kind, and the other one ends when we say so."""
    written(tmp_path, '"a"', '"b"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    told = {"RANK": "1", "WORLD_SIZE": "2", AGENT: "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    over = list[bool]()

    def other() -> None:
        while words.add(ENDED, 0) < 1:
            time.sleep(0.01)
        time.sleep(0.3)
        over.append(True)
        words.add(ENDED, 1)

    Thread(target=other, daemon=True).start()
    done = ldm(*WORDS, "--out", "made", "--device", "cuda:7")
    assert over
    assert done.status == Code.RESOURCE and "ends when the others have" in done.err and "cuda:7" in done.err


def test_of_a_launch_that_shares_nothing_it_is_said_why(
    ldm: Ldm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, '"a"', '"b"', '"c"')
    dry = ("batch", "prompts.jsonl", "--out", "made", "--dry-run")
    assert "process" not in ldm(*dry).err and mine([0, 1, 2]) == [0, 1, 2] and advice(1) is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert "--multi_gpu" in ldm(*dry).err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "smaller --chunk" in ldm(*dry).err and "2 processes" not in ldm(*dry, "--chunk", 2).err
    assert mine([0, 1, 2]) == [1]


def test_processes_that_were_started_by_hand_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended(False, lambda: pytest.fail("nobody tells when the others are done"))
