"""The first signal is a wish that every loop sees; the second ends the process at once; the exit status says which."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from train.signals import ECHO, Stop, Stopped, polled, resume_command

ROOT = Path(__file__).parent.parent.parent
LOOP = """
import sys, time
from train.signals import Stop
with Stop() as stop:
    print("ready", flush=True)
    for step in range(6000):
        time.sleep(0.01)
        if stop.wanted and sys.argv[1] == "polls":
            print("saved", flush=True)
            raise SystemExit(stop.code)
"""


def loop(kind: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, kind],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_one_lets_the_loop_finish_its_step(number: int, status: int) -> None:
    process = loop("polls")
    process.send_signal(number)
    told, said = process.communicate(timeout=60)
    assert (process.returncode, told) == (status, "saved\n")
    assert "The same signal again ends at once" in said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_one_ends_at_once(number: int, status: int) -> None:
    process = loop("never looks")
    process.send_signal(number)
    assert process.stderr is not None
    process.stderr.readline()
    assert "Stopping" in process.stderr.readline()
    began = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert time.monotonic() - began < 5


def test_what_a_launcher_passes_on_is_no_second_one() -> None:
    """A cluster signals all processes of a job, and the launcher among them signals its own once more."""
    process = loop("never looks", WORLD_SIZE="2")
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    process.stderr.readline()
    assert "Stopping" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    time.sleep(ECHO)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Stop() as stop:
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
        assert not stop.wanted
        assert stop.code == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wanted
        assert stop.code == 130
        assert polled(stop)()
        with pytest.raises(Stopped) as caught:
            stop.check()
        assert caught.value.code == 130
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_an_ignored_signal_stays_ignored() -> None:
    """`nohup` and background jobs of a shell ignore Ctrl-C on purpose."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.wanted
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_forked_worker_leaves_ctrl_c_to_its_parent() -> None:
    """A terminal sends it to both; the parent needs its workers to finish the step, and ends them when it is done."""
    context = multiprocessing.get_context("fork")
    awake, go_on = context.Event(), context.Event()

    def work() -> None:
        awake.set()
        while not go_on.wait(0.01):
            pass
        awake.set()
        time.sleep(60)

    with Stop():
        worker = context.Process(target=work)
        worker.start()
        assert awake.wait(60)
        awake.clear()
        assert worker.pid is not None
        for _ in range(2):
            os.kill(worker.pid, signal.SIGINT)
            time.sleep(0.05)
        go_on.set()
        assert awake.wait(60)
        worker.terminate()
        worker.join(60)
    assert worker.exitcode == 143


def test_in_another_thread_it_is_asked_by_hand() -> None:
    seen: list[int] = []

    def work() -> None:
        with Stop() as stop:
            stop.check()
            stop.ask()
            seen.append(stop.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [143]
    assert polled(None)() is False


def test_the_resume_command_is_the_one_that_was_given() -> None:
    given = ["/opt/venv/bin/ldm", "train", "my run.yaml", "run.steps=5", "task.text={a: 1}"]
    assert resume_command(given) == "ldm train 'my run.yaml' run.steps=5 'task.text={a: 1}'"
    assert resume_command(["python", "-m", "app.cli", "train", "x"]) == "python -m app.cli train x"
    assert resume_command() == shlex.join(sys.orig_argv)


def test_under_a_launcher_it_is_the_launchers_command() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "from train.signals import resume_command; print(resume_command())"],
        cwd=ROOT,
        env=os.environ | {"TORCHELASTIC_RUN_ID": "none"},
        capture_output=True,
        text=True,
        check=True,
    )
    own = Path("/proc/self/cmdline").read_bytes().decode().split("\0")[:-1]
    assert told.stdout == shlex.join(own) + "\n"
