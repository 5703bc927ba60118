"""`make demo`: the page and every picture on it."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from app.demo import Demo, make
from pipelines.recipe import read_recipe


def test_the_demonstration_shows_every_mode_and_overwrites_nothing(
    tmp_path: Path, torture: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the quick suite with rough pictures."""
    drawn, rough = Demo._run, {"steps": 3} if torture == 1 else {}
    monkeypatch.setattr(Demo, "_run", lambda self, **fields: drawn(self, **rough | fields))
    told: list[str] = []
    index = make(tmp_path / "demo", told.append)
    page = index.read_text("utf-8")
    shown = re.findall(r"src='([^']+)'", page)
    assert len(shown) >= 25
    assert all((index.parent / name).is_file() for name in shown)
    assert "outside the mask: 0" in page
    assert (index.parent / "sheet.png").is_file()
    made = [name for name in shown if "seed" in name]
    assert all(read_recipe(index.parent / name).pixels for name in made)
    assert "http" not in page
    assert str(index.parent) in told[0]  # what is going to happen
    assert all(any(name in line for line in told) for name in made)
    few, control = (page.partition(title)[2].partition("<h2")[0] for title in ("<h2>Few steps", "<h2>Control"))
    fast = [read_recipe(index.parent / name) for name in made if name in few]
    assert [(recipe.steps, [a.name for a in recipe.adapters]) for recipe in fast[1:]] == [
        (steps, ["emoji-fast.safetensors"]) for steps in (4, 2, 1)
    ]
    steered = [read_recipe(index.parent / name) for name in made if name in control]
    assert len(steered) == 5 and all(recipe.controls for recipe in steered)
    mixed = page.partition("Any mix")[2]
    captions = re.findall(r"<figcaption>([^<]+)", mixed)
    prompts = [read_recipe(index.parent / name).prompt for name in made if name in mixed]
    assert len(prompts) == 1 and all(any(prompt in caption for caption in captions) for prompt in prompts)


def test_the_lines_of_python_in_the_readme_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    block = text.partition("From Python:\n\n")[2].partition("\nA run is")[0]
    names: dict[str, list[object]] = {}
    exec(compile(textwrap.dedent(block), "README.md", "exec"), names)
    assert capsys.readouterr().out.splitlines() == ["3 (64, 64, 3) 15", "4 (64, 64, 3) 15"]
    assert len(names["pictures"]) == 1 and names["rough"] is not None
