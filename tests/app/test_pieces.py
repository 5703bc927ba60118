"""The small parts of the command line: where outputs go, tables of pictures, pace, and how a run is stopped."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.errors import INTERRUPTED, TERMINATED
from app.grids import Axis, Grid
from app.outputs import Outputs
from app.progress import Clock, Stop, duration
from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image
from pipelines.recipe import Recipe, read_recipe
from pipelines.request import Request
from pipelines.steps import Step

PICTURE = Picture(np.full((8, 8, 3), 7, np.uint8))


def test_numbers_go_on_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "0007-3.png").write_text("taken")
    (tmp_path / "0009-1-step010.png").write_text("a preview does not count")
    outputs = Outputs(str(tmp_path))
    paths = [outputs.save(PICTURE, Recipe(seed=seed)) for seed in (3, 4)]
    assert [p.name for p in paths if p] == ["0008-3.png", "0009-4.png"]
    assert read_recipe(tmp_path / "0009-4.json").seed == 4
    assert (tmp_path / "0007-3.png").read_text() == "taken"


def test_a_file_is_taken_by_its_name_once(tmp_path: Path) -> None:
    outputs = Outputs(str(tmp_path / "a.webp"), sidecar=False)
    assert outputs.suffix == ".webp"
    outputs.check([Request()])
    assert outputs.save(PICTURE, Recipe()) == tmp_path / "a.webp"
    assert not (tmp_path / "a.json").exists()
    with pytest.raises(LdmError) as caught:
        outputs.check([Request()])
    assert caught.value.code == Code.FILE


def test_a_sidecar_in_the_way_is_noticed_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(LdmError, match=r"a\.json exists"):
        Outputs(str(tmp_path / "a.png")).check([Request()])


@pytest.mark.parametrize("target", ["-", "a.png"])
def test_one_place_holds_one_picture(target: str) -> None:
    with pytest.raises(LdmError, match="one picture") as caught:
        Outputs(target).check([Request(count=2)])
    assert caught.value.code == Code.USAGE


def test_a_format_that_cannot_keep_the_promise_is_refused_before_the_work() -> None:
    image = Image.new("RGB", (16, 16))
    painted = [Request(image=image, mask=Image.new("L", (16, 16)))]
    with pytest.raises(LdmError, match="outside its mask"):
        Outputs(format="jpg").check(painted)
    Outputs(format="jpg", allow_lossy=True).check(painted)
    Outputs(format="png").check(painted)


@pytest.mark.parametrize("target", ["file/x.png", "file", "file/deeper/x.png", "/dev/null", "x" * 300 + ".png"])
def test_a_place_that_cannot_be_written_is_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with pytest.raises(LdmError, match=r"is a file, not a folder|cannot be written") as caught:
        Outputs(target).probe()
    assert caught.value.code == Code.FILE
    assert "exists already" not in str(caught.value)


def test_asking_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in ("a/b", "c/d.png", "e.webp", "-"):
        Outputs(target).probe()
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_are_not_written_are_refused_by_their_suffix(tmp_path: Path) -> None:
    with pytest.raises(LdmError, match=r"\.gif pictures are not written"):
        Outputs("x.gif")
    (tmp_path / "old.gif").mkdir()
    assert Outputs(str(tmp_path / "old.gif")).folder == tmp_path / "old.gif"


def test_formats_are_named() -> None:
    with pytest.raises(LdmError, match="Did you mean jpg"):
        Outputs(format="jpgg")
    with pytest.raises(LdmError, match="contradict"):
        Outputs("a.png", format="webp")


def test_private_pictures_hold_no_chunks_of_their_inputs(tmp_path: Path) -> None:
    picture = Picture(PICTURE.pixels, text={"prompt": "secret graph"})
    path = Outputs(str(tmp_path), private=True).save(picture, Recipe(prompt="secret"))
    assert path is not None
    assert b"secret" not in path.read_bytes()
    kept = Outputs(str(tmp_path)).save(picture, Recipe(prompt="open"))
    assert kept is not None
    assert open_image(kept).text["prompt"] == "secret graph"


def test_axes_are_read() -> None:
    assert Axis.read("x=guidance:3, 5,7") == Axis("x", "guidance", ("3", "5", "7"))
    assert Axis.read("y=prompt:a cat, red|a dog").values == ("a cat, red", "a dog")
    assert Axis.read("x=--size:32x32").fields("32x16") == {"width": "32", "height": "16"}
    assert Axis.read("x=guidance.apg_eta:1").fields("1") == {"guidance": {"apg_eta": 1}}
    assert Axis.read("x=lora:a").fields("a.safetensors:0.5") == {"loras": [{"path": "a.safetensors", "weight": "0.5"}]}
    assert Axis.read("x=exact:yes").fields("yes") == {"exact": True}


def test_a_switch_is_on_or_off_and_nothing_else() -> None:
    assert Axis.read("x=exact:off").fields("off") == {"exact": False}
    with pytest.raises(LdmError, match="takes yes or no"):
        Axis.read("x=exact:maybe").fields("maybe")


@pytest.mark.parametrize("text", ["z=a:1", "x=guidance", "x", "x=guidance:", ":", "=:"])
def test_wrong_axes_are_refused(text: str) -> None:
    with pytest.raises(LdmError, match="no axis"):
        Axis.read(text)


def test_a_grid_has_two_sides_and_an_end() -> None:
    with pytest.raises(LdmError, match="twice"):
        Grid.read(["x=steps:1", "x=steps:2"])
    with pytest.raises(LdmError, match="too many"):
        Grid.read(["x=steps:" + ",".join("1" * 30), "y=seed:" + ",".join("1" * 30)])
    assert Grid.read([]) is None


def test_cells_run_along_x_first() -> None:
    grid = Grid.read(["x=guidance:1,2", "y=steps:3,4"])
    assert grid is not None
    cells = [(c["guidance"]["scale"], c["steps"]) for c in grid.cells()]
    assert cells == [("1", "3"), ("2", "3"), ("1", "4"), ("2", "4")]


def test_a_table_shows_each_picture_in_its_cell() -> None:
    grid = Grid.read(["x=guidance:1,2", "y=steps:3,4"])
    assert grid is not None
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)]
    table = np.asarray(grid.draw([Image.new("RGB", (120, 90), c) for c in colours]))
    places = [np.argwhere((table == c).all(axis=2)) for c in colours]
    assert [len(p) for p in places] == [120 * 90] * 4
    tops, lefts = [p.min(axis=0)[0] for p in places], [p.min(axis=0)[1] for p in places]
    assert tops[0] == tops[1] < tops[2] == tops[3]
    assert lefts[0] == lefts[2] < lefts[1] == lefts[3]
    assert (table[: tops[0]] < 128).any() and (table[:, : lefts[0]] < 128).any()  # labels


def test_small_pictures_are_enlarged_by_whole_factors() -> None:
    grid = Grid.read(["x=guidance:1,2"])
    assert grid is not None
    dot = Image.new("RGB", (32, 24), (255, 0, 0))
    dot.putpixel((0, 0), (0, 255, 0))
    table = np.asarray(grid.draw([dot, Image.new("RGB", (32, 24), (0, 0, 255))]))
    assert [(table == c).all(axis=2).sum() for c in [(0, 255, 0), (0, 0, 255)]] == [4 * 4, 128 * 96]


def step(index: int, pictures: tuple[int, int] = (0, 4), total: int = 8) -> Step:
    return Step("sample", index, 20, pictures, total)


def test_pace_counts_what_is_left_of_all_batches() -> None:
    clock = Clock("sample", (0, 4))
    assert clock.pace(step(1), now=100.0) == ""
    assert clock.pace(step(5), now=102.0) == "0.50 s/step, 18 s left"  # 15 steps here and 20 of the second batch
    assert not clock.goes_on(step(1, (4, 8)))
    assert [duration(s) for s in (3.4, 100, 7000)] == ["3 s", "1 min 40 s", "1.9 h"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_the_first_signal_asks_and_the_second_stops(number: signal.Signals, status: int) -> None:
    before = signal.getsignal(number)
    with Stop() as stop:
        assert stop.status is None
        signal.raise_signal(number)
        assert stop.status == status
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
