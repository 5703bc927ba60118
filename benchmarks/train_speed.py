"""Training speed and memory beside the usual recipe: one U-Net, one folder of pictures, one run of this script.

python -m benchmarks.train_speed [--rounds 3]       writes docs/results/train_speed.json

The peer is what a text-to-image script on diffusers and accelerate does, written plainly: at each step it opens and
crops pictures, encodes them and their captions, and takes a step of fused AdamW. Ours is `ldm train` with the same
batch, precision and optimiser. Sides take turns, each in a process of its own; rows between show what each part brings.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import write

STEPS, WARM, BATCH, SIZE, PICTURES = 10, 3, 8, 128, 96
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [64, 128, 128],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 16,
    "sample_size": SIZE,
    "scaling_factor": 1.0,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": SIZE // 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [64, 128, 192],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 256,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}
TEXT = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
}
SIDES = {
    "plain": ("the recipe on diffusers and accelerate", "no"),
    "ours, no cache": ("our trainer, everything encoded at each step", "fp32"),
    "ours": ("our trainer with run.cache", "fp32"),
    "plain, bf16": ("the recipe with --mixed_precision bf16", "bf16"),
    "ours, bf16": ("our trainer with run.cache and run.precision=bf16", "bf16"),
}


def prepare(root: Path) -> None:
    """Random weights in a model folder, and a folder of JPEGs with captions: what both sides read."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from PIL import Image
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from ldm.data.scenes import caption, draw, sample_scene
    from train.tokenizer import train_tokenizer

    torch.manual_seed(0)
    train_tokenizer([caption(sample_scene(index)) for index in range(2000)], 640, root / "model" / "tokenizer")
    vocabulary = len(CLIPTokenizer.from_pretrained(root / "model" / "tokenizer"))
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    CLIPTextModel(CLIPTextConfig(**TEXT, vocab_size=vocabulary, **ends)).save_pretrained(root / "model/text_encoder")
    AutoencoderKL.from_config(VAE).save_pretrained(root / "model/vae")
    UNet2DConditionModel.from_config(UNET).save_pretrained(root / "unet")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDPMScheduler(**schedule).save_pretrained(root / "model" / "scheduler")
    (root / "data").mkdir()
    for index in range(PICTURES):
        scene = sample_scene(index)
        picture = Image.fromarray((draw(scene, 2 * SIZE) * 255).astype(np.uint8))
        picture.save(root / "data" / f"{index:03}.jpg", quality=95)
        (root / "data" / f"{index:03}.txt").write_text(caption(scene))


def plain(root: Path, precision: str) -> Iterator[None]:
    """The recipe: a step's pictures are opened, resized, flipped and encoded, its texts encoded, noise predicted."""
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from torchvision import transforms
    from torchvision.datasets.folder import default_loader
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    model = root / "model"
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    text = CLIPTextModel.from_pretrained(model / "text_encoder").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(model / "vae").requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(root / "unet").train()
    scheduler = DDPMScheduler.from_pretrained(model / "scheduler")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    text.to(dtype=dtype)
    vae.to(dtype=dtype)
    shown = transforms.Compose(
        [
            transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.LANCZOS),
            transforms.CenterCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )

    class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
        files = sorted((root / "data").glob("*.jpg"))

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            words = self.files[index].with_suffix(".txt").read_text()
            ids = tokenizer(words, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
            return {"pixel_values": shown(default_loader(self.files[index])), "input_ids": ids[0]}

    loader = torch.utils.data.DataLoader(Pictures(), shuffle=True, batch_size=BATCH)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    rates = get_scheduler("constant", optimizer=optimizer)
    unet, optimizer, loader, rates = accelerator.prepare(unet, optimizer, loader, rates)
    while True:
        for batch in loader:
            latents = vae.encode(batch["pixel_values"].to(dtype)).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            times = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),)).long()
            noisy = scheduler.add_noise(latents, noise, times)
            states = text(batch["input_ids"], return_dict=False)[0]
            predicted = unet(noisy, times, states, return_dict=False)[0]
            loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
            accelerator.gather(loss.repeat(BATCH)).mean().item()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            yield


def ours(root: Path, precision: str, cache: bool) -> Iterator[None]:
    """The same run as a run file."""
    from ldm.config import loads
    from train.config import RunFile
    from train.run import opened

    text = f"""
task: {{type: diffusion, unet: {root}/unet, vae: {root}/model, text: {root}/model, drop_caption: 0.0,
        noise: {{kind: epsilon}}}}
data: {{path: {root}/data, size: {SIZE}, flip: 0.5}}
optim: {{kind: adamw, lr: 1.0e-4, decay: constant, ema: 0.0}}
run: {{out: {root}/run-{time.time_ns()}, steps: 100000, batch: {BATCH}, precision: {precision}, preview: 0, evaluate: 0,
       save: 100000{f", cache: {root}/cache-{precision}" if cache else ""}}}
"""
    with opened(loads(text, RunFile)) as run:
        for _ in run.trainer.steps():
            yield


def measure(root: Path, side: str) -> dict[str, float]:
    """Median seconds of a step, what waits between steps included, and the greatest memory of the process."""
    precision = SIDES[side][1]
    steps = plain(root, precision) if side.startswith("plain") else ours(root, precision, "no cache" not in side)
    taken = []
    for _ in range(WARM):
        next(steps)
    for _ in range(STEPS):
        began = time.perf_counter()
        next(steps)
        taken.append(time.perf_counter() - began)
    return {"seconds": statistics.median(taken), "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("ROOT", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print("\n" + json.dumps(measure(Path(args.child[0]), args.child[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root)
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(args.rounds):
            for side in SIDES:
                command = [sys.executable, "-W", "ignore", "-m", "benchmarks.train_speed", "--child", folder, side]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[side].append(json.loads(told.splitlines()[-1]))
    figures = summary(found)
    print(json.dumps(figures, indent=2))
    print(write("train_speed", figures))


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over rounds, and ratios against the recipe in the same precision, round by round."""
    rows: dict[str, Any] = {}
    for side, rounds in found.items():
        base = found["plain, bf16" if "bf16" in side else "plain"]
        faster = [b["seconds"] / r["seconds"] for b, r in zip(base, rounds, strict=True)]
        rows[side] = {
            "what": SIDES[side][0],
            "pictures a second": round(BATCH / statistics.median(r["seconds"] for r in rounds), 2),
            "times the recipe": round(statistics.median(faster), 3),
            "mb": round(statistics.median(r["mb"] for r in rounds)),
            "memory of the recipe": round(
                statistics.median(r["mb"] / b["mb"] for b, r in zip(base, rounds, strict=True)), 3
            ),
        }
    return {"batch": BATCH, "size": SIZE, "steps": STEPS, "rounds": len(found["plain"]), "rows": rows}


if __name__ == "__main__":
    main()
