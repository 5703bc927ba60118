"""Attention written out: only where it is quicker, and the same attention wherever it is."""

from __future__ import annotations

import pytest
import torch

from ldm.models.attention import layer_prefixes, quick_attention
from ldm.models.nets import attention as written
from ldm.models.nets.attention import FEW, Attention
from ldm.models.nets.known import ours
from tests.components import unet


@pytest.fixture
def written_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The token counts of the calls that were written out."""
    seen: list[int] = []
    real = written._written_out

    def noted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append(q.shape[2])
        return real(q, k, v)

    monkeypatch.setattr(written, "_written_out", noted)
    return seen


def attention(words: int | None = None) -> Attention:
    torch.manual_seed(0)
    return Attention(32, 2, words)


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
def test_values_and_gradients_are_those_of_the_fused_one(
    across: bool, written_out: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = attention(32)
    x, words = torch.randn(3, 64, 32, requires_grad=True), torch.randn(3, 24, 32) if across else None
    told = []
    for few in (FEW, 0):
        monkeypatch.setattr(written, "FEW", few)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x, words)
        (gradient,) = torch.autograd.grad(out.float().square().sum(), x)
        told.append((out.float(), gradient))
    assert written_out == [64]
    for mine, fused in zip(*told, strict=True):
        assert (mine - fused).abs().max() <= 0.03 * fused.abs().max()


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


def test_perturbed_rows_see_their_own_values_alone() -> None:
    layer, x = attention(), torch.randn(2, 5, 32)
    rows = torch.tensor([False, True])
    got = layer(x, perturb=rows)
    assert torch.equal(got[0], layer(x)[0])
    assert torch.equal(got[1], layer.to_out[0](layer.to_v(x))[1])


def test_places_are_named_as_the_network_names_its_layers() -> None:
    network = ours(unet())
    names = list(network.attention_layers())
    assert set(names) <= set(dict(network.named_modules()))
    prefixes = layer_prefixes(["mid", "up.0"], network)
    assert all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
