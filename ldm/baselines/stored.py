"""A trained family as a folder: `config.json` is the call that makes it again, `model.safetensors` its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm.baselines.family import Family, Form, make
from ldm.errors import Code, LdmError
from ldm.store.shards import read_json
from ldm.store.weights import load_weights
from ldm.store.write import staged, write_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """A model, the name of its family, and the names of its classes."""

    family: str
    model: Family
    classes: tuple[str, ...] = ()


def save_family(
    folder: Path, family: str, options: Mapping[str, Any], model: Family, form: Form, classes: Sequence[str], run: str
) -> None:
    with staged(folder) as stage:
        stage.mkdir(parents=True)
        told = {"family": family, "options": dict(options), "form": asdict(form), "classes": list(classes)}
        (stage / CONFIG).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", "utf-8")
        write_weights(stage / WEIGHTS, model.state_dict(), {"ldm.run": run})


def load_family(folder: Path) -> Stored:
    """Ready to draw with, on the CPU."""
    told = read_json(folder / CONFIG, 1_000_000)
    try:
        form, classes = Form(**told["form"]), tuple(told["classes"])
        model = make(told["family"], told["options"], form, 0)
    except (KeyError, TypeError) as error:
        raise LdmError(
            Code.MODEL,
            f"{folder} holds no model of a family.",
            f"Its {CONFIG} is not understood ({error}).",
            "Give the folder model/ of a run of the task family.",
        ) from error
    tensors = load_weights(folder / WEIGHTS)
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if wanted != {name: tuple(t.shape) for name, t in tensors.items()}:
        why = f"The weights and {CONFIG} are not of the same model, or of a family that was different then."
        raise LdmError(
            Code.MODEL, f"{folder}: the tensors differ from those of {told['family']}.", why, "Train it again."
        )
    model.load_state_dict({name: t.clone() for name, t in tensors.items()})
    return Stored(told["family"], model.eval().requires_grad_(False), classes)
