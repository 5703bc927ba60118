"""What pydantic found wrong, in words: dotted key, place in the file, allowed values, and the nearest right word."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ldm.errors import Code, LdmError

Path = tuple[str | int, ...]

_WANTED = {  # pydantic's error type -> what the value should have been
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (put it into quotes)",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section",
    "model_type": "a section",
    "model_attributes_type": "a section",
    "path_type": "a path",
    "finite_number": "a finite number",
    "none_required": "null",
}


def explain(
    error: ValidationError, record: type[BaseModel], data: Mapping[str, Any], place: Callable[[Path], str]
) -> LdmError:
    """One `LdmError` for everything that is wrong: the first problem in full, the others in its reason."""
    problems: dict[Path, tuple[str, str, str]] = {}
    for found in error.errors(include_url=False, include_context=True):
        path, allowed = _path(found, data), _allowed(record, found["loc"][:-1])
        if found["type"].startswith("union_tag_"):  # the key that says which branch is meant
            path = (*path, str(found["ctx"]["discriminator"]).strip("'"))
        what, why, fix = _problem(found, path, allowed)
        if path in problems:  # the branches of a union: one message
            what, why, fix = problems[path][0], f"{problems[path][1]}; or {why}", problems[path][2]
        problems[path] = (what, why, fix)
    ordered = sorted(problems.items(), key=lambda problem: _line(place(problem[0])))
    told = [(f"{what} ({place(path)})", why, fix) for path, (what, why, fix) in ordered]
    (what, why, fix), others = told[0], told[1:]
    if others:
        why += f"; {len(others)} more: " + "; ".join(t[0] for t in others)
    return LdmError(Code.USAGE, what, why, fix)


def _line(place: str) -> float:
    """The line of a place, to order by; what is in no line (an override) comes last."""
    found = re.search(r" line ([0-9]+)$", place)
    return int(found[1]) if found else math.inf


def _problem(found: Mapping[str, Any], path: Path, allowed: Sequence[str]) -> tuple[str, str, str]:
    """What is wrong, why, and what to do, for one of pydantic's findings."""
    kind, value, context = found["type"], found.get("input"), found.get("ctx", {})
    key, name = ".".join(map(str, path)) or "the file", str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        near = nearest(name, allowed)
        hint = f"; did you mean {near}?" if near else ""
        fix = f"rename {name} to {near}" if near else f"remove {name}"
        return f"{key}: unknown key{hint}", f"this section knows {', '.join(allowed) or 'no keys'}", fix
    if kind in ("missing", "union_tag_not_found"):
        if path and isinstance(path[-1], int):
            return (
                f"{key}: missing",
                "the list is too short",
                f"add value number {path[-1]}, counted from 0, to the list",
            )
        return f"{key}: missing", f"{name} has no default", f"add {name}: to the section"
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        return _not_a_choice(key, value, context)
    if kind in _WANTED:
        return (
            f"{key}: {show(value)} is not {_WANTED[kind]}",
            f"{name} takes {_WANTED[kind]}",
            f"give {name} {_WANTED[kind]}",
        )
    reason = found["msg"].removeprefix("Value error, ").removeprefix("Input ").strip()
    if not path:  # fields that do not go together
        return reason, "these do not go together", "change one of them"
    shown = "" if isinstance(value, Mapping | list) or reason.startswith(show(value)) else f"{show(value)}: "
    return f"{key}: {shown}{reason}", f"{name}: {reason}", f"change {key} so that it fits"


def _not_a_choice(key: str, value: Any, context: Mapping[str, Any]) -> tuple[str, str, str]:
    words = str(context.get("expected") or context.get("expected_tags") or "")
    choices = [w.strip(" '") for w in words.replace(" or ", ", ").split(",")]
    value = context.get("tag", value)
    near = nearest(str(value), choices)
    hint = f"; did you mean {near}?" if near else ""
    what = f"{key}: {show(value)} is none of {', '.join(choices)}{hint}"
    return (
        what,
        f"only these are known: {', '.join(choices)}",
        f"write {near or choices[0]}" + ("" if near else ", or another of them"),
    )


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant."""
    close = difflib.get_close_matches(word.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    return next((k for k in known if k.lower() == close[0]), None) if close else None


def show(value: Any) -> str:
    """A value as it stands in the file, cut to a length that fits a message."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = "a section" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else str(value)
    if isinstance(value, str) and (not value or value[0].isdigit()):
        text = f'"{value}"'
    return text if len(text) <= 60 else text[:57] + "..."


def _path(found: Mapping[str, Any], data: Any) -> Path:
    """pydantic's location without the names of union branches: only what is in the file, or missing from it."""
    path: list[str | int] = []
    here, last = data, len(found["loc"]) - 1
    for i, part in enumerate(found["loc"]):
        if (isinstance(here, Mapping) and part in here) or (
            isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)
        ):
            here = here[part]
        elif not (i == last and found["type"] == "missing"):
            continue
        path.append(part)
    return tuple(path)


def _allowed(record: type[BaseModel], loc: Path) -> list[str]:
    """The keys that a section knows, found by walking the record's types along pydantic's location."""
    here = [record]
    for part in loc:
        below = [
            m for model in here if part in model.model_fields for m in _models(model.model_fields[str(part)].annotation)
        ]
        if below:
            here = below
        elif not isinstance(part, int):  # the tag of a discriminated union
            here = [m for m in here if _has_tag(m, str(part))] or here
    return list(dict.fromkeys(name for model in here for name in model.model_fields))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The records inside an annotation: X, X | None, list[X], Annotated[X | Y, ...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return model.__name__ == tag or any(tag in get_args(f.annotation) for f in model.model_fields.values())
