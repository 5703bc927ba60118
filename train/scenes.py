"""Trains the shipped `scenes` model from nothing: autoencoder, text tower with U-Net, edge ControlNet.

python -m train.scenes --out ldm/pretrained/scenes        # 2 cores: about 25 minutes
python -m train.scenes --evaluate ldm/pretrained/scenes   # writes docs/results/scenes.json
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.data.hints import make_hint
from ldm.data.scenes import Scene, caption, draw, outline, sample_scene, words
from ldm.diffusion.level import Level
from ldm.diffusion.loss import denoising_loss
from train.tokenizer import save_tokenizer

log = logging.getLogger("train.scenes")
CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "models"


@dataclass(frozen=True)
class Plan:
    """One stage: steps of batch examples, the peak learning rate (cosine to 0 after a short warm-up)."""

    steps: int
    batch: int
    lr: float


AUTOENCODER = Plan(6000, 16, 2e-3)
DENOISER = Plan(6000, 64, 2e-3)
CONTROL = Plan(1500, 96, 2e-3)
SCENES = 60_000
DROP_CAPTION = 0.12


STAGES = {"autoencoder": AUTOENCODER, "denoiser": DENOISER, "control": CONTROL}


def make_pictures(scenes: list[Scene]) -> Tensor:
    """[N,3,32,32] in 0..255, uint8."""
    return torch.from_numpy(np.stack([np.rint(draw(s).transpose(2, 0, 1) * 255).astype(np.uint8) for s in scenes]))


def make_hints(scenes: list[Scene]) -> Tensor:
    """[N,32,32] of 0 and 255, uint8: every second one is the true outline, the others what an edge finder sees."""
    hints = [outline(s) if i % 2 else make_hint("canny", draw(s)) for i, s in enumerate(scenes)]
    return torch.from_numpy(np.stack([(hint[..., 0] * 255).astype(np.uint8) for hint in hints]))


def make_tokens(scenes: list[Scene], tokenizer: CLIPTokenizer) -> Tensor:
    """[N,77] token numbers of the captions."""
    texts = [caption(s) for s in scenes]
    ids: Tensor = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    return ids


def steps(plan: Plan, params: list[nn.Parameter], name: str) -> Iterator[tuple[int, Callable[[Tensor], None]]]:
    """Counts the steps of a plan and hands out `update(loss)`: AdamW, cosine rate, gradients clipped at norm 1."""
    optimiser = torch.optim.AdamW(params, lr=plan.lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    running, began, cpu = 0.0, time.perf_counter(), time.process_time()

    def update(loss: Tensor) -> None:
        nonlocal running
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        running = 0.98 * running + 0.02 * float(loss.detach()) if step else float(loss.detach())

    for step in range(plan.steps):
        rate = plan.lr * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / plan.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        yield step, update
        if (step + 1) % 200 == 0 or step + 1 == plan.steps:
            spent = f"{time.perf_counter() - began:.0f} s ({time.process_time() - cpu:.0f} s CPU)"
            log.info("%s step %d of %d, loss %.4f, %s", name, step + 1, plan.steps, running, spent)


def train_autoencoder(pictures: Tensor, plan: Plan, generator: torch.Generator) -> AutoencoderKL:
    """L1 + squared error of the picture and of its gradients + a small KL; then latents of mean 0 and variance 1."""
    vae = AutoencoderKL.from_config(_config("vae")).to(memory_format=torch.channels_last)
    for _, update in steps(plan, list(vae.parameters()), "autoencoder"):
        x = pictures[torch.randint(len(pictures), (plan.batch,), generator=generator)] / 127.5 - 1.0
        x = _recoloured(x, generator).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        y = vae.decode(z).sample
        edges = sum(((y - x).diff(dim=d)).abs().mean() for d in (2, 3))
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
        update((y - x).abs().mean() + (y - x).square().mean() + 0.5 * edges + 2e-4 * kl)
    vae.eval()
    fold(vae, encode(vae, pictures[:4096]))
    return vae


def _recoloured(x: Tensor, generator: torch.Generator) -> Tensor:
    """An eighth of the batch in colours outside the palette, so that the autoencoder also carries other pictures."""
    shape = (len(x), 3, 1, 1)
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.125
    gain, shift = torch.rand(shape, generator=generator) * 1.2 - 0.2, torch.rand(shape, generator=generator) - 0.5
    return torch.where(chosen, (x * gain + shift).clamp(-1.0, 1.0), x)


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The mean latents [N,4,8,8] of pictures in 0..255."""
    parts = [vae.encode(part / 127.5 - 1.0).latent_dist.mean for part in torch.split(pictures, 256)]
    return torch.cat(parts).contiguous()


@torch.no_grad()
def fold(vae: AutoencoderKL, latents: Tensor) -> None:
    """Folds z' = (z - m) / s into the outer 1x1 convolutions: stock code then needs no scale and knows no shift.

    moments (mean, logvar) -> ((mean - m) / s, logvar - 2 log s); the decoder's side gets z = s z' + m back.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    first, last, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    first.weight[:channels] /= std[:, None, None, None]
    first.bias[:channels] = (first.bias[:channels] - mean) / std
    first.bias[channels:] -= 2.0 * std.log()
    last.bias += last.weight[:, :, 0, 0] @ mean
    last.weight *= std[None, :, None, None]


class Noiser:
    """Draws noise levels of the model's own schedule, uniform in t."""

    def __init__(self) -> None:
        scheduler = DDIMScheduler.from_config(_config("scheduler"))
        self.kind = scheduler.config.prediction_type
        self.alphas = scheduler.alphas_cumprod.sqrt()

    def level(self, count: int, generator: torch.Generator) -> Level:
        """Stratified: one t in each of `count` equal parts of the schedule, so that the mean loss varies less."""
        share = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        t = (share * len(self.alphas)).long()
        alpha = self.alphas[t]
        return Level(t, alpha, (1.0 - alpha**2).sqrt(), torch.zeros_like(t), torch.ones_like(t))


class TextUNet(nn.Module):
    """The text tower and the U-Net as one module: they learn together and are averaged together."""

    def __init__(self, text: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text, self.unet = text, unet

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, control: tuple[Any, Any] = (None, None)) -> Tensor:
        down, mid = control
        states = self.text(ids).last_hidden_state
        states = states.repeat(len(x) // len(states), 1, 1)  # several noise levels share one caption
        told = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        output: Tensor = self.unet(x, t, states, **told).sample
        return output


def train_denoiser(
    latents: Tensor, tokens: Tensor, vocabulary: int, plan: Plan, generator: torch.Generator
) -> TextUNet:
    """v-prediction with min-SNR weights, captions dropped to the empty prompt; returns the moving average."""
    special = {"vocab_size": vocabulary, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    text = CLIPTextModel(CLIPTextConfig(**_config("text"), **special, pad_token_id=vocabulary - 1))
    model = TextUNet(text, UNet2DConditionModel.from_config(_config("unet")))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))  # type: ignore[no-untyped-call]
    empty, noiser = _empty(vocabulary), Noiser()
    for step, update in steps(plan, list(model.parameters()), "denoiser"):
        index = torch.randint(len(latents), (plan.batch,), generator=generator)
        dropped = torch.rand(plan.batch, 1, generator=generator) < DROP_CAPTION
        ids = torch.where(dropped, empty, tokens[index])
        clean = latents[index].repeat(2, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator)
        level = noiser.level(len(clean), generator)
        output = model(level.noisy(clean, noise), level.t, ids)
        update(denoising_loss(output, clean, noise, level, noiser.kind, weighting="min_snr").mean())
        if step >= plan.steps // 4:
            average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    return model.eval()


def train_control(
    latents: Tensor, tokens: Tensor, hints: Tensor, model: TextUNet, plan: Plan, generator: torch.Generator
) -> ControlNetModel:
    """An edge ControlNet on the frozen U-Net (Zhang et al. 2023); half of the captions are empty."""
    model.requires_grad_(False)
    control = ControlNetModel.from_config(_config("controlnet"))
    _copy_matching(model.unet, control)
    empty, noiser = _empty(model.text.config.vocab_size), Noiser()
    for _, update in steps(plan, list(control.parameters()), "control"):
        index = torch.randint(len(latents), (plan.batch,), generator=generator)
        dropped = torch.rand(plan.batch, 1, generator=generator) < 0.5
        ids = torch.where(dropped, empty, tokens[index])
        hint = varied(hints[index] / 255.0, generator)[:, None].expand(-1, 3, -1, -1)
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        level = noiser.level(len(clean), generator)
        x, states = level.noisy(clean, noise), model.text(ids).last_hidden_state
        residuals = control(x, level.t, states, controlnet_cond=hint, return_dict=False)
        output = model(x, level.t, ids, residuals)
        update(denoising_loss(output, clean, noise, level, noiser.kind).mean())
    return control.eval()


def varied(hint: Tensor, generator: torch.Generator) -> Tensor:
    """Outlines [B,H,W] as edge finders and hands draw them: a third thicker, a third with gaps, some a pixel aside."""
    chance = torch.rand(len(hint), 1, 1, generator=generator)
    thick = functional.max_pool2d(functional.pad(hint[:, None], (0, 1, 0, 1)), 2, 1)[:, 0]
    gaps = hint * (torch.rand(hint.shape, generator=generator) < 0.85)
    hint = torch.where(chance < 0.33, thick, torch.where(chance < 0.66, gaps, hint))
    aside = torch.rand(len(hint), 1, 1, generator=generator)
    return torch.where(aside < 0.15, hint.roll(1, 1), torch.where(aside < 0.3, hint.roll(1, 2), hint))


@torch.no_grad()
def _copy_matching(source: nn.Module, target: nn.Module) -> None:
    """A ControlNet starts as a copy of the U-Net's down path, where it has the same layers."""
    known = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        if name in known and known[name].shape == parameter.shape and "controlnet" not in name:
            parameter.copy_(known[name])


def save(module: Any, folder: Path) -> None:
    """In half precision, which halves the folder; the module itself keeps its own."""
    copy.deepcopy(module).half().save_pretrained(folder)


def save_index(out: Path) -> None:
    """The scheduler and model_index.json: then stock `StableDiffusionPipeline.from_pretrained` loads the folder."""
    DDIMScheduler.from_config(_config("scheduler")).save_pretrained(out / "scheduler")
    parts = {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **parts}
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def train(out: Path, seed: int, share: float, stages: list[str]) -> None:
    """The whole recipe, or some of its stages on top of what the folder holds; `share` shortens each one."""
    vocabulary = save_tokenizer(words(), out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    scenes = [sample_scene(index, seed) for index in range(SCENES)]
    pictures = make_pictures(scenes)
    if "autoencoder" in stages:
        with stage(out, "autoencoder", seed, share) as (plan, generator):
            save(train_autoencoder(pictures, plan, generator), out / "vae")
    if {"denoiser", "control"} & set(stages):
        vae = AutoencoderKL.from_pretrained(out / "vae", dtype=torch.float32)
        latents, tokens = encode(vae, pictures), make_tokens(scenes, tokenizer)
    if "denoiser" in stages:
        with stage(out, "denoiser", seed, share) as (plan, generator):
            model = train_denoiser(latents, tokens, vocabulary, plan, generator)
            save(model.text, out / "text_encoder")
            save(model.unet, out / "unet")
    if "control" in stages:
        text = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32)
        model = TextUNet(text, UNet2DConditionModel.from_pretrained(out / "unet", dtype=torch.float32))
        with stage(out, "control", seed, share) as (plan, generator):
            hints = make_hints(scenes)
            save(train_control(latents, tokens, hints, model, plan, generator), out / "controlnet-edges")
    save_index(out)


@contextmanager
def stage(out: Path, name: str, seed: int, share: float) -> Iterator[tuple[Plan, torch.Generator]]:
    """The plan and the randomness of one stage (its own, so that it does not depend on those before); notes its time."""
    torch.manual_seed(seed)
    plan = STAGES[name]
    began, cpu = time.perf_counter(), time.process_time()
    yield replace(plan, steps=max(1, round(plan.steps * share))), torch.Generator().manual_seed(seed)
    note = out / "training.json"
    spent = json.loads(note.read_text("utf-8")) if note.exists() else {}
    seconds = {"seconds": round(time.perf_counter() - began), "cpu_seconds": round(time.process_time() - cpu)}
    spent[name] = {**seconds, "threads": torch.get_num_threads(), "seed": seed, "share": share}
    note.write_text(json.dumps(spent, indent=2) + "\n", "utf-8")
    log.info("%s: %s", name, spent[name])


def _config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CONFIGS / f"scenes-{name}.json").read_text("utf-8"))
    return config


def _empty(vocabulary: int) -> Tensor:
    """The tokens of the empty prompt: start, then nothing but end."""
    return torch.tensor([[vocabulary - 2] + [vocabulary - 1] * 76])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the weights (made if needed; files in it are replaced)")
    parser.add_argument("--evaluate", type=Path, help="a trained folder: measure it with the checker")
    parser.add_argument("--report", type=Path, default=Path("docs/results/scenes.json"), help="where the figures go")
    parser.add_argument("--sheet", type=Path, help="with --evaluate: a PNG of many pictures to look at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="part of the steps to run (1: the shipped model)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="the others stay as they are")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    if args.out is None and args.evaluate is None:
        parser.error("give --out DIR to train, --evaluate DIR to measure, or both")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        train(args.out, args.seed, args.share, args.stages)
    if args.evaluate is not None:
        from train.scenes_check import evaluate

        evaluate(args.evaluate, args.report, args.sheet)


if __name__ == "__main__":
    main()
