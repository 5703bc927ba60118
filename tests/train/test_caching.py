"""Caches of a run stay small and say nothing stale: captions in few files, and files that are read once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ldm.config import loads
from ldm.data.cache import Cache
from tests.data import sets
from train.config import RunFile
from train.run import opened


def trained(pictures: Path, out: Path, model: Path, *overrides: str) -> Cache:
    text = f"""
task: {{type: diffusion, unet: {model}, vae: {model}, text: {model}, noise: {{kind: epsilon}}}}
data: {{path: {pictures}, size: 16}}
run: {{out: {out}, steps: 4, batch: 2, preview: 0, device: cpu, cache: {out.parent}/cache}}
"""
    with opened(loads(text, RunFile, overrides)) as run:
        run.fit()
    return Cache(out.parent / "cache")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = sets.folder(tmp_path / "set", 8, (16, 16))
    for number in range(8):
        (root / f"{number:02}.txt").write_text(f"red, round, number {number}")
    return root


def test_captions_are_kept_in_one_file_and_files_are_hashed_once(
    pictures: Path, tmp_path: Path, tiny_sd1: Path
) -> None:
    for path in pictures.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    size = trained(pictures, tmp_path / "run", tiny_sd1).size()
    assert dict(size.rows) == {"latents": 8, "texts": 8} and size.shards == 2


def test_captions_that_are_new_each_time_are_not_kept(pictures: Path, tmp_path: Path, tiny_sd1: Path) -> None:
    size = trained(pictures, tmp_path / "run", tiny_sd1, "data.shuffle_caption=true").size()
    assert dict(size.rows) == {"latents": 8}
