"""The image tower of an open_clip checkpoint, as an image model of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.models.open_clip_text import block_tensors, fill_tower

_OUTSIDE = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}


def open_clip_image_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of transformers for the tensors under `visual.`; other tensors are passed over.

    The fused projection in_proj [3D,D] is cut into q, k and v; proj [D,P], which multiplies from the right, is turned.
    """
    out: dict[str, Tensor] = {}
    for name in state:
        key = name.removeprefix("visual.")
        if key == name:
            continue
        if key == "proj":
            out["visual_projection.weight"] = state[name].T.contiguous()
        elif key in _OUTSIDE:
            out[_OUTSIDE[key]] = state[name]
        else:
            inside = block_tensors(key, state[name])
            out |= {f"vision_model.{place}": piece for place, piece in inside.items()} or {name: state[name]}
    return out


def open_clip_image_model(state: Mapping[str, Tensor], **told: Any) -> Any:
    """The image tower of an open_clip state, on the device and in the type of its weights.

    `told` is what the shapes do not tell, in the words of transformers: heads, activation, side of the pictures.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # late: seconds, which words do not need

    converted = open_clip_image_to_transformers(state)
    there = sum(name.endswith("layer_norm1.weight") for name in converted)
    if "num_hidden_layers" in told:  # one too many is noticed below; a billion would be built first
        told["num_hidden_layers"] = min(int(told["num_hidden_layers"]), there + 1)
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**told))
    fill_tower(model, converted, "image tower")
    embeddings = model.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=model.device)[None]
    return model.eval().requires_grad_(False)
