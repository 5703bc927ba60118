"""What a CLIP run writes: read by open_clip, by transformers, by diffusion, and by itself, with equal numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from ldm.errors import LdmError
from ldm.models.clip import prepare
from ldm.models.nets.text import TextTower
from ldm.models.text import TextEncoder, Tower
from ldm.store.clip import load_clip
from ldm.store.folder import load_component
from tests.train.tasks.clips import SIDE, batch, gradients, make, open_ids
from train.draws import Draws
from train.tasks.clip import ClipTask


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipTask, Path, list[float]]:
    """A task that has learned one batch, and its folder."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("clip")
    task, whole = make(place), batch(8)
    optimiser = torch.optim.AdamW(task.phases()[0].params, lr=2e-3)
    losses = []
    for _ in range(40):
        value, _, _ = gradients(task, whole, 4)
        optimiser.step()
        losses.append(value)
    task.save(place / "model")
    return task, place / "model", losses


def test_it_learns_a_batch(trained: tuple[ClipTask, Path, list[float]]) -> None:
    task, _, losses = trained
    assert losses[-1] < 0.2 * losses[0]
    figures = task.validate(Draws(0, torch.arange(8), 8), batch(8, step=1))
    assert {name: tuple(f.shape) for name, f in figures.items()} == dict.fromkeys(figures, (8,))
    assert float(figures["image_to_text"].mean()) >= 0.75
    assert float(figures["text_to_image"].mean()) >= 0.75
    shuffled = replace(batch(8), text=batch(8).text[1:] + batch(8).text[:1])
    assert float(task.validate(Draws(0, torch.arange(8), 8), shuffled)["image_to_text"].mean()) <= 0.25
    picture = task.preview(0)["similarity"]
    assert picture.shape == (1, 3, 12 * 32, 13 * 32)
    assert -1 <= picture.min() < picture.max() <= 1
    assert picture[0, 0, 16, 48] > picture[0, 0, 16, 80]  # the first picture fits the first caption, not the second


def test_open_clip_reads_the_folder(trained: tuple[ClipTask, Path, list[float]]) -> None:
    task, folder, _ = trained
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    texts = ["a red picture", "A  Blue wall!", "", "something else entirely, and longer than twelve places of text"]
    assert torch.equal(tokenizer(texts), open_ids(task, texts))
    picture = batch(3).image
    assert picture is not None
    with torch.no_grad():
        out = model(prepare(picture, SIDE, task.about.mean, task.about.std), tokenizer(texts))
    assert out[2].shape == ()
    clip = load_clip(folder)
    assert (clip.encode_image(picture) - out[0]).abs().max() <= 1e-5
    assert (clip.encode_text(texts) - out[1]).abs().max() <= 1e-5
    assert clip.scale == pytest.approx(float(out[2]), rel=1e-5)
    pixels = Image.new("RGB", (SIDE, SIDE), (200, 40, 90))
    exact = torch.tensor([200, 40, 90])[:, None, None].expand(1, 3, SIDE, SIDE) / 255 * 2 - 1
    assert (transform(pixels) - prepare(exact, SIDE, clip.mean, clip.std)).abs().max() <= 1e-5


@torch.no_grad()
def test_transformers_reads_the_towers(trained: tuple[ClipTask, Path, list[float]]) -> None:
    task, folder, _ = trained
    made, texts = task.model, ["a red picture", "white"]
    ids = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    assert torch.equal(ids, open_ids(task, texts))
    states = made.ln_final(
        made.transformer(made.token_embedding(ids) + made.positional_embedding, attn_mask=made.attn_mask)
    )
    projected = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", dtype=torch.float32)(ids)
    assert (projected.last_hidden_state - states).abs().max() <= 1e-5
    assert (projected.text_embeds - made.encode_text(ids)).abs().max() <= 1e-5
    plain = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)(ids)
    assert (plain.last_hidden_state - states).abs().max() <= 1e-5
    assert (plain.pooler_output @ made.text_projection - made.encode_text(ids)).abs().max() <= 1e-5

    image = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32)
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    out = image(pixels, output_hidden_states=True)
    inside = made.visual.forward_intermediates(pixels, output_fmt="NLC", output_extra_tokens=True)
    for ours, prefix, rest in zip(
        out.hidden_states[1:], inside["image_intermediates_prefix"], inside["image_intermediates"], strict=True
    ):
        assert (ours - torch.cat([prefix, rest], dim=1)).abs().max() <= 1e-5
    assert (out.image_embeds - made.encode_image(pixels)).abs().max() <= 1e-5
    look = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    shown = Image.effect_noise((20, 30), 80).convert("RGB")
    transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")[2]
    assert (look(shown, return_tensors="pt").pixel_values[0] - transform(shown)).abs().max() <= 0.1  # of a rounding


@torch.no_grad()
def test_diffusion_and_prompts_read_the_text_tower(trained: tuple[ClipTask, Path, list[float]]) -> None:
    task, folder, _ = trained
    model, notes = load_component(folder / "text_encoder", "text_encoder", torch.float32)
    assert isinstance(model, TextTower)
    assert notes == []
    tower = Tower(model, CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    found = TextEncoder([tower]).encode("a red picture").text
    made, ids = task.model, open_ids(task, ["a red picture"])
    states = made.transformer(made.token_embedding(ids) + made.positional_embedding, attn_mask=made.attn_mask)
    assert (found - made.ln_final(states)).abs().max() <= 1e-5


def test_the_ruler_gives_gradients_to_pictures_only(trained: tuple[ClipTask, Path, list[float]]) -> None:
    _, folder, _ = trained
    clip = load_clip(folder)
    picture = (torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    states = clip.states(picture)
    assert [tuple(s.shape) for s in states] == [(2, 1 + 16, 32)] * 3
    clip.similarity(picture, ["a red picture", "white"]).sum().backward()
    assert picture.grad is not None
    assert float(picture.grad.abs().max()) > 0
    assert all(p.grad is None and not p.requires_grad for p in clip.parameters())


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_weights_learn_on(trained: tuple[ClipTask, Path, list[float]], tmp_path: Path, loss: str) -> None:
    task, folder, _ = trained
    again = make(tmp_path, model=str(folder), loss=loss)
    assert again.about.tokenizer.vocab == task.about.tokenizer.vocab
    for name, p in task.model.named_parameters():
        assert torch.equal(again.model.state_dict()[name], p.detach())
    value, found, _ = gradients(again, batch(8), 3)
    assert math.isfinite(value)
    assert ("logit_bias" in found) == (loss == "siglip")
    if loss == "siglip":  # most pairs are wrong ones: begin by saying so (Zhai et al. 2023, section 3.2)
        assert float(again.model.logit_bias.detach()) == -10.0
    again.save(tmp_path / "second")
    first, second = load_clip(folder), load_clip(tmp_path / "second")
    assert torch.equal(first.encode_text(["a red wall"]), second.encode_text(["a red wall"]))
    with pytest.raises(LdmError, match=r"task\.tokenizer is set"):
        make(tmp_path, model=str(folder), tokenizer="clip")
