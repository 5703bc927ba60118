"""Scenes as a data set: what a cache knows them by is the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

from ldm.data.drawn import Scenes
from ldm.data.scenes import caption
from ldm.data.settings import Part

ASKED = """
from ldm.data.drawn import Scenes
from ldm.data.settings import Part
print([Scenes(Part(path="scenes"), 32).content(i) for i in range(5)])
"""


def contents(seed: str) -> str:
    """As another process with another seed of Python's own hashes says it."""
    env = {**os.environ, "PYTHONHASHSEED": seed}
    return subprocess.run([sys.executable, "-c", ASKED], env=env, check=True, capture_output=True, text=True).stdout


def test_processes_agree_on_content() -> None:
    own = str([Scenes(Part(path="scenes"), 32).content(i) for i in range(5)])
    assert {contents("1").strip(), contents("2").strip()} == {own}


def test_content_is_that_of_the_picture_and_the_caption_is_kept() -> None:
    source = Scenes(Part(path="scenes"), 32)
    first = [(source.about(i).captions, source.content(i)) for i in range(40)]
    assert len({content for _, content in first}) == 40
    assert first == [(source.about(i).captions, source.content(i)) for i in range(40)]
    assert first[3][0] == (caption(source.scene(3)),)
    assert Scenes(Part(path="scenes"), 64).content(3) != first[3][1]
