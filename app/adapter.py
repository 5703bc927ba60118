"""`ldm adapter inspect | convert`: LoRAs and their relatives, and textual inversions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.errors import printable
from app.options import existing
from app.validation import did_you_mean
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.models.adapters import Dialect


def inspect(file: str, as_json: bool) -> int:
    """What an adapter changes, how strongly, and what it was made for."""
    path = existing(file, "FILE", peft=True)
    told = _embedding(path) if _is_embedding(path) else _summary(path)
    if as_json:
        typer.echo(json.dumps(told))
        return 0
    width = max(map(len, told))
    rows = ((key, _cell(value)) for key, value in told.items() if value not in (None, "", {}, [], ()))
    typer.echo("\n".join(f"{key:<{width}}  {value}" for key, value in rows))
    return 0


def convert(file: str, out: str, to: str, as_json: bool) -> int:
    """The same adapter under the names of another program."""
    from ldm.images.save import make_folder
    from ldm.models.adapters import convert as renamed
    from pipelines.adapting import read_adapter

    dialect, source = dialect_of(to), existing(file, "FILE", peft=True)
    goal = adapter_goal(out, dialect)
    make_folder(goal.parent)
    adapter = read_adapter(source)
    tensors, metadata = renamed(adapter, as_usual(dialect, adapter.base.family))
    write_adapter(goal, dialect, tensors, metadata)
    typer.echo(
        json.dumps({"path": str(goal), "tensors": len(tensors)}) if as_json else f"{goal}: {len(tensors)} tensors"
    )
    return 0


def dialect_of(to: str) -> Dialect:
    """The dialect of a name."""
    from ldm.models.adapters import DIALECTS

    for dialect in DIALECTS:
        if dialect == to:
            return dialect
    raise LdmError(
        Code.USAGE,
        f"--to: {to[:40]!r} is not known.",
        f"{did_you_mean(to, DIALECTS)}The dialects are {', '.join(DIALECTS)}.",
        "Choose one of them.",
    )


def as_usual(dialect: Dialect, family: str | None) -> Dialect:
    """kohya's files for XL have the names of the original code: all other tools look for those."""
    return "kohya-xl" if dialect == "kohya" and family == "xl" else dialect


def adapter_goal(out: str, dialect: Dialect) -> Path:
    """Where an adapter is written: a file, or peft's folder."""
    goal = Path(out).expanduser()
    if dialect == "peft":
        if goal.suffix:
            what, why = f"OUT: {goal.name[:80]!r} is not written.", "peft keeps an adapter and its rank in a folder."
            raise LdmError(Code.USAGE, what, why, f"Name a folder: {goal.stem}.")
        return goal
    if goal.suffix.lower() != ".safetensors":
        what = f"OUT: {goal.name[:80]!r} is not written."
        raise LdmError(Code.USAGE, what, "Adapters are written as .safetensors.", f"Name it {goal.stem}.safetensors.")
    return goal


def write_adapter(goal: Path, dialect: Dialect, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Whole or not at all."""
    from ldm.store.write import staged, write_peft, write_weights

    with staged(goal) as stage:
        (write_peft if dialect == "peft" else write_weights)(stage, tensors, metadata)


def _is_embedding(path: Path) -> bool:
    from ldm.store.describe import describe

    return not path.is_dir() and describe(path).kind == "textual inversion"


def _embedding(path: Path) -> dict[str, Any]:
    from ldm.models.adapters import parse_embedding
    from ldm.store.weights import load_weights

    weights = load_weights(path)
    embedding = parse_embedding(weights, weights.metadata, path.stem)
    shapes = {
        name: f"{len(vectors)} vector{'' if len(vectors) == 1 else 's'} of width {vectors.shape[1]}"
        for name, vectors in embedding.vectors.items()
    }
    return {"name": path.name, "kind": "textual inversion", "token": embedding.token, "vectors": shapes}


def _summary(path: Path) -> dict[str, Any]:
    from ldm.models.adapters import inspect as summarize
    from pipelines.adapting import read_adapter

    return asdict(summarize(read_adapter(path)))


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        shown = ", ".join(f"{key}: {v:.3g}" if isinstance(v, float) else f"{key}: {v}" for key, v in value.items())
    elif isinstance(value, (list, tuple)):
        shown = ", ".join(map(str, value))
    else:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return printable(shown)
