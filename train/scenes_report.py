"""What the chain in miniature learned: text alignment on combinations that it never saw, read back by the checker.

python -m train.scenes_report --model runs/scenes/diffusion/model --out runs/scenes/report

Every share comes with its 95 % interval (Wilson 1927) and its count. Beside the model stands what it is compared with:
the checker on true renders and on noise, and the model's own pictures read against other captions.
"""

from __future__ import annotations

import argparse
import html
import json
import logging
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.data.held_out import Split, pair_is_held_out
from ldm.data.scenes import Scene, caption, draw, outline, sample_scene
from ldm.store.parts import load_controlnet, load_vae
from ldm.store.write import free
from train.sampled import Sampled, psnr
from train.scenes_check import along_edges, beside, save_sheet, tally
from train.tasks.sampling import Look

log = logging.getLogger("train.scenes_report")
SEED = 20_011  # of scenes that no training run draws
BARS = {"colour": 0.95, "shape": 0.90, "position": 0.85, "count": 0.75}  # what is asked of held-out combinations
Shares = dict[str, dict[str, float]]


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    p, n = right / count, count
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - spread) / (1 + z * z / n)), min(1.0, (middle + spread) / (1 + z * z / n))


def shares(pictures: Sequence[np.ndarray], scenes: Sequence[Scene]) -> Shares:
    """For each attribute that captions tell: the share of pictures that show it, its interval, and the count."""
    result: Shares = {}
    for name, (right, count) in tally(pictures, scenes).items():
        low, high = wilson(right, count)
        result[name] = {"share": round(right / count, 4), "low": round(low, 4), "high": round(high, 4), "count": count}
    return result


def scenes_of(split: Split, count: int, wanted: Callable[[Scene], bool] = lambda scene: True) -> list[Scene]:
    """The first `count` scenes of a split that are wanted."""
    found: list[Scene] = []
    index = 0
    while len(found) < count:
        scene = sample_scene(index, SEED, split)
        found += [scene] if wanted(scene) else []
        index += 1
    return found


def _has_new_pair(scene: Scene) -> bool:
    return any(pair_is_held_out(t.shape, t.colour) for t in scene.things)


def alignment(model: Sampled, count: int) -> tuple[dict[str, Shares], list[np.ndarray]]:
    """Seen and held-out captions, and the comparisons; and the held-out pictures, to look at."""
    kinds = {
        "seen": scenes_of("seen", count),
        "held_out": scenes_of("held_out", count),
        "held_out_pairs": scenes_of("held_out", count // 2, _has_new_pair),
        "held_out_triples": scenes_of("held_out", count // 2, lambda scene: not _has_new_pair(scene)),
    }
    result: dict[str, Shares] = {}
    made: dict[str, list[np.ndarray]] = {}
    for name, scenes in kinds.items():
        made[name] = model.pictures([caption(scene) for scene in scenes])
        result[name] = shares(made[name], scenes)
        log.info("%s: %s", name, {key: value["share"] for key, value in result[name].items()})
    scenes, noise = kinds["held_out"], np.random.default_rng(0)
    result["shuffled_captions"] = shares(made["held_out"], scenes[1:] + scenes[:1])
    result["checker_on_renders"] = shares([draw(scene) for scene in scenes], scenes)
    result["checker_on_noise"] = shares([noise.random((32, 32, 3), np.float32) for _ in scenes], scenes)
    return result, made["held_out"]


def judged(held_out: Shares) -> dict[str, str]:
    """For each bar whether the share on held-out combinations reaches it."""
    told = {}
    for name, wanted in BARS.items():
        share = held_out[name]["share"] if name in held_out else math.nan
        told[name] = f"{'reached' if share >= wanted else 'missed'}: {share:.1%} of at least {wanted:.0%}"
    return told


def along_hints(model: Sampled, folder: Path, count: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Whether pictures follow their hints: told the scene as well, told nothing, and read against other hints."""
    scenes = scenes_of("all", count)
    hints, control = [outline(scene) for scene in scenes], load_controlnet(folder)
    told = model.pictures([caption(scene) for scene in scenes], hints, control)
    silent = model.pictures([""] * count, hints, control)
    result = {
        "hint and caption": along_edges(told, scenes),
        "hint alone": along_edges(silent, scenes),
        "other hints": along_edges(told, scenes[1:] + scenes[:1]),
        "count": count,
    }
    return result, [*beside(hints[:24], told[:24]), *beside(hints[:24], silent[:24])]


def report(
    folder: Path,
    out: Path,
    controlnet: Path | None = None,
    decoder: Path | None = None,
    *,
    count: int = 400,
    steps: int = 25,
) -> dict[str, Any]:
    """Measures a trained chain and writes report.json, index.html and sheets into a new folder."""
    look = Look(steps=steps, scale=4.0)
    model = Sampled(folder, look)
    accuracy, made = alignment(model, count)
    result: dict[str, Any] = {"bars": judged(accuracy["held_out"]), "accuracy": accuracy, "sampling": asdict(look)}
    sheets = {"held-out.png": made[:96]}
    if controlnet is not None:
        result["control"], sheets["control.png"] = along_hints(model, controlnet, count // 2)
    unseen = scenes_of("held_out", min(count, 200))
    drawn = [draw(scene) for scene in unseen]
    result["psnr_db"] = psnr(drawn, model.round_trip(drawn))
    if decoder is not None:
        tiny = load_vae(decoder)[0]
        result["decoder_psnr_db"] = psnr(drawn, model.round_trip(drawn, lambda z: tiny.decode(z)))
    about = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result["machine"] = about
    out.mkdir(parents=True)
    for name, shown in sheets.items():
        save_sheet(out / name, shown)
    (out / "report.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    (out / "index.html").write_text(page(result), "utf-8")
    return result


def page(result: dict[str, Any]) -> str:
    """One page that opens without a server."""
    kinds = result["accuracy"]
    names = sorted({name for kind in kinds.values() for name in kind})
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th>" + "".join(f"<td>{_cell(kind.get(name))}</td>" for kind in kinds.values())
        for name in names
    )
    head = "".join(f"<th>{html.escape(kind.replace('_', ' '))}</th>" for kind in kinds)
    bars = "".join(f"<li>{html.escape(name)} {html.escape(told)}</li>" for name, told in result["bars"].items())
    more = {key: value for key, value in result.items() if key not in ("accuracy", "bars")}
    control = '<h2>Hints and pictures</h2><img src="control.png" alt="hints">' if "control" in result else ""
    return (
        "<!doctype html><meta charset=utf-8><title>The chain in miniature</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:1100px;margin:2rem auto;padding:0 1rem}"
        "td,th{padding:.3rem .6rem;text-align:left;border-bottom:1px solid #8884}"
        "img{image-rendering:pixelated;max-width:100%}</style>"
        f"<h1>The chain in miniature</h1><p>Share right by the checker, with its 95 % interval.</p>"
        f"<p>On combinations that training never saw:</p><ul>{bars}</ul>"
        f"<table><tr><th></th>{head}</tr>{rows}</table><h2>Held-out combinations</h2>"
        f'<img src="held-out.png" alt="pictures of held-out captions">{control}'
        f"<h2>More</h2><pre>{html.escape(json.dumps(more, indent=2))}</pre>"
    )


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['share']:.1%} <small>({value['low']:.0%} to {value['high']:.0%}, n {value['count']:.0f})</small>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the trained model, a folder")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the report")
    parser.add_argument("--controlnet", type=Path)
    parser.add_argument("--decoder", type=Path)
    parser.add_argument("--count", type=int, default=400, help="captions of each kind")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(2)
    out = free(args.out)
    result = report(args.model, out, args.controlnet, args.decoder, count=args.count)
    for name, told in result["bars"].items():
        log.info("%s on held-out combinations: %s", name, told)
    log.info("the report: %s", out / "index.html")


if __name__ == "__main__":
    main()
