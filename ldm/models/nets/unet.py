"""The U-Net that denoises: down, middle and up, with what each side of it saw on the way down (Rombach 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.nets.attention import Rows, Transformer, Words
from ldm.models.nets.base import Net, each, only
from ldm.models.nets.resnet import Downsample, Resnet, Upsample
from ldm.models.nets.timing import TimeEmbedding, sinusoids

SHAPE: Mapping[str, Any] = MappingProxyType({
    "sample_size": None, "in_channels": 4, "out_channels": 4, "flip_sin_to_cos": True, "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "only_cross_attention": False, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "downsample_padding": 1, "dropout": 0.0, "norm_num_groups": 32, "norm_eps": 1e-5, "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1, "attention_head_dim": 8, "num_attention_heads": None,
    "use_linear_projection": False, "num_class_embeds": None, "addition_embed_type": None,
    "addition_time_embed_dim": None, "projection_class_embeddings_input_dim": None, "time_cond_proj_dim": None,
})  # fmt: skip

# What no network of the family has otherwise.
SETTLED: Mapping[str, tuple[Any, ...]] = MappingProxyType({
    "act_fn": ("silu", "swish"), "addition_embed_type_num_heads": (64,), "attention_type": ("default",),
    "center_input_sample": (False,), "class_embed_type": (None,), "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,), "conv_out_kernel": (3,), "cross_attention_norm": (None,), "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,), "resnet_out_scale_factor": (1.0,), "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",), "reverse_transformer_layers_per_block": (None,),
    "time_embedding_act_fn": (None,), "time_embedding_dim": (None,), "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "upcast_attention": (False, True),  # of no effect on fused attention, in stock code as well
})  # fmt: skip


class Down(nn.Module):
    """Residual blocks, each followed by attention where there is some, and half the side at the end."""

    def __init__(self, shape: Shape, i: int) -> None:
        super().__init__()
        inside, out = shape.widths[max(i - 1, 0)], shape.widths[i]
        self.resnets = nn.ModuleList([shape.resnet(inside if j == 0 else out, out) for j in range(shape.layers[i])])
        self.attentions = shape.attentions(i, shape.layers[i], shape.kinds[i])
        last = i == len(shape.widths) - 1
        self.downsamplers = None if last else nn.ModuleList([Downsample(out, shape.padding)])

    def forward(
        self, x: Tensor, time: Tensor, words: Tensor | Words | None, perturb: Rows | None
    ) -> tuple[Tensor, list[Tensor]]:
        seen = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions is not None:
                x = self.attentions[i](x, words, perturb)
            seen.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            seen.append(x)
        return x, seen


class Middle(nn.Module):
    """Attention between two residual blocks, or a single one."""

    def __init__(self, shape: Shape, attention: bool = True) -> None:
        super().__init__()
        width = shape.widths[-1]
        self.resnets = nn.ModuleList([shape.resnet(width, width) for _ in range(1 + attention)])
        self.attentions = shape.attentions(-1, 1, attention)

    def forward(self, x: Tensor, time: Tensor, words: Tensor | Words | None, perturb: Rows | None) -> Tensor:
        x = self.resnets[0](x, time)
        if self.attentions is not None:
            x = self.resnets[1](self.attentions[0](x, words, perturb), time)
        return x


class Up(nn.Module):
    """As on the way down, each residual block beside what was seen there, and twice the side at the end."""

    def __init__(self, shape: Shape, i: int) -> None:
        super().__init__()
        place = len(shape.widths) - 1 - i  # of its partner on the way down
        out, before = shape.widths[place], shape.widths[min(place + 1, len(shape.widths) - 1)]
        below = shape.widths[max(place - 1, 0)]
        count = shape.layers[place] + 1
        self.resnets = nn.ModuleList(
            [shape.resnet((before if j == 0 else out) + (below if j == count - 1 else out), out) for j in range(count)]
        )
        self.attentions = shape.attentions(place, count, shape.up_kinds[i])
        self.upsamplers = None if place == 0 else nn.ModuleList([Upsample(out)])

    def forward(
        self, x: Tensor, seen: list[Tensor], time: Tensor, words: Tensor | Words | None, perturb: Rows | None
    ) -> Tensor:
        """Takes from the end of `seen` as many as it has residual blocks."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, seen.pop()], dim=1), time)
            if self.attentions is not None:
                x = self.attentions[i](x, words, perturb)
        if self.upsamplers is not None:
            side = seen[-1].shape[-2:]
            x = self.upsamplers[0](x, None if side == tuple(2 * s for s in x.shape[-2:]) else side)
        return x


class Shape:
    """A configuration read once: what its blocks are made of."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.widths = tuple(config["block_out_channels"])
        count = len(self.widths)
        only(("CrossAttnDownBlock2D", "DownBlock2D"), each(config["down_block_types"], count))
        only(("CrossAttnUpBlock2D", "UpBlock2D"), each(config.get("up_block_types", "UpBlock2D"), count))
        only(("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None), [config["mid_block_type"]])
        only((None, "text_time"), [config["addition_embed_type"]])
        self.kinds = [kind == "CrossAttnDownBlock2D" for kind in config["down_block_types"]]
        self.up_kinds = [kind == "CrossAttnUpBlock2D" for kind in config.get("up_block_types", ())]
        self.layers = each(config["layers_per_block"], count)
        self.padding, self.dropout = config["downsample_padding"], config.get("dropout", 0.0)
        self.groups, self.eps = config["norm_num_groups"], config["norm_eps"]
        self.words = each(config["cross_attention_dim"], count)
        self.depths = each(config["transformer_layers_per_block"], count)
        # What stock configurations call the width of a head has always been the number of heads.
        self.heads = each(config["num_attention_heads"] or config["attention_head_dim"], count)
        self.linear = config["use_linear_projection"]
        self.only_words = each(config["only_cross_attention"], count)
        self.time = 4 * self.widths[0]

    def resnet(self, inside: int, out: int) -> Resnet:
        return Resnet(inside, out, self.time, groups=self.groups, eps=self.eps, dropout=self.dropout)

    def attentions(self, place: int, count: int, wanted: bool) -> nn.ModuleList | None:
        if not wanted:
            return None
        only = self.only_words[place] and place != -1
        return nn.ModuleList(
            [
                Transformer(
                    self.widths[place], self.heads[place], self.words[place], layers=self.depths[place],
                    groups=self.groups, linear=self.linear, only_words=only,
                )
                for _ in range(count)
            ]
        )  # fmt: skip


class Stem(Net):
    """What a U-Net and a ControlNet have in common: the first layer, the time, and the way down with its middle."""

    def _build(self, shape: Shape, middle: str | None) -> None:
        config = self.config
        self.conv_in = nn.Conv2d(config.in_channels, shape.widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(shape.widths[0], shape.time, config.get("time_cond_proj_dim"))
        kinds = config.num_class_embeds
        self.class_embedding = None if kinds is None else nn.Embedding(kinds, shape.time)
        self.add_embedding = None
        if config.addition_embed_type == "text_time":
            self.add_embedding = TimeEmbedding(config.projection_class_embeddings_input_dim, shape.time)
        self.down_blocks = nn.ModuleList([Down(shape, i) for i in range(len(shape.widths))])
        self.mid_block = None if middle is None else Middle(shape, middle == "UNetMidBlock2DCrossAttn")

    def _called(self) -> None:
        """Each attention learns its name."""
        for name, module in self.named_modules():
            if isinstance(module, Transformer):
                module.name = name

    def moment(
        self,
        t: Tensor,
        batch: int,
        told: Tensor | None,
        label: Tensor | None,
        pooled: Tensor | None,
        sizes: Tensor | None,
    ) -> Tensor:
        """All that holds for the whole picture: the time, a guidance scale, a class, pooled words and sizes (XL)."""
        config, dtype = self.config, self.dtype
        steps = t.reshape(-1).expand(batch)
        told_by = {"cosine_first": config.flip_sin_to_cos, "shift": config.freq_shift}
        time: Tensor = self.time_embedding(sinusoids(steps, self.conv_in.out_channels, **told_by).to(dtype), told)
        if self.class_embedding is not None:
            if label is None:
                raise ValueError("a network of classes is to be told one")
            time = time + self.class_embedding(label).to(dtype)
        if self.add_embedding is not None:
            if pooled is None or sizes is None:
                raise ValueError("a network of the XL family is to be told pooled words and sizes")
            size = sinusoids(sizes.flatten(), config.addition_time_embed_dim, **told_by).reshape(len(sizes), -1)
            time = time + self.add_embedding(torch.cat([pooled, size.to(pooled.dtype)], dim=1).to(dtype))
        return time

    def descend(
        self, x: Tensor, time: Tensor, words: Tensor | Words | None, perturb: Rows | None
    ) -> tuple[Tensor, list[Tensor]]:
        """What comes out at the bottom, and all that was seen on the way."""
        seen = [x]
        for block in self.down_blocks:
            x, more = block(x, time, words, perturb)
            seen += more
        return x, seen


class UNet2D(Stem):
    """Noisy latents to what the network was trained to say of them."""

    STOCK = "UNet2DConditionModel"
    DEFAULTS = SHAPE
    SETTLED = SETTLED

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        config = self.config
        shape = Shape(config)
        self._build(shape, config.mid_block_type)
        self.up_blocks = nn.ModuleList([Up(shape, i) for i in range(len(shape.widths))])
        self.conv_norm_out = nn.GroupNorm(shape.groups, shape.widths[0], shape.eps)
        self.conv_out = nn.Conv2d(shape.widths[0], config.out_channels, 3, padding=1)
        self._called()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        words: Tensor | Words | None = None,
        *,
        guidance: Tensor | None = None,
        label: Tensor | None = None,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        perturb: Rows | None = None,
        residuals: tuple[Sequence[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`residuals`: what controls add to all that is seen on the way down, and to the middle."""
        time = self.moment(t, len(x), guidance, label, pooled, sizes)
        x, seen = self.descend(self.conv_in(x), time, words, perturb)
        if residuals is not None:
            seen = [own + more for own, more in zip(seen, residuals[0], strict=True)]
        if self.mid_block is not None:
            x = self.mid_block(x, time, words, perturb)
        if residuals is not None:
            x = x + residuals[1]
        for block in self.up_blocks:
            x = block(x, seen, time, words, perturb)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out

    def attention_layers(self) -> Iterator[str]:
        """Names of the layers in which pixels attend to each other."""
        for name, module in self.named_modules():
            if isinstance(module, Transformer):
                for i in range(len(module.transformer_blocks)):
                    yield f"{name}.transformer_blocks.{i}.attn1"
