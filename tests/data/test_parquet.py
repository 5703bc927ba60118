"""Tables give each row's picture and words, whole in memory or mapped, through filters and templates."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from ldm.data.examples import open_source
from ldm.data.mixture import Mixture
from ldm.data.settings import DataSettings
from ldm.errors import LdmError
from tests.data import sets


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """12 rows in groups of 5; the picture is a record, as the hub writes it, in a second file."""
    count = 12
    rows = {
        "image": [sets.png(i) for i in range(count)],
        "name": [f"thing {i}" for i in range(count)],
        "tags": [["a", f"t{i}"] for i in range(count)],
        "split": ["train" if i % 3 else "test" for i in range(count)],
        "label": [i % 4 for i in range(count)],
        "embedding": [b"x" * 100] * count,
    }
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table(rows), path, row_group_size=5)
    return path


def opened(path: Path, **settings: object) -> Mixture:
    return open_source(DataSettings.model_validate({"path": str(path), "size": 8, **settings}))


def test_rows_are_examples(table: Path) -> None:
    source = opened(table)
    assert len(source) == 12
    for i in range(12):
        assert source.picture(i).pixels[0, 0].tolist() == list(sets.colour(i))
        about = source.about(i)
        assert (about.name, about.captions, about.label) == (f"t.parquet row {i}", (f"thing {i}",), i % 4)
        assert source.size(i) == (12, 12)
    assert source.labels == ("0", "1", "2", "3")
    assert len({source.content(i) for i in range(12)}) == 12


def test_filters_and_templates(table: Path) -> None:
    source = opened(table, where={"split": "train", "label": [1, 2]}, caption="{name} ({tags}), {split}")
    assert [source.about(i).captions for i in range(len(source))] == [
        (f"thing {i} (a, t{i}), train",) for i in (1, 2, 5, 10)
    ]
    assert source.picture(3).pixels[0, 0].tolist() == list(sets.colour(10))


def test_a_mapped_table_is_the_same(table: Path, tmp_path: Path) -> None:
    whole, mapped = opened(table), opened(table, memory=1e-9, index=str(tmp_path))
    made = list(tmp_path.glob(".t.parquet.*.arrow"))
    assert len(made) == 1
    stamp = made[0].stat().st_mtime_ns
    again = opened(table, memory=1e-9, index=str(tmp_path))
    assert made[0].stat().st_mtime_ns == stamp
    for other in (mapped, again):
        for i in range(12):
            assert other.about(i) == whole.about(i)
            assert other.content(i) == whole.content(i)


def test_a_mapped_table_is_not_that_of_an_older_file_that_looks_the_same(tmp_path: Path) -> None:
    def written(path: Path, number: int) -> Path:
        data = io.BytesIO()
        sets.picture(number).save(data, "BMP")
        table = pa.table({"image": [data.getvalue()], "text": ["x"]})
        parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
        return path

    path = written(tmp_path / "t.parquet", 1)
    assert opened(path, memory=1e-9).picture(0).pixels[0, 0].tolist() == list(sets.colour(1))
    then = path.stat()
    sets.rewritten(path, written(tmp_path / "other", 2).read_bytes())
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (then.st_size, then.st_mtime_ns)
    assert opened(path, memory=1e-9).picture(0).pixels[0, 0].tolist() == list(sets.colour(2))
    assert len(list(tmp_path.glob(".t.parquet.*.arrow"))) == 1  # what was unpacked of the former one is gone


def test_several_files_and_records(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for name, first in (("b", 2), ("a", 0)):
        records = [{"bytes": sets.png(first + i), "path": None} for i in range(2)]
        parquet.write_table(pa.table({"image": records, "caption": [f"c{first}", None]}), folder / f"{name}.parquet")
    source = opened(folder)
    assert [source.picture(i).pixels[0, 0].tolist() for i in range(4)] == [list(sets.colour(i)) for i in range(4)]
    assert [source.about(i).captions for i in range(4)] == [("c0",), (), ("c2",), ()]
    assert [source.name(i) for i in range(4)] == [f"{f}.parquet row {i}" for f in "ab" for i in range(2)]
    (folder / "._a.parquet").write_bytes(b"junk of a system")
    assert len(opened(folder)) == 4
    parquet.write_table(pa.table({"image": [sets.png(0)]}), folder / "c.parquet")
    with pytest.raises(LdmError, match=r"'c\.parquet' have different columns"):
        opened(folder)


def test_hints_in_a_column(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": [sets.png(0)], "hint": [sets.png(5)], "text": ["x"]}), path)
    hint = opened(path).hint(0)
    assert hint is not None and hint.pixels[0, 0].tolist() == list(sets.colour(5))
    assert opened(path).mask(0) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_column": "img"}, "no column 'img'"),
        ({"text_column": "words"}, "no column 'words'"),
        ({"label_column": "kind"}, "no column 'kind'"),
        ({"where": {"splitt": "x"}}, "no column 'splitt'"),
        ({"where": {"split": "valid"}}, "no row passes data.where"),
    ],
)
def test_mistakes_name_the_columns(table: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(LdmError, match=words):
        opened(table, **settings)


def test_a_damaged_table(table: Path) -> None:
    table.write_bytes(table.read_bytes()[:500])
    with pytest.raises(LdmError, match="cannot be read"):
        opened(table)


def test_without_pyarrow_the_extra_is_named(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LdmError, match=r"pip install 'ldm\[data\]'"):
        opened(table)


def test_the_shared_sets_open(root: Path) -> None:
    """The emoji, where they are at hand: transparent pictures over the colour that was asked for."""
    path = root.parent / "shared" / "data" / "emoji.parquet"
    if not path.is_file():
        pytest.skip("the shared data sets are not here")
    source = opened(path, caption="{name}, {style} emoji", where={"style": "blob"})
    assert source.about(0).captions[0].endswith(", blob emoji")
    picture = source.picture(0)
    assert picture.size == (128, 128) and picture.alpha is not None
    assert np.ptp(source.read(0)) > 0


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (["photo.png"], "of the type string"),
        ([[1, 2]], "of the type list"),
        ([{"path": "photo.png"}], "of the type struct"),
    ],
)
def test_names_of_files_in_a_table_are_not_opened(tmp_path: Path, image: list[object], words: str) -> None:
    sets.picture(0).save(tmp_path / "photo.png")
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": image, "text": ["x"]}), path)
    with pytest.raises(LdmError, match=words):
        opened(path)
    parquet.write_table(pa.table({"image": [sets.png(1)], "hint": [str(tmp_path / "photo.png")]}), path)
    assert opened(path).hint(0) is None


def test_captions_may_be_bytes(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": [sets.png(1)], "text": ["Möwe".encode()]}), path)
    assert opened(path).about(0).captions == ("Möwe",)


def test_tables_of_two_folders_do_not_meet(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        parquet.write_table(pa.table({"image": [sets.png(number)]}), tmp_path / name / "0.parquet")
        os.utime(tmp_path / name / "0.parquet", ns=(10**18, 10**18))
    for number, name in enumerate(("a", "b")):
        source = opened(tmp_path / name / "0.parquet", memory=1e-9, index=str(tmp_path / "index"))
        assert source.picture(0).pixels[0, 0].tolist() == list(sets.colour(number))
