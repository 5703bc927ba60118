"""Batches are a function of (seed, place): whoever asks, on whichever process, from whichever step, gets the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from ldm.data import scenes
from ldm.data.batch import Batch, join
from ldm.data.examples import open_source
from ldm.data.hints import make_hint
from ldm.data.loader import Loader
from ldm.data.settings import DataSettings
from ldm.errors import Code, LdmError
from tests.data import sets

ALL: dict[str, Any] = {
    "crop": "random",
    "zoom": 1.5,
    "flip": 0.5,
    "shuffle_caption": True,
    "caption_dropout_rate": 0.2,
    "hint": "canny",
    "mask": "alpha",
}


def loader(path: Path | str, total: int = 6, seed: int = 5, rank: int = 0, world: int = 1, **changes: Any) -> Loader:
    keys = {"words": changes.pop("words", None), "latents": changes.pop("latents", None)}
    warn = changes.pop("warn", None)
    settings = DataSettings.model_validate({"path": str(path), "size": 8, **changes})
    told = {} if warn is None else {"warn": warn}
    return Loader(open_source(settings), settings, total, seed, rank, world, **keys, **told)


def first(found: Loader, steps: int, start: int = 0) -> list[Batch]:
    return list(islice(found.batches(start), steps))


def same(a: Batch, b: Batch) -> bool:
    assert a.image is not None and b.image is not None
    return (
        torch.equal(a.places, b.places)
        and torch.equal(a.examples, b.examples)
        and torch.equal(a.image, b.image)
        and a.text == b.text
        and a.extra.keys() == b.extra.keys()
        and all(torch.equal(a.extra[name], b.extra[name]) for name in a.extra)
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 noisy pictures of different sizes, with tags."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for n in range(20):
        width, height = (int(v) for v in rng.integers(9, 30, 2))
        Image.fromarray(rng.integers(0, 256, (height, width, 4)).astype(np.uint8)).save(root / f"{n:02}.png")
        (root / f"{n:02}.txt").write_text(f"n{n}, a, b, c")
    return root


@pytest.mark.parametrize("rule", [{}, {"buckets": {"step": 8, "least": 8}}])
@pytest.mark.parametrize("world", [2, 4])
def test_the_batch_does_not_depend_on_the_number_of_processes(photos: Path, rule: dict[str, Any], world: int) -> None:
    whole = first(loader(photos, **ALL, **rule), 9)
    parts = [first(loader(photos, rank=rank, world=world, **ALL, **rule), 9) for rank in range(world)]
    assert all(same(whole[step], join([part[step] for part in parts])) for step in range(9))
    assert [batch.places.tolist() for batch in whole] == [list(range(6 * s, 6 * s + 6)) for s in range(9)]


@pytest.fixture(scope="module", params=["shards", "parquet"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pictures in three files, one of them cut off behind its header."""
    root = tmp_path_factory.mktemp(request.param)
    pngs = [sets.png(n, (12, 12) if n % 3 else (36, 12)) for n in range(20)]
    pngs[13] = pngs[13][:-20]
    for part, numbers in enumerate((range(7), range(7, 12), range(12, 20))):
        if request.param == "shards":
            members = {
                f"{n:02}.{kind}": data for n in numbers for kind, data in (("png", pngs[n]), ("txt", b"n%d" % n))
            }
            sets.shard(root / f"{part}.tar", members)
        else:
            rows = {"image": [pngs[n] for n in numbers], "text": [f"n{n}" for n in numbers]}
            parquet.write_table(pyarrow.table(rows), root / f"{part}.parquet", row_group_size=3)
    return root


@pytest.mark.parametrize("rule", [{}, {"size": 16, "buckets": {"step": 8}}, {"memory": 1e-9, "workers": 0}])
@pytest.mark.parametrize("world", [2, 3])
def test_shards_and_tables_are_split_by_rank(packed: Path, rule: dict[str, Any], world: int, tmp_path: Path) -> None:
    """Each process has its rows of the one batch, in order: none twice, none left to nobody."""
    told = {**ALL, **rule, "index": str(tmp_path), "warn": lambda text: None}
    whole = first(loader(packed, **told), 8)
    parts = [first(loader(packed, rank=rank, world=world, **told), 8) for rank in range(world)]
    assert {len(part) for batches in parts for part in batches} == {6 // world}
    for step, batch in enumerate(whole):
        assert same(batch, join([part[step] for part in parts]))
        assert batch.image is not None
        assert [sets.which(row.numpy()) for row in batch.image] == batch.examples.tolist()
    assert len({batch.image.shape for batch in whole if batch.image is not None}) == (2 if "buckets" in rule else 1)
    assert {text for batch in whole for text in batch.text} - {""} <= {f"n{n}" for n in range(20)}
    assert {index for batch in whole for index in batch.examples.tolist()} == set(range(20)) - {13}


@pytest.mark.parametrize("rule", [{}, {"buckets": {"step": 8, "least": 8}}])
def test_any_step_is_the_first(photos: Path, rule: dict[str, Any]) -> None:
    whole = first(loader(photos, **ALL, **rule), 12)
    for start in (1, 3, 4, 11):  # within an epoch, at its end, behind it
        assert same(first(loader(photos, **ALL, **rule), 1, start)[0], whole[start])


def test_memory_and_worker_processes_change_nothing(photos: Path) -> None:
    kept = loader(photos, **ALL)
    whole = first(kept, 8)
    assert kept.facts()["in_memory"] and kept.workers == 0
    forgetful = loader(photos, memory=0, workers=0, **ALL)
    spread = loader(photos, memory=0, workers=2, **ALL)
    assert spread.workers == 2 and not spread.facts()["in_memory"]
    state = torch.random.get_rng_state()
    assert all(same(a, b) for a, b in zip(whole, first(forgetful, 8), strict=True))
    assert all(same(a, b) for a, b in zip(whole, first(spread, 8), strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


def test_another_seed_is_another_run(photos: Path) -> None:
    a, b = first(loader(photos, **ALL), 3), first(loader(photos, seed=6, **ALL), 3)
    assert not any(torch.equal(x.examples, y.examples) for x, y in zip(a, b, strict=True))


def test_a_picture_keeps_its_words(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 20)
    for batch in first(loader(root), 7):
        assert batch.image is not None and batch.image.shape == (6, 3, 8, 8)
        numbers = [sets.which(row.numpy()) for row in batch.image]
        assert numbers == batch.examples.tolist()
        assert batch.text == tuple(f"picture {n}" for n in numbers)
        assert batch.label is None


def test_pictures_are_in_minus_one_to_one_and_mirrored_half_of_the_time(tmp_path: Path) -> None:
    ramp = np.zeros((8, 8, 3), np.uint8)
    ramp[:, :, 0] = np.arange(0, 256, 36)
    ramp[:, :, 1], ramp[:, :, 2] = 255, 51
    root = tmp_path / "set"
    root.mkdir()
    Image.fromarray(ramp).save(root / "a.png")
    batches = first(loader(root, 64, repeats=64, flip=0.5), 4)
    image = torch.cat([b.image for b in batches if b.image is not None])
    upright = torch.from_numpy(ramp.transpose(2, 0, 1)).float() / 127.5 - 1
    turned = (image[:, 0, 0, 0] > 0).nonzero().flatten()
    assert 90 < len(turned) < 166
    assert (image[turned].flip(3) - upright).abs().max() < 1e-6
    rest = [i for i in range(256) if i not in set(turned.tolist())]
    assert (image[rest] - upright).abs().max() < 1e-6
    assert (image.min(), image.max()) == (-1, 1)


def test_alpha_and_orientation(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4] = (10, 20, 30, 255)
    Image.fromarray(clear).save(root / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    side = np.zeros((8, 8, 3), np.uint8)
    side[:, :4] = 255  # white on the left; turned clockwise it is at the top
    Image.fromarray(side).save(root / "turned.png", exif=exif)
    batch = first(loader(root, 2, background="#ff0080", mask="alpha", shuffle=False), 1)[0]
    assert batch.image is not None
    alpha, turned = ((batch.image + 1) * 127.5).round()
    assert alpha[:, 0, 0].tolist() == [10, 20, 30]
    assert alpha[:, 7, 7].tolist() == [255, 0, 128]
    assert turned[:, 0].min() == 255 and turned[:, 7].max() == 0
    assert batch.extra["mask"].shape == (2, 1, 8, 8)
    assert batch.extra["mask"][0, 0, :, 0].tolist() == [1] * 4 + [0] * 4
    assert batch.extra["mask"][1:].min() == 1


def test_16_bits_keep_their_levels(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    batch = first(loader(tmp_path, 1, size=64), 1)[0]
    assert batch.image is not None
    assert batch.image.unique().numel() == 256
    wanted = torch.from_numpy(ramp.astype(np.float32)) / 65535 * 2 - 1
    assert (batch.image - wanted).abs().max() <= 1.01 / 255


def test_hints_follow_the_picture(photos: Path) -> None:
    batch = first(loader(photos, **{**ALL, "mask": "none"}), 1)[0]
    assert batch.image is not None
    hint = batch.extra["hint"]
    assert hint.shape == (6, 3, 8, 8) and hint.min() >= 0 and hint.max() <= 1
    grey = first(loader(photos, flip=1.0, crop="random", hint="grey"), 1)[0]
    assert grey.image is not None
    wanted = [make_hint("grey", ((row + 1) / 2).permute(1, 2, 0).numpy()) for row in grey.image]
    assert np.abs(grey.extra["hint"].permute(0, 2, 3, 1).numpy() - np.stack(wanted)).max() < 1 / 255


def test_hints_and_masks_that_lie_beside(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 4)
    sets.folder(root / "hints", 4, texts=False)
    (root / "masks").mkdir()
    half = np.zeros((12, 12), np.uint8)
    half[:, :6] = 255
    Image.fromarray(half).save(root / "masks" / "02.png")
    batch = first(loader(root, 4, hint="beside", mask="beside", flip=1.0), 1)[0]
    hints = batch.extra["hint"] * 2 - 1
    assert [sets.which(row.numpy()) for row in hints] == batch.examples.tolist()
    mask = batch.extra["mask"][batch.examples.tolist().index(2), 0]
    assert mask[:, :3].max() < 0.1 and mask[:, 5:].min() > 0.9  # mirrored with the picture
    assert batch.extra["mask"][batch.examples.tolist().index(0)].min() == 1
    (root / "hints" / "01.png").unlink()
    with pytest.raises(LdmError, match="has no hint"):
        first(loader(root, 4, hint="beside", warn=lambda text: None), 1)


def test_buckets_keep_their_shape_and_show_everything(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name, size, count in (("wide", (40, 20), 7), ("tall", (20, 40), 3), ("square", (20, 20), 6)):
        sets.folder(root / name, count, size)
    found = loader(root, 4, size=32, buckets={"step": 8}, kind="folder")
    assert sorted(found.plan.counts)[-3:] == [3, 6, 7] and sum(found.plan.counts) == 16
    steps = int(found.plan.order.steps())
    assert steps == 2 + 1 + 2
    batches = first(found, steps)
    shapes = [tuple(batch.image.shape[2:]) for batch in batches if batch.image is not None]
    assert len(set(shapes)) == 3 and shapes.count((32, 32)) == 2
    assert {e for batch in batches for e in batch.examples.tolist()} == set(range(16))
    for batch in batches:
        names = {found.source.name(e).split("/")[0] for e in batch.examples.tolist()}
        assert len(names) == 1
    wide = next(s for s in shapes if s[1] > s[0])
    assert wide[1] / wide[0] == pytest.approx(2, rel=0.3)


def test_a_listed_bucket_without_pictures_is_an_error(photos: Path) -> None:
    with pytest.raises(LdmError, match="no picture falls into 128x8"):
        loader(photos, buckets={"sizes": [[8, 8], [128, 8]]})


def test_a_mix_has_its_shares(tmp_path: Path) -> None:
    a, b = sets.folder(tmp_path / "a", 12), sets.folder(tmp_path / "b", 3)
    settings = DataSettings.model_validate(
        {"mix": [{"path": str(a), "weight": 1}, {"path": str(b), "weight": 3, "caption": "b {name}"}], "size": 8}
    )
    found = Loader(open_source(settings), settings, 64, 1)
    texts = [text for batch in first(found, 64) for text in batch.text]
    assert sum(text.startswith("b ") for text in texts) == 3 * 1024
    assert len(set(texts)) == 15


def test_scenes(root: Path) -> None:
    found = loader("scenes", 4, size=32, count=50, hint="beside", combinations="seen")
    batch = first(found, 1)[0]
    assert batch.image is not None
    for row, index in enumerate(batch.examples.tolist()):
        scene = scenes.sample_scene(index, 0, "seen")
        wanted = torch.from_numpy(np.rint(scenes.draw(scene) * 255).transpose(2, 0, 1)) / 127.5 - 1
        assert (batch.image[row] - wanted).abs().max() < 1.01 * 2 / 255  # a half may round either way
        assert batch.text[row] == scenes.caption(scene)
        assert torch.equal(batch.extra["hint"][row], torch.from_numpy(scenes.outline(scene).transpose(2, 0, 1)))


# Looking, validating, vocabulary


def test_validation_is_never_trained_on_and_stays_when_pictures_join(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 40)
    found = loader(root, 4, validation=0.25)
    held = found.validation()
    names = {found.source.name(e) for batch in held for e in batch.examples.tolist()}
    assert 4 <= len(names) <= 16
    seen = {found.source.name(e) for batch in first(found, 30) for e in batch.examples.tolist()}
    looked = {found.source.name(e) for batch in found.look(1000) for e in batch.examples.tolist()}
    assert seen == looked and not seen & names and len(seen | names) == 40
    assert not {text for batch in held for text in batch.text} & set(found.captions())
    for number in range(40, 60):
        sets.picture(number).save(root / f"{number:02}.png")
    later = loader(root, 4, validation=0.25)
    assert names <= {later.source.name(int(e)) for e in later.plan.validation}
    assert len(loader(root, 4, validation=7).plan.validation) == 7
    with pytest.raises(LdmError, match="leaves nothing to train on"):
        loader(root, 4, validation=60)


def test_validation_and_looking_leave_nothing_to_chance(photos: Path) -> None:
    for seed in (1, 2):
        found = loader(photos, 4, seed=seed, validation=6, rank=1, world=2, **ALL)
        held = found.validation(5)
        assert [len(batch) for batch in held] == [4, 1]
        if seed == 1:
            before = held
        assert all(same(a, b) for a, b in zip(before, held, strict=True))
        looked = list(found.look(10))
        assert [len(batch) for batch in looked] == [4, 4, 2]
        assert join(looked).places.tolist() == list(range(10))
        assert len(set(join(looked).examples.tolist())) == 10
        assert all(text.endswith(", a, b, c") for batch in looked for text in batch.text)
    assert sum(1 for _ in found.captions()) == 14


def test_words_are_left_out_where_nobody_needs_them(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 6, texts=False)
    assert first(loader(root, words=False), 1)[0].text == ()
    assert first(loader(root), 1)[0].text == ("",) * 6
    with pytest.raises(LdmError, match="6 of 6 pictures have no caption"):
        loader(root, words=True)
    assert first(loader(root, words=True, uncaptioned="empty"), 1)[0].text == ("",) * 6


def test_classes_have_labels(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        sets.folder(tmp_path / name, 3, texts=False)
    batch = first(loader(tmp_path), 1)[0]
    assert batch.label is not None
    assert [("ant", "bee")[n] for n in batch.label.tolist()] == list(batch.text)


def test_cached_latents_take_the_place_of_pictures(photos: Path) -> None:
    asked: list[tuple[list[int], list[bool]]] = []

    def latents(examples: Sequence[int], flips: Sequence[bool]) -> Mapping[str, Tensor]:
        asked.append((list(examples), list(flips)))
        return {"mean": torch.tensor([[float(e)] for e in examples])}

    pictures = first(loader(photos, flip=0.5), 3)
    batches = first(loader(photos, flip=0.5, latents=latents), 3)
    for batch, wanted, (examples, flips) in zip(batches, pictures, asked, strict=True):
        assert batch.image is None
        assert torch.equal(batch.examples, wanted.examples) and batch.text == wanted.text
        assert batch.extra["mean"][:, 0].tolist() == examples == batch.examples.tolist()
        assert any(flips) or len(flips) < 6


# Bad input


def damage(root: Path, numbers: Sequence[int]) -> None:
    """Faults of the kinds that occur: cut files, another thing under a picture's name, nothing at all."""
    for i, number in enumerate(numbers):
        path = root / f"{number:02}.png"
        whole = path.read_bytes()
        size = len(whole)
        kinds = (b"", whole[:10], whole[:-2], whole[: size // 2], b"<!doctype html><p>no", whole[8:], b"\0" * size)
        path.write_bytes(kinds[i % len(kinds)])


@pytest.mark.parametrize("rule", [{}, {"buckets": {"step": 8, "least": 8}}, {"memory": 0, "workers": 2}])
def test_unreadable_pictures_are_named_and_left_out(tmp_path: Path, rule: dict[str, Any]) -> None:
    root = sets.folder(tmp_path / "set", 100)
    bad = [3, 14, 15, 35, 58, 59, 92, 97]
    damage(root, bad)
    told: list[str] = []
    found = loader(root, 10, warn=told.append, **rule)
    batches = first(found, 20)
    examples = [e for batch in batches for e in batch.examples.tolist()]
    assert set(examples) == set(range(100)) - set(bad)
    assert sorted(found.quarantine.failed) == bad and len(told) == 8
    assert all(f"{number:02}.png" in " ".join(told) for number in bad)
    halves = [first(loader(root, 10, rank=r, world=2, warn=lambda text: None, **rule), 20) for r in range(2)]
    assert all(same(batches[s], join([half[s] for half in halves])) for s in range(20))
    late = first(loader(root, 10, warn=lambda text: None, **rule), 1, start=13)
    assert same(late[0], batches[13])
    for batch in batches:
        assert batch.text == tuple(f"picture {e}" for e in batch.examples.tolist())


def test_a_tenth_of_them_stops_the_run(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 100)
    damage(root, range(11))
    found = loader(root, 10, warn=lambda text: None)
    with pytest.raises(LdmError) as caught:
        first(found, 20)
    assert "11 of 100 pictures tried cannot be read" in caught.value.what or "more than 10%" in caught.value.what
    assert caught.value.why.count(".png") >= 5 and "ldm data check" in caught.value.fix


def test_what_was_found_elsewhere_counts_among_all_that_were_tried_there(tmp_path: Path) -> None:
    told: list[str] = []
    found = loader(sets.folder(tmp_path / "set", 100), 10, warn=told.append)
    found.leave_out(range(100), {n: f"{n:02}.png: cut" for n in (3, 50, 97)})
    assert len(told) == 3
    assert {e for batch in first(found, 20) for e in batch.examples.tolist()} == set(range(100)) - {3, 50, 97}
    with pytest.raises(LdmError, match="13 of 100 pictures tried cannot be read, more than 10%"):
        found.leave_out(range(100), {n: f"{n:02}.png: cut" for n in range(10, 20)})


def test_a_set_of_nothing_but_faults_ends(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 12)
    damage(root, range(12))
    for rule in ({}, {"memory": 0, "workers": 1}, {"buckets": {"step": 8, "least": 8}}):
        with pytest.raises(LdmError) as caught:
            first(loader(root, 10, warn=lambda text: None, **rule), 1)
        assert caught.value.code is Code.FILE


def test_tiny_pictures_are_left_out(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 30)
    sets.picture(0, (7, 400)).save(root / "00.png")
    told: list[str] = []
    first(loader(root, 10, warn=told.append), 3)
    assert len(told) == 1 and "7x400" in told[0] and "data.least_side=8" in told[0]


def test_a_set_smaller_than_a_batch(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 5)
    with pytest.raises(LdmError) as caught:
        loader(root, 12, validation=1)
    assert "4 examples for training (1 more are kept for validation), fewer than a batch of 12" in caught.value.what
    assert "run.batch to at most 4" in caught.value.fix and "data.repeats=3" in caught.value.fix
    assert len(first(loader(root, 12, repeats=3), 1)[0]) == 12


def test_a_misspelt_template_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(LdmError, match="no field 'nmae'"):
        loader(sets.folder(tmp_path / "set", 6), caption="a {nmae}")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("fault", ["header", "pixels"])
def test_a_bucket_of_nothing_but_faults_gives_way(tmp_path: Path, fault: str) -> None:
    """The only picture of its shape cannot be read: neither may that stop the run, nor depend on who finds out."""
    root = sets.folder(tmp_path / "set", 14, (8, 16) if fault == "header" else (16, 8))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 16, 3), np.uint8)).save(root / "zz.jpg")
    if fault == "header":
        (root / "zz.jpg").write_bytes(b"")  # its place is in the square bucket, of which there is nothing else
    else:
        cut_off(root / "zz.jpg")
    told = {"total": 4, "size": 16, "buckets": {"step": 8}, "warn": lambda text: None}
    whole = first(loader(root, **told), 9)
    halves = [first(loader(root, rank=rank, world=2, **told), 9) for rank in range(2)]
    assert {len(batch) for batch in whole} == {4}
    assert all(same(a, join(pair)) for a, *pair in zip(whole, *halves, strict=True))
    assert {index for batch in whole for index in batch.examples.tolist()} == set(range(14))
    assert all(same(a, b) for a, b in zip(whole[3:], first(loader(root, **told), 6, 3), strict=True))


def test_a_part_of_nothing_but_faults_is_named(tmp_path: Path) -> None:
    good, bad = sets.folder(tmp_path / "good", 30), sets.folder(tmp_path / "bad", 1)
    cut_off(bad / "00.png")
    settings = DataSettings.model_validate({"mix": [{"path": str(good)}, {"path": str(bad)}], "size": 8})
    with pytest.raises(LdmError, match=r"bad'?: 00\.png"):
        first(Loader(open_source(settings), settings, 6, warn=lambda text: None), 9)


def test_a_picture_that_is_nearly_a_line_is_left_out(tmp_path: Path) -> None:
    """To cover 512x512 it would become 512x1,920,000."""
    root = sets.folder(tmp_path / "set", 12)
    Image.new("RGB", (8, 30_000)).save(root / "zz.png")
    warned: list[str] = []
    batches = first(loader(root, size=512, warn=warned.append, total=4), 4)
    assert 12 not in {index for batch in batches for index in batch.examples.tolist()}
    assert len(warned) == 1 and "longer than 40 to 1" in warned[0]


def test_validation_stays_when_the_set_moves_or_joins_a_mix(tmp_path: Path) -> None:
    def held(settings: dict[str, Any]) -> set[str]:
        told = DataSettings.model_validate({"size": 8, "validation": 0.3, **settings})
        source = open_source(told)
        names = [source.name(i) for i in Loader(source, told, 4).plan.validation]
        return {name.rpartition(" ")[2] for name in names if "more" not in name}

    for root in ("set", "moved"):
        sets.folder(tmp_path / root, 40)
    sets.folder(tmp_path / "more", 5)
    alone = held({"path": str(tmp_path / "set")})
    assert 5 < len(alone) < 20
    for root in ("set", "moved"):
        assert held({"mix": [{"path": str(tmp_path / "more")}, {"path": str(tmp_path / root)}]}) == alone


def test_a_caption_that_cannot_be_read_leaves_its_picture_out(tmp_path: Path) -> None:
    """Also that of the first, which is looked at for its template; a pipe is not waited for."""
    root = sets.folder(tmp_path / "set", 24)
    (root / "00.txt").unlink()
    (root / "00.txt").symlink_to("nowhere")
    (root / "07.txt").unlink()
    os.mkfifo(root / "07.txt")
    warned: list[str] = []
    found = loader(root, words=True, warn=warned.append)
    assert {index for batch in first(found, 4) for index in batch.examples.tolist()} == set(range(24)) - {0, 7}
    assert len(set(found.captions())) == 22 and len(warned) == 2


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    root = sets.folder(tmp_path / "set", 12)
    os.mkfifo(root / "zz.png")
    warned: list[str] = []
    first(loader(root, size=16, buckets={"step": 8}, warn=warned.append), 1)
    assert len(warned) == 1 and "no file" in warned[0]
