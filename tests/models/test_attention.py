"""Attention written out: only where it is quicker, and the same attention wherever it is."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from ldm.models.attention import FEW, DrivenAttention, QuickAttention, quick_attention, quicken
from tests.components import unet


@pytest.fixture
def written_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The token counts of the calls that were written out."""
    seen: list[int] = []
    stock = AttnProcessor.__call__

    def noted(self: object, attn: Attention, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append(x.shape[1])
        out: torch.Tensor = stock(self, attn, x, *args, **kwargs)
        return out

    monkeypatch.setattr(AttnProcessor, "__call__", noted)
    return seen


def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(32, heads=2, dim_head=16, processor=QuickAttention())


def test_it_is_written_out_where_half_precision_learns_over_few_tokens(written_out: list[int]) -> None:
    layer = attention()
    few, many = torch.randn(2, FEW, 32), torch.randn(1, FEW + 1, 32)
    layer(few)  # full precision
    with torch.autocast("cpu", torch.bfloat16):
        layer(many)
        with torch.no_grad():
            layer(few)
        assert written_out == []
        layer(few)
    assert written_out == [FEW]


@pytest.mark.parametrize("across", [False, True])
def test_values_and_gradients_are_those_of_the_fused_one(across: bool, written_out: list[int]) -> None:
    layer = attention()
    x, words = torch.randn(3, 64, 32, requires_grad=True), torch.randn(3, 24, 32) if across else None
    told = {}
    for processor in (QuickAttention(), AttnProcessor2_0()):
        layer.set_processor(processor)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x, encoder_hidden_states=words)
        (gradient,) = torch.autograd.grad(out.float().square().sum(), x)
        told[type(processor)] = (out.float(), gradient)
    assert written_out == [64]
    for mine, theirs in zip(told[QuickAttention], told[AttnProcessor2_0], strict=True):
        assert (mine - theirs).abs().max() <= 0.03 * theirs.abs().max()


def test_stock_processors_are_replaced_and_others_stay() -> None:
    network = unet()
    first = next(iter(network.attn_processors))
    network.set_attn_processor(
        {n: AttnProcessor2_0() for n in network.attn_processors} | {first: DrivenAttention(first)}
    )
    quicken(network)
    kinds = {name: type(processor) for name, processor in network.attn_processors.items()}
    assert kinds.pop(first) is DrivenAttention
    assert set(kinds.values()) == {QuickAttention}


def test_attention_of_torch_itself_is_written_out_likewise() -> None:
    """The decomposed backward pass leaves no fused operation in the graph."""
    q = torch.randn(2, 2, 16, 16, requires_grad=True)
    told = []
    for tokens in (FEW, FEW + 1):
        with torch.autocast("cpu", torch.bfloat16), quick_attention(tokens, q.device):
            out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        told.append((out.float(), "ScaledDotProduct" in type(out.grad_fn).__name__))
    assert [fused for _, fused in told] == [False, True]
    assert (told[0][0] - told[1][0]).abs().max() < 0.03
