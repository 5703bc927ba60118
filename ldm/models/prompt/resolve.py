"""A template to the text that is encoded: wildcards filled in from the seed, `<lora:...>` tags taken out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ldm.errors import Code, LdmError
from ldm.models.prompt.clean import check_size, clean
from ldm.models.prompt.wildcards import Expander

_LORA = re.compile(r"<lora:([^<>]*)>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")


class Lora(NamedTuple):
    """An adapter named in a prompt: how strongly it acts on the U-Net, and on the text towers (None: as strongly)."""

    name: str
    weight: float
    text_weight: float | None = None


@dataclass(frozen=True)
class Resolved:
    """The text to encode, the template as it was given, and the hash of each wildcard file that was read."""

    text: str
    template: str
    files: Mapping[str, str]
    loras: tuple[Lora, ...]


def resolve(template: str, *, seed: int, wildcards: Path | None = None) -> Resolved:
    """Fill in `{a|b}` and `__file__` as the seed decides, and take the `<lora:name:0.8>` tags out.

    The same template, seed and files give the same text on every machine and in every version of Python.
    """
    check_size(template)
    expander = Expander(seed, wildcards)
    text = clean(expander.expand(clean(template)))
    check_size(text)
    loras = tuple(_lora(match.group(1)) for match in _LORA.finditer(text))
    return Resolved(_LORA.sub("", text).strip() if loras else text, template, dict(expander.files), loras)


def tagged(template: str) -> list[str]:
    """The adapters that a template names in tags, as it stands."""
    return [match.group(1).partition(":")[0].strip() for match in _LORA.finditer(template)]


def retagged(template: str, named: Callable[[str], str | None]) -> str:
    """A template whose tags name adapters otherwise; without those that have no name any more."""

    def one(match: re.Match[str]) -> str:
        name, colon, rest = match.group(1).partition(":")
        now = named(name.strip())
        return match.group() if now == name.strip() else "" if now is None else f"<lora:{now}{colon}{rest}>"

    return _LORA.sub(one, template)


def _lora(inside: str) -> Lora:
    """`name`, `name:weight` or `name:text:unet`: of two numbers the first is for the text towers, as in A1111."""
    name, *rest = (part.strip() for part in inside.split(":"))
    numbers = [float(part) for part in rest if _NUMBER.fullmatch(part)]
    if not name or len(rest) > 2 or len(numbers) < len(rest):
        raise LdmError(
            Code.USAGE,
            f"<lora:{inside[:60]}> cannot be read",
            "the tag holds a name, and one or two numbers after colons",
            "write <lora:name:0.8>, or <lora:name:0.8:0.5> for the text towers and the U-Net",
        )
    if len(numbers) == 2:
        return Lora(name, numbers[1], numbers[0])
    return Lora(name, *numbers) if numbers else Lora(name, 1.0)
