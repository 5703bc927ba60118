"""From fields to a valid request; what pydantic finds wrong is told in the words of the command line."""

from __future__ import annotations

import difflib
import re
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
        raise explain(error, Request, option, fields) from error


def explain(
    error: ValidationError, model: type[BaseModel], option: Callable[[str], str], fields: Mapping[str, Any]
) -> LdmError:
    """The first of the errors: which option, what is legal, and the nearest legal thing."""
    found = error.errors(include_url=False)
    first = found[0]
    path = _field_path(model, first["loc"])
    name, kind = option(".".join(path)), first["type"]
    message = in_options(first["msg"].removeprefix("Value error, ").rstrip("."), model, option)
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
        why = "These options do not go together."
        return LdmError(Code.USAGE, f"{message}.{more}", why, _way_out(message) or "Add or remove one of them.")
    if kind == "missing":
        key = str(first["loc"][-1])
        name = option(".".join(path[:-1]))
        return LdmError(
            Code.USAGE, f"{name}: {key}= is missing.{more}", f"It needs {key}.", f"Add {key}=... to {name}."
        )
    if kind in ("model_type", "model_attributes_type") and path:
        keys = list(_record(model, path).model_fields)
        whole = ".".join(part for part in path if not part.isdecimal())
        why = f"{whole} is a record with the fields {', '.join(keys)}."
        fix = f"Write --set {whole}.{keys[0]}={_short(first['input'])}."
        return LdmError(Code.USAGE, f"{name}: {_short(first['input'])} is not allowed.{more}", why, fix)
    fix = _way_out(message) or _limits(model, path) or f"Change {name}; `ldm generate --help` shows what it takes."
    if kind == "literal_error":
        allowed = [part.strip("'") for part in str(first["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
        message = f"{did_you_mean(str(first['input']), allowed)}{message}"
        fix = f"Choose one of {', '.join(allowed)}."
    shown = _short(first["input"])
    if path in (["width"], ["height"]):
        shown, fix = _both_sides(fields, shown)
    return LdmError(Code.USAGE, f"{name}: {shown} is not allowed.{more}", f"{message}.", fix)


def in_options(text: str, model: type[BaseModel], option: Callable[[str], str]) -> str:
    """A message in the words of the command line: `resize_mask` is --resize-mask here."""
    names = [name for name in model.model_fields if "_" in name and option(name).startswith("--")]
    for name in [*names, "guidance.interval"]:
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w])", option(name), text)
    first, needs, rest = text.partition(" needs ")
    return f"{option(first)}{needs}{rest}" if first in model.model_fields else text


def did_you_mean(wrong: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.55)
    return f"Did you mean {near[0]}? " if near else ""


def _short(value: object) -> str:
    """Strings, numbers, and lists and pairs of them, on one line; of anything else that it is there."""
    text = " ".join(_plain(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(value: object) -> str:
    if value is None or isinstance(value, (str, int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return ",".join(str(part) if isinstance(part, str) else _plain(part) for part in value)
    if isinstance(value, Mapping):
        told = {key: part for key, part in value.items() if isinstance(part, (str, int, float))}
        return ",".join(f"{key}={part}" for key, part in told.items())
    return "what was given"


def _way_out(message: str) -> str:
    """The fix of a rule over several fields; the message says which."""
    ways = {
        "needs an image": "Add --image FILE.",
        "needs image": "Add --image FILE.",
        "needs a mask": "Add --mask MASK.",
        "needs mask or pad": "Add --image FILE with --mask MASK or --pad PX.",
        "needs mask": "Add --mask MASK.",
        "needs a --variation-seed": "Add --variation-seed N.",
        "needs variation": "Add --variation 0.2.",
        "needs refiner": "Add --refiner MODEL.",
        "ends before it starts": "Write --guidance-interval 0.2,0.8, the smaller number first.",
        "largest seed": "Use a smaller --seed or --count.",
        "is not before end": "Give a start that is smaller than the end.",
        "is not smaller than the tile size": "Use an overlap of a quarter of the size: --tile size=512,overlap=128.",
        "finite number": "Use a plain number, such as 1.5.",
    }
    return next((fix for words, fix in ways.items() if words in message), "")


def _limits(model: type[BaseModel], path: Sequence[str]) -> str:
    """ "Use 1 to 1000.": the bounds that the field at this path declares."""
    names = [part for part in path if not part.isdecimal()]
    if not names or names[-1] not in (fields := _record(model, path[:-1]).model_fields):
        return ""
    declared = [fields[names[-1]].annotation, *fields[names[-1]].metadata]
    bounds: dict[str, Any] = {}
    for part in declared:  # grows: what X | None, tuple[X, ...] and Annotated[X, ...] are made of
        declared += [*get_args(part), *getattr(part, "metadata", ())]
        bounds |= {bound: getattr(part, bound) for bound in ("ge", "gt", "le", "lt") if hasattr(part, bound)}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if isinstance(high, int) and "le" not in bounds:
        high -= 1  # whole numbers below it end there
    if low is None:
        return ""
    any_seed = ", or -1 for any" if list(path) == ["seed"] else ""
    return f"Use {_bound(low)} to {_bound(high)}{any_seed}." if high is not None else f"Use {_bound(low)} or more."


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _both_sides(fields: Mapping[str, Any], shown: str) -> tuple[str, str]:
    """What was asked for, and the nearest legal size: one side alone is no --size."""
    from pipelines.request import MAX_SIDE, nearest_side

    texts = [str(fields.get(side) if fields.get(side) is not None else "") for side in ("width", "height")]
    try:
        sides = [float(text) for text in texts]
    except ValueError:
        return shown, "Write --size 512x512."
    if max(sides) > MAX_SIDE:  # the nearest legal size would be refused next, for memory
        return "x".join(texts)[:80], "Leave --size out for the size that the model was made for, or give one near it."
    width, height = map(nearest_side, sides)
    return "x".join(texts)[:80], f"Use --size {width}x{height}."


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
