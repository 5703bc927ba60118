"""Textual-inversion tokens: as stock `load_textual_inversion`, and gone without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.text import TextEncoder, Tower
from tests import components


def vectors(count: int, width: int = components.TEXT, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def encoder() -> TextEncoder:
    return TextEncoder([Tower(components.text_tower(), components.tokenizer())])


def xl_encoder() -> TextEncoder:
    towers = [
        Tower(components.text_tower(), components.tokenizer()),
        Tower(components.projected_tower(), components.tokenizer("!")),
    ]
    return TextEncoder(towers, layer="penultimate", final_norm=False)


@pytest.mark.parametrize(("token", "count"), [("<cat-toy>", 1), ("<cat-toy>", 3), ("mytoken", 2)])
def test_equals_stock(token: str, count: int) -> None:
    pipe, ours, learned = components.sd1(), encoder(), vectors(count)
    pipe.load_textual_inversion({token: learned}, token=token)
    ours.add_embedding(token, [learned])
    for prompt in (f"a red {token} on the circle", token, f"{token} {token}, cat"):
        with torch.no_grad():
            wanted = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
        assert float((ours.encode(prompt).text - wanted).abs().max()) <= 1e-5
    assert float((ours.encode(f"a {token}").text - encoder().encode(f"a {token}").text[:, :77]).abs().max()) > 0.1


def test_xl_takes_vectors_for_both_towers_and_pools_at_the_end_of_text() -> None:
    pipe, ours = components.xl(), xl_encoder()
    left, right = vectors(2), vectors(2, components.TEXT_G, 1)
    pipe.load_textual_inversion({"<s1>": left}, token="<s1>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(
        {"<s1>": right}, token="<s1>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
    )
    ours.add_embedding("<s1>", [left, right])
    with torch.no_grad():
        wanted, _, pooled, _ = pipe.encode_prompt("a red <s1> cat", device="cpu", do_classifier_free_guidance=False)
    found = ours.encode("a red <s1> cat")
    assert float((found.text - wanted).abs().max()) <= 1e-5
    assert found.pooled is not None
    assert float((found.pooled - pooled).abs().max()) <= 1e-5


def test_a_tower_without_vectors_reads_the_word() -> None:
    ours, plain = xl_encoder(), xl_encoder().encode("a cat").text
    ours.add_embedding("cat", [None, vectors(1, components.TEXT_G)])
    found = ours.encode("a cat").text
    assert torch.equal(found[..., : components.TEXT], plain[..., : components.TEXT])
    assert not torch.equal(found[..., components.TEXT :], plain[..., components.TEXT :])


def test_one_vector_that_is_a_words_own_embedding_is_that_word() -> None:
    ours = encoder()
    table = ours.towers[0].model.tokens().weight
    for word, name in (("red", "warm"), ("cat", "<pet>")):
        (spot,) = ours.towers[0].vocabulary.spots([word])[0]
        ours.add_embedding(name, [table[spot.id]])
    assert torch.equal(ours.encode("a WARM (<pet>:1.2)").text, encoder().encode("a red (cat:1.2)").text)


def test_clearing_leaves_no_trace() -> None:
    ours, fresh = encoder(), components.text_tower()
    before, words = ours.encode("a mytoken").text, len(components.tokenizer())
    ours.add_embedding("mytoken", [vectors(4)])
    changed = ours.encode("a mytoken").text
    ours.clear_embeddings()
    assert torch.equal(ours.encode("a mytoken").text, before)
    assert not torch.equal(changed, before)
    model = ours.towers[0].model
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert model.tokens().weight.shape[0] == words
    assert not model.tokens()._forward_hooks


def test_vectors_count_towards_the_chunk_and_are_explained() -> None:
    ours = encoder()
    ours.add_embedding("<long>", [vectors(10)])
    assert ours.chunks("cat " * 65 + "<long>") == 1
    assert ours.chunks("cat " * 66 + "<long>") == 2
    assert "<long>[9]" in str(ours.explain("a <long>"))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([torch.zeros(2, 7)], "[n, 32]"),
        ([torch.zeros(0, 32)], "[n, 32]"),
        ([torch.zeros(1, 2, 32)], "[n, 32]"),
        ([torch.full((1, 32), torch.nan)], "finite"),
        ([None], "1 text encoders"),
        ([torch.zeros(1, 32), torch.zeros(1, 64)], "the model has 1"),
    ],
)
def test_what_does_not_fit_is_refused(given: list[Tensor | None], why: str) -> None:
    ours = encoder()
    with pytest.raises(LdmError) as error:
        ours.add_embedding("x", given)
    assert error.value.code == Code.MODEL
    assert why in error.value.why
    assert not ours.towers[0].learned


def test_a_name_is_taken_once() -> None:
    ours = encoder()
    ours.add_embedding("Toy", [vectors(1)])
    for name in ("toy", "", " "):
        with pytest.raises(LdmError):
            ours.add_embedding(name, [vectors(1)])
