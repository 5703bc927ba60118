"""For which base model an adapter was made, as far as its file says so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ldm.errors import Code, LdmError

_FAMILIES = (  # tried in order against ss_base_model_version and modelspec.architecture
    ("xl-refiner", r"xl.*refiner"),
    ("xl", r"sdxl|stable-diffusion-xl|^xl\b|illustrious|pony|noobai"),
    ("sd3", r"sd_?3|stable-diffusion-(v?3)"),
    ("sd2", r"sd_?v?2|stable-diffusion-(v?2)|^2\.[01]"),
    ("sd1", r"sd_?v?1|stable-diffusion-(v?1)|^1\.[45]"),
    ("flux", r"flux"),
    ("lumina", r"lumina"),
    ("hunyuan", r"hunyuan"),
)
_FOREIGN = (  # marks in the keys of networks that are no U-Nets
    ("flux", r"double_blocks|single_blocks|single_transformer_blocks"),
    ("sd3", r"joint_blocks|lora_te3_|text_encoder_3\."),
    ("transformer", r"^(?:lora_)?transformer[._]|^diffusion_model\.(?:layers|blocks)\."),
)
_CONTEXT = {768: "sd1", 1024: "sd2", 2048: "xl", 1280: "xl-refiner"}  # width of the text that cross-attention sees
_OURS = frozenset({"sd1", "sd2", "xl", "xl-refiner"})


@dataclass(frozen=True)
class BaseHint:
    """What an adapter says of its base; `reason` names the metadata or keys that say it."""

    family: str | None
    fingerprint: str | None
    reason: str
    name: str | None = None  # what the base was called where the adapter was trained


def hint(metadata: Mapping[str, str], keys: Iterable[str]) -> BaseHint:
    """The base of an adapter: our fingerprint, else what kohya and ModelSpec write, else the sort of its keys."""
    fingerprint, name = metadata.get("ldm.base_fingerprint"), metadata.get("ldm.base_name") or None
    for field in ("ldm.base_family", "ss_base_model_version", "modelspec.architecture"):
        value = metadata.get(field, "")
        if value in _OURS or value == "own":
            return BaseHint(value, fingerprint, f"{field} is {value!r}", name)
        for family, pattern in _FAMILIES:
            if re.search(pattern, value.lower()):
                return BaseHint(family, fingerprint, f"{field} is {value!r}", name)
    if metadata.get("ss_v2") == "True":
        return BaseHint("sd2", fingerprint, "ss_v2 is 'True'", name)
    for key in keys:
        for family, pattern in _FOREIGN:
            if re.search(pattern, key):
                return BaseHint(family, fingerprint, f"it holds the key {key!r}", name)
    reason = "ldm.base_fingerprint names the base" if fingerprint else "the file does not name its base"
    return BaseHint(None, fingerprint, reason, name)


def family_of_width(width: int) -> str | None:
    """The family whose cross-attention reads text of this width."""
    return _CONTEXT.get(width)


def refuse_other_base(name: str, said: BaseHint, family: str, fingerprint: str | None, any_base: bool) -> None:
    """An error, if the adapter says that it was made for another base than (family, fingerprint).

    `any_base` lets another model of the same family pass: adapters are often used on relatives of their base.
    A base of our `own` family is compared by fingerprint and shapes only, because its name says nothing.
    """
    if said.fingerprint and said.fingerprint == fingerprint:
        return
    if said.family is not None and said.family != family and "own" not in (said.family, family):
        raise LdmError(
            Code.MODEL,
            f"{name}: this adapter was made for the family {said.family}, and the base model is {family}.",
            f"In its file {said.reason}; layers of another family have other names and widths.",
            f"Use an adapter made for {family}, or load a base model of the family {said.family}.",
        )
    if said.fingerprint and fingerprint and not any_base:
        called = f" ({said.name[:80]!r})" if said.name else ""
        raise LdmError(
            Code.MODEL,
            f"{name}: this adapter was made for another base model{called}.",
            f"Its ldm.base_fingerprint is {said.fingerprint}, and the base model's is {fingerprint}.",
            "Load the base model it was made for, or allow any base of the same family by !FILE in place of FILE.",
        )
