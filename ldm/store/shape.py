"""The configuration of a ControlNet, read off the shapes of its tensors: published ones come in several sizes."""

from __future__ import annotations

import re
from typing import Any

from ldm.store.detect import Facts, Shapes

_BLOCK = re.compile(r"down_blocks\.(\d+)\.attentions\.0\.transformer_blocks\.(\d+)\.")


def controlnet_config(shapes: Shapes, facts: Facts) -> dict[str, Any]:
    """Widths and depths are counted; what shapes cannot tell (heads, groups) is as in the published families."""
    hint = _hint_channels(shapes)
    if "conv_in.weight" not in shapes:
        shapes = _renamed(shapes)
    widths = _indexed(shapes, r"down_blocks\.(\d+)\.resnets\.0\.conv1\.weight$")
    layers = _indexed(shapes, r"down_blocks\.0\.resnets\.(\d+)\.conv1\.weight$")
    depth: dict[int, int] = {}  # transformer layers of each level that has attention
    for name in shapes:
        if m := _BLOCK.match(name):
            depth[int(m[1])] = max(depth.get(int(m[1]), 0), 1 + int(m[2]))
    middle = 1 + max(
        (int(m[1]) for n in shapes if (m := re.match(r"mid_block.*\.transformer_blocks\.(\d+)", n))), default=0
    )
    linear = any(n.endswith(".proj_in.weight") and len(s) == 2 for n, s in shapes.items())
    levels = range(len(widths))
    config: dict[str, Any] = {
        "block_out_channels": [widths.get(i, 0) for i in levels],
        "down_block_types": ["CrossAttnDownBlock2D" if i in depth else "DownBlock2D" for i in levels],
        "layers_per_block": len(layers),
        # the middle takes the depth of the last level
        "transformer_layers_per_block": [depth.get(i, middle if i == len(widths) - 1 else 1) for i in levels],
        "cross_attention_dim": facts.text,
        "in_channels": facts.channels,
        "use_linear_projection": linear,
        # SD 1 has 8 heads at every width, the later families heads of 64 channels
        "attention_head_dim": [max(1, widths.get(i, 0) // 64) for i in levels] if linear else 8,
        "conditioning_embedding_out_channels": hint,
    }
    if not any(n.startswith("mid_block.attentions.") for n in shapes):
        config["mid_block_type"] = "UNetMidBlock2D"
    if facts.added is not None:
        added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        config |= {**added, "projection_class_embeddings_input_dim": facts.added}
    return config


def _indexed(shapes: Shapes, pattern: str) -> dict[int, int]:
    """Index in the name -> first dimension."""
    return {int(m[1]): s[0] for n, s in shapes.items() if s and (m := re.match(pattern, n))}


def _renamed(shapes: Shapes) -> Shapes:
    """Original names of the encoder half in diffusers' words: a level ends where its downsampling stands."""
    downs = sorted(int(m[1]) for n in shapes if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.weight$", n)))
    renamed = {}
    for name, shape in shapes.items():
        if m := re.match(r"input_blocks\.([1-9]\d*)\.([01])\.(.*)", name):
            level = sum(int(m[1]) > down for down in downs)
            layer = int(m[1]) - 1 - (downs[level - 1] if level else 0)
            part = "attentions" if m[2] == "1" else "resnets"
            inner = m[3].replace("in_layers.2.", "conv1.")
            renamed[f"down_blocks.{level}.{part}.{layer}.{inner}"] = shape
        elif name.startswith("middle_block.1."):
            renamed[name.replace("middle_block.1.", "mid_block.attentions.0.")] = shape
    return renamed


def _hint_channels(shapes: Shapes) -> list[int]:
    """Widths of the hint embedding: conv_in, then every second of its blocks."""
    blocks = _indexed(shapes, r"controlnet_cond_embedding\.blocks\.(\d+)\.weight$")
    if original := _indexed(shapes, r"input_hint_block\.(\d+)\.weight$"):
        order = sorted(original)[:-1]  # conv_in, the blocks, conv_out
        return [original[i] for i in order[::2]]
    first = shapes.get("controlnet_cond_embedding.conv_in.weight", (0,))[0]
    return [first, *(blocks[i] for i in sorted(blocks) if i % 2)]
