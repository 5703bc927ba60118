"""`ldm data prepare`: emoji as designers publish them, or a table of them, as the table that models learn from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from app.errors import printable
from ldm.data.emoji import KEPT, Emoji, prepared
from ldm.errors import Code, LdmError


def prepare(out: str, sources: Sequence[str], names: str | None, keywords: str | None, as_json: bool) -> int:
    """Writes one new parquet file; tells what is in it."""
    from ldm.data.emoji_table import write_table
    from ldm.store.write import refuse_existing

    goal = Path(out)
    if goal.suffix != ".parquet":
        raise LdmError(
            Code.USAGE, f"{out} is no name for a table.", "It is written as parquet.", "Call it pictures.parquet."
        )
    refuse_existing(goal)
    rows = prepared(_rows(sources, names, keywords))
    write_table(rows, goal)
    told = _counted(rows)
    typer.echo(json.dumps({"path": out, **told}) if as_json else "\n".join(_in_words(out, told)))
    return 0


def _rows(sources: Sequence[str], names: str | None, keywords: str | None) -> Iterator[Emoji]:
    from ldm.data.emoji_folders import read_keywords, read_names, read_style
    from ldm.data.emoji_table import read_table

    known = read_names(Path(names)) if names else {}
    words = read_keywords(Path(keywords)) if keywords else {}
    for source in sources:
        style, equals, folder = source.partition("=")
        if not equals or Path(source).is_file():
            yield from read_table(Path(source))
        elif not style or not folder:
            what, why = f"{source} is not understood.", "A style has a name, and a folder with its pictures."
            raise LdmError(Code.USAGE, what, why, "Write noto=FOLDER.")
        elif not known:
            what, why = f"{source}: which emoji is which?", "A folder holds pictures named by numbers, without names."
            raise LdmError(Code.USAGE, what, why, "Give Unicode's list: --names emoji-test.txt.")
        else:
            yield from read_style(style, Path(folder), known, words)


def _counted(rows: Sequence[Emoji]) -> dict[str, object]:
    return {
        "pictures": len(rows),
        "names": len({name for row in rows for name in row.bases}),
        "styles": dict(sorted(Counter(row.style for row in rows).items())),
        "unseen": sum(row.split == KEPT for row in rows),
    }


def _in_words(out: str, told: dict[str, object]) -> Iterator[str]:
    styles = told["styles"]
    assert isinstance(styles, dict)
    yield printable(f"{out}: {told['pictures']:,} pictures of {told['names']:,} things (skin tones not counted)")
    yield printable(", ".join(f"{style} {count:,}" for style, count in styles.items()))
    yield f"{told['unseen']:,} are kept from training: column split is 'unseen' there"
