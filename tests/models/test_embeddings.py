"""Textual inversion in its five shapes, written by and compared with stock diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.adapters import parse_embedding
from tests import components

V2, V1 = torch.randn(2, 768), torch.randn(768)
G2 = torch.randn(2, 1280)

SHAPES: dict[str, tuple[dict[str, Tensor], str, dict[str, Tensor]]] = {
    "diffusers [n,d]": ({"<cat>": V2}, "<cat>", {"clip_l": V2}),
    "diffusers [1,d]": ({"<cat>": V1[None]}, "<cat>", {"clip_l": V1[None]}),
    "diffusers [d]": ({"<cat>": V1}, "<cat>", {"clip_l": V1[None]}),
    "diffusers, a key for each vector": ({"<cat>_1": V2[1], "<cat>": V2[0]}, "<cat>", {"clip_l": V2}),
    "A1111 and kohya": ({"emb_params": V2}, "style", {"clip_l": V2}),
    "A1111, converted": (
        {"string_to_param.*": V2, "string_to_token.*": torch.tensor(265)},
        "style",
        {"clip_l": V2},
    ),
    "A1111, only the star": ({"*": V2}, "style", {"clip_l": V2}),
    "XL": ({"clip_g": G2, "clip_l": V2}, "style", {"clip_l": V2, "clip_g": G2}),
    "XL, trained with DreamBooth": (
        {"text_encoders_0": V2, "text_encoders_1": G2},
        "style",
        {"clip_l": V2, "clip_g": G2},
    ),
    "nameless": ({"weight": V1}, "style", {"clip_l": V1[None]}),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_five_shapes(name: str) -> None:
    tensors, token, vectors = SHAPES[name]
    embedding = parse_embedding(tensors, {}, "style")
    assert embedding.token == token and embedding.count == len(next(iter(vectors.values())))
    assert embedding.vectors.keys() == vectors.keys()
    assert all(torch.equal(embedding.vectors[tower], vectors[tower]) for tower in vectors)
    assert list(embedding.vectors) == sorted(vectors, reverse=True)  # clip_l first
    again = parse_embedding(embedding.tensors("a1111"), {}, "style")
    assert all(torch.equal(again.vectors[tower], vectors[tower]) for tower in vectors)
    expected = [vectors[tower] for tower in ("clip_l", "clip_g") if tower in vectors]
    given = embedding.for_towers([vector.shape[1] for vector in expected])
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dialect", ["diffusers", "a1111"])
def test_stock_reads_what_we_write(rows: int, dialect: str, tmp_path: Path) -> None:
    stock = components.sd1()
    width = stock.text_encoder.get_input_embeddings().weight.shape[1]
    vectors = torch.randn(rows, width)
    embedding = parse_embedding({"<cat>": vectors}, {}, "cat")
    save_file(embedding.tensors(dialect), tmp_path / "cat.safetensors")  # type: ignore[arg-type]
    stock.load_textual_inversion(tmp_path / "cat.safetensors", token=None if dialect == "diffusers" else "<cat>")
    table = stock.text_encoder.get_input_embeddings().weight.data
    assert torch.equal(table[-rows:], vectors)
    assert "<cat>" in stock.tokenizer.get_vocab()
    read = parse_embedding(load_file(tmp_path / "cat.safetensors"), {}, "<cat>")
    assert read.token == "<cat>" and torch.equal(read.for_towers([width])[0], vectors)


def test_second_tower_of_xl_alone_for_the_refiner() -> None:
    embedding = parse_embedding({"clip_g": G2, "clip_l": V2}, {}, "style")
    (only,) = embedding.for_towers([1280])
    assert torch.equal(only, G2)


@pytest.mark.parametrize(
    ("tensors", "widths"),
    [
        ({"<cat>": V2}, [1024]),  # SD 1 on SD 2
        ({"<cat>": V2}, [768, 1280]),  # SD 1 on XL: half an embedding is none
        ({"clip_g": G2, "clip_l": V2}, [768]),  # XL on SD 1
        ({"clip_g": G2}, [768, 1280]),
        ({"<cat>": torch.ones(2, 1024)}, [768]),
        ({"<cat>": V2}, []),
    ],
)
def test_an_embedding_for_other_towers_names_both(tensors: dict[str, Tensor], widths: list[int]) -> None:
    embedding = parse_embedding(tensors, {}, "style")
    with pytest.raises(LdmError) as caught:
        embedding.for_towers(widths)
    assert caught.value.code == Code.MODEL and caught.value.what.startswith("style: ")
    for width in [vectors.shape[-1] for vectors in tensors.values()] + widths:
        assert str(width) in caught.value.why


@pytest.mark.parametrize(
    ("tensors", "cause"),
    [
        ({}, "no tensors"),
        ({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4)}, "a LoRA"),
        ({"<cat>": torch.ones(2, 3, 4)}, "[2, 3, 4]"),
        ({"<cat>": torch.ones(0, 768)}, "[0, 768]"),
        ({"<cat>": torch.ones(76, 768)}, "[76, 768]"),
        ({"<cat>": torch.tensor(1.0)}, "[]"),
        ({"<cat>": torch.ones(2, 768, dtype=torch.int64)}, "int64"),
        ({"<cat>": torch.full((1, 768), float("nan"))}, "NaN"),
        ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(3, 1280)}, "2 for clip_l and 3 for clip_g"),
        ({"clip_l": torch.ones(2, 768), "other": torch.ones(2)}, "'other'"),
        ({"<cat>": torch.ones(768), "<dog>": torch.ones(768)}, "unrelated names"),
        ({"<cat>": torch.ones(768), "<cat>_1": torch.ones(1024)}, "different widths"),
    ],
)
def test_other_files_are_refused_with_the_reason(tensors: dict[str, Tensor], cause: str) -> None:
    with pytest.raises(LdmError) as caught:
        parse_embedding(tensors, {}, "style")
    assert caught.value.code == Code.FILE and cause in caught.value.why
