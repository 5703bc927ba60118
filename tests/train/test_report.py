"""The report of a run: what is read from its folder, how curves are drawn, and a page that asks nothing of anybody."""

from __future__ import annotations

import json
import random
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ldm.config import dump, loads
from ldm.errors import LdmError
from train.config import RunFile
from train.report import read_story, write_report
from train.report_curves import FEWEST, MOST, Axis, Series, axis_of, number, plot, round_numbers, smooth, thin
from train.report_page import span

FILE = """
task: {type: diffusion, unet: a.json, vae: runs/vae, text: runs/clip}
data: {path: scenes, size: 32}
run: {out: runs/x, steps: 400, batch: 8}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of 300 of 400 steps, started twice, with previews at three steps."""
    (tmp_path / "config.yaml").write_text(dump(loads(FILE, RunFile)))
    told: list[dict[str, Any]] = [{"step": 0, "time": 1e9, "start": start()}]
    for step in range(10, 301, 10):
        if step == 160:
            told.append({"step": 150, "time": 1e9 + 400, "start": start()})
        figures = {"loss": 1 / step, "norm": 2.0 if step != 50 else None}
        told.append({"step": step, "time": 1e9 + step, "figures": figures, "lr": 1e-4, "seconds": 0.5, "skipped": 1})
        if step % 100 == 0:
            told.append({"step": step, "time": 1e9 + step, "validation": {"loss": 2 / step}, "seconds": 3.0})
            (tmp_path / "previews" / str(step)).mkdir(parents=True)
            (tmp_path / "previews" / str(step) / "pictures.png").write_bytes(b"")
            told.append({"step": step, "time": 1e9, "previews": [f"previews/{step}/pictures.png"], "seconds": 2.0})
    write(tmp_path, told)
    return tmp_path


def start() -> dict[str, Any]:
    machine = {"processor": "A <b>fast</b> one", "cores": 2, "threads": 1, "torch": "2.15", "python": "3.12"}
    data = {"set": "s", "training": 1000, "validation": 10, "steps_an_epoch": 125.0, "sizes": {"32x32": 1000}}
    return {"machine": machine, "processes": 1, "parameters": {"unet": 12345}, "data": data, "ready": 4.0}


def write(folder: Path, told: list[dict[str, Any]]) -> None:
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in told))


class Page(HTMLParser):
    """Words, and every address that the page would ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.asked, self.tags = "", list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]

    def handle_data(self, data: str) -> None:
        self.words += f"{data} "


def test_what_a_folder_tells(folder: Path) -> None:
    story = read_story(folder)
    assert (story.step, story.steps, story.skipped, story.ended) == (300, 400, 1, False)
    assert story.figures["loss"][0] == (10, 0.1)
    assert 50 not in [step for step, _ in story.figures["norm"]]  # null: it was not finite
    assert story.validation["loss"] == [(100, 0.02), (200, 0.01), (300, 2 / 300)]
    assert story.previews == {"pictures": {step: f"previews/{step}/pictures.png" for step in (100, 200, 300)}}
    assert story.spent == {"making ready": 8.0, "training": pytest.approx(150.0), "validation": 9.0, "previews": 6.0}
    assert [s["step"] for s in story.starts] == [0, 150]


def test_the_page_tells_it_and_asks_for_nothing_but_its_own_pictures(folder: Path) -> None:
    path = write_report(folder)
    text = path.read_text()
    page = Page(text)
    for words in ("300", "of 400", "Latent diffusion", "best 0.006667 at 300", "1,000", "A <b>fast</b> one"):
        assert words in page.words, words
    assert page.asked == ["previews/300/pictures.png"]
    assert "<b>fast" not in text
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert page.tags.count("svg") >= 3
    assert "epochs done 2.4" in " ".join(page.words.split())  # 300 steps of 125
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "log.jsonl", "previews", "report.html"]


def test_a_page_is_rewritten_and_knows_the_end(folder: Path) -> None:
    write_report(folder)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step":300,"time":1,"end":{}}\n{"step": 301, "fi')
    assert "finished" in write_report(folder).read_text()


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a'b\"c", "</script>", "&amp;"])
def test_names_from_outside_are_words(name: str, folder: Path) -> None:
    told = [{"step": s, "time": 1.0, "figures": {name: float(s), "loss": 1.0}, "seconds": 1.0} for s in (1, 2)]
    told.append({"step": 2, "time": 1.0, "validation": {name + "x": 1.0}, "seconds": 1.0})
    write(
        folder,
        [*told, {"step": 2, "time": 1.0, "start": {"machine": {"processor": name}, "data": {"sizes": {name: 1}}}}],
    )
    page = Page(write_report(folder).read_text())
    assert page.tags.count("script") == 1 + 1 + page.tags.count("figure") - 1  # the page's, the slider's, one a plot
    assert name.replace("_", " ") in page.words


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(LdmError, match="holds no run"):
        write_report(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    assert "Nothing is logged yet" in write_report(tmp_path).read_text()
    (tmp_path / "config.yaml").write_text("task: {type: of a later version}\n")
    assert "later version" in write_report(tmp_path).read_text()


def test_a_long_run_is_told_in_a_small_page(tmp_path: Path) -> None:
    rng = random.Random(0)
    figures = [{"loss": 1 / (s + 1) + rng.random() / 10, "norm": rng.random()} for s in range(20_000)]
    write(tmp_path, [{"step": s, "time": s, "figures": f, "seconds": 0.1, "skipped": 0} for s, f in enumerate(figures)])
    began = time.perf_counter()
    path = write_report(tmp_path)
    assert time.perf_counter() - began < 10
    assert path.stat().st_size < 400_000


def test_smoothing_is_the_mean_of_a_window() -> None:
    rng = random.Random(1)
    points = [(float(x), rng.random()) for x in range(200)]
    made = smooth(Series("", points))
    assert [x for x, _ in made] == [x for x, _ in points]
    for i, (_, y) in enumerate(made):
        reach = min(200 // 30, i, 199 - i)
        assert y == pytest.approx(sum(v for _, v in points[i - reach : i + reach + 1]) / (2 * reach + 1))
    assert smooth(Series("", points, noisy=False)) == points
    assert smooth(Series("", points[: FEWEST - 1])) == points[: FEWEST - 1]


def test_thinning_keeps_the_extremes_and_the_ends() -> None:
    rng = random.Random(2)
    points = [(float(x), rng.random()) for x in range(12_345)]
    points[6000] = (6000.0, 50.0)
    points[9000] = (9000.0, -50.0)
    made = thin(points)
    assert len(made) <= MOST + 2
    assert points[6000] in made and points[9000] in made
    assert made[-1] == points[-1]
    assert made == sorted(made)
    assert thin(points[:10]) == points[:10]


def test_axes_hold_the_lines_and_end_on_round_numbers() -> None:
    axis = axis_of([Series("", [(float(x), 1.0 + 0.001 * x) for x in range(100)])])
    assert axis.at(1.0) >= 0
    assert axis.at(1.1) <= 1
    wide = axis_of([Series("", [(float(x), 10.0 ** -(x / 20)) for x in range(100)])], positive=True)
    assert wide.log
    assert all(0 <= wide.at(tick) <= 1 for tick in wide.ticks())
    flat = axis_of([Series("", [(0.0, 2.0), (1.0, 2.0)])])
    assert 0 < flat.at(2.0) < 1
    assert round_numbers(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert round_numbers(0, 4321, 4) == [0, 2000, 4000]
    assert Axis(1, 100, True).at(10) == pytest.approx(0.5)


def test_one_spike_does_not_flatten_a_curve_and_its_beginning_is_seen() -> None:
    points = [(float(x), 1.0 + 0.1 * (x % 7) + 20 / (x + 1)) for x in range(600)]
    points[200] = (200.0, 1e6)
    axis = axis_of([Series("", points)])
    assert 5 < axis.high < 30
    assert axis.low <= 1.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (1234, "1234"), (12_345, "12.35k"), (0.00012, "0.00012"), (0.000012, "1.2e-5"),
     (2_500_000, "2.5M"), (-3.0, "-3"), (1e12, "1e12")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (600, "10 min"), (9000, "2 h 30 min")]
)
def test_times_are_in_the_unit_in_which_they_are_said(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_curve_of_one_point_is_seen() -> None:
    assert "dot" in plot("x", [Series("", [(5.0, 1.0)])])
    assert plot("x", [Series("", [])]) == ""
