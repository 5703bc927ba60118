"""Shards are read at any place, in any process; the index is made once and is never older than its shard."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ldm.data.examples import open_source
from ldm.data.mixture import Mixture
from ldm.data.settings import DataSettings
from ldm.data.shards import expand, read_index, walk
from ldm.errors import LdmError
from tests.data import sets


def opened(path: Path | str, **settings: object) -> Mixture:
    return open_source(DataSettings.model_validate({"path": str(path), "size": 8, **settings}))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of four samples; sample n shows colour n."""
    for s in range(3):
        members: dict[str, bytes] = {}
        for n in range(4 * s, 4 * s + 4):
            members |= {f"d/{n:03}.png": sets.png(n), f"d/{n:03}.txt": f"sample {n}".encode()}
            members |= {f"d/{n:03}.json": b'{"artist": "A", "size": [1, 2]}', f"d/{n:03}.cls": str(n % 2).encode()}
        sets.shard(tmp_path / f"s-{s:02}.tar", {"README.md": b"no sample", **members})
    return tmp_path


def test_samples_by_index(shards: Path) -> None:
    for path in (shards, shards / "s-{00..02}.tar", shards / "s-*.tar", shards / "s-{00,01,02}.tar"):
        source = opened(path)
        assert len(source) == 12
        for n in (11, 0, 5, 7):
            assert source.picture(n).pixels[0, 0].tolist() == list(sets.colour(n))
            about = source.about(n)
            assert (about.captions, about.label) == ((f"sample {n}",), n % 2)
            assert source.size(n) == (12, 12)
    assert source.name(5) == "s-01.tar/d/005"
    assert len({source.content(n) for n in range(12)}) == 12
    assert opened(shards, caption="{text} by {artist} {label}").about(5).captions == ("sample 5 by A 1",)


def test_records_hold_captions_hints_and_masks(tmp_path: Path) -> None:
    members = {
        "a.jpg": sets.png(1),
        "a.json": b'{"prompt": "p", "caption": ["c", "d"]}',
        "a.hint.png": sets.png(2),
        "a.mask.png": sets.png(3),
        "b.webp": sets.png(4),
        "b.json": b"{broken",
        "c.txt": b"words without a picture",
    }
    source = opened(sets.shard(tmp_path / "x.tar", members))
    assert [source.about(i).captions for i in range(2)] == [("c", "d"), ()]
    assert opened(tmp_path / "x.tar", text_column="prompt").about(0).captions == ("p",)
    hint, mask = source.hint(0), source.mask(0)
    assert hint is not None and hint.pixels[0, 0].tolist() == list(sets.colour(2))
    assert mask is not None and mask.pixels[0, 0].tolist() == list(sets.colour(3))
    assert source.hint(1) is None


def test_long_names_and_offsets_are_those_of_the_tar_library(tmp_path: Path) -> None:
    path = sets.shard(tmp_path / "x.tar", {f"{'long/' * 60}{n}.png": sets.png(n) for n in range(5)})
    index = walk(path)
    with tarfile.open(path) as tar:
        wanted = [(m.offset_data, m.size) for m in tar.getmembers()]
    assert [tuple(place) for place in index.places[:, 0].tolist()] == wanted


def test_the_index_is_kept_and_follows_its_shard(shards: Path, tmp_path: Path) -> None:
    path, kept = shards / "s-00.tar", tmp_path / "kept"
    first = read_index(path, kept)
    files = list(kept.iterdir())
    assert len(files) == 1
    files[0].write_bytes(files[0].read_bytes()[:100])  # damaged: the shard itself is read
    again = read_index(path, kept)
    assert again.names == first.names
    assert np.array_equal(again.places, first.places)
    sets.shard(path, {"z.png": sets.png(1)})
    os.utime(path, ns=(1, 1))
    assert read_index(path, kept).names == ("z",)
    assert read_index(path, kept).names == ("z",)
    assert len(list(kept.iterdir())) == 1


def test_an_index_is_not_of_another_shard_that_looks_as_old(tmp_path: Path) -> None:
    """Written anew in its place, as large as before and dated back, as `rsync --inplace --times` leaves it."""
    path, kept = sets.shard(tmp_path / "x.tar", {"a.png": sets.png(1)}), tmp_path / "kept"
    assert read_index(path, kept).names == ("a",)
    then = path.stat()
    sets.rewritten(path, sets.shard(tmp_path / "other", {"z.png": sets.png(1)}).read_bytes())
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (then.st_size, then.st_mtime_ns)
    assert read_index(path, kept).names == ("z",)
    assert len(list(kept.iterdir())) == 1
    assert read_index(path, kept).names == ("z",)
    assert len(list(kept.iterdir())) == 1


def test_a_folder_that_cannot_be_written_does_without(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert len(opened(shards, index=str(tmp_path / "file"))) == 12


def test_braces() -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("a-{8..11}.tar") == ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]
    assert expand("{x,y}/{2..1}") == ["x/2", "x/1", "y/2", "y/1"]
    assert expand("plain.tar") == ["plain.tar"]
    for pattern in ("{000000..999999}.tar", "{0..999}{0..999}"):
        with pytest.raises(LdmError, match="too many"):
            expand(pattern)


def test_missing_shards_are_named(shards: Path) -> None:
    with pytest.raises(LdmError, match=r"2 of 5 shards are not there(.|\n)*s-03\.tar"):
        opened(shards / "s-{00..04}.tar")
    with pytest.raises(LdmError, match="no file has such a name"):
        opened(shards / "none-*.tar")


def test_damaged_shards(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "s-00.tar").read_bytes()
    for name, data, words in (
        ("cut.tar", whole[: len(whole) // 3 + 7], "cannot be read"),
        ("text.tar", b"<!doctype html>" * 100, "cannot be read"),
        ("packed.tar", gzip.compress(whole), "gunzip packed.tar"),
        ("empty.tar", b"", "cannot be read"),
        ("boundary.tar", whole[:2048], "its end is not marked"),
        ("header.tar", whole[:2048] + b"\x7f" + whole[2049:], "a header is damaged"),
        ("packed.tar.bz2", bz2.compress(whole), "bunzip2 packed.tar.bz2"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LdmError, match=words):
            opened(tmp_path / name)
    with pytest.raises(LdmError, match="no picture"):
        opened(sets.shard(tmp_path / "bare.tar", {"a.txt": b"x"}))
    with pytest.raises(LdmError, match="two members of the kind image"):
        opened(sets.shard(tmp_path / "twice.tar", {"a.png": sets.png(1), "a.jpg": sets.png(2)}))


def test_a_shard_cut_off_later_is_noticed(shards: Path) -> None:
    source = opened(shards)
    path = shards / "s-02.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(LdmError, match="was cut off"):
        source.picture(11)
    assert source.picture(0).size == (12, 12)


def test_sparse_and_linked_members_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
        data = sets.png(1)
        info = tarfile.TarInfo("../../b.png")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    assert len(opened(path)) == 1  # nothing is unpacked, so a name leads nowhere


def test_a_picture_that_would_be_passed_over_is_an_error(tmp_path: Path) -> None:
    members = {"a.png": sets.png(0), "a.depth.png": sets.png(1), "b.v2.png": sets.png(2)}
    with pytest.raises(LdmError, match=r"1 pictures would be passed over: b\.v2\.png"):
        opened(sets.shard(tmp_path / "x.tar", members))


def test_names_are_bytes_to_tar(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo(os.fsdecode(b"caf\xe9.png"))
        info.size = len(sets.png(1))
        tar.addfile(info, io.BytesIO(sets.png(1)))
    kept = tmp_path / "kept"
    assert read_index(path, kept).names == read_index(path, kept).names == (os.fsdecode(b"caf\xe9"),)
    assert len(list(kept.iterdir())) == 1


def test_class_members_are_numbers_only_where_they_are(tmp_path: Path) -> None:
    members = {
        f"{n}.{kind}": data
        for n, cls in enumerate(("²", "3"))
        for kind, data in (("png", sets.png(n)), ("cls", cls.encode()))
    }
    source = opened(sets.shard(tmp_path / "x.tar", members))
    assert [source.about(i).label for i in range(2)] == [1, 0] and source.labels == ("3", "²")


def test_indexes_of_two_folders_do_not_meet(tmp_path: Path) -> None:
    """Shards of one name, size and date, as an archive without dates leaves them."""
    for number, name in enumerate(("train", "more")):
        (tmp_path / name).mkdir()
        path = sets.shard(tmp_path / name / "0.tar", {f"{name}.png": sets.png(number)})
        os.utime(path, ns=(10**18, 10**18))
    assert opened(tmp_path / "train", index=str(tmp_path / "index")).name(0) == "0.tar/train"
    assert opened(tmp_path / "more", index=str(tmp_path / "index")).name(0) == "0.tar/more"


def test_stars_in_folders_and_hidden_shards(tmp_path: Path) -> None:
    for name in ("a", "b [1]"):
        (tmp_path / name).mkdir()
        sets.shard(tmp_path / name / "0.tar", {f"{name[0]}.png": sets.png(0)})
        (tmp_path / name / "._0.tar").write_bytes(b"junk of a system")
    assert len(opened(tmp_path / "*" / "*.tar")) == 2
    assert len(opened(tmp_path / "b [1]")) == 1
