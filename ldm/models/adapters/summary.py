"""What an adapter file holds and where its change sits, told without a base model."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ldm.models.adapters.adapter import Adapter
from ldm.models.adapters.base import family_of_width


@dataclass(frozen=True)
class Summary:
    """`ldm adapter inspect`: norms are |dW| at weight 1, before DoRA's rescaling (which needs the base)."""

    name: str
    dialect: str
    kinds: tuple[str, ...]
    tensors: int
    unknown: tuple[str, ...]
    parameters: int
    ranks: dict[str, int]  # rank -> number of layers
    alphas: dict[str, int]  # alpha ("none": not written) -> number of layers
    targets: dict[str, int]  # component and layer type -> number of layers
    norms: dict[str, float]  # block -> |dW|
    norm: float
    family: str | None
    fingerprint: str | None
    base: str  # its name, where it is told, and the reason for family and fingerprint
    words: tuple[str, ...]  # trigger words, most frequent first


def inspect(adapter: Adapter, norms: bool = True) -> Summary:
    """Everything that the tensors and the metadata tell; `norms` take a look at all numbers."""
    squares: defaultdict[str, float] = defaultdict(float)
    ranks: Counter[str] = Counter()
    alphas: Counter[str] = Counter()
    targets: Counter[str] = Counter()
    parameters = 0
    for part in adapter.parts:
        where = part.component or "any"
        targets[f"{where}: {re.sub(r'[.][0-9]+$', '', part.path).rsplit('.', 1)[-1]}"] += 1
        if part.delta is not None:
            if norms:
                squares[block(where, part.path)] += part.delta.norm() ** 2
            ranks[str(part.delta.rank or "full")] += 1
            alphas["none" if part.delta.alpha is None else f"{part.delta.alpha:g}"] += 1
            parameters += sum(tensor.numel() for tensor in part.delta.factors.values())
    by_block = {block: math.sqrt(value) for block, value in sorted(squares.items())}
    family, reason = adapter.base.family, adapter.base.reason
    widths = {part.shape[1] for part in adapter.parts if part.shape and part.path.endswith("attn2.to_k")}
    if family is None and len(widths) == 1 and (family := family_of_width(width := widths.pop())):
        reason = f"its cross-attention reads text of width {width}"
    return Summary(
        name=adapter.name,
        dialect=adapter.dialect,
        kinds=adapter.kinds,
        tensors=adapter.total,
        unknown=adapter.unknown,
        parameters=parameters,
        ranks=dict(ranks.most_common()),
        alphas=dict(alphas.most_common()),
        targets=dict(targets.most_common()),
        norms=by_block,
        norm=math.sqrt(sum(squares.values())),
        family=family,
        fingerprint=adapter.base.fingerprint,
        base=f"{adapter.base.name}: {reason}" if adapter.base.name else reason,
        words=_words(adapter.metadata),
    )


def block(component: str, path: str) -> str:
    match = re.match(r"(?:down_blocks|up_blocks|encoder\.layers)\.\d+|mid_block", path)
    return f"{component}.{match[0] if match else path.split('.', 1)[0]}"


def _words(metadata: Mapping[str, str], most: int = 10) -> tuple[str, ...]:
    """The trigger phrase that ModelSpec names, then the tags that kohya counted while training."""
    words = [word.strip() for word in metadata.get("modelspec.trigger_phrase", "").split(",") if word.strip()]
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        folders = {}
    counted: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        if isinstance(tags, dict):
            counted.update({tag.strip(): int(n) for tag, n in tags.items() if isinstance(n, int)})
    return tuple(dict.fromkeys([*words, *(tag for tag, _ in counted.most_common(most))]))
