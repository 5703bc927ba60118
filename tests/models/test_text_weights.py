"""What weights do, dialect by dialect: numbers worked out by hand, and the formulas written out on a tiny tower."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.models.text import TextEncoder, Tower
from ldm.models.text_weights import blended, from_empty, restored_mean
from tests import components


@pytest.fixture
def parts() -> tuple[Any, Any, TextEncoder]:
    model, words = components.text_tower(), components.tokenizer()
    model.final_layer_norm.bias.data += 0.3  # a trained tower's hidden states have a mean, a random one's have not
    return model, words, TextEncoder([Tower(model, words)])


@torch.no_grad()
def states(model: Any, words: Any, text: str, masked: tuple[int, ...] = ()) -> Tensor:
    """[77,D] of stock code, with some positions masked."""
    ids = words(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
    mask = torch.ones_like(ids)
    mask[0, list(masked)] = 0
    state: Tensor = model(ids, attention_mask=mask if masked else None).last_hidden_state[0]
    return state


def test_by_hand() -> None:
    z = torch.tensor([[[1.0, 3.0], [2.0, 2.0]]])  # mean 2
    weights = torch.tensor([1.0, 2.0])
    # a1111: w z = 1 3 | 4 4, mean 3, times 2/3
    assert torch.allclose(restored_mean(z, weights), torch.tensor([[[2 / 3, 2.0], [8 / 3, 8 / 3]]]))
    # comfy: e + 2 (z - e) for the second token, e = 1 0
    empty = torch.tensor([[[9.0, 9.0], [1.0, 0.0]]])
    assert torch.equal(from_empty(z, empty, weights), torch.tensor([[[1.0, 3.0], [3.0, 4.0]]]))
    # compel: at weight 1/2 half-way; at 0 all but the prompt without the piece; tan(pi/8) at 3/4
    other = torch.tensor([[[3.0, 1.0], [0.0, 0.0]]])
    assert torch.allclose(blended(z, [(0.5, other)]), (z + other) / 2)
    assert torch.allclose(blended(z, [(0.0, other)]), other, atol=1e-4)
    pull = math.sqrt(2) - 1
    assert torch.allclose(blended(z, [(0.75, other)]), (z + pull * other) / (1 + pull))
    assert torch.allclose(blended(z, [(0.5, other), (0.5, z)]), (2 * z + other) / 3)


def test_where_there_is_no_mean_there_is_none_to_restore() -> None:
    z, weights = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]), torch.tensor([1.0, -1.0])
    assert torch.equal(restored_mean(z, weights), torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]]))
    z, weights = torch.tensor([[[1.0, -1.0000001], [2.0, -2.0]]]), torch.tensor([1.0, 1.5])
    assert torch.equal(restored_mean(z, weights), z * weights[:, None])


def test_a1111_on_a_tower(parts: tuple[Any, Any, TextEncoder]) -> None:
    model, words, encoder = parts
    z = states(model, words, "a red cat on the dog")
    weights = torch.ones(77, 1)
    weights[2], weights[3], weights[6] = 1.3, 1.3, 1 / 1.1
    expected = z * weights * (z.mean() / (z * weights).mean())
    found = encoder.encode("a (red cat:1.3) on the [dog]").text[0]
    assert float((found - expected).abs().max()) <= 1e-5
    assert float((found - z).abs().max()) > 0.01


def test_a1111_restores_the_mean_of_each_chunk_alone(parts: tuple[Any, Any, TextEncoder]) -> None:
    model, words, encoder = parts
    found = encoder.encode("(a red cat:1.5) BREAK the dog BREAK [blue]").text[0]
    for i, text in enumerate(["a red cat", "the dog", "blue"]):
        mean = float(states(model, words, text).mean())
        assert float(found[77 * i : 77 * (i + 1)].mean()) == pytest.approx(mean, abs=1e-6)
    assert torch.equal(found[77:154], states(model, words, "the dog"))


def test_comfy_on_a_tower(parts: tuple[Any, Any, TextEncoder]) -> None:
    model, words, encoder = parts
    z, empty = states(model, words, "a red cat on the dog"), states(model, words, "")
    expected = z.clone()
    expected[2:4] = empty[2:4] + 1.3 * (z[2:4] - empty[2:4])
    expected[6] = empty[6] + 0.5 * (z[6] - empty[6])
    found = encoder.encode("a (red cat:1.3) on the (dog:0.5)", dialect="comfy").text[0]
    assert float((found - expected).abs().max()) <= 1e-5
    assert torch.equal(found[:2], z[:2])


def test_compel_on_a_tower(parts: tuple[Any, Any, TextEncoder]) -> None:
    model, words, encoder = parts
    text, empty = "a red cat on the dog", states(model, words, "")
    weights = torch.ones(77, 1)
    weights[2], weights[3], weights[6] = 1.1**2, 1.0, 0.9**2

    def scaled(z: Tensor) -> Tensor:
        return empty + weights * (z - empty)

    pull = math.tan((1 - 0.9**2) * math.pi / 2)
    base, without = scaled(states(model, words, text)), scaled(states(model, words, text, (6,)))
    expected = (base + pull * without) / (1 + pull)
    found = encoder.encode("a red++ cat on the dog--", dialect="compel").text[0]
    assert float((found - expected).abs().max()) <= 1e-5
    up = encoder.encode("a red++ cat on the dog", dialect="compel").text[0]
    weights[6] = 1.0
    assert float((up - scaled(states(model, words, text))).abs().max()) <= 1e-5


def test_compel_counts_light_pieces_of_other_chunks(parts: tuple[Any, Any, TextEncoder]) -> None:
    model, words, encoder = parts
    first = "cat " * 75
    found = encoder.encode(f"(cat)0.5 {'cat ' * 74} dog (red)0.5", dialect="compel").text[0]
    empty = states(model, words, "")
    weights = torch.ones(77, 1)
    weights[1] = 0.5
    base, without = (empty + weights * (states(model, words, first, m) - empty) for m in ((), (1,)))
    assert float((found[:77] - (2 * base + without) / 3).abs().max()) <= 1e-5


def test_weights_of_one_change_no_bit(parts: tuple[Any, Any, TextEncoder]) -> None:
    model, words, encoder = parts
    for text, dialect in (("a (red:1) cat", "a1111"), ("a (red:1.0) cat", "comfy"), ("a (red)1 cat", "compel")):
        assert torch.equal(encoder.encode(text, dialect=dialect).text[0], states(model, words, "a red cat"))


def test_dialects_differ_and_towers_of_xl_are_weighted_apart() -> None:
    pipe = components.xl()
    towers = [Tower(pipe.text_encoder, pipe.tokenizer), Tower(pipe.text_encoder_2, pipe.tokenizer_2)]
    encoder = TextEncoder(towers, layer="penultimate", final_norm=False)
    one, other = encoder.encode("a (cat:1.4)"), encoder.encode("a (cat:1.4)", dialect="comfy")
    assert float((one.text - other.text).abs().max()) > 0.01
    plain = encoder.encode("a cat")
    assert one.pooled is not None
    assert plain.pooled is not None
    assert torch.equal(one.pooled, plain.pooled)  # weights do not reach the pooled text
    for part in (slice(0, components.TEXT), slice(components.TEXT, None)):
        means = [float(found.text[..., part].mean()) for found in (one, plain)]
        assert means[0] == pytest.approx(means[1], abs=1e-6)
