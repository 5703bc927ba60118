"""Where attention stands in a network, and how networks of others compute theirs where they learn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.errors import Code, LdmError
from ldm.models.nets.attention import better_written_out
from ldm.models.nets.unet import UNet2D


@contextmanager
def quick_attention(tokens: int, device: torch.device) -> Iterator[None]:
    """For networks that call torch's attention themselves, as open_clip's do: what ours do in training."""
    if better_written_out(tokens, device):
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


def layer_prefixes(names: Iterable[str], network: UNet2D) -> frozenset[str]:
    """Names of places ("mid", "up.1", "down.2.attentions.0") as prefixes of layer names; an unknown one is an error."""
    layers = list(network.attention_layers())
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
