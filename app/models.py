"""`ldm models list | show | pull | convert`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from ldm.errors import Code, LdmError

# Suffixes of files that other programs write: none becomes the name of a folder by mistake.
OTHERS = frozenset(
    {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".gguf", ".onnx", ".msgpack", ".h5", ".npz", ".sft", ".zip", ".tar", ".gz"}
    | {".json", ".yaml", ".txt", ".png", ".jpg", ".jpeg", ".webp"}
)
# What ships in a folder of its own beside models, and how it is used.
_USES = {"controlnet": "a control{1}: --control model={0},...", "clip": "a CLIP{1}: --best-of 4 --ranker {0}"}


def list_models(as_json: bool) -> int:
    """The shipped models with the controls inside them, what ships beside them, and those that were pulled."""
    from ldm.store.find import (
        controls_inside,
        fetched_ids,
        find_model,
        shipped,
        shipped_adapters,
        shipped_beside,
        whose,
    )

    controls = {name: path.parent.name for name, path in controls_inside().items()}
    beside = {name: _kind(find_model(name)) for name in shipped_beside()}
    adapters, pulled = list(shipped_adapters()), fetched_ids()
    if as_json:
        told = {"shipped": shipped(), "controls": controls, "beside": beside, "adapters": adapters, "pulled": pulled}
        typer.echo(json.dumps(told))
        return 0
    of = {name: f" of {base}" if (base := whose(name)) else "" for name in (*beside, *adapters)}
    rows = [(name, "shipped") for name in shipped()]
    rows += [(name, f"shipped, a control of {base}: --control model={name},...") for name, base in controls.items()]
    rows += [(name, f"shipped, {_USES.get(kind, kind).format(name, of[name])}") for name, kind in beside.items()]
    rows += [(name, f"shipped, an adapter{of[name]}: --lora {name}") for name in adapters]
    rows += [(name, "pulled") for name in pulled]
    typer.echo("\n".join(f"{name:<40} {origin}" for name, origin in rows) or "no model is here")
    return 0


def _kind(folder: Path) -> str:
    from ldm.store.describe import describe

    try:
        return describe(folder).kind
    except (LdmError, OSError):
        return "unreadable"


def show(model: str, as_json: bool) -> int:
    """What a file or folder is, from its headers."""
    from ldm.store.describe import describe
    from ldm.store.find import controls_inside, find_model

    inside = None if Path(model).exists() else controls_inside().get(model.removeprefix("controlnet-"))
    told = describe(inside or find_model(model)).as_dict()
    if as_json:
        typer.echo(json.dumps(told, default=str))
        return 0
    reason, metadata = told.pop("reason"), told.pop("metadata")
    rows = {key: _cell(key, value) for key, value in told.items() if value not in (None, "", {}, False)}
    if reason:
        key = "prediction" if "prediction" in rows else "kind"
        rows[key] = f"{rows[key]} ({reason})"
    rows |= {name: _short(str(value)) for name, value in sorted(metadata.items())}
    _table(rows)
    return 0


def pull(repo: str, revision: str | None, variant: str | None, yes: bool, as_json: bool) -> int:
    """Fetches a model after showing its size and licence; without a terminal nothing is asked, so `--yes` is needed."""
    from ldm.store import pull as store

    wanted = store.plan(repo, revision=revision or "main", variant=variant)
    typer.echo(
        f"{repo} {wanted.commit[:12]}: {_bytes(wanted.size)} in {len(wanted.files)} files, licence {wanted.licence}",
        err=True,
    )
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise LdmError(
                Code.USAGE,
                f"{repo} was not fetched.",
                "Nobody can be asked whether to go on.",
                "Add --yes to accept size and licence.",
            )
        if not typer.confirm("Fetch it?", err=True):
            return 0
    folder = store.pull(wanted)
    told = {"id": repo, "commit": wanted.commit, "bytes": wanted.size, "licence": wanted.licence, "path": str(folder)}
    typer.echo(json.dumps(told) if as_json else f"use it as --model {repo}")
    return 0


def convert(model: str, out: str | None, trusted: bool, as_json: bool) -> int:
    """A pickle to safetensors (beside it, if OUT is not given); else a model between folder and single file."""
    from ldm.store.find import find_model
    from ldm.store.sniff import PICKLES, content_of, safe_name

    source = find_model(model)
    goal = safe_name(source) if out is None else Path(out).expanduser()
    if out is not None:
        check_suffix(goal)
    if out is None and not (source.is_file() and content_of(source) in PICKLES):
        raise LdmError(
            Code.USAGE,
            f"OUT is missing for {model}.",
            "A model that is not a pickle can become a folder or a single file.",
            f"Write ldm models convert {model} model/ or ldm models convert {model} model.safetensors",
        )
    if source.is_file() and content_of(source) in PICKLES:
        from ldm.store.convert import convert as from_pickle

        if goal.suffix.lower() != ".safetensors":
            raise LdmError(
                Code.USAGE,
                f"{goal.name} cannot be made of {source.name} in one step.",
                "A pickle becomes a .safetensors file first.",
                f"Name OUT {goal.name}.safetensors; convert that file to a folder afterwards.",
            )
        from_pickle(source, goal, trusted=trusted)
    else:
        from ldm.store.parts import load_parts
        from ldm.store.save import save_folder, save_single

        if goal.suffix.lower() == ".safetensors":
            save_single(load_parts(model), goal)
        else:
            save_folder(load_parts(model), goal, along=source if source.is_dir() else None)
    typer.echo(json.dumps({"path": str(goal)}) if as_json else str(goal))
    return 0


def check_suffix(goal: Path) -> None:
    """No model gets the name of another kind of file."""
    if goal.suffix.lower() in OTHERS:
        raise LdmError(
            Code.USAGE,
            f"{goal.name} cannot be written.",
            f"Models are written as one .safetensors file, or as a folder; {goal.suffix} is the suffix of other files.",
            f"Name OUT {goal.stem}.safetensors, or {goal.stem} for a folder.",
        )


def _table(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    typer.echo("\n".join(f"{key:<{width}}  {value}" for key, value in rows.items()))


def _cell(key: str, value: Any) -> str:
    if key == "size":
        return _bytes(value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _short(str(value))


def _short(text: str) -> str:
    from app.errors import printable

    text = printable(" ".join(text.split()))
    return text if len(text) <= 100 else f"{text[:97]}..."


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
