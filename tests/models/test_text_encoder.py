"""The text encoder equals stock diffusers on short prompts, and is built from the same chunks on long ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.prompt import clean, parse
from ldm.models.text import TextEncoder, Tower
from tests import components

PROMPTS = [
    "",
    "a photo of a red circle",
    "the small zebra, on the LEFT; it's 3.5!",
    "naïve 日本 <|endoftext|> 😀",
    "cat " * 75,
]


def far(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None
    assert b is not None
    assert a.shape == b.shape
    return float((a - b).abs().max())


def stock(pipe: Any, prompt: str, negative: str | None = None, clip_skip: int | None = None) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
                                        negative_prompt=negative, clip_skip=clip_skip))  # fmt: skip


def sd1(**options: Any) -> tuple[Any, TextEncoder]:
    pipe = components.sd1(**options)
    return pipe, TextEncoder([Tower(pipe.text_encoder, pipe.tokenizer)])


def xl() -> tuple[Any, TextEncoder]:
    pipe = components.xl()
    towers = [Tower(pipe.text_encoder, pipe.tokenizer), Tower(pipe.text_encoder_2, pipe.tokenizer_2)]
    return pipe, TextEncoder(towers, layer="penultimate", final_norm=False)


@pytest.mark.parametrize("dialect", ["a1111", "comfy", "compel"])
def test_sd1_equals_stock(dialect: str) -> None:
    pipe, encoder = sd1()
    for prompt in PROMPTS:
        wanted, unwanted = stock(pipe, clean(prompt), "the blue dog")
        assert far(encoder.encode(prompt, dialect=dialect).text, wanted) <= 1e-6
        assert far(encoder.encode("the blue dog", dialect=dialect).text, unwanted) <= 1e-6
    assert encoder.encode("a").pooled is None
    assert far(encoder.encode("a cat").text, encoder.encode("a dog").text) > 0.1


def test_clip_skip_equals_stock() -> None:
    # Stock reaches the final norm through `text_model`, which only the tower with a projection still has.
    tower = components.projected_tower(components.TEXT)
    pipe, encoder = sd1(text_encoder=tower)
    states = [encoder.encode("a red cat", clip_skip=skip).text for skip in range(4)]
    for skip, state in enumerate(states):
        assert far(state, stock(pipe, "a red cat", clip_skip=skip)[0]) <= 1e-6
    assert min(far(a, b) for a, b in pairwise(states)) > 1e-3
    plain = components.sd1()
    assert (
        far(TextEncoder([Tower(plain.text_encoder, plain.tokenizer)]).encode("a cat").text, stock(plain, "a cat")[0])
        == 0
    )
    for skip in (4, 12, -1):
        with pytest.raises(LdmError) as error:
            encoder.encode("a", clip_skip=skip)
        assert error.value.code == Code.USAGE
        assert "0 to 3" in error.value.fix


def test_sd2_penultimate_of_a_whole_tower_is_last_of_a_cut_one() -> None:
    words = components.tokenizer(pad="!")
    whole = components.text_tower(hidden_act="gelu", num_hidden_layers=4)
    cut = components.text_tower(hidden_act="gelu", num_hidden_layers=3)
    cut.load_state_dict({k: v for k, v in whole.state_dict().items() if "layers.3." not in k})
    pipe, short = sd1(text_encoder=cut, tokenizer=words)
    tall = TextEncoder([Tower(whole, words)], layer="penultimate", final_norm=True)
    for prompt in ("a red cat", ""):
        assert far(short.encode(prompt).text, stock(pipe, prompt)[0]) <= 1e-6
        assert far(tall.encode(prompt).text, short.encode(prompt).text) <= 1e-6


def test_xl_equals_stock() -> None:
    pipe, encoder = xl()
    for prompt in ("a photo of a red circle", "naïve zebra, the 3rd", ""):
        for skip in (None, 1):
            wanted, unwanted, pooled, null = stock(pipe, clean(prompt), "blue square", skip)
            found = encoder.encode(prompt, clip_skip=skip or 0)
            negative = encoder.encode("blue square")
            assert max(far(found.text, wanted), far(found.pooled, pooled)) <= 1e-6
            assert max(far(negative.text, unwanted), far(negative.pooled, null)) <= 1e-6


def test_the_refiner_equals_stock() -> None:
    pipe = components.xl_refiner()
    encoder = TextEncoder([Tower(pipe.text_encoder_2, pipe.tokenizer_2)], layer="penultimate", final_norm=False)
    wanted, _, pooled, _ = stock(pipe, "a red cat", "blue")
    found = encoder.encode("a red cat")
    assert max(far(found.text, wanted), far(found.pooled, pooled)) <= 1e-6


def test_a_long_prompt_is_its_chunks_encoded_one_by_one() -> None:
    pipe, encoder = xl()
    text = "cat " * 75 + "dog " * 75 + "red circle"
    found = encoder.encode(text, dialect="compel")
    parts = [stock(pipe, part) for part in ("cat " * 75, "dog " * 75, "red circle")]
    assert far(found.text, torch.cat([p[0] for p in parts], dim=1)) <= 1e-6
    assert far(found.pooled, parts[0][2]) <= 1e-6  # of the first chunk
    assert encoder.chunks(text) == 3
    assert far(encoder.encode("cat BREAK dog").text, torch.cat([stock(pipe, p)[0] for p in ("cat", "dog")], 1)) <= 1e-6


def test_padding_adds_empty_chunks() -> None:
    pipe, encoder = xl()
    found, empty = encoder.encode("a red cat", chunks=3), stock(pipe, "a red cat", "")[1]
    assert far(found.text[:, 77:], torch.cat([empty, empty], dim=1)) <= 1e-6
    assert far(found.pooled, encoder.encode("a red cat").pooled) == 0
    with pytest.raises(ValueError, match="2 chunks"):
        encoder.encode("cat " * 80, chunks=1)


def test_beyond_the_limit_words_are_dropped_and_named() -> None:
    pipe = components.sd1()
    encoder = TextEncoder([Tower(pipe.text_encoder, pipe.tokenizer)], max_chunks=2)
    found = encoder.encode("cat " * 150 + "red circle")
    assert found.text.shape[1] == 2 * 77
    assert found.dropped == ("red", "circle")
    assert encoder.explain("cat " * 150 + "red circle").dropped == ("red", "circle")


def test_a_schedule_is_read_at_its_moment() -> None:
    _, encoder = sd1()
    prompt = parse("a [red:blue cat:0.5] circle", steps=10)
    assert prompt.switches == (0.5,)
    for at, text in (
        (0.0, "a red circle"),
        (0.4, "a red circle"),
        (0.5, "a blue cat circle"),
        (0.9, "a blue cat circle"),
    ):
        assert far(encoder.encode(prompt, at=at).text, encoder.encode(text).text) == 0
    long = parse("[a:" + "cat " * 100 + ":5]", steps=10)
    assert (encoder.chunks(long), encoder.chunks(long, at=0.0), encoder.chunks(long, at=0.5)) == (2, 1, 2)
    assert encoder.chunks("[a:b:5]", steps=10) == 1


def test_an_exclamation_mark_is_a_word_although_the_tower_pads_with_it() -> None:
    pipe, encoder = xl()
    assert "!" in pipe.tokenizer_2.all_special_tokens
    tokens = [t.id for t in encoder.towers[1].vocabulary.spots(["cat!"])[0]]
    assert [tokens] == [[t.id for t in encoder.towers[0].vocabulary.spots(["cat!"])[0]]]
    assert pipe.tokenizer_2.pad_token_id not in tokens


def test_half_precision_stays_half() -> None:
    towers = [Tower(components.text_tower().to(t), components.tokenizer()) for t in (torch.float32, torch.bfloat16)]
    for dialect in ("a1111", "comfy"):
        exact, half = (TextEncoder([tower]).encode("a (red:1.3) cat", dialect=dialect).text for tower in towers)
        assert half.dtype == torch.bfloat16
        assert far(half.float(), exact) < 0.1


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(LdmError) as error:
        Tower(
            components.text_tower(vocab_size=100, eos_token_id=99, bos_token_id=98, pad_token_id=0),
            components.tokenizer(),
        )
    assert error.value.code == Code.MODEL
