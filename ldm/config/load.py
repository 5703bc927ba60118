"""From a YAML file and `section.key=value` overrides to one frozen record, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ldm.config.explain import explain, nearest
from ldm.config.reader import Document, parse_value, read, write
from ldm.errors import Code, LdmError


class Strict(BaseModel):
    """A section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Record = TypeVar("Record", bound=BaseModel)


def load(path: Path | str, record: type[Record], overrides: Sequence[str] = ()) -> Record:
    """Read a run file; each override is `section.key=value` and wins over the file."""
    path = Path(path)
    try:
        text = path.read_bytes()
    except IsADirectoryError:
        raise LdmError(Code.FILE, f"{path}: a folder", "a run is one file", "name the .yaml file in it") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise LdmError(Code.FILE, f"{path}: cannot be read", why, "check the path and its permissions") from None
    return loads(text, record, overrides, name=str(path))


def loads(text: str | bytes, record: type[Record], overrides: Sequence[str] = (), *, name: str = "config") -> Record:
    """As `load`, from text."""
    document = read(text, name)
    for override in overrides:
        apply(document, override)
    try:  # as JSON: a list may be a tuple and text a path, but true is no number and "3" is none either
        return record.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        raise explain(error, record, document.data, document.place) from None


def dump(record: BaseModel) -> str:
    """The resolved record as YAML, with every default written out; `loads` gives an equal record."""
    return write(record.model_dump(mode="json"))


def apply(document: Document, override: str) -> None:
    """Put one `section.key=value` into a document; the value is read as YAML."""
    key, equals, text = override.partition("=")
    place = f"override {override if len(override) <= 80 else override[:77] + '...'}"
    parts: list[str | int] = [int(p) if p.isdigit() else p for p in key.strip().split(".")]
    if not equals or "" in parts:
        raise LdmError(
            Code.USAGE, f"{override!r}: not an override", "the form is section.key=value", "write run.steps=200"
        )
    value = parse_value(text, place)
    here: Any = document.data
    for i, part in enumerate(parts[:-1]):
        if isinstance(here, dict) and here.get(str(part)) is None:
            here[str(part)] = {}
        here = _down(here, part, tuple(parts[: i + 1]), place)
    _down(here, parts[-1], tuple(parts), place, value, put=True)
    for old in [p for p in document.places if p[: len(parts)] == tuple(parts)]:
        del document.places[old]
    for depth in range(1, len(parts) + 1):
        document.places.setdefault(tuple(parts[:depth]), place)


def _down(
    here: Any, part: str | int, path: tuple[str | int, ...], place: str, value: Any = None, *, put: bool = False
) -> Any:
    """The value below `here`; with `put`, set it."""
    way = ".".join(map(str, path))
    if isinstance(here, list):
        if not isinstance(part, int) or part >= len(here):
            why = f"the list has {len(here)} entries, counted from 0"
            raise LdmError(
                Code.USAGE, f"{way}: no such entry ({place})", why, "give the number of an entry that is there"
            )
    elif isinstance(here, dict):
        part = str(part)
    else:
        why = f"{'.'.join(map(str, path[:-1]))} is a value, not a section"
        raise LdmError(Code.USAGE, f"{way}: has nothing below it ({place})", why, "remove the last part of the key")
    if put:
        here[part] = value
    return here[part]


def find(name: str | Path, folder: Path | None = None) -> Path:
    """A run file by path, or one that ships with the package by its name (`diffusion/emoji-64`)."""
    path = Path(name)
    if path.is_file():
        return path
    root = folder if folder is not None else shipped()
    files = [] if root is None else sorted(p for p in root.rglob("*.yaml") if p.parent.name != "accelerate")
    known = {str(p.relative_to(root).with_suffix("")): p for p in files if root is not None}
    wanted = str(name).removesuffix(".yaml").removesuffix(".yml").removeprefix("configs/")
    if wanted in known:
        return known[wanted]
    near = nearest(wanted, list(known))
    fix = f"write {near}" if near else "give the path of a .yaml file"
    ships = f"shipped are {', '.join(known)}" if known else "none ships with this version"
    why = f"there is no file of that name, and {ships}"
    raise LdmError(Code.FILE, f"{name}: no such run file", why, fix)


def maker(out: Path) -> str | None:
    """The name of the shipped run file whose run lies in the folder `out`, where there is one."""
    root, wanted = shipped(), re.compile(rf"\bout: {re.escape(out.as_posix())}[,}}\s]")
    if root is None:
        return None
    found = (path for path in sorted(root.rglob("*.yaml")) if wanted.search(path.read_text("utf-8")))
    return next((str(path.relative_to(root).with_suffix("")) for path in found), None)


def shipped() -> Path | None:
    """The folder of the run files that ship: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next((p for p in (package / "configs", package.parent / "configs") if p.is_dir()), None)
