"""Tiny REAL components: the classes of diffusers and transformers at toy sizes, random weights from fixed seeds.

Plain functions, so that a test can ask for its own variant; `conftest.py` turns the usual ones into fixtures. Each
call builds a new module: a test may change it. Latents are 8x8, the autoencoder halves once: pictures are 16x16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ldm.models.clip_tokenizer import ClipTokenizer

LATENT = 8  # side of a latent
PIXELS = 16  # side of a picture: the tiny autoencoder halves once
TEXT = 32  # width of the text tower of SD 1
TEXT_G = 64  # width of the second tower of XL
TEXT_XL = TEXT + TEXT_G

WORDS = [
    "a",
    "photo",
    "of",
    "red",
    "green",
    "blue",
    "yellow",
    "square",
    "circle",
    "triangle",
    "the",
    "on",
    "cat",
    "dog",
]
WORDS += ["left", "right", "above", "small", "large"]
Tower = TypeVar("Tower", bound=nn.Module)
START, END = "<|startoftext|>", "<|endoftext|>"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws inside come from `seed`; the state outside is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tokenizer(pad: str = END) -> CLIPTokenizer:
    """A byte-level BPE tokenizer of CLIP's form: all bytes, and merges that make each of `WORDS` one token."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(c + "</w>" for c in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        units = [*word[:-1], word[-1] + "</w>"]
        while len(units) > 1:
            pair = (units[0], units[1])
            if pair not in merges:
                merges.append(pair)
            units[:2] = ["".join(pair)]
    tokens += dict.fromkeys("".join(m) for m in merges)
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), START, END])}
    if pad not in vocab:  # XL's second tower and SD 2 pad with "!", which is a byte
        raise ValueError(pad)
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def stock(words: ClipTokenizer) -> CLIPTokenizer:
    """A tokenizer of ours as that of transformers."""
    model = json.loads(words.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(
        vocab=model["vocab"] | {START: words.bos_token_id, END: words.eos_token_id}, merges=merges,
        pad_token=words.special["pad_token"], model_max_length=words.model_max_length,
    )  # fmt: skip


def text_config(width: int = TEXT, **changes: Any) -> CLIPTextConfig:
    words = tokenizer()
    values: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "projection_dim": width,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    return CLIPTextConfig(**(values | changes))


def text_tower(width: int = TEXT, seed: int = 3, **changes: Any) -> CLIPTextModel:
    """A text tower as in SD 1 (`hidden_act="gelu"`: as in SD 2)."""
    with seeded(seed):
        return _spread(CLIPTextModel(text_config(width, **changes)).eval())


def projected_tower(width: int = TEXT_G, seed: int = 4, **changes: Any) -> CLIPTextModelWithProjection:
    """XL's second tower, with the pooled projection."""
    with seeded(seed):
        return _spread(CLIPTextModelWithProjection(text_config(width, **({"hidden_act": "gelu"} | changes))).eval())


def vae(seed: int = 2, **changes: Any) -> AutoencoderKL:
    """An autoencoder that halves once; 4 latent channels, with SD's scaling factor so that forgetting it is seen."""
    values: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": PIXELS,
        "scaling_factor": 0.18215,
    }
    with seeded(seed):
        return AutoencoderKL(**(values | changes)).eval()


def unet(channels: int = 4, seed: int = 1, **changes: Any) -> UNet2DConditionModel:
    """A U-Net as in SD 1 at toy size (`channels=9`: inpainting)."""
    values: dict[str, Any] = {
        "sample_size": LATENT,
        "in_channels": channels,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT,
    }
    with seeded(seed):
        return UNet2DConditionModel(**(values | changes)).eval()


def unet_xl(
    seed: int = 1, *, ids: int = 6, pooled: int = TEXT_G, text: int = TEXT_XL, **changes: Any
) -> UNet2DConditionModel:
    """A U-Net as in XL: pooled text and time ids are embedded together (`ids=5`, `text=TEXT_G`: the refiner)."""
    values: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": ids * 8 + pooled,
        "cross_attention_dim": text,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
    }
    return unet(seed=seed, **(values | changes))


def unet_refiner(seed: int = 6, **changes: Any) -> UNet2DConditionModel:
    """A U-Net as in XL's refiner: second tower only, five time ids (aesthetic score)."""
    return unet_xl(seed, ids=5, text=TEXT_G, **changes)


def controlnet(of: UNet2DConditionModel | None = None, seed: int = 5, size: float = 0.2) -> ControlNetModel:
    """A ControlNet for `of` with its zero convolutions replaced by small random weights, so that it acts.

    The hint embedding is given one halving, as many as the tiny autoencoder has.
    """
    with seeded(seed):
        net = ControlNetModel.from_unet(
            of if of is not None else unet(), conditioning_channels=3, conditioning_embedding_out_channels=(8, 16)
        ).eval()
        zero = [net.controlnet_cond_embedding.conv_out, net.controlnet_mid_block, *net.controlnet_down_blocks]
        with torch.no_grad():
            for layer in zero:
                assert isinstance(layer, nn.Conv2d)
                layer.weight.normal_(std=size)
                assert layer.bias is not None
                layer.bias.normal_(std=size)
    return net


def scheduler_config(**changes: Any) -> dict[str, Any]:
    """The noise schedule of SD 1, 2 and XL."""
    values: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
    }
    return values | changes


def ddim(**changes: Any) -> DDIMScheduler:
    return DDIMScheduler(**scheduler_config(**changes))


def euler(**changes: Any) -> EulerDiscreteScheduler:
    values = scheduler_config(**changes)
    return EulerDiscreteScheduler(**{k: v for k, v in values.items() if k not in ("clip_sample", "set_alpha_to_one")})


def sd1(**parts: Any) -> StableDiffusionPipeline:
    """The stock SD 1 pipeline over tiny parts; give any part by its stock name to replace it."""
    return StableDiffusionPipeline(**(_single_tower() | {"unet": unet()} | parts), requires_safety_checker=False)


def sd1_inpaint(**parts: Any) -> StableDiffusionInpaintPipeline:
    """The stock inpainting pipeline with a 9-channel U-Net."""
    return StableDiffusionInpaintPipeline(
        **(_single_tower() | {"unet": unet(9)} | parts), requires_safety_checker=False
    )


def xl(**parts: Any) -> StableDiffusionXLPipeline:
    """The stock XL base pipeline over tiny parts: two towers, the second projected and padded with "!"."""
    own: dict[str, Any] = {
        "vae": vae(scaling_factor=0.13025),
        "text_encoder": text_tower(),
        "text_encoder_2": projected_tower(),
        "tokenizer": tokenizer(),
        "tokenizer_2": tokenizer(pad="!"),
        "unet": unet_xl(),
        "scheduler": euler(),
    }
    return StableDiffusionXLPipeline(**(own | parts), force_zeros_for_empty_prompt=True, add_watermarker=False)


def xl_refiner(**parts: Any) -> StableDiffusionXLImg2ImgPipeline:
    """The stock XL refiner over tiny parts: no first tower, aesthetic score among the time ids."""
    own: dict[str, Any] = {
        "vae": vae(scaling_factor=0.13025),
        "text_encoder": None,
        "text_encoder_2": projected_tower(),
        "tokenizer": None,
        "tokenizer_2": tokenizer(pad="!"),
        "unet": unet_refiner(),
        "scheduler": euler(),
    }
    return StableDiffusionXLImg2ImgPipeline(
        **(own | parts),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def save(pipeline: Any, folder: Path) -> Path:
    """Save in the diffusers layout, by stock code; tokenizers also as `vocab.json` and `merges.txt`, as is usual."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        words = getattr(pipeline, name, None)
        if words is not None:
            words.backend_tokenizer.model.save(str(folder / name))
    return folder


def _single_tower() -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": text_tower(),
        "tokenizer": tokenizer(),
        "scheduler": ddim(),
        "safety_checker": None,
        "feature_extractor": None,
    }


def _spread(tower: Tower) -> Tower:
    """Tokens far apart: with CLIP's initial 0.02 all prompts would mean nearly the same."""
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            if weight.dim() > 1:
                weight.mul_(5.0 if "embedding" in name else 2.0)
    return tower
