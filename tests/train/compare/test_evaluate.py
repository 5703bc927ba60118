"""Models and folders measured against a data set, from the command line."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ldm.errors import Code
from ldm.metrics.interval import Estimate
from ldm.metrics.measured import NEARER_NOTE
from tests.app.conftest import Ldm, ldm  # noqa: F401
from tests.train.tasks.test_family import made
from train.compare.accuracy import accuracy_score
from train.compare.evaluate import noted_of
from train.compare.made import Asked, Lot, OfAutoencoder, made_by
from train.compare.wish import Yardsticks

FEW = ("--size", 8, "--held-out", 100, "--classifier-steps", 0, "data.count=300")


def test_a_folder_and_a_family_are_measured_alike(ldm: Ldm, tmp_path: Path) -> None:  # noqa: F811
    ldm("data", "draw", "drawn", "--count", 120, "--size", 16)
    shown = ldm("evaluate", "drawn", "--against", "scenes", *FEW, "--samples", 100)
    assert shown.status == 0, shown.err
    assert "fid" in shown.out and "100 pictures against 200" in shown.out and "as pixels sees them" in shown.out
    assert "held-out pictures: " in shown.out
    made("ppca").save(tmp_path / "mine/model")
    told = ldm("evaluate", "mine", "--against", "scenes", *FEW, "--samples", 100, "--json", "--keep", "kept").json
    assert len(list(Path("kept").glob("*.png"))) == 100 and Image.open("kept/00.png").size == (8, 8)
    assert 0.3 < told["held_out"]["figures"]["authentic"]["value"] < 0.85
    assert told["bits_per_dim"]["kind"] == "exact" and told["drawn"] == 100
    kept = json.loads(Path("runs/evaluate/scenes/measured/drawn.json").read_text("utf-8"))
    assert kept["protocol"] == told["protocol"]
    assert kept["figures"]["kid"]["value"] < told["figures"]["kid"]["value"]  # real scenes are nearer than noise
    other = ldm("evaluate", "mine/model", "--against", "scenes", "--size", 16, *FEW[2:], "--out", "other")
    assert not Path("other").exists()
    assert other.status == Code.USAGE and "Give --size 8" in other.err
    again = ldm("evaluate", "drawn", "--against", "scenes", *FEW, "--samples", 100)
    assert again.status == Code.FILE and "exists already" in again.err and "--name" in again.err
    named = ldm("evaluate", "drawn", "--against", "scenes", *FEW, "--samples", 100, "--name", "once-more")
    assert named.status == 0 and Path("runs/evaluate/scenes/measured/once-more.json").is_file()
    text = Path("runs/evaluate/scenes/measured/once-more.html").read_text("utf-8")
    assert "100 pictures against 200" in text and "http" not in text and text.count("data:image/webp") == 3
    assert ldm("evaluate", "drawn", "--against", "scenes", *FEW, "--name", "a/b").status == Code.USAGE


def test_the_folder_of_a_run_is_no_folder_of_pictures(ldm: Ldm) -> None:  # noqa: F811
    """Its previews would be measured in place of its model."""
    from ldm.store.find import find_model

    for name, part in (("coded", find_model("scenes") / "vae"), ("seen", find_model("emoji-clip"))):
        shutil.copytree(part, f"runs/{name}/model")
        Path(f"runs/{name}/config.yaml").write_text("task: {type: none}\n", "utf-8")
    few = ("--size", 32, "--held-out", 100, "--classifier-steps", 0, "data.count=300")
    yard = Yardsticks(data={"path": "scenes"}, out=Path("none"))
    assert isinstance(made_by("runs/coded", yard), OfAutoencoder)
    no = ldm("evaluate", "runs/seen", "--against", "scenes", *few)
    assert no.status == Code.MODEL and "makes no pictures" in no.err
    shutil.rmtree("runs/seen/model")
    Path("runs/seen/log.jsonl").touch()
    no = ldm("evaluate", "runs/seen", "--against", "scenes", *few)
    assert no.status == Code.MODEL and "has not come to its end" in no.err


def test_a_model_that_is_too_slow_is_told_of_and_its_pictures_are_kept(
    ldm: Ldm,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made("ppca").save(tmp_path / "mine/model")
    monkeypatch.setattr("train.compare.drawing.time", SimpleNamespace(monotonic=itertools.count(0, 1000).__next__))
    slow = ldm("evaluate", "mine", "--against", "scenes", *FEW, "--samples", 200, "--keep", "kept")
    assert slow.status == Code.USAGE and "50 pictures in 300 seconds" in slow.err and "--cap, about 601" in slow.err
    assert len(list(Path("kept").glob("*.png"))) == 50


def test_fewer_pictures_than_asked_for_are_told_of(
    ldm: Ldm,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made("ppca").save(tmp_path / "mine/model")
    monkeypatch.setattr("train.compare.drawing.time", SimpleNamespace(monotonic=itertools.count(0, 200).__next__))
    told = ldm("evaluate", "mine", "--against", "scenes", *FEW, "--samples", 200, "--json").json
    assert told["drawn"] == 100 and "100 of 200 pictures were drawn in 300 s: give --cap more" in told["notes"][0]


def test_pictures_of_the_training_are_told_of(ldm: Ldm) -> None:  # noqa: F811
    few = ("--size", 8, "--held-out", 100, "--classifier-steps", 0)
    ldm("data", "draw", "drawn", "--count", 300, "--size", 16)
    told = ldm("evaluate", "drawn", "--against", "drawn", *few, "--samples", 300, "--json").json
    assert told["figures"]["copies"]["low"] > 0.5 and any(NEARER_NOTE in note for note in told["notes"])
    assert "<h2>Notes</h2>" in Path("runs/evaluate/drawn/measured/drawn.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("copied", "own", "noted"), [(0.2, 0.5, True), (0.2, 0.85, False), (0.02, 0.5, False), (None, None, False)]
)
def test_more_copies_than_by_chance_are_told_of_where_few_are_authentic(
    copied: float | None, own: float | None, noted: bool
) -> None:
    """Plain pictures lie near to many; those that lie nearer than real ones do to each other are looked at."""

    def about(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    figures = {} if copied is None or own is None else {"copies": about(copied), "authentic": about(own)}
    lot, scale = Lot(torch.zeros(100, 3, 8, 8)), {"figures": {"authentic": about(0.87)}}
    notes = list(noted_of(lot, {"figures": figures, "notes": []}, scale, Asked(100, 1, 0)))
    assert [note for note in notes if "20 % of the pictures are nearer" in note] == notes and bool(notes) == noted
    assert not list(noted_of(lot, {"figures": figures, "notes": [NEARER_NOTE]}, scale, Asked(100, 1, 0)))


def test_a_cell_without_a_model_says_why(ldm: Ldm) -> None:  # noqa: F811
    cell = Path("runs/compare/photos/cells/vae-0")
    cell.mkdir(parents=True)
    (cell / "plan.json").write_text('{"steps": 3}', "utf-8")
    begun = ldm("evaluate", cell, "--against", "scenes", *FEW)
    assert begun.status == Code.MODEL and "has no result yet" in begun.err
    (cell / "cell.json").write_text('{"failed": "Training stopped at step 6"}', "utf-8")
    failed = ldm("evaluate", cell, "--against", "scenes", *FEW)
    assert failed.status == Code.MODEL and "Training stopped at step 6" in failed.err
    (cell / "cell.json").write_text('{"figures": {}}', "utf-8")
    kept = ldm("evaluate", cell, "--against", "scenes", *FEW)
    assert kept.status == Code.MODEL and "Its result was kept, its model was not." in kept.err
    for name in ("plan.json", "cell.json"):
        (cell / name).unlink()
    (cell / "crash.json").write_text('{"failed": "it was ended by signal 9"}', "utf-8")
    killed = ldm("evaluate", cell, "--against", "scenes", *FEW)
    assert killed.status == Code.MODEL and "signal 9" in killed.err


@pytest.fixture
def hasty_sd1(tiny_sd1: Path) -> Iterator[Path]:
    """One step for a picture, unless more are asked for."""
    path = Path(tiny_sd1) / "sampling.json"
    path.write_text('{"steps": 1, "guidance": 1.0}', "utf-8")
    yield tiny_sd1
    path.unlink()


def test_a_text_to_image_model_that_is_too_slow_is_told_of_soon(
    ldm: Ldm,  # noqa: F811
    hasty_sd1: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train.compare.prompted.time", SimpleNamespace(monotonic=itertools.count(0, 10).__next__))
    slow = ldm("evaluate", hasty_sd1, "--against", "scenes", *FEW, "--samples", 200)
    assert slow.status == Code.USAGE and "takes 10 seconds for a picture" in slow.err and "--cap, 1201 or" in slow.err


@pytest.mark.torture
def test_a_text_to_image_model_draws_for_captions(ldm: Ldm, hasty_sd1: Path) -> None:  # noqa: F811
    told = ldm("evaluate", hasty_sd1, "--against", "scenes", *FEW, "--samples", 100, "--clip", "emoji-clip", "--json")
    assert told.status == 0, told.err
    assert told.json["drawn"] == 100 and told.json["figures"]["fid"]["value"] > 0
    assert told.json["clip_score"]["protocol"]["extractor"].startswith("emoji-clip ")
    assert -1 < told.json["clip_score"]["value"] < 1 and told.json["clip_score"]["protocol"]["made"] == 100


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (("nowhere", "--against", "scenes"), Code.FILE, "nowhere"),
        (("few", "--against", "scenes", *FEW), Code.USAGE, "too few"),
        (("few", "--against", "few", "--size", 8, "--held-out", 100), Code.USAGE, "too few"),
        (("few", "--against", "scenes", "data.size=4"), Code.USAGE, "--size"),
        (("few", "--against", "scenes", "size=4"), Code.USAGE, "Only keys of the data section"),
        (("few", "--against", "scenes", *FEW, "--inception", "few/0.png"), Code.MODEL, "safetensors"),
    ],
)
def test_what_cannot_be_measured_is_said(ldm: Ldm, argv: tuple[object, ...], status: int, said: str) -> None:  # noqa: F811
    Path("few").mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (i * 80, 0, 0)).save(f"few/{i}.png")
    done = ldm("evaluate", *argv)
    assert done.status == status, done.err
    assert said in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("word", "said"),
    [(("--families", "vaee"), "Write vae."), (("--families", "ppca", "--size", 48), "use 32 or 64"),
     (("--families", "ppca", "--budget", "10"), "write 90s, 10min")],
)  # fmt: skip
def test_what_cannot_be_compared_is_said(ldm: Ldm, word: tuple[object, ...], said: str) -> None:  # noqa: F811
    done = ldm("compare", "scenes", *word, "--dry-run")
    assert done.status in (Code.USAGE, Code.FILE) and said in done.err
    assert "autoencoder/" not in done.err and not Path("runs/compare").exists()


@pytest.mark.torture
def test_samples_that_show_their_classes_teach_a_classifier() -> None:
    """Bright against dark: from samples that show it everything is known, from samples that mix it up nothing."""
    draws = torch.Generator().manual_seed(0)
    truth = torch.arange(200) % 2
    real = (0.2 + 0.5 * truth.float())[:, None, None, None] + 0.1 * torch.rand(200, 3, 8, 8, generator=draws)
    right = accuracy_score(real.clone(), truth, real, truth, 2, 0, 80)
    assert right.value > 0.95
    mixed = truth[torch.randperm(200, generator=draws)]
    assert accuracy_score(real.clone(), mixed, real, truth, 2, 0, 80).value < 0.8
    assert isinstance(right, Estimate)


@pytest.mark.torture
def test_an_autoencoder_is_judged_by_what_comes_back(ldm: Ldm) -> None:  # noqa: F811
    from ldm.store.find import find_model

    vae = find_model("scenes") / "vae"
    few = ("--size", 32, "--held-out", 100, "--classifier-steps", 0, "data.count=300")
    told = ldm("evaluate", vae, "--against", "scenes", *few, "--json").json
    assert set(told["figures"]) == {"rfid", "spectrum_db", "psnr_db", "ssim", "feature_distance"}
    assert told["figures"]["psnr_db"]["value"] > 25 and 0.8 < told["figures"]["ssim"]["value"] <= 1
    assert told["figures"]["feature_distance"]["value"] < 0.3
    text = Path("runs/evaluate/scenes/measured/scenes-vae.html").read_text("utf-8")
    assert "PSNR" in text and "rFID" in text and "the difference" in text and text.count("data:image/webp") == 1
