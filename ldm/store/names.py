"""Names of tensors in the original checkpoints, derived from those of diffusers and transformers.

One direction is enough: a plan (diffusers name -> where it lies in the original file) reads a file, and written down
backwards it makes one. Derived from the networks' structure and not from a table, so that any width and depth works.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_UNET_ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
              "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
              "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
              "controlnet_mid_block": "middle_block_out.0",
              "controlnet_cond_embedding.conv_in": "input_hint_block.0"}  # fmt: skip
_UNET_PLACE = re.compile(
    r"(down_blocks|up_blocks)\.\d{1,4}\.(resnets|attentions|downsamplers|upsamplers)\.\d{1,4}\.[^.]+\..+"
    r"|mid_block\.(resnets|attentions)\.\d{1,4}\.[^.]+\..+"
    r"|controlnet_cond_embedding\.blocks\.\d{1,4}\.[^.]+|controlnet_down_blocks\.\d{1,4}\.[^.]+"
)
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
              "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
_OPEN_CLIP_ENDS = {"embeddings.token_embedding.weight": "token_embedding.weight",
                   "embeddings.position_embedding.weight": "positional_embedding",
                   "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """Where a tensor of a network comes from: a tensor of the file, or some rows of it, or its transpose."""

    source: str
    rows: tuple[int, int] | None = None  # [begin, end) of the first dimension
    turned: bool = False

    def shape(self, full: tuple[int, ...]) -> tuple[int, ...]:
        if self.rows is not None:
            full = (min(self.rows[1], full[0]) - self.rows[0], *full[1:]) if full else full
        return full[::-1] if self.turned else full

    def cut(self, full: Tensor) -> Tensor:
        if self.rows is not None:
            full = full[self.rows[0] : self.rows[1]]
        return full.t().contiguous() if self.turned else full


def unet_plan(names: Iterable[str], layers: int, prefix: str) -> dict[str, Piece]:
    """A U-Net, or a ControlNet (its encoder half and its zero convolutions), of `layers` resnets per level.

    What the original has no name for keeps that of diffusers, as `time_embedding.cond_proj.weight` (the guidance scale
    told to a distilled network) does in the single files that others wrote.
    """
    names = list(names)
    attended = {name.split(".")[1] for name in names if re.match(r"up_blocks\.\d+\.attentions\.", name)}
    blocks = (re.match(r"controlnet_cond_embedding\.blocks\.(\d{1,4})\.", n) for n in names)
    hints = 1 + max((int(m[1]) for m in blocks if m), default=0)
    return {name: Piece(prefix + _unet(name, layers, attended, hints)) for name in names}


def _unet(name: str, layers: int, attended: set[str], hints: int) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _UNET_ENDS:
        return f"{_UNET_ENDS[stem]}.{kind}"
    if stem == "controlnet_cond_embedding.conv_out":
        return f"input_hint_block.{2 * (hints + 1)}.{kind}"
    if not _UNET_PLACE.fullmatch(name):
        return name
    head, *rest = name.split(".")
    if head == "controlnet_cond_embedding":  # blocks.k: every second place is an activation
        return f"input_hint_block.{2 * (int(rest[1]) + 1)}.{kind}"
    if head == "controlnet_down_blocks":
        return f"zero_convs.{rest[0]}.0.{kind}"
    if head == "mid_block":
        place = "1" if rest[0] == "attentions" else str(2 * int(rest[1]))
        return f"middle_block.{place}.{_inner(rest[0], rest[2:])}"
    block, part, index = int(rest[0]), rest[1], int(rest[2])
    if part == "downsamplers":  # its own place after the resnets of the level
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{kind}"
    if part == "upsamplers":  # shares the place of the level's last resnet, after its attention
        return f"output_blocks.{block * (layers + 1) + layers}.{1 + (rest[0] in attended)}.conv.{kind}"
    at = 1 + block * (layers + 1) + index if head == "down_blocks" else block * (layers + 1) + index
    side = "input_blocks" if head == "down_blocks" else "output_blocks"
    return f"{side}.{at}.{int(part == 'attentions')}.{_inner(part, rest[3:])}"


def _inner(part: str, rest: list[str]) -> str:
    return ".".join([_RESNET.get(rest[0], rest[0]) if part == "resnets" else rest[0], *rest[1:]])


def vae_plan(names: Iterable[str], prefix: str) -> dict[str, Piece]:
    """An autoencoder; the original counts the decoder's levels from the picture, diffusers from the latent."""
    names = list(names)
    levels = 1 + max(int(n.split(".")[2]) for n in names if n.startswith("decoder.up_blocks."))
    return {name: Piece(prefix + _vae(name, levels)) for name in names}


def _vae(name: str, levels: int) -> str:
    head, *rest = name.split(".")
    kind = rest[-1]
    if head in ("quant_conv", "post_quant_conv") or rest[0] in ("conv_in", "conv_out"):
        return name
    if rest[0] == "conv_norm_out":
        return f"{head}.norm_out.{kind}"
    if rest[0] == "mid_block":
        if rest[1] == "attentions":
            return f"{head}.mid.attn_{int(rest[2]) + 1}.{_VAE_ATTENTION['.'.join(rest[3:-1])]}.{kind}"
        return f"{head}.mid.block_{int(rest[2]) + 1}.{_shortcut(rest[3])}.{kind}"
    down = rest[0] == "down_blocks"
    level = f"{head}.down.{rest[1]}" if down else f"{head}.up.{levels - 1 - int(rest[1])}"
    if rest[2] in ("downsamplers", "upsamplers"):
        return f"{level}.{'downsample' if down else 'upsample'}.conv.{kind}"
    if rest[2] == "attentions":
        return f"{level}.attn.{rest[3]}.{_VAE_ATTENTION['.'.join(rest[4:-1])]}.{kind}"
    return f"{level}.block.{rest[3]}.{_shortcut(rest[4])}.{kind}"


def _shortcut(name: str) -> str:
    return "nin_shortcut" if name == "conv_shortcut" else name


def clip_plan(names: Iterable[str], prefix: str) -> dict[str, Piece]:
    """A text tower that the original kept in transformers' own names, always with `text_model.`."""
    return {
        n: Piece(prefix + (n if n.startswith("text_projection") else f"text_model.{n.removeprefix('text_model.')}"))
        for n in names
    }


def open_clip_plan(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, Piece]:
    """A text tower in open_clip's names: query, key and value are rows of one matrix, the projection is turned."""
    plan = {}
    for name in shapes:
        bare = name.removeprefix("text_model.")
        if bare in _OPEN_CLIP_ENDS:
            plan[name] = Piece(prefix + _OPEN_CLIP_ENDS[bare])
        elif bare == "text_projection.weight":
            plan[name] = Piece(f"{prefix}text_projection", turned=True)
        else:
            _, _, layer, *rest = bare.split(".")
            plan[name] = _open_clip_layer(f"{prefix}transformer.resblocks.{layer}", rest, shapes[name][0])
    return plan


def _open_clip_layer(block: str, rest: list[str], width: int) -> Piece:
    stem, kind = ".".join(rest[:-1]), rest[-1]
    if stem in _OPEN_CLIP:
        return Piece(f"{block}.{_OPEN_CLIP[stem]}.{kind}")
    third = ["q_proj", "k_proj", "v_proj"].index(rest[1])
    return Piece(f"{block}.attn.in_proj_{kind}", rows=(third * width, (third + 1) * width))
