"""The shipped example for two machines starts a run: its own commands, with one process each, on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train import toys
from train.checkpoint import newest_state

pytestmark = [pytest.mark.torture, pytest.mark.loopback]


# torch's launcher looks up the name of its machine, which may ask a server. Here its name is localhost.
LOCAL = "import socket\nsocket.gethostname = lambda: 'localhost'\nimport network_guard  # noqa: F401\n"


def start(root: Path, before: list[str], run: Path, *more: str) -> subprocess.Popen[str]:
    named = run.parent / "named"
    named.mkdir(exist_ok=True)
    (named / "sitecustomize.py").write_text(LOCAL)
    changes = ["run.steps=4", "run.batch=8", "run.preview=0", "run.evaluate=0", "run.device=cpu"]
    changes += [f"run.out={run}", *more]
    command = [sys.executable, *before, "-m", "train", "configs/autoencoder/scenes.yaml", *changes]
    paths = os.pathsep.join([str(named), str(root), os.environ["PYTHONPATH"]])
    return subprocess.Popen(
        command, cwd=root, env=os.environ | {"PYTHONPATH": paths}, text=True, stderr=subprocess.PIPE
    )


def test_two_machines_end_where_one_process_ends(root: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/two-nodes.yaml"]
    launch += ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    nodes = [start(root, [*launch, "--machine_rank", str(rank)], tmp_path / "two") for rank in (1, 0)]
    alone = start(root, [], tmp_path / "one")
    for process in (*nodes, alone):
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told
    for part in ("model", "optimizer"):
        assert toys.furthest(toys.saved(tmp_path / "two", part), toys.saved(tmp_path / "one", part)) < 1e-3


def test_a_signal_to_every_process_of_a_launch_saves_and_tells_its_command(root: Path, tmp_path: Path) -> None:
    """As a cluster ends a job: the processes get it from outside, and from their launcher once more."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    launcher = start(root, [*launch, "--master_port", str(port)], tmp_path, "run.steps=100000", "run.log=1")
    assert launcher.stderr is not None
    for line in launcher.stderr:
        if line.startswith("step 3/"):
            break
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(children) == 2
    for pid in (*children, launcher.pid):
        os.kill(int(pid), signal.SIGTERM)
    _, told = launcher.communicate(timeout=600)
    newest = newest_state(tmp_path)
    assert newest is not None
    assert int(newest.name) >= 3
    (line,) = [line for line in told.splitlines() if "Go on with: " in line]
    assert "torch.distributed.run --nproc_per_node 2" in line
    assert "-m train configs/autoencoder/scenes.yaml" in line
