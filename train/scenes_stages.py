"""The stages of the scenes recipe: autoencoder; text tower with U-Net, in three; edge ControlNet."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.diffusion.level import Kind, Level
from ldm.diffusion.loss import Weighting, denoising_loss
from train.muon import Muon
from train.tasks.controlnet import copy_matching

log = logging.getLogger("train.scenes")
CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "models"


@dataclass(frozen=True)
class Plan:
    """One stage: steps, examples a step, and the peak rates of Muon (hidden matrices) and AdamW (all else)."""

    steps: int
    batch: int
    muon: float
    adamw: float
    stream: int = 0  # added to the seed: another order of examples and noise


AUTOENCODER = Plan(3500, 16, 0.02, 3e-3)
DENOISER = Plan(1800, 64, 0.02, 2e-3)
LAYOUT = Plan(1300, 64, 0.012, 1e-3)
FINISH = Plan(900, 64, 0.012, 1e-3, stream=1)
CONTROL = Plan(2300, 64, 0.02, 2e-3)
DROP_CAPTION = 0.12
STAGES = {"autoencoder": AUTOENCODER, "denoiser": DENOISER, "layout": LAYOUT, "finish": FINISH, "control": CONTROL}
HIGH_NOISE = {"layout": 0.6, "control": 0.6}  # the power of u in t = T u^power


def steps(plan: Plan, module: nn.Module, name: str) -> Iterator[tuple[int, Callable[[Tensor], None]]]:
    """Counts the steps of a plan and hands out `update(loss)`; both rates fall to 0 by a cosine."""
    matrices, others = split(module)
    muon = Muon(matrices, lr=plan.muon)
    adamw = torch.optim.AdamW(others, lr=plan.adamw, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    running, began, cpu = 0.0, time.perf_counter(), time.process_time()

    def update(loss: Tensor) -> None:
        nonlocal running
        module.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adamw.step()
        running = 0.98 * running + 0.02 * float(loss.detach()) if step else float(loss.detach())

    for step in range(plan.steps):
        share = min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / plan.steps))
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = plan.muon * share, plan.adamw * share
        yield step, update
        if (step + 1) % 200 == 0 or step + 1 == plan.steps:
            spent = f"{time.perf_counter() - began:.0f} s ({time.process_time() - cpu:.0f} s CPU)"
            log.info("%s step %d of %d, loss %.4f, %s", name, step + 1, plan.steps, running, spent)


def split(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(hidden weights, all else): Muon is for matrices between hidden layers, not for tables, input or output."""
    outer = ("embedding.weight", "quant_conv", "encoder.conv_in", "unet.conv_in", "conv_out", "controlnet_")
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    hidden = {n for n, p in named if p.dim() >= 2 and not any(word in n for word in outer)}
    return [p for n, p in named if n in hidden], [p for n, p in named if n not in hidden]


def train_autoencoder(pictures: Tensor, plan: Plan, generator: torch.Generator) -> AutoencoderKL:
    """L1 + squared error of the picture and of its gradients + a small KL; then latents of mean 0 and variance 1."""
    vae = AutoencoderKL.from_config(config("vae")).to(memory_format=torch.channels_last)
    for _, update in steps(plan, vae, "autoencoder"):
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
    """Draws noise levels of the model's schedule: alpha_t^2 = prod (1 - beta), sqrt(beta) linear in t."""

    def __init__(self) -> None:
        schedule = config("scheduler")
        self.kind: Kind = schedule["prediction_type"]
        first, last = schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5
        betas = torch.linspace(first, last, schedule["num_train_timesteps"], dtype=torch.float64) ** 2
        self.alphas = (1.0 - betas).cumprod(0).sqrt().float()

    def level(self, count: int, generator: torch.Generator, power: float = 1.0) -> Level:
        """t = T u^power, u stratified (one in each of `count` equal parts of [0,1)): power 0.5 prefers high noise."""
        u = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        t = (u**power * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
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


def new_denoiser(vocabulary: int) -> TextUNet:
    """Random weights; the vocabulary's last two tokens are start and end."""
    special = {"vocab_size": vocabulary, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    text = CLIPTextModel(CLIPTextConfig(**config("text"), **special, pad_token_id=vocabulary - 1))
    return TextUNet(text, UNet2DConditionModel.from_config(config("unet")))


def train_denoiser(
    model: TextUNet, latents: Tensor, tokens: Tensor, plan: Plan, generator: torch.Generator, name: str
) -> TextUNet:
    """v-prediction, captions dropped to the empty prompt; returns the moving average.

    First with min-SNR weights, which give clean shapes and colours soonest. They nearly ignore high noise, where places
    are decided (measured: 29 % of positions right), so `layout` has no weights and prefers high noise (77 %), and
    `finish` has no weights and takes all noise levels alike.
    """
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))  # type: ignore[no-untyped-call]
    empty, noiser = _empty(model.text.config.vocab_size), Noiser()
    for step, update in steps(plan, model, name):
        index = torch.randint(len(latents), (plan.batch,), generator=generator)
        dropped = torch.rand(plan.batch, 1, generator=generator) < DROP_CAPTION
        ids = torch.where(dropped, empty, tokens[index])
        clean = latents[index].repeat(2, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator)
        level = noiser.level(len(clean), generator, HIGH_NOISE.get(name, 1.0))
        output = model(level.noisy(clean, noise), level.t, ids)
        weighting: Weighting = "min_snr" if name == "denoiser" else "none"
        update(denoising_loss(output, clean, noise, level, noiser.kind, weighting=weighting).mean())
        if step >= plan.steps // 4:
            average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    return model.eval()


def train_control(
    latents: Tensor, tokens: Tensor, hints: Tensor, model: TextUNet, plan: Plan, generator: torch.Generator
) -> ControlNetModel:
    """An edge ControlNet on the frozen U-Net (Zhang et al. 2023); half of the captions are empty."""
    model.requires_grad_(False)
    control = ControlNetModel.from_config(config("controlnet"))
    copy_matching(model.unet, control)
    empty, noiser = _empty(model.text.config.vocab_size), Noiser()
    for _, update in steps(plan, control, "control"):
        index = torch.randint(len(latents), (plan.batch,), generator=generator)
        dropped = torch.rand(plan.batch, 1, generator=generator) < 0.5
        ids = torch.where(dropped, empty, tokens[index])
        hint = varied(hints[index] / 255.0, generator)[:, None].expand(-1, 3, -1, -1)
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        level = noiser.level(len(clean), generator, HIGH_NOISE["control"])
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


def config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CONFIGS / f"scenes-{name}.json").read_text("utf-8"))
    return config


def _empty(vocabulary: int) -> Tensor:
    """The tokens of the empty prompt: start, then nothing but end."""
    return torch.tensor([[vocabulary - 2] + [vocabulary - 1] * 76])
