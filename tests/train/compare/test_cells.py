"""Cells: trained, drawn from, measured; stopped, gone on with, failed; put together as a table and a page."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.baselines.family import Form, Losses, facts_of, make
from ldm.baselines.stored import Stored
from ldm.baselines.vae import Model
from ldm.data.drawn import Scenes
from ldm.data.draws import Draws
from ldm.errors import Code, LdmError
from ldm.images import Picture
from ldm.metrics.interval import Estimate, share
from ldm.store.weights import load_weights
from tests.train.compare.test_wish import wish
from train.compare import cell as cell_module
from train.compare import growth as growth_module
from train.compare.cell import run_cell
from train.compare.cells import Cell, base_file, cells, shipped_families
from train.compare.counting import Pace, pace_of, planned, rough_seconds
from train.compare.drawing import asked_for, bits, drawn
from train.compare.growth import growth
from train.compare.lab import Progress, compare, cost_of, give_up, prepare, read_wish, remember
from train.compare.labels import Box, Dot, box_of, placed
from train.compare.page import write_pages
from train.compare.reference import pictures_of
from train.compare.table import Row, over_seeds, rows
from train.compare.trilemma import Mark, marks, picture
from train.compare.wish import Wish
from train.lock import Lock
from train.signals import Stop
from train.tasks.settings import FamilySettings


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Wish:
    """PPCA with two seeds and a VAE with one, a few steps each."""
    asked = wish(tmp_path_factory.mktemp("lab") / "out")
    remember(asked, Stop())
    stop = Stop()
    prepare(asked, Progress(), stop)
    for one in list(cells(asked))[:3]:
        run_cell(asked, one, stop)
    write_pages(asked)
    return asked


def first(asked: Wish) -> Cell:
    return next(iter(cells(asked)))


def test_a_cell_tells_figures_with_intervals_and_protocol(done: Wish) -> None:
    told = first(done).result
    assert told is not None
    assert told["drawn"] == 100 and told["images"] == 3 * 128 and told["parameters"] > 1000
    assert set(told["figures"]) >= {"fid", "fid_infinity", "kid", "precision", "recall", "coverage", "copies"}
    assert told["growth"] > 0
    for one in told["figures"].values():
        assert one["low"] <= one["value"] <= one["high"]
    assert told["bits_per_dim"]["kind"] == "exact" and 0 < told["bits_per_dim"]["value"] < 9
    assert told["protocol"] | {"reference": ""} == {
        "extractor": "pixels", "resize": "none", "made": 100, "real": 200, "reference": "",
    }  # fmt: skip
    tensors = load_weights(first(done).folder / "samples.safetensors")
    assert tensors["samples"].shape == (100, 3, 8, 8) and tensors["samples"].dtype == torch.uint8
    assert tensors["between"].shape == (8, 3, 8, 8)


def test_a_done_cell_is_not_run_again_and_the_same_seed_measures_the_same(
    done: Wish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = first(done).result
    with monkeypatch.context() as patched:
        patched.setattr(cell_module, "_trained", lambda *_: pytest.fail("trained again"))
        assert run_cell(done, first(done), Stop()) == before
    again = wish(tmp_path / "again")
    remember(again, Stop())
    prepare(again, Progress(), Stop())
    told = run_cell(again, first(again), Stop())
    assert (
        before is not None and told["figures"] == before["figures"] and told["bits_per_dim"] == before["bits_per_dim"]
    )


def test_the_page_holds_every_part_and_reaches_for_nothing(done: Wish) -> None:
    text = (done.out / "compare.html").read_text("utf-8")
    for part in (
        "Figures",
        "trilemma",
        "Samples of the first seed",
        "held-out pictures",
        "nearest training pictures",
        "Losses",
        "Notes",
    ):
        assert part in text
    assert "3 of 4 cells" in text and "http" not in text.replace("http://www.w3.org", "")
    assert text.count("data:image/webp;base64,") >= 6
    data = json.loads((done.out / "compare.json").read_text("utf-8"))
    assert [c["family"] for c in data["cells"]] == ["ppca", "ppca", "vae"]
    scale = data["held_out"]["figures"]
    # as of real pictures, by chance
    assert 0.3 < scale["authentic"]["value"] < 0.85 and scale["copies"]["value"] < 0.05
    assert scale["kid"]["value"] < min(c["figures"]["kid"]["value"] for c in data["cells"])
    assert "ldm compare scenes --families ppca,vae --budget 3-steps" in text
    samples = text.split("Samples of the first seed")[1].split("<h2>")[0]
    table = [name for name in re.findall(r"<tr><td>(\w+)", text.split("<h2>Cost")[0]) if name in ("ppca", "vae")]
    shown = re.findall(r"<figcaption>(\w+)</figcaption>", samples)
    assert len(shown) == 2 and shown == table[:2]
    lines = list(csv.DictReader((done.out / "compare.csv").read_text("utf-8").splitlines()))
    fids = [line for line in lines if line["figure"] == "fid"]
    assert len(fids) == 3 and all(line["extractor"] == "pixels" and line["made"] == "100" for line in fids)


def test_a_row_spans_what_its_seeds_leave_open(done: Wish) -> None:
    ppca = rows(done)[0]
    assert (ppca.name, len(ppca.done), ppca.wanted) == ("ppca", 2, 2)
    fid = ppca.figure("fid")
    each = [told["figures"]["fid"]["value"] for told in ppca.done]
    assert fid is not None and fid.value == pytest.approx(sum(each) / 2) and fid.low < min(each)
    precision = ppca.figure("precision")
    assert precision is not None and precision.low >= 0 and precision.high <= 1


def test_more_seeds_leave_as_much_open_where_all_saw_the_same_pictures() -> None:
    """Recall and coverage are shares of real pictures, which every seed is measured on; precision is one of samples."""
    protocol = {"extractor": "pixels", "resize": "none", "made": 100, "real": 200, "reference": "one"}
    one = {"value": 0.5, "low": 0.4, "high": 0.6, "protocol": protocol}
    cell = {"seed": 0, "figures": {"recall": one, "precision": one}}
    row = Row("mine", facts_of("vae"), (cell, cell, cell, cell), 4)
    recall, precision = row.figure("recall"), row.figure("precision")
    assert recall is not None and precision is not None
    assert recall.high - recall.low == pytest.approx(0.2)
    assert precision.high - precision.low == pytest.approx(0.1)


@pytest.mark.parametrize("where", [("figures", "kid", "protocol"), ("bits_per_dim",)])
def test_figures_of_unlike_protocols_do_not_stand_in_one_table(
    where: tuple[str, ...], done: Wish, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done.out, out)
    copied = read_wish(out)
    path = list(cells(copied))[1].folder / "cell.json"
    told = json.loads(path.read_text("utf-8"))
    of = told
    for name in where:
        of = of[name]
    of["reference"] = "another"
    path.write_text(json.dumps(told), "utf-8")
    with pytest.raises(LdmError, match=r"reference: .* another there"):
        write_pages(copied)


def test_cells_of_other_settings_are_not_gone_on_with(done: Wish, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done.out, out)
    path = first(read_wish(out)).folder / "cell.json"
    told = json.loads(path.read_text("utf-8"))
    told["settings"]["run"]["batch"] = 7
    path.write_text(json.dumps(told), "utf-8")
    with pytest.raises(LdmError, match=r'another run file of ppca[^$]*"batch": 7') as caught:
        remember(read_wish(out), Stop())
    assert caught.value.code == Code.DIFFERENT


def test_a_data_set_that_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    asked = wish(tmp_path / "out")
    remember(asked, Stop())
    prepare(asked, Progress(), Stop())
    run_cell(asked, first(asked), Stop())
    grown = wish(tmp_path / "out", data={"path": "scenes", "count": 420})
    with pytest.raises(LdmError, match="had 300 to train on, and has 320"):
        run_cell(grown, list(cells(grown))[1], Stop())


def test_a_pace_tells_how_many_steps_a_budget_buys() -> None:
    pace = Pace(begin=10, step=0.1, reading=0.001, batch=10, kept=1000)
    assert pace.seconds(50) == pytest.approx(10 + 5 + 0.5)
    assert pace.seconds(500) == pytest.approx(10 + 50 + 1)  # all have been read after a hundred steps
    assert pace.steps(pace.seconds(500) + 1e-6) == 500 and pace.steps(pace.seconds(500) - 1e-6) == 499
    assert pace.steps(1) == 1  # what is taken from data may take longer than the budget
    assert Pace(0, 0.1, 0.001, 10, 0).seconds(500) == pytest.approx(50 + 5)  # where each is read again


@pytest.mark.torture
def test_a_budget_of_time_becomes_steps_and_a_machine_that_changed_is_told_of(tmp_path: Path) -> None:
    asked = wish(tmp_path / "out", budget="4s", families=("stylegan",), seeds=1, size=16)
    remember(asked, Stop())
    prepare(asked, Progress(), Stop())
    told = run_cell(asked, first(asked), Stop())
    steps, pace = told["plan"]["steps"], told["plan"]["pace"]
    assert steps * pace["step"] <= 4 < (steps + 1) * pace["step"] + pace["begin"] + pace["reading"] * 300 + 0.1
    assert any("in place of 4" in note for note in told["notes"]) == (abs(told["train_seconds"] / 4 - 1) > 0.1)
    assert told["memory"] > 1e8


def test_classes_are_asked_for_as_often_as_the_data_has_them(done: Wish) -> None:
    form = Form(8, 4)
    stored = Stored("vae", make("vae", {"width": 8}, form, 0), ("a", "b", "c", "d"))
    kept = pictures_of(done)
    some = torch.tensor([0] * 60 + [1] * 30 + [3] * 10)
    names = ("a", "b", "c", "d")
    asked = asked_for(stored, replace(kept, labels=some, label_names=names), 100)
    assert asked is not None and torch.bincount(asked, minlength=4).tolist() == [60, 30, 0, 10]
    assert torch.bincount(asked[:20], minlength=4).tolist() == [12, 6, 0, 2]  # a capped row has the shares too
    equal = asked_for(stored, replace(kept, labels=None), 8)
    assert equal is not None and torch.bincount(equal).tolist() == [2, 2, 2, 2]
    assert asked_for(Stored("vae", make("vae", {"width": 8}, Form(8), 0)), kept, 8) is None


def test_a_likelihood_that_needs_a_class_is_not_told_without_one(done: Wish) -> None:
    stored = Stored("vae", make("vae", {"width": 8}, Form(8, 2), 0), ("a", "b"))
    kept = pictures_of(done)
    assert "no_bits" in bits(stored, replace(kept, held_out_labels=None), Stop())
    labels = torch.arange(len(kept.held_out)) % 2
    assert "no_bits" in bits(stored, replace(kept, held_out_labels=labels, label_names=("a", "z")), Stop())
    assert "bits_per_dim" in bits(stored, replace(kept, held_out_labels=labels, label_names=("a", "b")), Stop())


def test_few_seeds_make_wide_intervals() -> None:
    told = over_seeds([Estimate(1.0, 0.9, 1.1), Estimate(2.0, 1.9, 2.1)])
    assert told is not None and told.value == 1.5
    assert told.high - told.value == pytest.approx(12.706 * 0.5, rel=1e-3)  # Student's t with one degree of freedom
    assert over_seeds([]) is None
    assert over_seeds([Estimate(1.0, 0.5, 1.5)]) == Estimate(1.0, 0.5, 1.5)


def test_an_interval_that_is_open_to_one_side_stays_so() -> None:
    """None of 2,000 are copies: the interval reaches up from there, however many seeds there are."""
    none = share(0, 2000)
    assert over_seeds([none]) == none
    told = over_seeds([none] * 4)
    assert told is not None and told.low == 0 and told.high == pytest.approx(none.high / 2)


def test_a_family_that_diverges_says_so_and_the_page_still_comes_out(
    done: Wish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = wish(tmp_path / "out", seeds=1, families=("vae",))
    remember(asked, Stop())
    prepare(asked, Progress(), Stop())

    def broken(*_: Any) -> dict[str, Any]:
        raise LdmError(Code.NUMERIC, "The loss is not finite.", "It was so three times.", "Lower it.")

    monkeypatch.setattr(cell_module, "_trained", broken)
    told = run_cell(asked, first(asked), Stop())
    assert told["failed"].startswith("The loss is not finite.")
    assert "The loss is not finite." in write_pages(asked).read_text("utf-8")
    assert rows(asked)[0].figure("fid") is None


@pytest.mark.torture
def test_the_cost_counts_who_looks_until_it_has_been_trained(tmp_path: Path) -> None:
    told = {"seeds": 1, "families": ("ppca",), "classifier_steps": 40}
    asked, said = wish(tmp_path / "out", **told), list[str]()
    before = cost_of(asked, Stop(), said.append).judge
    assert said == ["timing a step of each family"]
    assert before is not None and 0 < before < 600
    remember(asked, Stop())
    prepare(asked, Progress(), Stop())
    assert cost_of(asked, Stop()).judge == 0
    assert cost_of(wish(tmp_path / "pixels", **{**told, "classifier_steps": 0}), Stop()).judge == 0


def test_a_larger_picture_costs_more_and_the_clock_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family whose step takes the square of its side, by a clock that nothing else moves."""
    real, clock = Model.loss, [0.0]

    def slow(self: Model, part: str, x: Tensor, label: Tensor | None, draws: Draws) -> Losses:
        clock[0] += x.shape[-1] ** 2
        return real(self, part, x, label, draws)

    monkeypatch.setattr(Model, "loss", slow)
    monkeypatch.setattr(growth_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    settings = FamilySettings(type="family", family="vae", options={"width": 4, "latents": 4})
    assert growth(settings, 16, 0, torch.device("cpu")) == 4
    assert growth(settings, 8, 0, torch.device("cpu")) == 4  # there is no smaller side: 16 beside 8


@pytest.mark.torture
def test_a_step_that_does_not_fit_is_timed_with_fewer_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the training itself goes on."""
    asked = wish(tmp_path, families=("ppca",))
    tried = list[int]()

    def timed(settings: object, side: int, classes: int, device: object, pictures: int) -> float:
        tried.append(pictures)
        if pictures > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return 0.5

    monkeypatch.setattr("train.compare.counting.step_seconds", timed)
    batch, most = base_file("ppca").run.batch, 4
    assert rough_seconds(asked, next(cells(asked))) == 0.5 * batch
    assert tried[0] == batch and tried[-1] == 4
    most = 0
    with pytest.raises(LdmError, match="Not even one example fits"):
        rough_seconds(asked, next(cells(asked)))


def test_other_errors_are_not_taken_for_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = wish(tmp_path / "out", seeds=1)
    remember(asked, Stop())

    def broken(*_: Any) -> dict[str, Any]:
        raise LdmError(Code.FILE, "The table is gone.", "Somebody moved it.", "Put it back.")

    monkeypatch.setattr(cell_module, "_trained", broken)
    with pytest.raises(LdmError, match="table is gone"):
        run_cell(asked, first(asked), Stop())
    assert first(asked).result is None


def test_a_slow_family_is_capped_and_says_so(done: Wish, tmp_path: Path) -> None:
    from ldm.baselines.stored import load_family

    stored = load_family(first(done).folder / "run" / "model")
    samples, seconds, broken = drawn(stored, 100_000_000, 1, 0, Stop())
    assert 50 <= len(samples) < 100_000_000 and 1 <= seconds < 20 and not broken


def test_two_processes_do_not_disturb_each_other(done: Wish, tmp_path: Path) -> None:
    asked = wish(tmp_path / "out", seeds=1)
    one = first(asked)
    one.folder.mkdir(parents=True)
    with Lock(one.folder), pytest.raises(LdmError) as caught:
        run_cell(asked, one, Stop())
    assert caught.value.code == Code.BUSY


@pytest.mark.torture
def test_a_whole_comparison_in_processes_of_its_own(tmp_path: Path) -> None:
    """Two cells, one of which does not know its own family's options and so fails; the other is measured."""
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "task: {type: family, family: vae, options: {latents: 0}}\ndata: {path: scenes, size: 16}\n"
        "optim: {lr: 1.0e-3}\nrun: {out: runs/bad, steps: 3, batch: 8}\n"
    )
    asked = wish(tmp_path / "out", seeds=1, families=("ppca", str(bad)))
    seen: list[tuple[str, bool]] = []
    assert cost_of(wish(tmp_path / "out", seeds=1, families=("ppca",)), Stop()).cells == 1
    page = compare(asked, Progress(done=lambda c, told: seen.append((c.family, "failed" in told))), Stop())
    assert seen == [("ppca", False), (str(bad), True)]
    text = page.read_text("utf-8")
    assert "task.options.latents" in text and "1 of 2 cells" in text


def test_why_a_cell_ended_is_what_it_said_or_the_signal(tmp_path: Path) -> None:
    one = Cell("ppca", 0, tmp_path / "cell")
    give_up(one, "going on\nThe table is gone. Somebody moved it.\n", 5)
    assert one.told is not None
    assert one.told["failed"].endswith("before it was done: The table is gone. Somebody moved it.")
    give_up(one, "going on from step 300\n", -9)
    assert one.told["failed"].endswith("ended by signal 9, as the system does where memory is short")
    assert one.result is None and one.given_up_since(0) and not one.given_up_since(time.time() + 60)


@pytest.mark.torture
def test_reading_that_is_slower_than_training_leaves_a_budget_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture takes 20 ms to be read for the first time, a step about a millisecond beside it."""
    read = Scenes.picture

    def slow(self: Scenes, index: int) -> Picture:
        time.sleep(0.02)
        return read(self, index)

    asked = wish(tmp_path / "out", families=("ppca",), seeds=1)
    monkeypatch.setattr(Scenes, "picture", slow)
    pace = pace_of(asked, first(asked), Stop())
    # those that it begins at are all there are, and have been read by then
    assert pace.begin > 0.02 * 300 and pace.reading == 0 and 1e-4 < pace.step < 0.5
    asked = wish(tmp_path / "out", families=("autoencoder",), seeds=1)
    pace = pace_of(asked, first(asked), Stop())
    assert 0.012 < pace.reading < 0.1 and 1e-4 < pace.step < 0.5 and 0.02 * 64 < pace.begin < 10


@pytest.mark.torture
def test_all_seeds_of_a_family_take_as_many_steps(tmp_path: Path) -> None:
    """They are to differ by chance alone; how long they take is told of those that were timed."""
    asked = wish(tmp_path / "out", budget="2s", families=("mixture",), seeds=2)
    remember(asked, Stop())
    prepare(asked, Progress(), Stop())
    timed, other = (run_cell(asked, one, Stop()) for one in cells(asked))
    assert "pace" in timed["plan"] and other["plan"] == {"steps": timed["plan"]["steps"], "as": 0}
    assert timed["images"] == other["images"] and not any("in place of" in note for note in other["notes"])
    row = rows(asked)[0]
    assert row.mean("train_seconds") == timed["train_seconds"]
    assert row.mean("memory") == (timed["memory"] + other["memory"]) / 2
    steps = wish(tmp_path / "steps", budget="3-steps")
    assert planned(steps, first(steps), Stop()) == {"steps": 3}


def test_equal_pictures_are_refused_and_leave_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    for i in range(230):
        Image.new("RGB", (16, 16), (90, 90, 90)).save(folder / f"{i}.png")
    asked = wish(tmp_path / "out", data={"path": str(folder)})
    remember(asked, Stop())
    with pytest.raises(LdmError, match="all the same"):
        prepare(asked, Progress(), Stop())
    for i in range(230):
        Image.new("RGB", (16, 16), (i, 90, 255 - i)).save(folder / f"{i}.png")
    prepare(asked, Progress(), Stop())


def test_a_data_set_that_changed_is_refused_before_a_cell_is_begun(done: Wish, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done.out, out)
    grown = read_wish(out).model_copy(update={"data": {"path": "scenes", "count": 420}})  # a folder has no such word
    (out / "wish.json").write_text(grown.model_dump_json(), "utf-8")
    with pytest.raises(LdmError, match="had 300 to train on, and has 320"):
        compare(grown, Progress(), Stop())


def test_the_trilemma_places_families_by_what_they_are_good_at(done: Wish) -> None:
    assert len(marks(rows(done))) == 2
    drawn = picture([Mark("sure", "gan", 1, 0, 0), Mark("wide", "vae", 0, 1, 0), Mark("fast", "flow", 0, 0, 1)])
    assert drawn.count("<circle") == 3 and all(name in drawn for name in ("sure", "wide", "fast"))
    at = {part.split("'")[1]: part for part in drawn.split("<circle cx=")[1:]}
    xs = sorted(float(x) for x in at)
    assert xs[0] < 150 < xs[1] < 300 < xs[2]  # coverage on the left, quality above the middle, speed on the right
    assert picture([]) == ""


def test_a_distance_about_zero_does_not_press_all_others_together(done: Wish) -> None:
    one = rows(done)[0]
    near = [json.loads(json.dumps(told)) for told in one.done]
    table = list[Row]()
    for name, kid in (("a", -0.02), ("b", 3.0), ("c", 14.0), ("d", 100.0)):
        cells = [
            {
                **told,
                "figures": {
                    **told["figures"],
                    "kid": {**told["figures"]["kid"], "value": kid, "low": kid - 1, "high": kid + 1},
                },
            }
            for told in near[:1]
        ]
        table.append(Row(name, one.facts, tuple(cells), 1))
    quality = [mark.quality for mark in marks(table)]
    assert quality[0] == 1 and quality[-1] == 0 and quality[1] > 0.6 and quality[2] > 0.3


def test_words_of_the_trilemma_cover_neither_each_other_nor_dots() -> None:
    names = shipped_families()
    dots = [Dot(name, 200 + 7 * (place % 5), 200 + 9 * (place // 5), 6) for place, name in enumerate(names)]
    found = list(placed(dots, 460, [box_of("quality", 200, 150)]))
    boxes = [box_of("quality", 200, 150), *(box for _, box, _ in found)]
    assert [dot for dot, _, _ in found] == dots and all(box.within(460) for box in boxes)
    assert not any(one.meets(other) for place, one in enumerate(boxes) for other in boxes[:place])
    circles = [Box(dot.x, dot.y, 2 * dot.radius, 2 * dot.radius) for dot in dots]
    assert not any(box.meets(circle) for box in boxes[1:] for circle in circles)
    near, far = ([far for _, _, far in placed(some, 460, [])] for some in (dots[:1], dots))
    assert near == [False] and any(far)  # a line leads to a word that had to give way
