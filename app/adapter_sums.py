"""`ldm adapter merge | extract | compare`: adapters added up, taken from two models, and held side by side."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.adapter import adapter_goal, as_usual, dialect_of, write_adapter
from app.errors import printable
from app.options import existing, lora
from ldm.errors import Code, LdmError

KEPT = 0.98  # of a layer's squared change, where nothing is asked for

if TYPE_CHECKING:
    import torch

    from ldm.models.adapters import Adapter, AdapterStack
    from ldm.store.parts import Parts


def merge(
    files: Sequence[str], out: str, rank: int | None, base: str | None, into: str | None, to: str | None, as_json: bool
) -> int:
    """Several adapters as one; or one or several inside a model, which is written as a whole."""
    uses = [lora(word) for word in files]
    for use in uses:
        use["path"] = existing(use["path"], "FILE", peft=True)
    if into is not None:
        _refuse_beside_into(rank, base, to)
        return _into(uses, Path(out).expanduser(), into, as_json)
    dialect = dialect_of(to or "diffusers")
    goal = adapter_goal(out, dialect)
    if any("text_weight" in use for use in uses):
        what, why = (
            "Two weights of one FILE are not merged into an adapter.",
            "Its layers are summed at one weight each.",
        )
        raise LdmError(Code.USAGE, what, why, "Give one weight, as in FILE:0.8; or merge into a model with --into.")
    from ldm.models.adapters import convert, mixed
    from pipelines.adapting import read_adapter

    items = [(read_adapter(use["path"], use.get("any_base", False)), _number(use, "weight")) for use in uses]
    parts, stack = (None, None) if base is None else _loaded(base)
    made = mixed(items, goal.stem, rank, stack)
    family, fingerprint = (None, None) if stack is None else (stack.family, stack.fingerprint)
    usual = as_usual(dialect, family or made.adapter.base.family)
    tensors, metadata = convert(
        made.adapter, usual, fingerprint=fingerprint, family=family, base_name=parts.name if parts else None
    )
    write_adapter(goal, dialect, tensors, metadata)
    told = {"path": str(goal), "tensors": len(tensors), "ranks": _ranks(made.adapter), "left_out": made.left_out,
            "idle": made.idle}  # fmt: skip
    left = f"; its rank leaves out {made.left_out:.2%} of the squared change" if rank is not None else ""
    if made.idle:
        left += f"; {made.idle} {'layer' if made.idle == 1 else 'layers'} without any change left away"
    typer.echo(json.dumps(told) if as_json else printable(f"{goal}: {len(tensors)} tensors{left}"))
    return 0


def extract(
    base: str, tuned: str, out: str, rank: int | None, keep: float | None, convolutions: bool, to: str, as_json: bool
) -> int:
    """What was learned between two models, as a LoRA."""
    if rank is not None and keep is not None:
        what, why = "--rank and --keep do not go together.", "Each of them says how much of a layer's change is kept."
        raise LdmError(Code.USAGE, what, why, "Give one of them.")
    dialect = dialect_of(to)
    goal = adapter_goal(out, dialect)
    from ldm.models.adapters import convert, extracted

    (parts, ours), (other, theirs) = _loaded(base), _loaded(tuned)
    if parts.family != other.family:
        what, why = "The two models are of different families.", f"{base} is {parts.family}, {tuned} is {other.family}."
        raise LdmError(Code.MODEL, what, why, "Name the model that was tuned, and the one that it was tuned from.")
    made = extracted(
        ours.networks,
        theirs.networks,
        goal.stem,
        rank=rank,
        keep=KEPT if keep is None else keep,
        convolutions=convolutions,
    )
    usual = as_usual(dialect, parts.family)
    tensors, metadata = convert(
        made.adapter, usual, fingerprint=parts.fingerprint, family=parts.family, base_name=parts.name
    )
    write_adapter(goal, dialect, tensors, metadata)
    told = {"path": str(goal), "tensors": len(tensors), "ranks": _ranks(made.adapter),
            "left_out": made.left_out, "elsewhere": made.elsewhere}  # fmt: skip
    typer.echo(json.dumps(told) if as_json else printable(_extraction(goal, len(tensors), told)))
    return 0


def compare(one: str, other: str, as_json: bool) -> int:
    """Two adapters side by side."""
    paths = [existing(file, "FILE", peft=True) for file in (one, other)]
    from ldm.models.adapters import compare as side_by_side
    from pipelines.adapting import read_adapter

    made = side_by_side(*(read_adapter(path) for path in paths))
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(made)))
        return 0
    rows = {
        "kinds": " | ".join(", ".join(kinds) for kinds in made.kinds),
        "layers": f"{made.layers[0]} | {made.layers[1]}, {made.shared} in both",
        "|dW|": f"{made.norms[0]:.4g} | {made.norms[1]:.4g}",
        "cosine": f"{made.cosine:.4f}" + (" (equal to the bit)" if made.same else ""),
        **{f"  {name}": f"{cosine:.4f}" for name, cosine in made.blocks.items()},
    }
    width = max(map(len, rows))
    names = made.names if made.names[0] != made.names[1] else (one, other)  # of two folders, say
    head = f"{' ' * width}  {' | '.join(names)}"
    typer.echo(printable("\n".join([head, *(f"{key:<{width}}  {value}" for key, value in rows.items())])))
    return 0


def _into(uses: Sequence[dict[str, Any]], goal: Path, model: str, as_json: bool) -> int:
    """The model with these adapters in its weights, in the type that they were stored in."""
    from app.models import check_suffix

    check_suffix(goal)
    from ldm.models.adapters.mixing import PHRASE
    from ldm.models.prompt.words import vocabulary
    from ldm.store.find import adapter_file, find_model
    from ldm.store.sampling import read_sampling
    from ldm.store.save import save_folder, save_single
    from pipelines.adapting import read_adapter

    parts, stack = _loaded(model)
    items = [
        (
            read_adapter(use["path"], use.get("any_base", False)),
            _number(use, "weight"),
            _number(use, "text_weight") if "text_weight" in use else None,
        )
        for use in uses
    ]
    report = stack.use(items)
    if goal.suffix.lower() == ".safetensors":
        save_single(parts, goal)
    else:  # what suits the model and its adapters goes along, and it knows the words that they brought
        source = find_model(model)
        acting = [(use, adapter) for use, (adapter, *weights) in zip(uses, items, strict=True) if any(weights)]
        brought = vocabulary(adapter.metadata.get(PHRASE, "") for _, adapter in acting)
        words = parts.words | set(brought) if parts.words else parts.words
        suits = read_sampling(source).overlaid(*(read_sampling(adapter_file(use["path"])) for use, _ in acting))
        save_folder(replace(parts, words=words), goal, source if source.is_dir() else None, suits)
    told = {"path": str(goal), "applied": [str(applied) for applied in report.applied]}
    typer.echo(json.dumps(told) if as_json else printable("\n".join([*told["applied"], str(goal)])))
    return 0


def _loaded(model: str) -> tuple[Parts, AdapterStack]:
    """A model in the type of most of its tensors, and the stack of its networks."""
    from ldm.models.adapters import AdapterStack
    from ldm.store.parts import load_parts

    parts = load_parts(model, dtype=_dtype(model))
    return parts, AdapterStack(parts.unet, [tower for _, tower in parts.towers], parts.family, parts.fingerprint)


def _dtype(model: str) -> torch.dtype:
    from ldm.store.describe import describe
    from ldm.store.find import find_model
    from ldm.store.weights import TORCH

    types = Counter(describe(find_model(model)).dtypes)
    name = next((name for name, _ in types.most_common() if name in ("F32", "F16", "BF16")), "F32")
    return TORCH[name]


def _number(use: dict[str, Any], key: str) -> float:
    number = float(use.get(key, 1.0))
    if not math.isfinite(number):
        what, why = f"FILE: the weight {number} is not a finite number.", "A change is multiplied by it."
        raise LdmError(Code.USAGE, what, why, "Give a number such as 0.8.")
    return number


def _ranks(adapter: Adapter) -> dict[str, int]:
    """rank -> how many layers have it."""
    return dict(Counter(str(part.delta.rank) for part in adapter.parts if part.delta).most_common())


def _extraction(goal: Path, count: int, told: dict[str, Any]) -> str:
    ranks = sorted(map(int, told["ranks"]))
    span = str(ranks[0]) if ranks[0] == ranks[-1] else f"{ranks[0]} to {ranks[-1]}"
    return (
        f"{goal}: {count} tensors of rank {span}\n"
        f"  left out by the rank: {told['left_out']:.2%} of the squared change\n"
        f"  in norms, biases and embeddings, which a LoRA does not change: {told['elsewhere']:.2%}"
    )


def _refuse_beside_into(rank: int | None, base: str | None, to: str | None) -> None:
    for option, value in (("--rank", rank), ("--base", base), ("--to", to)):
        if value is not None:
            what, why = f"{option} does nothing beside --into.", "A model takes the changes as they are."
            raise LdmError(Code.USAGE, what, why, f"Leave {option} out.")
