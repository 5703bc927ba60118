"""The configuration of a ControlNet, read off the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ldm.store.configs import family_config
from ldm.store.detect import Facts, Shapes, family_of

_COPIED = ("act_fn", "attention_head_dim", "block_out_channels", "cross_attention_dim", "down_block_types", "downsample_padding",
           "flip_sin_to_cos", "freq_shift", "layers_per_block", "mid_block_scale_factor", "norm_eps", "norm_num_groups",
           "transformer_layers_per_block", "use_linear_projection", "upcast_attention", "addition_embed_type",
           "addition_time_embed_dim", "projection_class_embeddings_input_dim")  # fmt: skip


def controlnet_config(shapes: Shapes, facts: Facts) -> dict[str, Any]:
    """In the original layout that of its family; in the diffusers layout, whose published files come in several
    sizes, depth and widths are counted."""
    hint = _hint_channels(shapes)
    if "conv_in.weight" not in shapes:
        family = family_of(facts)
        unet = family_config("sd1" if family == "own" else family, "unet")
        return {
            **{k: unet[k] for k in _COPIED if k in unet},
            "in_channels": facts.channels,
            "conditioning_embedding_out_channels": hint,
        }
    widths = _per_block(shapes, r"down_blocks\.(\d+)\.resnets\.0\.conv1\.weight$")
    depth = {
        int(m[1]): 1 + int(m[2])
        for n in sorted(shapes)
        if (m := re.match(r"down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight", n))
    }
    attended = _layers(shapes)
    last = max(attended.values(), default=1)
    blocks = range(len(widths))
    linear = any(n.endswith("proj_in.weight") and len(s) == 2 for n, s in shapes.items())
    config: dict[str, Any] = {
        "block_out_channels": [widths[i] for i in blocks],
        "down_block_types": ["CrossAttnDownBlock2D" if i in attended else "DownBlock2D" for i in blocks],
        "layers_per_block": max(depth.values(), default=2),
        "transformer_layers_per_block": [attended.get(i, last if i == len(widths) - 1 else 1) for i in blocks],
        "cross_attention_dim": facts.text,
        "in_channels": facts.channels,
        "use_linear_projection": linear,
        # SD 1 has 8 heads at every width, the later families heads of 64 channels
        "attention_head_dim": [max(1, widths[i] // 64) for i in blocks] if linear else 8,
        "conditioning_embedding_out_channels": hint,
    }
    if not any(n.startswith("mid_block.attentions.") for n in shapes):
        config["mid_block_type"] = "UNetMidBlock2D"
    if facts.added is not None:
        pooled = shapes["add_embedding.linear_1.weight"][1]
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": pooled,
        }
    return config


def _per_block(shapes: Shapes, pattern: str) -> dict[int, int]:
    return {int(m[1]): s[0] for n, s in shapes.items() if (m := re.match(pattern, n))}


def _layers(shapes: Shapes) -> dict[int, int]:
    """Transformer layers of each level that has attention."""
    found: dict[int, int] = {}
    for name in shapes:
        if m := re.match(r"down_blocks\.(\d+)\.attentions\.0\.transformer_blocks\.(\d+)\.", name):
            found[int(m[1])] = max(found.get(int(m[1]), 0), 1 + int(m[2]))
    return found


def _hint_channels(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Widths of the hint embedding: conv_in, then every second of its blocks."""
    if "input_hint_block.0.weight" in shapes:
        places = sorted(int(n.split(".")[1]) for n in shapes if re.match(r"input_hint_block\.\d+\.weight$", n))
        return [shapes[f"input_hint_block.{i}.weight"][0] for i in [0, *places[2:-1:2]]]
    pattern = r"controlnet_cond_embedding\.blocks\.(\d+)\.weight$"
    blocks = _per_block(shapes, pattern)
    return [shapes["controlnet_cond_embedding.conv_in.weight"][0], *(blocks[i] for i in sorted(blocks) if i % 2)]
