"""`ldm train` as a person meets it: a run, its end, the same command again, stops, dry runs, and what goes wrong."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from app.training_view import Pace, View, finite
from tests import components
from tests.app.conftest import Ldm
from train.checkpoint import load_state
from train.folder import read_log
from train.run import steps_done

FILE = """\
task: {type: autoencoder, vae: vae.json}
data: {path: scenes, count: 64, size: 16, validation: 4}
optim: {lr: 1e-3}
run: {out: runs/a, steps: 6, batch: 4, log: 2, save: 3, evaluate: 3, preview: 3, device: cpu}
"""
ENDLESS = ("run.steps=100000", "run.log=1", "run.evaluate=0", "run.preview=0", "run.save=100000")


@pytest.fixture
def file(tmp_path: Path) -> str:
    components.vae().save_config(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "vae.json")
    (tmp_path / "a.yaml").write_text(FILE)
    return "a.yaml"


def test_a_run_from_the_first_command_to_the_last(ldm: Ldm, file: str) -> None:
    done = ldm("train", file)
    assert done.status == 0
    assert done.out == "runs/a/model\n"
    for words in ("task autoencoder", "60 for training and 4 for validation", "step 6/6: loss ", " s/step"):
        assert words in done.err, words
    assert "step 3: validation " in done.err
    assert "previews/6/reconstruction.png" in done.err
    assert Path("runs/a/report.html").is_file()
    again = ldm("train", file)
    assert (again.status, again.out) == (0, "runs/a/model\n")
    assert "finished already: 6 steps are done" in again.err
    more = ldm("train", file, "run.steps=8", "--quiet")
    assert (more.status, more.out, more.err) == (0, "runs/a/model\n", "")
    assert steps_done(Path("runs/a")) == 8


def test_json_is_one_object_a_line(ldm: Ldm, file: str) -> None:
    done = ldm("train", file, "--json")
    assert (done.status, done.err) == (0, "")
    told = [json.loads(line) for line in done.out.splitlines()]
    assert told[0]["run"]["parameters"]["vae"] > 0
    assert told[1:-1] == read_log(Path("runs/a/log.jsonl"))
    assert told[-1]["result"] == {
        "out": "runs/a", "model": "runs/a/model", "report": "runs/a/report.html", "step": 6, "finished_before": False,
    }  # fmt: skip


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_within_a_step_and_tells_how_to_go_on(
    number: signal.Signals, status: int, ldm: Ldm, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["ldm", "train", file, *ENDLESS]
    monkeypatch.setattr(sys, "argv", argv)
    sent: list[int] = []

    def send() -> None:
        log = Path("runs/a/log.jsonl")
        until = time.monotonic() + 60
        while time.monotonic() < until and not (log.exists() and log.read_text().count("figures") >= 2):
            time.sleep(0.01)
        sent.append(read_log(log)[-1]["step"])
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    done = ldm(*argv[1:])
    sender.join()
    assert done.status == status
    saved = steps_done(Path("runs/a"))
    assert sent[0] <= saved <= sent[0] + 2  # the step that ran, and one that was logged while the signal was on its way
    assert f"Go on with: {shlex.join(argv)}" in done.err
    assert done.out == ""
    go_on = shlex.split(done.err.partition("Go on with: ")[2].splitlines()[0])
    assert ldm(*go_on[1:], f"run.steps={saved + 1}").status == 0
    assert load_state(Path("runs/a/state") / str(saved + 1)).step == saved + 1


@pytest.mark.parametrize("before", [0, 6])
def test_a_signal_while_things_are_made_ready_tells_how_to_go_on(
    before: int, ldm: Ldm, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it comes while a cache is filled: what was done before is safe, and is not called nothing."""
    import train.run

    if before:
        assert ldm("train", file).status == 0

    def interrupted(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        given[5].check()

    argv = ["ldm", "train", file, *ENDLESS]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(train.run, "_feed", interrupted)
    done = ldm(*argv[1:])
    assert done.status == 143
    assert ("nothing was trained yet" if not before else "the 6 steps that were done are safe") in done.err
    assert f"Go on with: {shlex.join(argv)}" in done.err


@pytest.mark.torture
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("wait", [0.3, 1.0, 3.0, 8.0])
def test_a_signal_at_any_moment(number: signal.Signals, status: int, wait: float, file: str, tmp_path: Path) -> None:
    """In a process of its own: while libraries load, while the task is built, while it trains."""
    command = [sys.executable, "-c", "from app.entry import main; main()", "train", file, *ENDLESS]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{os.environ['PYTHONPATH']}"}
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    time.sleep(wait)
    child.send_signal(number)
    _, said = child.communicate(timeout=120)
    assert child.returncode in (status, -number)  # before Python has begun, the system's own answer
    assert "Traceback" not in said
    assert "should not" not in said


def test_a_dry_run_tells_and_writes_nothing(ldm: Ldm, file: str, tmp_path: Path) -> None:
    done = ldm("train", file, "--dry-run", "--seed", 5)
    assert done.status == 0
    for words in (
        "16",
        "weights",
        "gradients",
        "optimiser",
        "averages",
        "activations",
        "a checkpoint",
        "it fits",
        "6 steps to go",
    ):
        assert words in done.out, words
    assert not Path("runs").exists()
    told = ldm("train", file, "--dry-run", "--json").json["forecast"]
    assert told["shapes"] == {"image": [4, 3, 16, 16]}
    assert told["memory"]["total"] > told["memory"]["weights"] > 0
    assert told["networks"]["vae"]["trained"]


def test_the_report_is_written_anew(ldm: Ldm, file: str) -> None:
    assert "holds no run" in ldm("train", file, "--report").err
    ldm("train", file, "run.steps=1")
    Path("runs/a/report.html").unlink()
    assert ldm("train", file, "--report").out == "runs/a/report.html\n"
    assert Path("runs/a/report.html").is_file()
    assert ldm("train", file, "--report", "--json").json == {"report": "runs/a/report.html"}


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        ((), 2, "Missing argument 'FILE'"),
        (("nothere.yaml",), 5, "nothere.yaml: no such run file"),
        (("diffusion/scenez",), 5, "fix: write diffusion/scenes"),
        (("run.steps=3",), 2, "The file comes first"),
        (("a.yaml", "run.stepz=3"), 2, "did you mean steps? (override run.stepz=3)"),
        (("a.yaml", "run.steps=many"), 2, "many is not a whole number"),
        (("a.yaml", "steps"), 2, "section.key=value"),
        (("a.yaml", "task.type=vae"), 2, "none of autoencoder"),
        (("a.yaml", "data.path=empty"), 5, "'empty' holds no picture"),
        (("a.yaml", "data.path=absent"), 5, "'absent' is not there"),
        (("a.yaml", "task.vae=absent.json"), 5, "absent.json"),
        (("a.yaml", "task.vae=configs/models/scenes-unet.json"), 6, "UNet2DConditionModel"),
        (("a.yaml", "run.batch=200"), 2, "fewer than a batch of 200"),
        (("a.yaml", "run.trackers=[tensorbord]"), 2, "Write tensorboard"),
        (("a.yaml", "run.device=banana"), 8, "run.device=banana cannot be used"),
        (("a.yaml", "run.out=taken"), 2, "taken is not empty, and is not a run folder"),
        (("a.yaml", "run.out=a.yaml/x"), 5, "cannot be used"),
    ],
)
def test_what_goes_wrong_is_told_in_three_lines(
    argv: tuple[str, ...], status: int, words: str, ldm: Ldm, file: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "holiday.jpg").touch()
    done = ldm("train", *argv)
    assert done.status == status
    assert words in done.err
    assert [line[:7] for line in done.err.splitlines()] == ["error: ", "  why: ", "  fix: "]
    assert not Path("runs/a").exists()
    assert "error" in ldm("train", *argv, "--json").json


def test_a_misspelt_key_of_the_file_names_its_line(ldm: Ldm, file: str) -> None:
    Path(file).write_text(FILE.replace("lr:", "warmpu: 3, lr:"))
    assert "optim.warmpu: unknown key; did you mean warmup? (a.yaml line 3)" in ldm("train", file).err


def test_run_files_are_checked_and_shown_as_requests_are(ldm: Ldm, file: str) -> None:
    assert ldm("config", "check", file).out == "a.yaml: fine; sets task, data, optim, run\n"
    assert "preview: 3\n" in ldm("config", "show", file).out
    assert "type: diffusion" in ldm("config", "show", "diffusion/scenes").out
    Path(file).write_text(FILE.replace("task:", "taks:"))
    assert "did you mean task?" in ldm("config", "check", file).err


def test_pace_and_the_time_that_is_left() -> None:
    pace = Pace()
    assert pace.told(10) == ""
    for now in (0.0, 2.0, 4.0):
        pace.step(now)
    assert pace.told(10) == "2 s/step, 20 s left"
    assert pace.told(0) == "2 s/step"


def test_json_knows_no_number_that_is_not_finite() -> None:
    assert finite({"a": [float("nan"), 1.0], "b": float("inf")}) == {"a": [None, 1.0], "b": None}


def test_a_terminal_sees_a_bar(
    ldm: Ldm, file: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich draws as on a terminal
    view = View(100)
    view.terminal = True
    with view:
        view.line({"step": 10, "figures": {"loss": 0.25}, "skipped": 2, "seconds": 1.0})
        view.pace.step(0.0)
        view.pace.step(1.0)
        view._show("step 11/100", 11, 100, view._words(11))
        view.note("a [note] of a name")
    said = capfd.readouterr().err
    for words in ("step 11/100", "loss 0.25", "2 skipped", "a [note] of a name"):
        assert words in said, words
