"""Caches of a run stay small, say nothing stale and end no run: few files, read once; bad pictures and full disks."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest

from ldm.config import loads
from ldm.data import cache as cache_module
from ldm.data import hashes as hashes_module
from ldm.data.cache import Cache
from ldm.data.examples import open_source
from ldm.errors import Code, LdmError
from tests.data import sets
from train.config import RunFile
from train.folder import read_log
from train.run import opened


def settings(pictures: Path, out: Path, model: Path, *overrides: str) -> RunFile:
    text = f"""
task: {{type: diffusion, unet: {model}, vae: {model}, text: {model}, noise: {{kind: epsilon}}}}
data: {{path: {pictures}, size: 16}}
run: {{out: {out}, steps: 4, batch: 2, log: 1, preview: 0, device: cpu, cache: {out.parent}/cache}}
"""
    return loads(text, RunFile, overrides)


def trained(pictures: Path, out: Path, model: Path, *overrides: str) -> Cache:
    with opened(settings(pictures, out, model, *overrides)) as run:
        run.fit()
    return Cache(out.parent / "cache")


def losses(out: Path) -> list[float]:
    return [record["figures"]["loss"] for record in read_log(out / "log.jsonl") if "figures" in record]


def cut(root: Path, *numbers: int) -> None:
    """Good headers, and pixels that end too early: only decoding finds it out."""
    for number in numbers:
        path = root / f"{number:02}.png"
        path.write_bytes(path.read_bytes()[:-20])


def left_out(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("left out: ")]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = sets.folder(tmp_path / "set", 8, (16, 16))
    for number in range(8):
        (root / f"{number:02}.txt").write_text(f"red, round, number {number}")
    return root


def test_captions_are_kept_in_one_file_and_files_are_hashed_once(
    pictures: Path, tmp_path: Path, tiny_sd1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture is read for its hash in the first run, and in no later one, unless it changed."""
    monkeypatch.setattr(hashes_module, "MOMENT_NS", -(10**18))  # as if the pictures had lain there for a while
    digest, read = hashlib.file_digest, list[str]()

    def counted(file: Any, name: Any) -> Any:
        if Path(file.name).parent == pictures:
            read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    size = trained(pictures, tmp_path / "first", tiny_sd1).size()
    assert dict(size.rows) == {"latents": 8, "texts": 8} and size.shards == 2
    assert sorted(read) == [f"{number:02}.png" for number in range(8)]
    sets.picture(9, (16, 16)).save(pictures / "03.png")
    read.clear()
    size = trained(pictures, tmp_path / "second", tiny_sd1).size()
    assert read == ["03.png"]
    assert dict(size.rows) == {"latents": 9, "texts": 8} and size.shards == 3


def test_captions_that_are_new_each_time_are_not_kept(pictures: Path, tmp_path: Path, tiny_sd1: Path) -> None:
    size = trained(pictures, tmp_path / "run", tiny_sd1, "data.shuffle_caption=true").size()
    assert dict(size.rows) == {"latents": 8}


@pytest.mark.parametrize("buckets", ["null", "{sizes: [[16, 16], [24, 8]]}"])
def test_few_pictures_that_cannot_be_decoded_are_left_out(
    tmp_path: Path, tiny_sd1: Path, caplog: pytest.LogCaptureFixture, buckets: str
) -> None:
    root = sets.folder(tmp_path / "set", 100, (16, 16))
    sets.folder(tmp_path / "set" / "wide", 4, (24, 8))
    cut(root, 3, 50, 97)
    file = settings(root, tmp_path / "run", tiny_sd1, f"data.buckets={buckets}", "data.kind=folder")
    assert open_source(file.data).size(50) == (16, 16)
    with opened(file) as run:
        run.fit()
        feed = run.trainer.batches(0)
        shown = {run.loader.source.name(int(i)) for _ in range(60) for i in next(feed).examples}
    names = {f"{number:02}.png" for number in range(100)} | {f"wide/{number:02}.png" for number in range(4)}
    assert shown == names - {"03.png", "50.png", "97.png"}
    assert [told.split(":")[1].strip() for told in left_out(caplog)] == ["03.png", "50.png", "97.png"]


def test_too_many_pictures_that_cannot_be_decoded_stop_the_start(tmp_path: Path, tiny_sd1: Path) -> None:
    root = sets.folder(tmp_path / "set", 100, (16, 16))
    cut(root, *range(0, 90, 3))
    with pytest.raises(LdmError) as caught, opened(settings(root, tmp_path / "run", tiny_sd1)):
        pass
    assert caught.value.code is Code.FILE and "ldm data check" in caught.value.fix
    assert "30 of 100 pictures tried cannot be read, more than 10%" in caught.value.what
    assert not (tmp_path / "run").exists()


def test_a_full_disk_ends_no_start_and_bad_pictures_are_still_left_out(
    tmp_path: Path, tiny_sd1: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the run shows and learns is what it would be without a cache."""
    root = sets.folder(tmp_path / "set", 30, (16, 16))
    cut(root, 5)
    trained(root, tmp_path / "plain", tiny_sd1, "run.cache=null", "run.steps=20")
    caplog.clear()

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "write_weights", full)
    cache = trained(root, tmp_path / "full", tiny_sd1, "run.steps=20")
    assert len(cache) == 0 and cache.size().shards == 0
    told = [record.getMessage() for record in caplog.records if "nothing more is cached" in record.getMessage()]
    assert len(told) == 1 and "No space left on device" in told[0]
    assert len(left_out(caplog)) == 1 and "05.png" in left_out(caplog)[0]
    assert losses(tmp_path / "full") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert len(losses(tmp_path / "full")) == 20
