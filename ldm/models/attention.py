"""Attention processors of ours: one that writes small attention out, one driven by call arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.errors import Code, LdmError

Rows = Mapping[str, Tensor]  # layer prefix -> which rows of the batch are perturbed, bool [B]


FEW = 256  # tokens up to which attention is written out; its matrix would grow with their square


class QuickAttention(AttnProcessor2_0):  # type: ignore[misc]
    """Fused attention; written out where its backward pass is the slower one: in half precision on a processor.

    There, over 64 tokens, the fused backward pass alone is a quarter of a step of training (docs/decisions.md).
    """

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tokens = hidden_states.shape[2:].numel() if hidden_states.dim() == 4 else hidden_states.shape[1]
        kind = AttnProcessor if _better_written_out(tokens, hidden_states.device) else AttnProcessor2_0
        out: Tensor = kind.__call__(self, attn, hidden_states, *args, **kwargs)
        return out


@contextmanager
def quick_attention(tokens: int, device: torch.device) -> Iterator[None]:
    """The same for networks that call torch's attention themselves, as open_clip's do."""
    if _better_written_out(tokens, device):
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


def _better_written_out(tokens: int, device: torch.device) -> bool:
    learns = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    return learns and device.type == "cpu" and tokens <= FEW


def quicken(network: nn.Module) -> None:
    """Give each attention layer that has the stock processor ours; what others put there stays."""
    for layer in network.modules():
        if isinstance(layer, Attention) and type(layer.processor) is AttnProcessor2_0:
            layer.set_processor(QuickAttention())


class DrivenAttention(QuickAttention):
    """Scaled dot-product attention; for perturbed rows of its layer, self-attention is replaced by the identity.

    Perturbed-attention guidance (Ahn 2024): softmax(Q K^T) becomes I, so that each position sees its own value alone.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: Any, perturb: Rows | None = None, **kwargs: Any
    ) -> Tensor:
        out: Tensor = super().__call__(attn, hidden_states, *args, **kwargs)
        encoder = args[0] if args else kwargs.get("encoder_hidden_states")
        rows = None if perturb is None or encoder is not None else self._rows(perturb)
        if rows is None or not bool(rows.any()):
            return out
        shape = hidden_states.shape
        flat = hidden_states.flatten(2).transpose(1, 2) if hidden_states.dim() == 4 else hidden_states
        if attn.group_norm is not None:
            flat = attn.group_norm(flat.transpose(1, 2)).transpose(1, 2)
        alone = attn.to_out[1](attn.to_out[0](attn.to_v(flat)))
        if hidden_states.dim() == 4:
            alone = alone.transpose(-1, -2).reshape(shape)
        if attn.residual_connection:
            alone = alone + hidden_states
        alone = alone / attn.rescale_output_factor
        return torch.where(rows.view(-1, *(1,) * (out.dim() - 1)), alone, out)

    def _rows(self, perturb: Rows) -> Tensor | None:
        """The rows that any of the named prefixes asks this layer to perturb."""
        mine = [rows for prefix, rows in perturb.items() if self.name.startswith(prefix)]
        return torch.stack(mine).any(0) if mine else None


def install(network: nn.Module) -> None:
    """Give every attention layer of a U-Net our processor."""
    network.set_attn_processor({name: DrivenAttention(name) for name in network.attn_processors})  # type: ignore[operator, union-attr]


def layer_prefixes(names: Iterable[str], network: nn.Module) -> frozenset[str]:
    """Names of places ("mid", "up.1", "down.2.attentions.0") as prefixes of layer names; an unknown one is an error."""
    layers = [n for n in network.attn_processors if ".attn1." in n]  # type: ignore[union-attr]
    found = set()
    for name in names:
        head, _, rest = name.partition(".")
        prefix = f"{head}_block." if head == "mid" else f"{head}_blocks.{rest}"
        prefix = f"{prefix}{rest}" if head == "mid" else prefix
        if not any(layer.startswith(prefix) for layer in layers):
            places = sorted(
                {".".join(n.split(".")[:2]).replace("_blocks", "").replace("_block.attentions", "") for n in layers}
            )
            raise LdmError(
                Code.USAGE,
                f"attention layer {name!r} is unknown",
                "the network has no self-attention there",
                f"Choose from: {', '.join(places)}.",
            )
        found.add(prefix)
    return frozenset(found)
