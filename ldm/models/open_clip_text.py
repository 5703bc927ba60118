"""The text tower of an open_clip checkpoint, as a text model of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.models.nets.base import unfilled
from ldm.models.nets.text import ProjectedTextTower
from ldm.models.text_tower import Tower
from ldm.models.tokenizer import clip_tokenizer

_HEAD_WIDTH = 64  # of every published CLIP text tower: ViT-L 12 heads of 768, ViT-H 16 of 1024, ViT-bigG 20 of 1280

_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_FUSED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def open_clip_text_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of transformers for the text tower in an open_clip state; other tensors are passed over.

    Whatever stands before the names (`text.`, `cond_stage_model.model.`) is found and taken off. The fused projection
    in_proj [3D,D] is cut into q, k and v; text_projection [D,P], which multiplies from the right, is transposed.
    """
    prefix = _prefix(state)
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(prefix):
            continue
        key = name.removeprefix(prefix)
        if key in _OUTSIDE:
            out[_OUTSIDE[key]] = tensor
        elif inside := block_tensors(key, tensor):
            out |= {f"text_model.{place}": piece for place, piece in inside.items()}
        elif key == "text_projection":
            out["text_projection.weight"] = tensor.T.contiguous()
        elif key == "text_projection.weight":  # saved by open_clip where the projection is a layer of its own
            out["text_projection.weight"] = tensor
    return out


def block_tensors(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of a block of open_clip under its names in transformers, from `encoder.` on; {} for other tensors."""
    if match := _FUSED.fullmatch(key):
        layer, kind = match.groups()
        pieces = zip("qkv", tensor.chunk(3), strict=True)
        return {f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}": piece.contiguous() for part, piece in pieces}
    if (match := _BLOCK.fullmatch(key)) and match.group(2) in _INSIDE:
        layer, inside, kind = match.groups()
        return {f"encoder.layers.{layer}.{_INSIDE[inside]}.{kind}": tensor}
    return {}


def text_config(
    state: Mapping[str, Tensor], *, quick_gelu: bool = False, heads: int | None = None, **told: Any
) -> dict[str, Any]:
    """The configuration that the shapes of a converted state tell.

    They do not tell `quick_gelu` (OpenAI's own weights and open_clip's `-quickgelu` models use it), `heads`, and what a
    configuration may say besides (`told`, in the words of transformers).
    """
    entries, width = state["text_model.embeddings.token_embedding.weight"].shape
    projection = state.get("text_projection.weight")
    values: dict[str, Any] = {
        "vocab_size": entries,
        "hidden_size": width,
        "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": sum(name.endswith("layer_norm1.weight") for name in state),
        "num_attention_heads": heads or max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
        "projection_dim": width if projection is None else projection.shape[0],
        "hidden_act": "quick_gelu" if quick_gelu else "gelu",
        "bos_token_id": entries - 2,
        "eos_token_id": entries - 1,
        "pad_token_id": 0,
    }
    return values | told


def open_clip_text_model(
    state: Mapping[str, Tensor], *, quick_gelu: bool = False, heads: int | None = None, **told: Any
) -> ProjectedTextTower:
    """The text tower of an open_clip state, on the device and in the type of its weights."""
    converted = open_clip_text_to_transformers(state)
    config = text_config(converted, quick_gelu=quick_gelu, heads=heads, **told)
    if "text_projection.weight" not in converted:  # LDM files of SD 2 leave it out, and nothing there reads it
        like = converted["text_model.final_layer_norm.weight"]
        converted["text_projection.weight"] = torch.eye(len(like), dtype=like.dtype, device=like.device)
    with unfilled():
        model = ProjectedTextTower(**config)
    fill_tower(model, converted, "text tower")
    return model.eval().requires_grad_(False)


def fill_tower(model: nn.Module, converted: Mapping[str, Tensor], name: str) -> None:
    """Puts converted tensors into a tower on the meta device; every one has its place, or none is put in."""
    expected = model.state_dict()
    wrong = [n for n, t in expected.items() if n not in converted or converted[n].shape != t.shape]
    wrong += [n for n in converted if n not in expected]
    if wrong:
        raise LdmError(
            Code.MODEL,
            f"the {name} does not fit: {', '.join(wrong[:5])}",
            f"{len(wrong)} tensors are missing, of another shape or unknown",
            f"use a checkpoint written by open_clip whose {name} is a CLIP transformer",
        )
    model.load_state_dict(converted, assign=True)


def open_clip_tower(state: Mapping[str, Tensor], *, quick_gelu: bool = False, heads: int | None = None) -> Tower:
    """The text tower with open_clip's tokenizer (padded with 0), ready for a `TextEncoder`."""
    return Tower(open_clip_text_model(state, quick_gelu=quick_gelu, heads=heads), clip_tokenizer(pad_token="!"))


def _prefix(state: Mapping[str, Tensor]) -> str:
    ending = "token_embedding.weight"
    found = [n.removesuffix(ending) for n in state if n.endswith(ending)]
    found = [p for p in found if f"{p}transformer.resblocks.0.attn.in_proj_weight" in state]
    if not found:
        raise LdmError(
            Code.MODEL,
            "there is no open_clip text tower in this checkpoint",
            "no token_embedding stands beside a transformer.resblocks.0.attn.in_proj_weight",
            "use a checkpoint that open_clip has written, or the original layout of SD 2 or XL",
        )
    return found[0]
