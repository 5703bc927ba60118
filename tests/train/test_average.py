"""Averages of weights: what they weigh, and that one of any length can be made after the run."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from app.cli import run as ldm
from ldm.config import load
from ldm.errors import Code, LdmError
from ldm.store.weights import load_weights
from tests import components
from tests.data import sets
from tests.train import toys
from tests.train.states import content
from tests.train.tasks import clips
from train.average import Average, chosen, exponent_of, mixture, power, store, warmed
from train.choose import choose
from train.config import RunFile
from train.run import opened
from train.trainer import Trainer


def test_the_usual_average_warms_up() -> None:
    decay = warmed(0.9)
    assert [decay(n) for n in (0, 1, 8)] == [1 / 10, 2 / 11, 9 / 18]
    assert decay(10**6) == 0.9
    p = nn.Parameter(torch.tensor([1.0]))
    average = Average({"p": p}, decay)
    with torch.no_grad():
        p.fill_(2.0)
    average.update()
    assert float(average.tensors["p"]) == pytest.approx(0.1 * 1 + 0.9 * 2)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_the_exponent_gives_the_width(width: float) -> None:
    """The profile (g + 1) s^g on [0,1] has this standard deviation."""
    g = exponent_of(width)
    mean, square = (g + 1) / (g + 2), (g + 1) / (g + 3)
    assert math.sqrt(square - mean**2) == pytest.approx(width, rel=1e-6)


def walk(steps: int, *widths: float) -> tuple[np.ndarray, dict[float, Average], nn.Parameter]:
    """A random walk of two numbers, and its averages."""
    values = np.random.default_rng(0).normal(size=(steps, 2)).cumsum(0)
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    return values, {width: Average({"p": p}, power(width)) for width in widths}, p


@pytest.mark.parametrize("width", [0.05, 0.15])
def test_the_power_average_weighs_time_by_a_power(width: float) -> None:
    """Against the sum itself, with weights (t/T)^(g+1) - ((t-1)/T)^(g+1), near s^g for many steps."""
    values, averages, p = walk(400, width)
    for value in values:
        with torch.no_grad():
            p.copy_(torch.from_numpy(value))
        averages[width].update()
    t = np.arange(1, 401) / 400
    weights = np.diff(t ** (exponent_of(width) + 1), prepend=0.0)
    wanted = (weights[:, None] * values).sum(0)
    assert abs(averages[width].tensors["p"].numpy() - wanted).max() < 0.02 * abs(values).max()


def test_an_average_of_another_length_is_made_of_stored_ones(tmp_path: Path) -> None:
    """Two lengths are stored eight times; a third, at the end and before, comes out within a hundredth of the range."""
    values, averages, p = walk(800, 0.05, 0.10, 0.07)
    kept = {width: averages[width] for width in (0.05, 0.10)}
    wanted = {}
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            p.copy_(torch.from_numpy(value))
        for average in averages.values():
            average.update()
        if step % 100 == 0:
            store(tmp_path, step, kept)
            wanted[step] = averages[0.07].tensors["p"].numpy().copy()
    spread = np.ptp(values)
    assert abs(chosen(tmp_path, 0.07)["p"].numpy() - wanted[800]).max() < 0.01 * spread
    assert abs(chosen(tmp_path, 0.07, 600)["p"].numpy() - wanted[600]).max() < 0.01 * spread
    assert abs(chosen(tmp_path, 0.10)["p"].numpy() - averages[0.10].tensors["p"].numpy()).max() < 1e-4 * spread
    assert abs(wanted[800] - averages[0.10].tensors["p"].numpy()).max() > 0.02 * spread


def test_the_weights_of_a_mixture_are_exact_for_what_is_stored() -> None:
    weights = mixture([100.0, 200.0, 200.0], [0.1, 0.1, 0.05], 200.0, 0.05)
    assert abs(weights - np.array([0.0, 0.0, 1.0])).max() < 1e-6


def test_a_run_stores_its_averages_with_each_checkpoint(tmp_path: Path) -> None:
    trainer = toys.trained(toys.Toy(), tmp_path, toys.optim(snapshots=[0.05, 0.15]), steps=6, save=2)
    assert sorted(path.name for path in (tmp_path / "averages").iterdir()) == [f"{n}.safetensors" for n in (2, 4, 6)]
    found, wanted = chosen(tmp_path, 0.15), trainer.learners[0].powers[0.15].tensors
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
    assert set(found) == set(trainer.params)


def test_stored_averages_are_those_of_the_run_as_it_went(tmp_path: Path) -> None:
    """What was stored of steps that are done again goes; what a crash kept from being stored comes."""
    settings, folder = toys.optim(snapshots=[0.05]), tmp_path / "averages"
    whole = toys.trained(toys.Toy(), tmp_path, settings, steps=4, save=2)
    (folder / "6.safetensors").write_bytes((folder / "4.safetensors").read_bytes())
    (folder / ".8.safetensors.tmp-1").touch()
    (folder / "4.safetensors").unlink()
    toys.trained(toys.Toy(), tmp_path, settings, steps=4, save=2)
    assert sorted(path.name for path in folder.iterdir()) == ["2.safetensors", "4.safetensors"]
    found, wanted = chosen(tmp_path, 0.05), whole.learners[0].powers[0.05].tensors
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5


def test_nothing_stored_is_said(tmp_path: Path) -> None:
    with pytest.raises(LdmError, match="holds no averages") as error:
        chosen(tmp_path, 0.1)
    assert error.value.code is Code.FILE


@pytest.mark.parametrize("width", [0.0, 0.4, -1.0])
def test_a_width_that_no_profile_has_is_refused(width: float) -> None:
    with pytest.raises(LdmError, match="width"):
        power(width)


@pytest.mark.parametrize(("width", "steps", "made"), [(0.07, 100, True), (0.15, 100, False), (0.15, 1600, True),
                                                      (0.02, 1600, False)])  # fmt: skip
def test_what_no_mixture_comes_near_is_refused(width: float, steps: int, made: bool, tmp_path: Path) -> None:
    """Between two lengths one look is enough; beyond them it takes many, which a longer run has."""
    values, averages, p = walk(steps, 0.05, 0.10)
    for step in range(1, steps + 1):
        with torch.no_grad():
            p.copy_(torch.from_numpy(values[step - 1]))
        for average in averages.values():
            average.update()
        if step % 100 == 0:
            store(tmp_path, step, averages)
    if made:
        assert set(chosen(tmp_path, width)) == {"p"}
        return
    with pytest.raises(LdmError, match=f"width {width:g} cannot be made") as error:
        chosen(tmp_path, width)
    assert error.value.code is Code.USAGE
    assert "between 0.05 and 0.1" in error.value.fix


# The model of a width, by the command line.


TEXT = """\
task: {type: decoder, vae: vae, critic: {start: 0, guard: 10.0, channels: 8, layers: 1}}
data: {path: scenes, count: 32, size: 16}
optim: {lr: 3.0e-2, decay: constant, snapshots: [0.05, 0.15]}
run: {out: run, steps: 6, batch: 4, save: 2, preview: 0, evaluate: 0, device: cpu}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """A folder with a run of the tiny decoder that is over, `run`, and its trainer."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ran")
    components.vae().save_pretrained(folder / "vae")
    (folder / "a.yaml").write_text(TEXT)
    with contextlib.chdir(folder), opened(load(Path("a.yaml"), RunFile)) as run:
        run.fit()
    return folder, run.trainer


@pytest.fixture
def decoder(ran: tuple[Path, Trainer], monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.chdir(ran[0])
    return ran[1]


def written(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_weights(folder / "diffusion_pytorch_model.safetensors"))


def test_a_width_becomes_a_model(decoder: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The weights are those of the average that the run held at its end, and the run folder stays as it was."""
    before = content(Path("run"))
    goal = tmp_path / "models" / "long"
    assert ldm(["train", "a.yaml", "--average", "0.15", "--out", str(goal)]) == 0
    assert capsys.readouterr().out == f"{goal}\n"
    found, wanted = written(goal), decoder.learners[0].powers[0.15].tensors
    assert {f"tiny.{name}" for name in found} == set(wanted)
    assert max(float((found[name] - wanted[f"tiny.{name}"]).abs().max()) for name in found) < 1e-6
    for other in (written(Path("run/model")), {name: decoder.params[f"tiny.{name}"].detach() for name in found}):
        assert max(float((found[name] - other[name]).abs().max()) for name in found) > 1e-4
    assert (goal / "config.json").read_text() == Path("run/model/config.json").read_text()
    middle = tmp_path / "models" / "middle"
    assert ldm(["train", "a.yaml", "--average", "0.1", "--out", str(middle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": str(middle)}
    assert max(float((found[name] - each).abs().max()) for name, each in written(middle).items()) > 1e-4
    assert content(Path("run")) == before


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (("--average", "0.1", "--out", "a.yaml"), 5, "a.yaml exists already."),
        (("--average", "0.1", "--out", "m", "run.out=absent"), 5, "absent holds no run"),
        (("--average", "0.1", "--out", "m", "run.seed=3"), 2, "belongs to another run"),
        (("--average", "0.1", "--out", "m", "task.encoder=0.5"), 2, "belongs to another run"),
        (("--average", "0.4", "--out", "m"), 2, "An average of relative width 0.4 does not exist."),
        (("--average", "0.01", "--out", "m"), 2, "Choose a width between 0.05 and 0.15"),
        (("--average", "0.1"), 2, "--average and --out go together."),
        (("--out", "m"), 2, "--average and --out go together."),
        (("--average", "0.1", "--out", "m", "--dry-run"), 2, "--average and --dry-run do not go together."),
        (("--average", "0.1", "--out", "m", "--report"), 2, "--average and --report do not go together."),
    ],
)
def test_what_is_wrong_is_said_and_leaves_nothing(
    argv: tuple[str, ...], status: int, words: str, decoder: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(Path())
    assert ldm(["train", "a.yaml", *argv]) == status
    said = capsys.readouterr().err
    assert words in said
    assert [line[:7] for line in said.splitlines()] == ["error: ", "  why: ", "  fix: "]
    assert content(Path()) == before
    assert not Path("m").exists()


def test_a_run_without_snapshots_has_nothing_to_choose_from(tmp_path: Path, vae: components.AutoencoderKL) -> None:
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "a.yaml").write_text(TEXT.replace("snapshots: [0.05, 0.15]", "ema: 0.9"))
    file = load(tmp_path / "a.yaml", RunFile, [f"task.vae={tmp_path}/vae", f"run.out={tmp_path}/run", "run.steps=1"])
    with opened(file) as run:
        run.fit()
    with pytest.raises(LdmError, match="holds no averages") as error:
        choose(file, 0.1, tmp_path / "m")
    assert error.value.code is Code.FILE
    assert "optim.snapshots" in error.value.fix


def test_weights_of_other_captions_become_no_model(tmp_path: Path) -> None:
    """A tokenizer is made from the captions: with other ones it would be written beside weights that know it not."""
    pictures = sets.folder(tmp_path / "set", 8, (16, 16))
    (tmp_path / "clip.json").write_text(json.dumps(clips.ARCHITECTURE))
    (tmp_path / "a.yaml").write_text(f"""\
task: {{type: clip, model: {tmp_path}/clip.json, vocabulary: 560}}
data: {{path: {pictures}, size: 16}}
optim: {{snapshots: [0.1]}}
run: {{out: {tmp_path}/run, steps: 1, batch: 4, preview: 0, evaluate: 0, device: cpu}}
""")
    file = load(tmp_path / "a.yaml", RunFile)
    with opened(file) as run:
        run.fit()
    choose(file, 0.1, tmp_path / "right")
    for path in pictures.glob("*.txt"):
        path.write_text(path.read_text().replace("picture", "erutcip"))  # as many pieces of words, and other ones
    with pytest.raises(LdmError, match="another tokenizer"):
        choose(file, 0.1, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
