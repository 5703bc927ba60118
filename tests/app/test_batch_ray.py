"""`ldm batch` on Ray: what becomes of workers that die, of errors that no cluster mends, and of a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.batch import command
from app.batch.source import Line, Source
from app.cli import main
from app.errors import TERMINATED
from ldm.errors import Code
from tests.app.test_batch import SHORT, lines_of, pictures_of, written

pytestmark = pytest.mark.torture
LDM = "from app.cli import main; main()"
HEAD = """import ray
told = ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, logging_level="ERROR")
print(told.address_info["gcs_address"], flush=True)
input()"""
IMPATIENT = {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "4"}  # half an hour of Ray, by which it ends a batch


@dataclass(frozen=True)
class Deadly(Source):
    """Its second chunk takes along whoever reads it, as a fault in a library of C does; the driver reads the first."""

    def chunk(self, number: int) -> Iterator[Line]:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().chunk(number)


def deadly() -> None:
    command.Source = Deadly
    main()


@contextmanager
def program(folder: Path, code: str, *words: Any, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Without the guard of tests: Ray asks for the address of its machine."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("LDM_TEST")}
    own |= {"PYTHONPATH": str(Path(__file__).parents[2]), "RAY_USAGE_STATS_ENABLED": "0", **more}
    order, pipe = [sys.executable, "-c", code, *map(str, words)], subprocess.PIPE
    with subprocess.Popen(order, cwd=folder, env=own, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def begun(folder: Path, *words: Any, code: str = LDM, **more: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return program(folder, code, "batch", "prompts.jsonl", "--out", "made", *words, **more)


def ended(folder: Path, *words: Any, code: str = LDM, **more: str) -> tuple[int, str]:
    with begun(folder, *words, code=code, **more) as child:
        _, said = child.communicate(timeout=300)
    assert "Traceback" not in said, said
    return child.returncode, said


def made_some(folder: Path, child: subprocess.Popen[str], count: int) -> None:
    until = time.monotonic() + 300
    while len(pictures_of(folder / "made")) < count:
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.05)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a cluster of two processors that was begun by hand, and asks for no token."""
    with program(tmp_path_factory.mktemp("head"), HEAD, RAY_AUTH_MODE="disabled") as head:
        assert head.stdout is not None
        yield head.stdout.readline().strip()
        head.communicate("\n", timeout=60)


def test_what_no_cluster_mends_is_told_as_on_one_machine(tmp_path: Path, address: str) -> None:
    """Too many processors, and a card that a worker does not find; and that anybody may use this cluster."""
    written(tmp_path, '"a star"')
    status, said = ended(tmp_path, "--ray", address, "--ray-cpus", 64, *SHORT)
    assert status == Code.RESOURCE and "no room" in said and "64 processors" in said
    assert "asks for no token" in said and "get-auth-token --generate" in said
    status, said = ended(tmp_path, "--ray", address, "--device", "cuda:7", *SHORT)
    assert status == Code.RESOURCE and "cuda:7" in said and "error of this program" not in said


def test_a_chunk_that_takes_its_workers_along_is_given_up_and_named(tmp_path: Path, address: str) -> None:
    written(tmp_path, *(f'"{n} circles"' for n in range(6)))
    code = "from tests.app.test_batch_ray import deadly; deadly()"
    status, said = ended(tmp_path, "--ray", address, "--workers", 1, "--chunk", 2, *SHORT, code=code)
    assert status == Code.RESOURCE and "Chunk 1 (lines 3 to 4)" in said and "5 times" in said, said
    assert [line["line"] for line in lines_of(tmp_path / "made")] == [0, 1, 4, 5]


def test_a_stop_does_not_wait_for_a_chunk(tmp_path: Path, address: str) -> None:
    """Which takes minutes. The same command goes on with it."""
    written(tmp_path, *({"prompt": f"{n} circles", "steps": 200} for n in range(100)))
    with begun(tmp_path, "--ray", address, "--model", "scenes", "--together", 1) as child:
        made_some(tmp_path, child, 1)
        began = time.monotonic()
        child.terminate()
        _, said = child.communicate(timeout=120)
    assert child.returncode == TERMINATED and "the same command goes on" in said and "Traceback" not in said, said
    assert time.monotonic() - began < 20 and len(pictures_of(tmp_path / "made")) < 90
    assert not (tmp_path / "made" / "manifest").exists()


def test_one_of_two_workers_is_killed(tmp_path: Path) -> None:
    """Ray Data starts it again, and its chunk is gone on with. No chunk moves for longer than Ray Data would wait."""
    written(tmp_path, *({"prompt": f"{n} circles", "steps": 25} for n in range(24)))
    words = ("--chunk", 6, "--model", "scenes", "--together", 1, "--ray", "local", "--ray-cpus", 1)
    with begun(tmp_path, *words, **IMPATIENT) as child:
        made_some(tmp_path, child, 3)
        there = psutil.Process(child.pid).children(recursive=True)
        own = [one for one in there if any(word.startswith("ray::Map") for word in one.cmdline()[:1])]
        own[0].send_signal(signal.SIGKILL)
        before = pictures_of(tmp_path / "made")
        _, said = child.communicate(timeout=600)
    assert child.returncode == 0, said
    assert "token" not in said  # a cluster of this machine's own asks for one
    assert len(lines_of(tmp_path / "made")) == 24 and not any("error" in line for line in lines_of(tmp_path / "made"))
    made = pictures_of(tmp_path / "made")
    assert len(made) == 24 and before.items() <= made.items()
