"""A run's folder keeps one configuration and one log, whatever was cut short, and refuses what is not its own."""

from __future__ import annotations

import json
import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.config import loads
from ldm.errors import Code, LdmError
from ldm.images import open_image
from tests.train.states import differences, state
from tests.train.test_checkpoint_faults import file_limit
from train.checkpoint import State, load_state
from train.config import RunFile
from train.folder import RunFolder, read_log, trim_log

FILE = """
task: {type: diffusion, unet: a.json, vae: runs/vae, text: runs/clip}
data: {path: scenes, size: 32}
optim: {lr: 1e-3}
run: {out: runs/x, steps: 100, batch: 8}
"""


def settings(*overrides: str) -> RunFile:
    return loads(FILE, RunFile, overrides)


def refused(path: Path, *overrides: str) -> LdmError:
    with pytest.raises(LdmError) as caught, RunFolder(path, settings(*overrides)):
        pass
    return caught.value


def fill(folder: RunFolder, steps: range, save: int = 10) -> None:
    for step in steps:
        folder.log({"step": step, "loss": 1 / step})
        if step % save == 0:
            folder.save(state(step), 2)


def test_the_configuration_is_saved_with_every_default(tmp_path: Path) -> None:
    wanted = settings()
    with RunFolder(tmp_path / "run", wanted):
        pass
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert loads(text, RunFile) == wanted
    assert "evaluate: 500" in text


@pytest.mark.parametrize(
    "override",
    ["run.steps=200", "run.save=5", "run.preview=1", "run.log=1", "run.threads=1", "run.keep=4", "run.micro=2",
     "run.precision=bf16",      "run.out=elsewhere", "run.trackers=[tensorboard]", "optim.lr=1e-4", "optim.warmup=5"],
)  # fmt: skip
def test_what_may_change_is_saved_and_told(tmp_path: Path, override: str, caplog: pytest.LogCaptureFixture) -> None:
    with RunFolder(tmp_path, settings()) as folder:
        fill(folder, range(1, 11))
    with caplog.at_level(logging.INFO), RunFolder(tmp_path, settings(override)) as folder:
        found = folder.resume()
        assert found is not None
        assert found.step == 10
    assert loads((tmp_path / "config.yaml").read_text(), RunFile) == settings(override)
    assert f"{override.partition('=')[0]} changed" in caplog.text


@pytest.mark.parametrize(
    "override",
    ["task.unet=b.json", "task.noise.kind=epsilon", "data.size=64", "data.path=photos", "run.seed=1", "run.batch=16",
     "optim.kind=sgd", "optim.ema=0.9", "data.where={a: 1}"],
)  # fmt: skip
def test_what_makes_the_run_is_refused_by_name(tmp_path: Path, override: str) -> None:
    with RunFolder(tmp_path, settings()) as folder:
        fill(folder, range(1, 11))
    before = (tmp_path / "config.yaml").read_bytes()
    error = refused(tmp_path, override)
    assert error.code is Code.USAGE
    assert f"{override.partition('=')[0]}" in error.why
    assert "run.out" in error.fix
    assert (tmp_path / "config.yaml").read_bytes() == before
    with RunFolder(tmp_path, settings()):  # and the lock is free again
        pass


def test_another_task_names_its_keys(tmp_path: Path) -> None:
    with RunFolder(tmp_path, settings()):
        pass
    error = refused(tmp_path, "task={type: clip, model: tiny.json}")
    assert 'task.type: was "diffusion", now "clip"' in error.why


def test_a_configuration_that_was_changed_by_hand_does_not_pass(tmp_path: Path) -> None:
    with RunFolder(tmp_path, settings()) as folder:
        fill(folder, range(1, 11))
    text = (tmp_path / "config.yaml").read_text().replace("\n  seed: 0", "\n  seed: 5")
    (tmp_path / "config.yaml").write_text(text)
    with RunFolder(tmp_path, settings("run.seed=5")) as folder, pytest.raises(LdmError, match="belongs to another run"):
        folder.resume()


def test_another_architecture_is_refused_with_its_configuration(tmp_path: Path) -> None:
    """The path in the run file is the same, and what lies there is not."""
    with RunFolder(tmp_path, settings()) as folder:
        fill(folder, range(1, 11))
        wider = {name: torch.zeros(99, 8) for name in state(10).model}
        with pytest.raises(LdmError, match="of its model differ") as caught:
            folder.resume(model=wider)
        assert "task.unet=a.json" in caught.value.why
        assert folder.resume(model=state(3).model, ema=state(3).ema) is not None


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    error = refused(tmp_path)
    assert "holiday.jpg" in error.why
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file").code is Code.FILE


@pytest.mark.parametrize("what", [".", "config.yaml"])
def test_a_folder_of_another_user_is_refused(tmp_path: Path, what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    with RunFolder(tmp_path, settings()):
        pass
    os.chown(tmp_path / what, 1234, -1)
    assert refused(tmp_path).code is Code.REFUSED


def test_it_is_in_use_by_one(tmp_path: Path) -> None:
    with RunFolder(tmp_path, settings()):
        error = refused(tmp_path)
        assert error.code is Code.BUSY
        assert f"process {os.getpid()}" in error.what
        with RunFolder(tmp_path, settings(), writer=False) as other:  # another process of the same run
            other.log({"step": 1})
            assert other.save(state(1), 1) is None
            assert other.preview(1, "x", torch.zeros(1, 3, 2, 2)) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.yaml"]


def test_all_processes_of_a_run_read_its_state(tmp_path: Path) -> None:
    with RunFolder(tmp_path, settings()) as folder:
        fill(folder, range(1, 13))
        found = RunFolder(tmp_path, settings(), writer=False).resume()
        assert found is not None
        assert differences(found, state(10)) == []
        assert len(read_log(folder.log_path)) == 12  # and leave the log alone


def test_a_resumed_log_has_each_step_once(tmp_path: Path) -> None:
    with RunFolder(tmp_path, settings()) as folder:
        assert folder.resume() is None
        fill(folder, range(1, 18))
    with folder.log_path.open("ab") as file:
        file.write(b'{"step":18,"lo')  # torn by a crash
    with RunFolder(tmp_path, settings()) as folder:
        found = folder.resume()
        assert found is not None
        assert found.step == 10
        fill(folder, range(11, 26))
    assert [record["step"] for record in read_log(folder.log_path)] == list(range(1, 26))
    assert folder.log_path.read_text().count("\n") == 25


def test_a_run_without_a_checkpoint_starts_its_log_anew(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        fill(folder, range(1, 5))
    with RunFolder(tmp_path) as folder:
        assert folder.resume() is None
        fill(folder, range(1, 3))
    assert [record["step"] for record in read_log(folder.log_path)] == [1, 2]


def test_a_log_cut_at_any_byte_is_read_to_its_last_whole_line(tmp_path: Path, torture: int) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "note": "é" * step}) for step in range(1, 9)]
    whole = ("\n".join(lines) + "\n").encode()
    chance = random.Random(3)
    for cut in chance.sample(range(len(whole) + 1), min(10 * torture, len(whole))):
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        assert [record["step"] for record in read_log(path)] == list(range(1, complete + 1))
        trim_log(path, 4)
        assert path.read_bytes() == b"".join(line.encode() + b"\n" for line in lines[: min(4, complete)])


def test_what_is_not_finite_is_null_in_the_log(tmp_path: Path) -> None:
    record: dict[str, Any] = {"step": 1, "loss": float("nan"), "max": torch.tensor(float("inf")), "all": [1.0, -1e400]}
    with RunFolder(tmp_path) as folder:
        folder.log(record | {"mean": torch.tensor(0.5)})
        with pytest.raises(ValueError, match="step"):
            folder.log({"loss": 1})
    assert read_log(folder.log_path) == [{"step": 1, "loss": None, "max": None, "all": [1.0, None], "mean": 0.5}]


def test_a_full_disk_costs_lines_and_previews_and_never_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunFolder(tmp_path) as folder:
        folder.log({"step": 1})
        size = folder.log_path.stat().st_size
        with file_limit(size + 4):
            folder.log({"step": 2})  # a part of it fits
            assert folder.preview(2, "fixed", torch.rand(4, 3, 16, 16)) is None
        assert folder.log_path.stat().st_size == size
        folder.log({"step": 3})
    assert [record["step"] for record in read_log(folder.log_path)] == [1, 3]
    assert "is lost" in caplog.text
    assert "is left out" in caplog.text


def test_a_log_that_cannot_be_opened_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with RunFolder(tmp_path) as folder:
        folder.log({"step": 1})
    assert "is lost" in caplog.text


def test_lines_that_are_cut_off_need_no_room(tmp_path: Path) -> None:
    """A run that ended because the disk was full must be able to go on in it."""
    with RunFolder(tmp_path) as folder:
        fill(folder, range(1, 18))
    with RunFolder(tmp_path) as folder, file_limit(0):
        assert folder.resume() is not None
    assert [record["step"] for record in read_log(folder.log_path)] == list(range(1, 11))


def test_lines_in_another_order_are_cut_off_too(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 9, 2)))
    trim_log(path, 4)
    assert [record["step"] for record in read_log(path)] == [1, 2]


def test_a_log_goes_on_in_the_file_that_is_left_after_a_resume(tmp_path: Path) -> None:
    """In one process: what was open is a file that has no name any more."""
    with RunFolder(tmp_path) as folder:
        fill(folder, range(1, 13))
        folder.log({"step": 5})
        assert folder.resume() is not None
        fill(folder, range(11, 13))
    assert [record["step"] for record in read_log(folder.log_path)] == [*range(1, 11), 5, 11, 12]


def test_pictures_that_are_not_finite_cost_a_preview_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an fp16 network makes them now and then."""
    with RunFolder(tmp_path) as folder:
        assert folder.preview(1, "fixed", torch.full((1, 3, 4, 4), float("nan"))) is None
    assert "is left out" in caplog.text


def test_previews_lie_by_step_and_are_replaced_when_it_is_done_again(tmp_path: Path) -> None:
    pictures = torch.stack([torch.full((3, 4, 6), value) for value in (-1.0, 0.0, 1.0)])
    with RunFolder(tmp_path) as folder:
        for _ in range(2):
            path = folder.preview(20, "held out/ä", pictures)
    assert path == tmp_path / "previews" / "20" / "held-out-.png"
    found = open_image(path).pixels
    assert found.shape == (8, 12, 3)
    assert [found[y, x, 0] for y, x in ((0, 0), (0, 6), (4, 0), (4, 6))] == [0, 128, 255, 128]  # the last place is grey


def test_whoever_has_the_lock_sweeps_every_leftover(tmp_path: Path) -> None:
    """Its number may be that of a living process by now: in a container every first process is number 1."""
    (tmp_path / "state" / f".tmp-9-{os.getppid()}").mkdir(parents=True)
    (tmp_path / f".tmp-model-{os.getppid()}").mkdir()
    with RunFolder(tmp_path):
        assert [p.name for p in (tmp_path / "state").iterdir()] == []
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "state"]


def test_the_log_is_on_the_disk_before_a_checkpoint_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync = os.fsync

    def synced(handle: int) -> None:
        fsync(handle)
        seen.append(Path(f"/proc/self/fd/{handle}").readlink().name)

    monkeypatch.setattr(os, "fsync", synced)
    with RunFolder(tmp_path) as folder:
        folder.log({"step": 1})
        folder.save(state(1), 1)
    assert seen[0] == "log.jsonl"
    assert "MANIFEST.json" in seen[1:]


def test_a_published_model_replaces_the_one_before_whole(tmp_path: Path) -> None:
    def writes(text: str, fails: bool = False) -> Any:
        def write(stage: Path) -> None:
            stage.mkdir()
            (stage / "weights").write_text(text)
            if fails:
                raise OSError(28, "No space left on device")

        return write

    with RunFolder(tmp_path) as folder:
        assert folder.publish(writes("one")) == folder.model
        with pytest.raises(LdmError, match="No space left") as caught:
            folder.publish(writes("two", fails=True))
        assert caught.value.code is Code.RESOURCE
        assert (folder.model / "weights").read_text() == "one"
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "model"]
        folder.publish(writes("three"))
        assert (folder.model / "weights").read_text() == "three"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "model"]


def test_a_published_model_stays_until_the_new_one_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writes(stage: Path) -> None:
        stage.mkdir()
        (stage / "weights").write_text(str(len(seen)))

    seen: list[str] = []
    replace = os.replace

    def failing(source: Path, goal: Path) -> None:
        seen.append(Path(goal).name)
        if len(seen) == 3:
            raise OSError(5, "Input/output error")
        replace(source, goal)

    monkeypatch.setattr(os, "replace", failing)
    with RunFolder(tmp_path) as folder:
        folder.publish(writes)
        with pytest.raises(LdmError, match="could not be written"):
            folder.publish(writes)
        assert (folder.model / "weights").read_text() == "0"
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "model"]
        folder.publish(writes)
    aside = f".tmp-old-model-{os.getpid()}"
    assert seen == ["model", aside, "model", "model", aside, "model"]
    assert (folder.model / "weights").read_text() == "4"


def test_a_checkpoint_goes_through_the_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path, settings()) as folder:
        path = folder.save(state(5), 2)
        assert path is not None
        found = folder.resume()
    assert isinstance(found, State)
    assert differences(found, load_state(path)) == []
