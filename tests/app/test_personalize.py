"""`ldm personalize`: photos in, an adapter and a report out; stopped and gone on with; bad input said in words."""

from __future__ import annotations

import ast
import base64
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from ldm.data.characters import character, draw_character, pose
from ldm.errors import Code
from ldm.store.find import find_model
from ldm.store.folder import read_words
from ldm.store.sampling import SAMPLING
from tests.app.conftest import Done, Ldm
from train.tasks.subject import SubjectTask

SHORT = ("--steps", 6, "--checkpoints", 2, "--prior", 4, "--batch", 2, "--prompt", "{}", "--prompt", "{} red",
         "--unrelated", "a blue square")  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        exif = Image.Exif()
        exif[0x010F] = "SECRETCAMERA"
        draw_character(character(1), pose(number), 96).save(folder / f"p{number}.jpg", exif=exif)
    return folder


@pytest.fixture
def learn(ldm: Ldm, photos: Path, quick_scenes: Path) -> Ldm:
    """`learn(*options)`: a short personalisation of a model that draws in two steps."""
    return partial(ldm, "personalize", "photos", "--token", "zwx circle", "--model", quick_scenes, *SHORT)


def test_photos_in_and_an_adapter_and_a_report_out(ldm: Ldm, learn: Ldm, tmp_path: Path) -> None:
    done = learn("--licence", "CC0-1.0")
    assert done.status == 0, done.err
    out = tmp_path / "runs" / "zwx-circle"
    assert "report   runs/zwx-circle/report.html" in done.out and "ldm generate" in done.out
    report = json.loads((out / "report.json").read_text())
    assert [c["step"] for c in report["checkpoints"]] == [3, 6]
    assert report["files"] == ["zwx-circle.safetensors", "zwx-circle-kohya.safetensors"]
    at = report["weights"]
    assert at[str(report["step"])] == [0.5, 0.75, 1.0, 1.25] and sorted(map(len, at.values())) == [2, 4]
    assert len(list((out / "samples" / "weights").iterdir())) == (4 + 2) * 2  # of two prompts
    assert len(report["measures"]["nearest"]) == 8 and "cost: at most about" in done.err
    assert report["features"] == "colours and edges" and report["measures"]["prompt"] is None
    page = (out / "report.html").read_text()
    assert page.count("weight 0.5'") == 4 and page.count("weight 1.25'") == 2
    assert report["verdict"][1:].split(";")[0] in page and "http" not in page.replace("http://www.w3.org", "")
    with safe_open(out / "zwx-circle.safetensors", "pt") as file:
        told = file.metadata()
    assert told["modelspec.trigger_phrase"] == "zwx circle" and told["modelspec.license"] == "CC0-1.0"
    for made in tmp_path.rglob("runs/**/*"):
        assert not made.is_file() or b"SECRETCAMERA" not in made.read_bytes()
    inside = re.findall(r"data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)", page)
    assert inside and not any(b"SECRETCAMERA" in base64.b64decode(picture) for picture in inside)
    drawn = ldm("generate", "zwx circle", "--steps", 2, "--lora", out / "zwx-circle.safetensors", "--model", "scenes")
    assert drawn.status == 0, drawn.err
    shutil.copytree(find_model("scenes"), tmp_path / "base")
    (tmp_path / "base" / SAMPLING).write_text('{"steps": 3, "solver": "ddim"}')
    (tmp_path / "fast").mkdir()
    shutil.copyfile(out / "zwx-circle.safetensors", tmp_path / "fast" / "fast.safetensors")
    (tmp_path / "fast" / SAMPLING).write_text('{"steps": 2}')
    merged = ldm("adapter", "merge", "fast/fast.safetensors", "--into", "base", "--out", "mine")
    assert merged.status == 0, merged.err
    assert json.loads((tmp_path / "mine" / SAMPLING).read_text()) == {"steps": 2, "solver": "ddim"}
    assert read_words(tmp_path / "mine") == read_words(tmp_path / "base") | {"zwx"}  # it knows the word that it learned
    (out / "zwx-circle.safetensors").rename(tmp_path / "kept.safetensors")
    (out / "report.html").unlink()
    again = learn("--licence", "CC0-1.0")  # makes what somebody removed, of what the run has kept
    assert again.status == 0 and (out / "report.html").is_file(), again
    assert (out / "zwx-circle.safetensors").read_bytes() == (tmp_path / "kept.safetensors").read_bytes()
    trained = ldm("train", "clip/scenes", f"run.out={out}")
    assert trained.status == Code.USAGE and "is not a run folder" in trained.err, trained
    again = learn("--licence", "CC0-1.0")
    assert again.status == 0 and "report   " in again.out and "step 3:" not in again.err
    other = learn()
    assert (other.status, "other options: licence" in other.err) == (Code.USAGE, True)
    assert learn("--licence", "CC0-1.0", "--device", "cpu").status == 0  # where it runs may change
    assert told["modelspec.title"] == told["ss_output_name"] == "zwx-circle"


@pytest.mark.torture
def test_the_same_seed_gives_the_same_adapter_and_a_run_that_was_cut_goes_on_to_it(
    learn: Ldm, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.personal.watching import Watching

    assert learn("--out", "whole").status == 0
    at, cut = Watching.at, [True]

    def dies(self: Any, trainer: Any, step: int) -> None:
        if step == 6 and cut:
            cut.clear()
            raise KeyboardInterrupt
        at(self, trainer, step)

    monkeypatch.setattr(Watching, "at", dies)
    assert learn("--out", "cut").status == 130
    shutil.rmtree(photos)  # what was prepared is enough
    assert not (tmp_path / "cut" / "report.json").exists()
    assert "under way" in (tmp_path / "cut" / "report.html").read_text()
    assert learn("--out", "cut").status == 0
    files = [(tmp_path / name / "zwx-circle.safetensors").read_bytes() for name in ("whole", "cut")]
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "cut")]
    assert reports[0]["checkpoints"] == reports[1]["checkpoints"]
    assert files[0] == files[1]


@pytest.mark.torture
def test_a_word_is_learned_where_one_is_asked_for(ldm: Ldm, learn: Ldm) -> None:
    told = learn("--method", "inversion", "--prior", 0, "--out", "word", "--json")
    assert told.status == 0, told
    lines = [json.loads(line) for line in told.out.splitlines()]
    kinds = [next(iter(line)) for line in lines]
    assert kinds[:2] == ["plan", "cost"] and lines[0]["plan"]["steps"] == 6 and "findings" in lines[0]["plan"]
    assert kinds.index("cost") < kinds.index("run") < kinds.index("progress") < kinds.index("result")
    far = [line["progress"] for line in lines if "progress" in line]
    assert far[-1] == {"what": "steps", "done": 6, "total": 6}
    result = lines[-1]["result"]
    assert [Path(f).name for f in result["files"]] == ["zwx-circle-word.safetensors"]
    drawn = ldm("generate", "zwx circle", "--steps", 2, "--embedding", result["files"][0], "--model", "scenes")
    assert drawn.status == 0, drawn.err


def test_a_dry_run_says_what_it_will_cost_and_writes_nothing(learn: Ldm, tmp_path: Path) -> None:
    Image.new("RGB", (12, 12), "red").save(tmp_path / "photos" / "small.png")
    told = learn("--dry-run", "--json")
    assert told.status == 0 and told.json["steps"] == 6 and told.json["cost"]["training"] > 0
    cost = told.json["cost"]
    assert cost["total"] == pytest.approx(cost["training"] + cost["looking"] + cost["prior"])
    small = [finding for finding in told.json["findings"] if "small.png" in str(finding["cases"])]
    assert small and all({"kind", "level", "what", "fix", "cases"} <= set(finding) for finding in small)
    assert told.json["notes"] == []
    assert told.json["prompts"] == ["zwx circle", "zwx circle red"]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.torture
def test_a_start_that_failed_may_be_mended_and_a_report_is_whole_without_what_memory_did_not_allow(
    learn: Ldm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.personal.strengths import Pipeline

    def full(*args: Any, **more: Any) -> Pipeline:
        raise MemoryError

    wrong = learn("--size", 33)
    assert wrong.status == Code.USAGE and "32" in wrong.err
    monkeypatch.setattr(Pipeline, "load", full)
    done = learn("--size", 32, "--checkpoints", 1, "--prior", 0)
    assert done.status == 0 and "The table of weights is not drawn for the report. Memory ran out." in done.err, done
    assert json.loads((tmp_path / "runs" / "zwx-circle" / "report.json").read_text())["weights"] == {}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("photos",), Code.USAGE, "--token"),
        (("photos", "--token", " "), Code.USAGE, "--token is empty"),
        (("nowhere", "--token", "zwx"), Code.FILE, "nowhere"),
        (("empty", "--token", "zwx"), Code.FILE, "no picture"),
        (("photos/p0.jpg", "--token", "zwx"), Code.USAGE, "one folder"),
        (("texts", "--token", "zwx"), Code.FILE, "no picture"),
        (("photos", "--token", "zwx", "--model", "nothing"), Code.FILE, "nothing"),
        (("photos", "--token", "zwx", "--method", "magic"), Code.USAGE, "--method"),
        (
            ("photos", "--token", "zwx", "--method", "inversion", "--prior", "9"),
            Code.USAGE,
            "leave it out with inversion",
        ),
        (("photos", "--token", "zwx", "--seed", str(2**63)), Code.USAGE, "--seed"),
        (("photos", "--token", "zwx", "--clip", "nothing"), Code.FILE, "nothing"),
        (("photos", "--token", "zwx", "--out", "full"), Code.FILE, "not empty"),
    ],
)
def test_bad_input_is_said_and_nothing_is_left_behind(
    ldm: Ldm, photos: Path, tmp_path: Path, words: tuple[str, ...], status: Code, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture at all")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    done = ldm("personalize", *words)
    assert (done.status, said in done.err) == (status, True), done
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.torture
def test_one_photo_and_a_common_word_are_remarked_on(
    ldm: Ldm, photos: Path, quick_scenes: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "one")
    for path in sorted((tmp_path / "one").iterdir())[1:]:
        path.unlink()
    done = ldm("personalize", "one", "--token", "red circle", "--model", quick_scenes, *SHORT, "--prior", 0)
    assert done.status == 0, done.err
    assert "one picture" in done.err and "knows 'red' already" in done.err
    report = json.loads((tmp_path / "runs" / "red-circle" / "report.json").read_text())
    assert report["aside"] is None and any("one photo" in text for text in report["unknowable"])


def test_a_figure_that_cannot_be_told_is_a_dash(capfd: pytest.CaptureFixture[str]) -> None:
    from app.personalize import _tell_measures
    from app.training_view import QuietView

    measures = {"subject": None, "prompt": None, "drift": 0.1, "copies": 0.0}
    _tell_measures(QuietView(), {"step": 7, "measures": measures, "validation": 0.25}, False, True)
    assert capfd.readouterr().err == "step 7: subject –, drift 10 %, near copies 0 %, validation 0.25\n"


@pytest.mark.torture
def test_a_word_and_an_adapter_belong_together_and_one_that_changes_nothing_is_left_out(
    ldm: Ldm, learn: Ldm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.personal import learn as module

    def pivotal(out: str, *more: object) -> Done:
        return learn("--method", "pivotal", "--steps", 2, "--checkpoints", 2, "--prior", 0, "--out", out, *more)

    monkeypatch.setattr(module, "best", lambda checkpoints: checkpoints[-1])
    both = pivotal("both", "--quiet")
    assert both.out.split() == ["both/zwx-circle.safetensors", "both/zwx-circle-word.safetensors"], both
    assert list(json.loads((tmp_path / "both" / "report.json").read_text())["weights"]) == ["2"]
    assert len(list((tmp_path / "both" / "samples" / "weights").iterdir())) == 8
    monkeypatch.setattr(module, "best", lambda checkpoints: checkpoints[0])  # before the adapter has begun
    word = pivotal("word", "--quiet")
    assert word.out.split() == ["word/zwx-circle-word.safetensors"], word
    assert json.loads((tmp_path / "word" / "report.json").read_text())["weights"] == {"2": [0.5, 1.0]}
    drawn = ldm("generate", "zwx circle", "--steps", 2, "--embedding", *word.out.split(), "--model", "scenes")
    assert drawn.status == 0, drawn.err


@pytest.mark.torture
def test_a_token_may_end_as_the_name_of_a_file_of_another_kind_does(
    ldm: Ldm, photos: Path, quick_scenes: Path, tmp_path: Path
) -> None:
    done = ldm("personalize", "photos", "--token", "my-word", "--model", quick_scenes, *SHORT, "--kind", "", "--quiet")
    assert done.out.split() == ["runs/my-word/my-word.safetensors"], done


def test_a_number_out_of_its_range_is_told_with_the_range(learn: Ldm) -> None:
    done = learn("--rate", 3)
    assert done.status == Code.USAGE and "--rate cannot be '3.0'" in done.err, done
    assert "less than or equal to 1." in done.err


@pytest.mark.torture
def test_a_loss_that_is_no_number_is_told_in_the_words_of_this_command(
    learn: Ldm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SubjectTask.loss

    def burst(self: SubjectTask, turn: Any, batch: Any) -> Any:
        loss, figures = real(self, turn, batch)
        return loss * float("nan"), figures

    monkeypatch.setattr(SubjectTask, "loss", burst)
    done = learn()
    assert done.status == Code.NUMERIC and "--rate" in done.err and "optim." not in done.err, done
    assert not list((tmp_path / "runs").rglob("zwx-circle.safetensors"))
    monkeypatch.setattr(SubjectTask, "loss", real)
    done = learn()  # the same command goes on
    assert done.status == 0 and "Step 3 at weight 0.5 is not drawn" in done.err, done
    report = json.loads((tmp_path / "runs" / "zwx-circle" / "report.json").read_text())
    assert list(report["weights"]) == ["6"]


def test_what_is_turned_into_options_is_still_said_somewhere() -> None:
    """Texts of the trainer name keys of a run file; here they name options. One that is reworded would slip through."""
    from app.personalize import OPTIONS

    said = set[str]()
    for package in ("ldm", "train", "pipelines"):
        for path in Path(package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
            told = {node.value for node in nodes if isinstance(node, ast.Expr)}  # docstrings
            for node in nodes:
                if isinstance(node, ast.JoinedStr):
                    said.add("".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in told:
                    said.add(node.value)
    assert said
    assert [text for text in OPTIONS if not any(text in words for words in said)] == []
