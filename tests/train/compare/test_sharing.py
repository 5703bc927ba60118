"""Several processes at one comparison, and one that is killed: every cell is done once, and goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.folder import read_log

ORDER = (
    "compare", "scenes", "--families", "ppca,mixture", "--seeds", "2", "--size", "8", "--samples", "100",
    "--held-out", "100", "--classifier-steps", "0", "--out", "out", "data.count=300",
)  # fmt: skip
ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.torture


def started(folder: Path, *more: str) -> subprocess.Popen[str]:
    code = "import sys; from app.cli import run; sys.exit(run(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *ORDER, *more],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def training(folder: Path) -> Path:
    """The log of the first cell, once a step of it has been written."""
    log = folder / "out/cells/ppca-0/run/log.jsonl"
    for _ in range(1200):
        if log.is_file() and len(log.read_text().splitlines()) > 1:
            break
        time.sleep(0.25)
    return log


def test_two_processes_share_the_cells(tmp_path: Path) -> None:
    both = [started(tmp_path, "--budget", "20-steps") for _ in range(2)]
    said = [child.communicate(timeout=900) for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    assert len(list(tmp_path.glob("out/cells/*/cell.json"))) == 4
    for folder in (tmp_path / "out/cells").iterdir():
        starts = [line for line in read_log(folder / "run/log.jsonl") if "start" in line]
        assert len(starts) == 1, folder  # nobody began it a second time
    data = json.loads((tmp_path / "out/compare.json").read_text("utf-8"))
    assert len(data["cells"]) == 4


def test_a_killed_comparison_goes_on(tmp_path: Path) -> None:
    first = started(tmp_path, "--budget", "400-steps")
    state = tmp_path / "out/cells/ppca-0/run/state"
    for _ in range(1200):
        if list(state.glob("*/MANIFEST.json")):
            break
        time.sleep(0.25)
    own = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    for pid in (first.pid, *map(int, own)):
        os.kill(pid, signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "out/cells/ppca-0/cell.json").exists()
    again = started(tmp_path, "--budget", "400-steps")
    said = again.communicate(timeout=900)
    assert again.returncode == 0, said
    assert len(list(tmp_path.glob("out/cells/*/cell.json"))) == 4
    starts = [line["step"] for line in read_log(tmp_path / "out/cells/ppca-0/run/log.jsonl") if "start" in line]
    assert len(starts) == 2 and starts[1] >= 100


def test_a_cell_that_outlives_its_comparison_is_waited_for(tmp_path: Path) -> None:
    """The command alone is killed: its cell trains on, and the next command's page is not written without it. It is
    held until that command has met it."""
    first = started(tmp_path, "--budget", "400-steps")
    log = training(tmp_path)
    (own,) = map(int, Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split())
    os.kill(own, signal.SIGSTOP)
    first.kill()
    first.wait()
    again = started(tmp_path, "--budget", "400-steps")
    assert again.stderr is not None
    said = next((line for line in again.stderr if "another process is at it" in line), "")
    os.kill(own, signal.SIGCONT)
    told = again.communicate(timeout=900)
    assert again.returncode == 0 and "ppca, seed 0" in said, told
    assert len(json.loads((tmp_path / "out/compare.json").read_text("utf-8"))["cells"]) == 4
    assert len([line for line in read_log(log) if "start" in line]) == 1  # the cell itself was never stopped


def test_a_ctrl_c_of_the_terminal_saves_once(tmp_path: Path) -> None:
    """A terminal signals the whole group: were the cell in it, our own word would be its second, and end it unsaved."""
    code = "import sys; from app.cli import run; sys.exit(run(sys.argv[1:]))"
    order = [sys.executable, "-c", code, *ORDER, "--budget", "100000-steps"]
    first = subprocess.Popen(order, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                             stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    training(tmp_path)
    os.killpg(first.pid, signal.SIGINT)
    first.communicate(timeout=300)
    assert first.returncode == 130
    assert list((tmp_path / "out/cells/ppca-0/run/state").iterdir())


def test_a_wish_to_stop_is_passed_on_and_saved(tmp_path: Path) -> None:
    first = started(tmp_path, "--budget", "100000-steps")
    training(tmp_path)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=300)
    assert first.returncode == 143 and "Go on with" in said[1]
    assert list((tmp_path / "out/cells/ppca-0/run/state").iterdir())


def test_two_workers_of_a_ray_cluster_share_the_cells_though_one_is_killed(tmp_path: Path) -> None:
    child = started(tmp_path, "--budget", "300-steps", "--ray", "local", "--ray-cpus", "1")
    worker = 0
    for _ in range(2400):
        if worker := _parent_of_a_cell(tmp_path / "out"):
            break
        time.sleep(0.1)
    assert worker and worker != child.pid
    os.kill(worker, signal.SIGKILL)
    said = child.communicate(timeout=900)
    assert child.returncode == 0, said
    told = json.loads((tmp_path / "out/compare.json").read_text("utf-8"))["cells"]
    assert len(told) == 4 and not any("failed" in one for one in told)


def _parent_of_a_cell(out: Path) -> int:
    """The process that waits for a cell of this folder which is training."""
    if not list(out.glob("cells/*/run/log.jsonl")):
        return 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            if b"train.compare.cell" in words and any(bytes(out) in word for word in words):
                return int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return 0
