"""From fields to a valid request; what pydantic finds wrong is told in the words of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    from pipelines.request import Request


def make_request(fields: Mapping[str, Any], option: Callable[[str], str]) -> Request:
    """The request; `option` names the option behind a dotted field."""
    from pydantic import ValidationError

    from pipelines.request import Request

    try:
        return Request.model_validate(dict(fields))
    except ValidationError as error:
        raise explain(error, Request, option) from error


def explain(error: ValidationError, model: type[BaseModel], option: Callable[[str], str]) -> LdmError:
    """The first of the errors: which option, what is legal, and the nearest legal thing."""
    found = error.errors(include_url=False)
    first = found[0]
    path = _field_path(model, first["loc"])
    name, kind, message = option(".".join(path)), first["type"], first["msg"].removeprefix("Value error, ").rstrip(".")
    more = f" ({len(found) - 1} more after this one)" if len(found) > 1 else ""
    if kind == "extra_forbidden":
        known, wrong = sorted(_record(model, path).model_fields), str(first["loc"][-1])
        return LdmError(
            Code.USAGE,
            f"{'.'.join([*path, wrong])} is not a field of a request.{more}",
            f"{did_you_mean(wrong, known)}The fields here are {', '.join(known)}.",
            "Correct the name.",
        )
    if not path:  # a rule over several fields: its message names them
        return LdmError(
            Code.USAGE, f"{message}.{more}", "These options do not go together.", "Add or remove one of them."
        )
    fix = f"Change {name}; `ldm generate --help` shows what it takes."
    if kind == "literal_error":
        allowed = [part.strip("'") for part in str(first["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
        message = f"{did_you_mean(str(first['input']), allowed)}{message}"
        fix = f"Choose one of {', '.join(allowed)}."
    if (nearest := message.rpartition("nearest legal size is ")[2]) != message:
        fix = f"Use {nearest}."
    return LdmError(Code.USAGE, f"{name}: {_short(first['input'])} is not allowed.{more}", f"{message}.", fix)


def did_you_mean(wrong: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.55)
    return f"Did you mean {near[0]}? " if near else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _field_path(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The part of an error's location that names fields; what follows are branches of a union."""
    path: list[str] = []
    for part in location:
        if isinstance(part, int) or part in _record(model, path).model_fields:
            path.append(str(part))
        else:
            break
    return path


def _record(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """The record at a dotted path."""
    from pydantic import BaseModel

    for part in path:
        if part in model.model_fields:
            inside = [model.model_fields[part].annotation]
            for depth in inside:  # grows: X | None, tuple[X, ...], Annotated[X, ...]
                inside += list(get_args(depth))
            model = next((m for m in inside if isinstance(m, type) and issubclass(m, BaseModel)), model)
    return model
