"""Caches: what was put in comes out bit for bit, and nothing stale, foreign or damaged is ever served."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.data.cache import Cache, fingerprint, picture_key, text_key
from ldm.data.encode import fill
from ldm.data.hashes import Hashes
from ldm.errors import Code, LdmError

HEX = "0" * 64


def latents(*numbers: int) -> dict[str, Tensor]:
    """A row for each number, which can be told from every other."""
    mean = torch.stack([torch.full((4, 2, 3), float(n)) + torch.arange(24.0).view(4, 2, 3) / 32 for n in numbers])
    return {"mean": mean, "std": (mean + 1).to(torch.bfloat16)}


def keys(*numbers: int) -> list[str]:
    return [text_key(str(n), model="m", dtype=torch.float32) for n in numbers]


def same(row: dict[str, Tensor] | None, number: int) -> bool:
    wanted = {name: tensor[0] for name, tensor in latents(number).items()}
    return row is not None and row.keys() == wanted.keys() and all(torch.equal(row[n], t) for n, t in wanted.items())


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, told: list[str]) -> Cache:
    return Cache(tmp_path / "cache", told.append)


def shards(cache: Cache) -> list[Path]:
    return sorted(cache.folder.glob("*.safetensors"))


def test_rows_come_back_bit_for_bit_and_in_order(cache: Cache) -> None:
    cache.put_many(keys(1, 2, 3), latents(1, 2, 3))
    cache.put_many(keys(4), latents(4))
    for opened in (cache, Cache(cache.folder)):
        found = opened.get_many(keys(4, 2, 9, 1, 2))
        assert [same(row, n) for row, n in zip(found, (4, 2, 9, 1, 2), strict=True)] == [True, True, False, True, True]
        assert found[2] is None and len(opened) == 4


def test_a_row_is_a_copy_that_may_be_changed(cache: Cache) -> None:
    cache.put_many(keys(1), latents(1))
    row = cache.get_many(keys(1))[0]
    assert row is not None
    row["mean"].zero_()
    assert same(cache.get_many(keys(1))[0], 1)


def test_what_is_there_is_not_written_again(cache: Cache) -> None:
    assert cache.put_many(keys(1, 1, 2), latents(1, 1, 2)) == 2
    assert cache.put_many(keys(2, 1), latents(2, 1)) == 0
    assert len(shards(cache)) == 1


def test_shapes_of_buckets_live_side_by_side(cache: Cache) -> None:
    wide = {"mean": torch.rand(1, 4, 2, 6), "std": torch.rand(1, 4, 2, 6)}
    cache.put_many(keys(1), latents(1))
    cache.put_many(keys(2), wide)
    rows = cache.get_many(keys(1, 2))
    assert same(rows[0], 1) and rows[1] is not None and torch.equal(rows[1]["mean"], wide["mean"][0])


@pytest.mark.parametrize(
    "change",
    [
        {"content": "1" * 64},
        {"size": (64, 32)},
        {"crop": (0, 0, 1)},
        {"flip": True},
        {"model": "another"},
        {"dtype": torch.float16},
    ],
)
def test_whatever_decides_a_latent_is_in_its_key(change: dict[str, object]) -> None:
    told = {"content": HEX, "size": (32, 64), "crop": (0, 0), "flip": False, "model": "m", "dtype": torch.float32}
    assert picture_key(**told) == picture_key(**told)  # type: ignore[arg-type]
    assert picture_key(**told) != picture_key(**{**told, **change})  # type: ignore[arg-type]


def test_a_cache_of_another_model_is_never_served(cache: Cache, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.SiLU())
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")
    parts = (net, tmp_path / "tokenizer", "scale 0.18")
    before = fingerprint(*parts)
    assert before == fingerprint(*parts)
    cache.put_many([text_key("a cat", model=before, dtype=torch.float32)], latents(1))
    with torch.no_grad():  # the least change that there is, of one weight
        net[0].weight[2, 2] = torch.nextafter(net[0].weight[2, 2], torch.tensor(9.0))
    changed = [fingerprint(*parts), fingerprint(net.half(), *parts[1:]), fingerprint(nn.Sequential(net[0], nn.ReLU()))]
    (tmp_path / "tokenizer" / "vocab.json").write_text("{ }")
    changed += [fingerprint(*parts), fingerprint(*parts[:2], "scale 0.13")]
    assert len({before, *changed}) == 6
    assert all(cache.get_many([text_key("a cat", model=m, dtype=torch.float32)]) == [None] for m in changed)


def test_a_damaged_row_is_found_told_once_and_made_again(cache: Cache, told: list[str]) -> None:
    cache.put_many(keys(1, 2), latents(1, 2))
    path = shards(cache)[0]
    data = bytearray(path.read_bytes())
    data[data.find(latents(2)["mean"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    fresh = Cache(cache.folder, told.append)
    assert same(fresh.get_many(keys(1))[0], 1) and not told
    assert fresh.get_many(keys(2)) == [None]
    assert len(told) == 1 and "damaged" in told[0] and path.name in told[0]
    rows = fresh.get_or_make(keys(1, 2), lambda places: latents(*(place + 1 for place in places)))
    assert all(same({n: t[i] for n, t in rows.items()}, i + 1) for i in range(2))
    assert fresh.size().damaged == 1 and len(told) == 1
    assert all(same(row, n) for row, n in zip(Cache(cache.folder).get_many(keys(1, 2)), (1, 2), strict=True))


@pytest.mark.parametrize("cut", [0, 7, 200, -1])
def test_a_shard_that_was_cut_off_is_set_aside_with_a_warning(cache: Cache, told: list[str], cut: int) -> None:
    cache.put_many(keys(1), latents(1))
    path = shards(cache)[0]
    path.write_bytes(path.read_bytes()[:cut])
    fresh = Cache(cache.folder, told.append)
    assert fresh.get_many(keys(1)) == [None] and len(told) == 1
    fresh.put_many(keys(1), latents(1))
    assert same(Cache(cache.folder, told.append).get_many(keys(1))[0], 1) and len(told) == 1


def test_every_flipped_byte_is_noticed_or_does_no_harm(cache: Cache, torture: int) -> None:
    cache.put_many(keys(1, 2), latents(1, 2))
    whole = shards(cache)[0].read_bytes()
    folder = cache.folder.parent / "flipped"
    folder.mkdir()
    for at in range(0, len(whole), max(1, 7 // torture)):
        data = bytearray(whole)
        data[at] ^= 0x10
        (folder / shards(cache)[0].name).write_bytes(data)
        fresh = Cache(folder, lambda text: None)
        for row, number in zip(fresh.get_many(keys(1, 2)), (1, 2), strict=True):
            assert row is None or row.keys() != latents(1).keys() or same(row, number), at
        for path in folder.iterdir():
            path.unlink()


def test_what_is_half_written_or_strange_is_left_alone(cache: Cache, told: list[str]) -> None:
    cache.put_many(keys(1), latents(1))
    (cache.folder / f".{'a' * 24}.safetensors.tmp-1").write_bytes(b"half")
    (cache.folder / "model.safetensors").write_bytes(b"somebody else's, and broken")
    old = cache.folder / f".{'b' * 24}.safetensors.tmp-2"
    old.write_bytes(b"half")
    os.utime(old, (1, 1))
    fresh = Cache(cache.folder, told.append)
    fresh.put_many(keys(2), latents(2))
    assert [same(row, n) for row, n in zip(fresh.get_many(keys(1, 2)), (1, 2), strict=True)] == [True, True]
    assert not told and (cache.folder / "model.safetensors").exists() and not old.exists()
    assert (cache.folder / f".{'a' * 24}.safetensors.tmp-1").exists()


def test_two_writers_and_a_reader_share_a_folder(cache: Cache) -> None:
    other, errors = Cache(cache.folder), []

    def write(mine: Cache, first: int) -> None:
        try:
            for n in range(first, first + 20):
                mine.put_many(keys(n, n + 1), latents(n, n + 1))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(c, n)) for c, n in ((cache, 0), (other, 10), (cache, 5))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(same(row, n) for n, row in enumerate(Cache(cache.folder).get_many(keys(*range(31)))))
    assert all(same(row, n) for n, row in enumerate(cache.get_many(keys(*range(31)))))


def test_numbers_that_are_not_finite_are_never_kept(cache: Cache) -> None:
    rows = latents(1, 2)
    rows["std"][1, 0, 0, 0] = float("nan")
    with pytest.raises(LdmError, match="The encoder gave numbers in 'std'") as caught:
        cache.put_many(keys(1, 2), rows)
    assert caught.value.code == Code.NUMERIC and shards(cache) == [] and len(cache) == 0


def test_a_full_disk_stops_the_cache_and_not_the_run(
    cache: Cache, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.folder.parent.mkdir(exist_ok=True)
    cache.folder.write_text("a file in the way of the folder")  # stands for every reason not to write
    with pytest.raises(LdmError):
        cache.get_or_make(keys(1), lambda places: latents(1))
    import errno

    from ldm.store import write

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache.folder.unlink()
    monkeypatch.setattr(write, "sync", full)
    for _ in range(2):
        rows = cache.get_or_make(keys(1), lambda places: latents(1))
        assert torch.equal(rows["mean"], latents(1)["mean"])
    assert len(told) == 1 and "nothing more is cached" in told[0]


def test_the_size_says_what_is_held(cache: Cache) -> None:
    cache.put_many(keys(1, 2), latents(1, 2), "latents")
    cache.put_many(keys(3), {"text_states": torch.rand(1, 7, 4)}, "texts")
    size = cache.size()
    assert size.rows == {"latents": 2, "texts": 1} and size.shards == 2
    assert size.bytes == sum(p.stat().st_size for p in cache.folder.iterdir())
    assert "2 latents, 1 texts in 2 files" in str(size)


# Filling before a run.


def load(place: int) -> Tensor:
    if place == 3:
        raise LdmError(Code.FILE, "picture 3 is damaged.", "It was cut off.", "Fetch it again.")
    return torch.full((3, 8, 8 if place % 2 else 16), float(place))


def encode(items: list[Tensor]) -> dict[str, Tensor]:
    mean = torch.stack(items).mean(1, keepdim=True)
    return {"mean": mean, "std": mean * 0 + 1}


def test_filling_makes_what_is_missing_in_batches_of_one_shape(cache: Cache) -> None:
    sizes: list[int] = []

    def counted(items: list[Tensor]) -> dict[str, Tensor]:
        sizes.append(len(items))
        return encode(items)

    told: list[tuple[int, int]] = []
    wanted = keys(*range(10), 0)  # a picture that is there twice is encoded once
    done = fill(cache, wanted, load, counted, batch=3, on_progress=lambda *now: told.append(now))
    assert (done.made, done.found, done.stopped) == (9, 0, False) and [place for place, _ in done.failed] == [3]
    assert "cut off" in done.failed[0][1]
    assert sorted(sizes) == [1, 2, 3, 3] and told[0] == (0, 10) and told[-1] == (10, 10)
    assert len(shards(cache)) == 2  # one for each shape
    again = fill(cache, wanted, load, counted, batch=3)
    assert (again.made, again.found) == (0, 9) and len(sizes) == 4
    rows = cache.get_many(keys(*range(10)))
    for place, row in enumerate(rows):
        assert (row is None) == (place == 3)
        if row is not None:
            assert torch.equal(row["mean"], encode([load(place)])["mean"][0])


def test_a_full_disk_stops_what_is_encoded_and_not_the_look_at_what_cannot_be(
    cache: Cache, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before stays, and later asks are answered by the encoder."""
    import errno

    from ldm.data import cache as module
    from ldm.data import encode as filling

    write, room = module.write_weights, [True]

    def full(*given: Any) -> None:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        room.pop()
        write(*given)

    monkeypatch.setattr(module, "write_weights", full)
    monkeypatch.setattr(filling, "PIECE_BYTES", 1)  # a piece for each batch
    looked, encoded, bar = list[int](), list[int](), list[tuple[int, int]]()

    def looking(place: int) -> Tensor:
        looked.append(place)
        if place in (0, 7):
            raise LdmError(Code.FILE, "it is damaged", "it was cut off", "fetch it again")
        return torch.full((3, 8, 8), float(place))

    def counted(items: list[Tensor]) -> dict[str, Tensor]:
        encoded.append(len(items))
        return encode(items)

    done = fill(cache, keys(*range(10)), looking, counted, batch=2, on_progress=lambda *now: bar.append(now))
    assert looked == list(range(10)) and [place for place, _ in done.failed] == [0, 7]
    assert encoded == [2, 2] and (done.made, done.found, done.stopped) == (2, 0, False)  # the second found no room
    assert bar == sorted(bar) and bar[-1] == (10, 10)
    assert len(told) == 1 and "nothing more is cached" in told[0] and "No space left" in told[0]
    rows = cache.get_or_make(keys(1, 9), lambda places: encode([load(9) for _ in places]))
    assert rows["mean"].mean((1, 2, 3)).tolist() == [1, 9] and len(told) == 1
    assert len(Cache(cache.folder)) == 2


def test_a_writer_that_fails_otherwise_ends_the_filling(cache: Cache) -> None:
    cache.folder.parent.mkdir(exist_ok=True)
    cache.folder.write_text("a file in the way of the folder")
    with pytest.raises(LdmError) as caught:
        fill(cache, keys(1), load, encode)
    assert caught.value.code is Code.FILE


def test_of_two_places_with_one_key_each_is_tried_before_the_key_is_given_up(cache: Cache) -> None:
    one = keys(1)[0]

    def looking(place: int) -> Tensor:
        if place != 2:
            raise LdmError(Code.FILE, f"{place} is damaged", "it was cut off", "fetch it again")
        return torch.zeros(3, 8, 8)

    bad = fill(cache, [one, one], looking, encode)
    assert [place for place, _ in bad.failed] == [0, 1] and bad.made == 0
    done = fill(cache, [one, one, one, one], looking, encode)
    assert [place for place, _ in done.failed] == [0, 1] and done.made == 1 and one in cache


def test_filling_stops_when_asked_and_goes_on_from_there(cache: Cache) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    even = [n for n in range(20) if n % 2 == 0]
    first = fill(cache, keys(*even), lambda place: load(even[place]), encode, batch=2, stop=stop)
    assert first.stopped and first.made == 4
    second = fill(Cache(cache.folder), keys(*even), lambda place: load(even[place]), encode, batch=2)
    assert (second.found, second.made, second.stopped) == (4, 6, False)


# Content, not path or date.


def aged(path: Path, content: bytes, seconds: float = 3600) -> None:
    """Writes a file whose content changed a while ago."""
    path.write_bytes(content)
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


def test_a_file_that_changes_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from ldm.data import hashes as module

    path, store = tmp_path / "a.png", tmp_path / "hashes.jsonl"
    hashes = Hashes(store)
    for content in (b"one", b"two", b"six"):  # at once, of one size, with one time: as fast as a clock cannot tell
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
        assert hashes.of(path) == hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(module, "MOMENT_NS", -(10**18))  # from here on everything is old enough to be remembered
    assert hashes.of(path) == hashlib.sha256(b"six").hexdigest()
    hashes.save()
    known = Hashes(store)
    reads = []
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: reads.append(file))
    assert known.of(path) == hashlib.sha256(b"six").hexdigest() and not reads
    monkeypatch.undo()
    path.write_bytes(b"ten")
    os.utime(path, ns=(10**18, 10**18))  # size and time are those of before; the system's own time is not
    assert known.of(path) == hashlib.sha256(b"ten").hexdigest()


def test_a_young_file_is_not_remembered(tmp_path: Path) -> None:
    path, store = tmp_path / "a.png", tmp_path / "hashes.jsonl"
    aged(path, b"x")  # its content is old, its entry in the folder is of now
    hashes = Hashes(store)
    hashes.of(path)
    hashes.save()
    assert not store.exists()


def test_a_store_that_is_broken_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path, store = tmp_path / "a.png", tmp_path / "hashes.jsonl"
    path.write_bytes(b"x")
    store.write_bytes(b'["cut\n[1,2]\n{}\n\xff\xfe\n[]\n' + b"[" * 100_000)
    hashes = Hashes(store)
    import hashlib

    assert hashes.of(path) == hashlib.sha256(b"x").hexdigest()
    hashes.save()
