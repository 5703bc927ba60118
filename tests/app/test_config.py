"""`ldm config check` and `show`: a request as YAML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app import config
from ldm.config import loads
from ldm.errors import LdmError
from pipelines.request import Request

GOOD = """\
prompt: a red circle
steps: 12
guidance: {scale: 5.0, interval: [0.0, 0.8]}
controls:
  - {model: edges, image: outline.png, hint: canny, weight: 0.7}
loras:
  - {path: style.safetensors, weight: 0.5}
hires: {scale: 2.0}
"""


def test_a_good_request_file_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(GOOD)
    assert config.check(str(file)) == 0
    assert "fine; sets prompt, steps, guidance, controls, loras, hires" in capsys.readouterr().out
    assert config.check(str(file), json=True) == 0
    assert json.loads(capsys.readouterr().out)["set"][:2] == ["prompt", "steps"]


def test_shown_defaults_read_back_as_the_same_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(GOOD)
    config.show(str(file))
    text = capsys.readouterr().out
    assert "solver: auto" in text
    assert loads(text, Request) == loads(GOOD, Request)
    config.show(str(file), json=True)
    assert json.loads(capsys.readouterr().out)["steps"] == 12


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps: 12", "stepps: 12", "stepps: unknown key; did you mean steps?"),
        ("weight: 0.7", "wieght: 0.7", "controls.0.wieght: unknown key; did you mean weight?"),
        ("steps: 12", "steps: 0", "steps: 0: should be greater than or equal to 1"),
        ("steps: 12", "width: 500", "width: 500 is not a multiple of 8 from 8 to 16384; the nearest legal size"),
        ("steps: 12", "dialect: a111", "dialect: a111 is none of a1111, comfy, compel; did you mean a1111?"),
        ("steps: 12", "mask: a.png", "mask needs an image"),
        ("image: outline.png, ", "", "controls.0.image: missing"),
    ],
)  # fmt: skip
def test_a_broken_request_file_names_the_line(old: str, new: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(LdmError) as caught:
        config.check(str(file))
    assert words in caught.value.what and f"({file} line " in caught.value.what
