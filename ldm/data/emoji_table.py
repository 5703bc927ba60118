"""Tables of emoji in parquet files. Needs the extra `data` (pyarrow)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ldm.data.emoji import TRAIN, Emoji
from ldm.data.parquet import pyarrow, stored, unreadable
from ldm.data.source import listed, no_column
from ldm.errors import Code, LdmError
from ldm.store.write import staged

NEEDED = ("image", "name", "style")
_LIST = (list, "a list of words is needed", "make lists of")
_NUMBER = (int, "a whole number is needed", "number")
KINDS = {"tags": _LIST, "names": _LIST, "group": _NUMBER, "subgroup": _NUMBER}
KNOWN = (*NEEDED, "tags", "group", "subgroup", "codepoints", "license", "names", "split")


def read_table(path: Path) -> Iterator[Emoji]:
    """The rows of a table with the columns image, name and style; what else is known of an emoji may be there."""
    pa, pq = pyarrow()
    if not path.is_file():
        raise LdmError(
            Code.FILE, f"{path} is not there", "a table or style=FOLDER is needed", "check the path, or write noto=DIR"
        )
    try:
        file = pq.ParquetFile(path)
        columns = list(file.schema_arrow.names)
        for name in NEEDED:
            if name not in columns:
                raise no_column(name, columns, str(path))
        for batch in file.iter_batches(batch_size=512, columns=[name for name in KNOWN if name in columns]):
            yield from (_row(row) for row in batch.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise unreadable(str(path), error) from error


def _row(row: dict[str, Any]) -> Emoji:
    image = stored(row["image"])
    if not isinstance(image, bytes) or not row["name"] or not row["style"]:
        what = f"the row of {listed([str(row['name'])])} in style {row['style']} is not complete"
        raise LdmError(Code.FILE, what, "picture bytes, a name and a style are needed", "mend or remove the row")
    for column, (kind, why, mend) in KINDS.items():
        if not isinstance(row.get(column) or kind(), kind):
            what = f"{column} of {listed([str(row['name'])])} is {row[column]!r:.60}"
            raise LdmError(Code.FILE, what, why, f"{mend} the column {column}, or leave it out")
    return Emoji(
        image,
        str(row["name"]),
        str(row["style"]),
        tuple(row.get("tags") or ()),
        row.get("group"),
        row.get("subgroup"),
        str(row.get("codepoints") or ""),
        str(row.get("license") or ""),
        tuple(row.get("names") or ()),
        str(row.get("split") or TRAIN),
    )


def write_table(rows: Sequence[Emoji], goal: Path) -> None:
    """A new parquet file: what is known of each emoji, its split, and its captions as a list."""
    pa, pq = pyarrow()
    schema = pa.schema(
        {
            "image": pa.binary(),
            "name": pa.string(),
            "names": pa.list_(pa.string()),
            "captions": pa.list_(pa.string()),
            "tags": pa.list_(pa.string()),
            "group": pa.int64(),
            "subgroup": pa.int64(),
            "style": pa.string(),
            "codepoints": pa.string(),
            "license": pa.string(),
            "toned": pa.int8(),
            "split": pa.string(),
        }
    )
    with staged(goal) as stage, pq.ParquetWriter(stage, schema) as writer:
        for start in range(0, len(rows), 1024):
            part = [_told(row) for row in rows[start : start + 1024]]
            writer.write_batch(pa.RecordBatch.from_pylist(part, schema=schema))


def _told(row: Emoji) -> dict[str, Any]:
    return {
        "image": row.image,
        "name": row.name,
        "names": list(row.names or (row.name,)),
        "captions": list(row.captions),
        "tags": list(row.tags),
        "group": row.group,
        "subgroup": row.subgroup,
        "style": row.style,
        "codepoints": row.codepoints,
        "license": row.license,
        "toned": int(row.toned),
        "split": row.split,
    }
