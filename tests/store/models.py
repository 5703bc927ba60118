"""Tiny models for the tests of the store: stock parts, with the full vocabulary where a single file is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ldm.models.tokenizer import clip_tokenizer
from ldm.store.build import build
from ldm.store.configs import family_config
from ldm.store.detect import Family
from ldm.store.parts import Parts
from ldm.store.single import towers_of
from tests import components

FULL = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
LAYOUTS: dict[str, tuple[Family, int]] = {
    "sd1": ("sd1", 4),
    "sd1-inpaint": ("sd1", 9),
    "sd2": ("sd2", 4),
    "xl-base": ("xl", 4),
    "xl-refiner": ("xl-refiner", 4),
}


def full_size(family: Family, channels: int) -> Parts:
    """A model of a known family at its real size, without weights (meta device)."""
    configs = {role: family_config(family, role) for role in ("unet", "vae", "scheduler")}
    unet, notes = build("UNet2DConditionModel", configs["unet"] | {"in_channels": channels}, "unet")
    vae, more = build("AutoencoderKL", configs["vae"], "vae")
    towers = []
    for place in towers_of(family):
        config = family_config(family, place.role)
        towers.append((clip_tokenizer(), build(config["architectures"][0], config, place.role)[0]))
    assert notes + more == []  # every key that we ship is known to the libraries
    return Parts("full", family, Path("full"), "", unet, vae, tuple(towers), configs["scheduler"], "epsilon", "")


def vocabulary(pipeline: Any) -> Any:
    """The same stock pipeline with CLIP's own tokenizers."""
    for suffix, pad in (("", "<|endoftext|>"), ("_2", "!")):
        if getattr(pipeline, f"tokenizer{suffix}", None) is not None:
            setattr(pipeline, f"tokenizer{suffix}", components.stock(clip_tokenizer(pad)))
    return pipeline


def sd1(**parts: Any) -> Any:
    return vocabulary(components.sd1(**({"text_encoder": components.text_tower(**FULL)} | parts)))


def sd2() -> Any:
    """As SD 2: an open_clip text tower whose last layer is left out, v-prediction, heads of equal width."""
    tower = components.text_tower(**(FULL | {"hidden_act": "gelu", "num_hidden_layers": 2}))
    unet = components.unet(use_linear_projection=True)
    pipeline = components.sd1(text_encoder=tower, unet=unet, scheduler=components.ddim(prediction_type="v_prediction"))
    pipeline.tokenizer = components.stock(clip_tokenizer("!"))
    return pipeline


def xl(**parts: Any) -> Any:
    towers = {"text_encoder": components.text_tower(**FULL), "text_encoder_2": components.projected_tower(**FULL)}
    return vocabulary(components.xl(**(towers | parts)))


def refiner() -> Any:
    return vocabulary(components.xl_refiner(text_encoder_2=components.projected_tower(**FULL)))


def difference(a: nn.Module, b: nn.Module) -> float:
    """The greatest difference of any tensor; names and shapes must be equal."""
    left, right = a.state_dict(), b.state_dict()
    assert {n: t.shape for n, t in left.items()} == {n: t.shape for n, t in right.items()}
    return max(float((left[n].float() - right[n].float()).abs().max()) for n in left)


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    value |= changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))
