"""Who a drawn creature is: a judge for benchmarks/personal.py, which no CLIP of emoji can be, since none has seen any.

    python -m benchmarks.creatures --pictures runs/emoji/pictures.parquet --out runs/emoji/creatures.safetensors

A small network learns to know 1,500 creatures of the drawing script, and 1,500 emoji, again: in another pose, moved,
mirrored, blurred, noisy, or as they come back from the shipped autoencoder, since what a model draws is never as clean
as a drawing. Of the creatures that benchmarks/personal.py asks about it has seen none. It ends by how many drawings of
60 creatures it never saw it finds among those of the others. Two processor cores: about 10 minutes.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.data.characters import character, draw_character, pose
from ldm.data.emoji_table import read_table
from ldm.images import open_image
from ldm.metrics.features import extracted, squares
from ldm.models.nets.coder import Posterior
from ldm.store.parts import load_parts
from ldm.store.weights import load_weights
from ldm.store.write import staged, write_weights

log = logging.getLogger("benchmarks.creatures")
SIDE, FIRST, KNOWN, POSES = 64, 100_000, 1500, 6  # creatures from 100,000 on: others are for whoever asks
STEPS, BATCH, RATE, SHARP, MARGIN = 3000, 128, 2e-3, 24.0, 0.15
UNSEEN, ASKED = 60, 5


class Judge(nn.Module):
    """[n,3,64,64] in [0,1] to directions [n,128]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, 32, 64, 128, 192), (32, 64, 128, 192, 192), strict=True):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192 * 4, 128))

    def forward(self, image: Tensor) -> Tensor:
        return F.normalize(self.body(image * 2 - 1), dim=1)


def load_judge(path: Path) -> Callable[[Tensor], Tensor]:
    judge = Judge()
    judge.load_state_dict(load_weights(path))
    return torch.no_grad()(judge.eval())


def drawings(who: int, poses: range) -> Tensor:
    """[len(poses),3,64,64] of one creature, of 0..255."""
    made = [np.asarray(draw_character(character(who), pose(how), SIDE)) for how in poses]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def known(pictures: Path) -> tuple[Tensor, Tensor]:
    """All that is learned from, as bytes, and who each is."""
    creatures = [drawings(FIRST + i, range(10 * i, 10 * i + POSES)) for i in range(KNOWN)]
    rows = random.Random(1).sample(list(read_table(pictures)), KNOWN)
    emoji = (squares([open_image(row.image) for row in rows], SIDE) * 255).round().byte()
    who = torch.cat([torch.arange(KNOWN).repeat_interleave(POSES), KNOWN + torch.arange(KNOWN)])
    return torch.cat([*creatures, emoji]), who


@torch.no_grad()
def come_back(pictures: Tensor, model: str) -> Tensor:
    """The same from the autoencoder's latents, as bytes."""
    vae = load_parts(model, components=("vae",)).vae.eval()
    encoded = (vae.encode(part.float() / 127.5 - 1) for part in pictures.split(64))
    made = [vae.decode(latent.mean if isinstance(latent, Posterior) else latent) for latent in encoded]
    return ((torch.cat(made).clamp(-1, 1) + 1) * 127.5).round().byte()


def varied(image: Tensor, generator: torch.Generator) -> Tensor:
    """[n,3,64,64] of 0..1: each moved, half of them mirrored, some blurred, all with some noise."""
    n = len(image)
    u = torch.rand(n, 5, generator=generator)
    turn, scale = (u[:, 0] - 0.5) * 0.3, 0.9 + 0.25 * u[:, 1]
    mirror = torch.where(u[:, 2] < 0.5, -1.0, 1.0)
    cos, sin = turn.cos() * scale, turn.sin() * scale
    shift = (u[:, 3:] - 0.5) * 0.2
    places = torch.stack(
        [torch.stack([cos * mirror, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(places, list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    blurred = F.interpolate(F.avg_pool2d(moved, 2), scale_factor=2.0, mode="bilinear")
    some = torch.rand(n, 1, 1, 1, generator=generator)
    return (moved + (blurred - moved) * some + 0.04 * torch.randn(moved.shape, generator=generator)).clamp(0, 1)


def learned(pictures: Tensor, who: Tensor) -> Judge:
    """Each identity has a direction; a picture's own is to be nearer than all others by a margin (Wang 2018)."""
    torch.manual_seed(0)
    judge, generator = Judge(), torch.Generator().manual_seed(0)
    directions = nn.Parameter(torch.randn(2 * KNOWN, 128))
    optimiser = torch.optim.AdamW([*judge.parameters(), directions], RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS)
    each = torch.ones(len(who)).index_put((torch.nonzero(who >= KNOWN)[:, 0],), torch.tensor(float(POSES) / 2))
    for step in range(STEPS):
        some = torch.multinomial(each, BATCH, generator=generator)
        alike = judge(varied(pictures[some].float() / 255, generator)) @ F.normalize(directions, dim=1).T
        alike = alike - MARGIN * F.one_hot(who[some], 2 * KNOWN)
        loss = F.cross_entropy(SHARP * alike, who[some])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 0 or step == STEPS - 1:
            log.info("step %d: loss %.3f", step, float(loss))
    return judge.eval()


def found(look: Callable[[Tensor], Tensor]) -> float:
    """Of creatures that it never saw: the share of drawings whose nearest other drawing is of the same one."""
    shown = torch.cat([drawings(who, range(ASKED * who, ASKED * who + ASKED)) for who in range(UNSEEN)]).float() / 255
    features = extracted(look, shown)
    nearest = (features @ features.T).fill_diagonal_(-1).argmax(1) // ASKED
    return float((nearest == torch.arange(UNSEEN).repeat_interleave(ASKED)).float().mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="the prepared table of emoji")
    parser.add_argument("--model", default="emoji", help="whose autoencoder they come back from")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    pictures, who = known(args.pictures)
    log.info("%d pictures drawn", len(pictures))
    judge = learned(torch.cat([pictures, come_back(pictures, args.model)]), who.repeat(2))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with staged(args.out) as stage:
        write_weights(stage, judge.state_dict(), {})
    share = found(load_judge(args.out))
    print(f"{args.out}: of {UNSEEN} creatures that it never saw, {share:.1%} of the drawings are found")
    return 0 if share >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
