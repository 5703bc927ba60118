"""What a chain of runs has made, as the models of the package lie: half precision, its ControlNet inside, and notes.

python -m train.ship runs/scenes outputs/scenes --controlnet edges
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from ldm.errors import Code, LdmError
from ldm.store.weights import load_weights
from ldm.store.write import staged, write_weights
from train.report import read_story


def ship(chain: Path, out: Path, controlnet: str = "") -> None:
    """`chain` holds the run folders autoencoder, clip, diffusion, ...; `out` is a new folder."""
    model, control = chain / "diffusion" / "model", chain / "controlnet" / "model"
    for needed in (model, control) if controlnet else (model,):
        if not needed.is_dir():
            raise LdmError(
                Code.MODEL,
                f"{needed} is not there.",
                "What ships is the result of the chain's runs.",
                "Train the chain first: make scenes.",
            )
    with staged(out) as stage:
        shutil.copytree(model, stage)
        if controlnet:
            shutil.copytree(control, stage / f"controlnet-{controlnet}")
        for file in stage.rglob("*.safetensors"):
            halve(file)
        (stage / "training.json").write_text(json.dumps(costs(chain), indent=2) + "\n", "utf-8")


def halve(file: Path) -> None:
    """fp32 tensors become fp16: a network of this size loses nothing that can be seen, and half of its bytes."""
    tensors = load_weights(file)
    half = {name: t.half() if t.dtype == torch.float32 else t.clone() for name, t in tensors.items()}
    file.unlink()
    write_weights(file, half, {"format": "pt"})


def costs(chain: Path) -> dict[str, dict[str, float | int]]:
    """For each run of the chain its steps, the seconds of all its starts by the clock, and its last processes."""
    told: dict[str, dict[str, float | int]] = {}
    for log in sorted(chain.glob("*/log.jsonl")):
        story = read_story(log.parent)
        last = story.starts[-1]
        told[log.parent.name] = {
            "steps": story.step,
            "seconds": round(sum(story.spent.values()), 1),
            "processes": last["processes"],
            "threads": last["machine"]["threads"],
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chain", type=Path, help="the folder of the runs, such as runs/scenes")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--controlnet", default="", help="the name of the chain's ControlNet; left out: none ships")
    args = parser.parse_args()
    try:
        ship(args.chain, args.out, args.controlnet)
    except LdmError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
