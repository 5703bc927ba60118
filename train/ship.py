"""What a chain of runs has made, as the models of the package lie: half precision, notes, and each part in its place.

python -m train.ship runs/scenes outputs/shipped/scenes --inside controlnet=controlnet-edges
python -m train.ship runs/emoji outputs/shipped/emoji --with configs/shipped \\
  --inside decoder=tiny-decoder --beside distill=emoji-fast controlnet=emoji-scribble clip=emoji-clip
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.errors import Code, LdmError
from ldm.models.adapters.base import hint, refuse_other_base
from ldm.store.find import LORA_WEIGHTS, OPEN_CLIP
from ldm.store.header import HASH
from ldm.store.parts import load_parts
from ldm.store.weights import load_weights
from ldm.store.write import refuse_existing, staged, write_weights
from train.report import read_story

log = logging.getLogger("train.ship")
# Towers that lie in open_clip's file already, once more for transformers.
_TWICE = shutil.ignore_patterns("text_encoder", "image_encoder", "feature_extractor", "tokenizer")


def ship(
    chain: Path,
    out: Path,
    inside: Mapping[str, str] | None = None,
    beside: Mapping[str, str] | None = None,
    suited: Path | None = None,
    model: Path | None = None,
) -> list[Path]:
    """`chain` holds the run folders autoencoder, clip, diffusion, ...; `out` is a new folder for the whole model.

    What the runs in `inside` made goes into it, of those in `beside` next to it, under the names that they are given.
    `suited` holds a folder for each name that has settings or prompts which suit it: sampling.json, prompts.json.
    `model`: another average of the weights, say, than what the run diffusion made; adapters must have been made for it.
    """
    inside, beside = inside or {}, beside or {}
    goals = [out, *(out.with_name(name) for name in beside.values())]
    model = model or chain / "diffusion" / "model"
    _check([model, *(chain / run / "model" for run in (*inside, *beside))], goals, suited)
    _check_base(model, [chain / run / "model" for run in beside])
    with staged(out) as stage:
        shutil.copytree(model, stage)
        for run, name in inside.items():
            if (stage / name).exists():
                what, why = f"{run}={name}: the model has that part itself.", "Parts lie beside each other in it."
                raise LdmError(Code.USAGE, what, why, "Choose another name.")
            shutil.copytree(chain / run / "model", stage / name)
        parts = {"autoencoder", "clip", "diffusion", *inside, *beside}
        told = {run: cost for run, cost in costs(chain).items() if run in parts}
        (stage / "training.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")
        _finish(stage, out.name, suited)
    for run, name in beside.items():
        with staged(out.with_name(name)) as stage:
            _copy_part(chain / run / "model", stage, name)
            _finish(stage, name, suited)
    return goals


def _check(needed: Sequence[Path], goals: Sequence[Path], suited: Path | None) -> None:
    """All that is needed is there, and nothing that would be written: else half a shipment were left."""
    for made in needed:
        if not made.is_dir():
            what, why = f"{made} is not there.", "What ships is the result of the chain's runs."
            raise LdmError(Code.MODEL, what, why, "Train the chain first: make scenes, or make emoji.")
    for goal in goals:
        refuse_existing(goal)
    if len(set(goals)) < len(goals):
        names = ", ".join(goal.name for goal in goals)
        raise LdmError(Code.USAGE, f"Of {names} two are equal.", "Each part has a folder.", "Choose other names.")
    if suited is not None and not any((suited / goal.name).is_dir() for goal in goals):
        what = f"{suited} holds nothing for {', '.join(goal.name for goal in goals)}."
        raise LdmError(Code.FILE, what, "A folder of that name is looked for.", "Check the path, or leave --with out.")


def _check_base(model: Path, parts: Sequence[Path]) -> None:
    """An adapter that was learned on other weights would be refused by everybody who puts it on these."""
    for part in parts:
        if (file := part / LORA_WEIGHTS).is_file():
            base, adapter = load_parts(model, components={"unet"}), load_weights(file)
            refuse_other_base(str(file), hint(adapter.metadata, adapter), base.family, base.fingerprint, any_base=False)


def _copy_part(made: Path, stage: Path, name: str) -> None:
    """A CLIP without its second copy; an adapter under the name it is asked for by."""
    clip = (made / OPEN_CLIP).is_file()
    shutil.copytree(made, stage, ignore=_TWICE if clip else None)
    if (stage / LORA_WEIGHTS).is_file():
        (stage / LORA_WEIGHTS).rename(stage / f"{name}.safetensors")


def _finish(stage: Path, name: str, suited: Path | None) -> None:
    for file in stage.rglob("*.safetensors"):
        halve(file)
    if suited is not None and (notes := suited / name).is_dir():
        shutil.copytree(notes, stage, dirs_exist_ok=True)


def halve(file: Path) -> None:
    """fp32 tensors become fp16: a network of this size loses nothing that can be seen, and half of its bytes."""
    tensors = load_weights(file)
    metadata = {key: value for key, value in tensors.metadata.items() if key != HASH}
    half = {name: t.half() if t.dtype == torch.float32 else t.clone() for name, t in tensors.items()}
    file.unlink()
    write_weights(file, half, {"format": "pt"} | metadata)


def costs(chain: Path) -> dict[str, dict[str, Any]]:
    """For each run of the chain its steps, the seconds of all its starts by the clock, its last processes, and what
    its last validation said."""
    told: dict[str, dict[str, Any]] = {}
    for log in sorted(chain.glob("*/log.jsonl")):
        story = read_story(log.parent)
        last = story.starts[-1]
        told[log.parent.name] = {
            "steps": story.step,
            "seconds": round(sum(story.spent.values()), 1),
            "processes": last["processes"],
            "threads": last["machine"]["threads"],
        }
        if story.validation:
            told[log.parent.name]["validation"] = {k: round(points[-1][1], 4) for k, points in story.validation.items()}
    return told


def _pairs(words: Sequence[str]) -> dict[str, str]:
    told = dict(word.partition("=")[::2] for word in words)
    if not all(run and name not in ("", "..") and Path(name).name == name for run, name in told.items()):
        what, why = f"{' '.join(words)} is not understood.", "Each is the name of a run and that of a folder."
        raise LdmError(Code.USAGE, what, why, "Write decoder=tiny-decoder, for example.")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chain", type=Path, help="the folder of the runs, such as runs/scenes")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--inside", nargs="*", default=[], metavar="RUN=NAME", help="parts in the model's folder")
    parser.add_argument("--beside", nargs="*", default=[], metavar="RUN=NAME", help="parts in folders beside it")
    parser.add_argument("--model", type=Path, help="another model than that of the run diffusion")
    parser.add_argument("--with", dest="suited", type=Path, help="a folder with NAME/sampling.json, NAME/prompts.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        made = ship(args.chain, args.out, _pairs(args.inside), _pairs(args.beside), args.suited, args.model)
    except LdmError as error:
        raise SystemExit(f"error: {error}") from None
    for folder in made:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        log.info("%s: %s bytes", folder, f"{size:,}")


if __name__ == "__main__":
    main()
