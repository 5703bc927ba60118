"""Latents of a folder through the cache: training reads what the encoder gives, and never that of an old file."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from ldm.data.cache import Cache, Row, fingerprint
from ldm.data.examples import open_source
from ldm.data.hashes import Hashes
from ldm.data.latents import Latents, Texts
from ldm.data.loader import Loader
from ldm.data.settings import Buckets, DataSettings
from ldm.errors import LdmError
from tests.data import sets


def paint(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        paint(folder / f"{number}.png", number)
    return folder


Encode = Callable[[Tensor], Row]


@pytest.fixture
def encode(vae: AutoencoderKL) -> Encode:
    def run(images: Tensor) -> Row:
        found = vae.encode(images).latent_dist
        return {"mean": found.mean, "std": found.std}

    return run


def latents(folder: Path, encode: Encode, vae: AutoencoderKL, hashes: Hashes | None = None, **told: object) -> Latents:
    settings = DataSettings(path=str(folder), size=32, **told)  # type: ignore[arg-type]
    source = open_source(settings, (hashes or Hashes()).of)
    return Latents(Cache(folder.parent / "cache"), source, settings, encode, fingerprint(vae))


def test_cached_latents_are_those_of_the_encoder_both_ways(photos: Path, encode: Encode, vae: AutoencoderKL) -> None:
    filled = latents(photos, encode, vae, flip=0.5)
    done = filled.fill(batch=3)
    assert (done.made, done.found, done.failed) == (10, 0, ())
    again = latents(photos, lambda images: pytest.fail("encoded again"), vae, flip=0.5)
    examples, flips = [4, 0, 0, 2], [False, False, True, True]
    rows = again.extra(examples, flips)
    images = torch.stack([again.picture(*pair) for pair in zip(examples, flips, strict=True)])
    with torch.no_grad():
        wanted = encode(images)
    for name in ("mean", "std"):
        assert (rows[name] - wanted[name]).abs().max() <= 1e-5
    assert torch.equal(images[1], images[2].flip(2)) and images.amin() >= -1 and images.amax() <= 1
    assert (rows["mean"][1] - rows["mean"][2]).abs().max() > 1e-3
    middle = np.asarray(Image.open(photos / "4.png").convert("RGB"), np.float32)[:, 4:36] / 127.5 - 1
    assert np.abs(images[0].numpy().transpose(1, 2, 0) - middle).max() <= 1e-6  # 40x32: the middle, not resized


def test_a_file_that_was_changed_is_encoded_again(photos: Path, encode: Encode, vae: AutoencoderKL) -> None:
    hashes = Hashes(photos.parent / "hashes.jsonl")
    before = latents(photos, encode, vae, hashes)
    before.fill()
    old = before.extra([1], [False])["mean"]
    path = photos / "1.png"
    then = path.stat()
    paint(path, 99)
    with path.open("ab") as file:  # as long as before, and as old
        file.write(b"\0" * max(0, then.st_size - path.stat().st_size))
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    hashes.save()
    after = latents(photos, encode, vae, Hashes(photos.parent / "hashes.jsonl"))
    done = after.fill()
    assert (done.made, done.found) == (1, 4)
    new = after.extra([1], [False])["mean"]
    with torch.no_grad():
        assert (new - encode(after.picture(1, False)[None])["mean"]).abs().max() <= 1e-5
    assert (new - old).abs().max() > 1e-3


def test_pictures_that_cannot_be_read_are_listed_and_the_rest_is_done(
    photos: Path, encode: Encode, vae: AutoencoderKL
) -> None:
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:-9])
    (photos / "3.png").write_bytes(b"")
    done = latents(photos, encode, vae, flip=0.5).fill()
    assert done.made == 6 and [place for place, _ in done.failed] == [2, 3]
    assert all(len(why) > 20 for _, why in done.failed)


def test_a_damaged_picture_that_is_there_twice_fails_twice_and_by_name(
    encode: Encode, vae: AutoencoderKL, tmp_path: Path
) -> None:
    """Bytes in a shard know no name of their own; and equal bytes have one key."""
    whole = sets.png(3, (32, 32))
    members = {"a.png": whole, "b.png": whole[:-20], "c.png": whole[:-20], "d.png": b""}
    (tmp_path / "set").mkdir()
    sets.shard(tmp_path / "set" / "x.tar", members)
    done = latents(tmp_path / "set", encode, vae, flip=0.5).fill()
    assert done.made == 2 and [place for place, _ in done.failed] == [1, 2, 3]
    assert [why.split(":")[0] for _, why in done.failed] == ["x.tar/b", "x.tar/c", "x.tar/d"]


def test_buckets_have_rows_of_their_own_shape(photos: Path, encode: Encode, vae: AutoencoderKL) -> None:
    paint(photos / "wide.png", 7, (96, 48))
    told = latents(photos, encode, vae, buckets=Buckets(step=16, least=16, most=64))
    assert told.fill().made == 6
    wide, square = (told.extra([n], [False])["mean"].shape[2:] for n in (5, 0))
    assert wide != square and wide[1] > wide[0]


def test_the_ground_under_transparent_parts_is_in_the_key(photos: Path, encode: Encode, vae: AutoencoderKL) -> None:
    keys = {latents(photos, encode, vae, background=colour).key(0, False) for colour in ("#ffffff", "#000000")}
    assert len(keys) == 2


def test_filling_stops_when_asked(photos: Path, encode: Encode, vae: AutoencoderKL) -> None:
    asked = iter([False] * 8 + [True] * 99)
    done = latents(photos, encode, vae).fill(batch=1, stop=lambda: next(asked))
    assert done.stopped and 0 < done.made < 5
    assert latents(photos, encode, vae).fill().found == done.made


def test_processes_share_the_work(photos: Path, encode: Encode, vae: AutoencoderKL) -> None:
    made = [latents(photos, encode, vae).fill(part=(rank, 2)).made for rank in range(2)]
    assert made == [3, 2] and latents(photos, encode, vae).fill().found == 5


def test_random_crops_are_refused_with_the_way_out(photos: Path, encode: Encode, vae: AutoencoderKL) -> None:
    with pytest.raises(LdmError, match="crop") as caught:
        latents(photos, encode, vae, crop="random")
    assert "centre" in caught.value.fix


def test_the_loader_gives_latents_of_the_pictures_that_it_would_give(
    photos: Path, encode: Encode, vae: AutoencoderKL
) -> None:
    told = latents(photos, encode, vae, flip=0.5)
    told.fill()
    plain, cached = (Loader(told.source, told.settings, 4, 3, latents=given) for given in (None, told.extra))
    flipped = 0
    for _, batch, from_cache in zip(range(5), plain.batches(0), cached.batches(0), strict=False):
        assert batch.image is not None and from_cache.image is None and torch.equal(batch.examples, from_cache.examples)
        with torch.no_grad():
            wanted = encode(batch.image)
        assert all((from_cache.extra[name] - wanted[name]).abs().max() <= 1e-5 for name in wanted)
        upright = torch.stack([told.picture(n, False) for n in batch.examples.tolist()])
        flipped += int((batch.image != upright).flatten(1).any(1).sum())
    assert 0 < flipped < 20


def test_texts_are_encoded_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> Row:
        asked.extend(texts)
        return {"text_states": torch.tensor([[[float(len(t)), float(ord(t[0]))]] for t in texts])}

    texts = Texts(Cache(tmp_path), encode, "tower")
    assert texts.fill(["a cat", "a dog", "a cat"]).made == 2
    rows = texts.extra(["b", "a cat", "b"])["text_states"]
    assert rows.tolist() == [[[1.0, 98.0]], [[5.0, 97.0]], [[1.0, 98.0]]]
    texts.extra(["b", "a dog"])
    assert sorted(set(asked)) == ["a cat", "a dog", "b"] and asked.count("a cat") == 1


def test_a_png_that_is_turned_behind_its_pixels_is_not_stretched(
    tmp_path: Path, encode: Encode, vae: AutoencoderKL
) -> None:
    """exiftool writes there; the header's size does not know of it."""
    root = tmp_path / "set"
    root.mkdir()
    paint(root / "0.png", 3, (64, 32))
    data = (root / "0.png").read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    end = data.rindex(b"IEND") - 4
    (root / "0.png").write_bytes(data[:end] + chunk + data[end:])
    found = latents(root, encode, vae)
    assert (found.source.size(0), found.source.picture(0).size) == ((64, 32), (32, 64))
    upright = np.asarray(Image.open(tmp_path / "set" / "0.png").convert("RGB"))
    upright = upright if upright.shape[0] == 64 else np.rot90(upright, -1)
    shown = (found.picture(0, False).numpy().transpose(1, 2, 0) + 1) * 127.5
    assert np.abs(shown - upright[16:48]).max() <= 1


def test_a_picture_that_is_nearly_a_line_is_no_latent(photos: Path, encode: Encode, vae: AutoencoderKL) -> None:
    paint(photos / "9.png", 0, (8, 4000))
    failed = latents(photos, encode, vae, buckets=Buckets(step=32)).fill().failed
    assert [place for place, _ in failed] == [5] and "longer than 40 to 1" in failed[0][1]


def test_a_picture_that_changes_while_the_cache_is_filled_is_not_kept_under_its_old_name(
    photos: Path, encode: Encode, vae: AutoencoderKL
) -> None:
    found = latents(photos, encode, vae)
    old = found.key(3, False)
    paint(photos / "3.png", 77)
    done = found.fill()
    assert [place for place, _ in done.failed] == [3] and "changed while" in done.failed[0][1]
    assert old not in found.cache and latents(photos, encode, vae).fill().made == 1
