"""Every pair of modes and modifiers through the one loop, on the shipped scenes model, judged by the scenes checker.

The prompt asks for an orange circle. Four pictures a pair share a call; at least three must hold it: in the hole where
there is one, along the outline where there is one. The control case runs the same settings without the words.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm.data.scene_reader import Found, read
from ldm.data.scenes import Scene, draw, make_scene, outline
from ldm.images import Picture, from_rgb
from pipelines.pipeline import Pipeline
from pipelines.request import ControlUse, HiresUse, LoraUse, Request, TileUse
from tests.thin import thinned

SHAPE, COLOUR = "circle", "orange"  # which the model has seen together: what is tested here is the loop
PROMPT = f"an {COLOUR} {SHAPE} on a white background"
COUNT, NEEDED = 4, 3
NEEDED_IN_TILES = 2  # tiles of 24 pixels know nothing of each other, and the model has only seen 32
HOLE = (slice(0, 32), slice(14, 32))  # the right half and a little more


def scene() -> Picture:
    """What inpainting and outpainting start from: an empty ground. To the model "a circle" means one thing and no
    other, so beside something else it would draw it badly, and the loop is not to blame."""
    return from_rgb(draw(Scene((), "white", frozenset())))


def crude() -> Picture:
    """What image-to-image starts from: the thing itself, in noise."""
    rng = np.random.default_rng(0)
    rgb = draw(make_scene(SHAPE, COLOUR, position="centre", background="white", size="big"))
    return from_rgb(np.clip(rgb + rng.normal(0, 0.15, rgb.shape), 0, 1).astype(np.float32))


def mask() -> Picture:
    grey = np.zeros((32, 32, 1), np.uint8)
    grey[HOLE] = 255
    return Picture(grey)


def edges() -> Picture:
    return from_rgb(outline(make_scene(SHAPE, COLOUR, size="big", position="right")).astype(np.float32))


def wide_edges() -> Picture:
    """For a canvas that is 24 pixels wider: the outline stands in the new part."""
    hint = np.zeros((32, 56, 3), np.float32)
    hint[:, 24:] = outline(make_scene(SHAPE, COLOUR, size="big", position="centre"))
    return from_rgb(hint)


FEATURES: dict[str, dict[str, Any]] = {
    "negative": {"negative": "a blue square"},
    "rescale": {"guidance": {"rescale": 0.5}},
    "interval": {"guidance": {"interval": (0.0, 0.8)}},
    "apg": {"guidance": {"method": "apg", "apg_eta": 0.3}},
    "cfg-zero": {"guidance": {"method": "cfg-zero"}},
    "pag": {"guidance": {"pag": 0.5}},
    "variation": {"variation_seed": 50, "variation": 0.3},
    "image": {"image": crude, "strength": 0.7},
    "mask": {"image": scene, "mask": mask, "strength": 1.0},
    "soft": {"image": scene, "mask": mask, "strength": 1.0, "mask_blur": 1.0},
    "only masked": {"image": scene, "mask": mask, "strength": 1.0, "only_masked": True, "padding": 4},
    "outpaint": {"image": scene, "pad": (0, 0, 24, 0), "strength": 1.0},
    "control": {"controls": "edges"},
    "two passes": {"hires": {"scale": 1.5, "strength": 0.4}},
    "tiles": {"tile": {"size": 24, "overlap": 12}},
    "karras": {"solver": "dpm++ 2m", "spacing": "karras"},
    "euler-a": {"solver": "euler-a"},
    "weights": {"prompt": f"an ({COLOUR}:1.1) ({SHAPE}:1.1) on a white background"},
    "lora": {"loras": "lora"},
    "word": {"embeddings": "word", "prompt": f"a zork {SHAPE} on a white background"},
}
PAINTED = {"mask", "soft", "only masked", "outpaint"}
SAME = {("image", "mask"), ("image", "soft"), ("image", "only masked"), ("image", "outpaint"), ("karras", "euler-a")}
PAIRS = [p for p in itertools.combinations(FEATURES, 2) if p not in SAME]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("scenes", device="cpu")


@pytest.fixture(scope="module")
def files(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A LoRA of small random weights, and a new word "zork" that means what the colour means."""
    root = tmp_path_factory.mktemp("files")
    drawn = torch.Generator().manual_seed(0)
    tensors = {}
    for name, module in pipeline.model.network.model.named_modules():
        if name.endswith(("to_q", "to_v")):
            rows, columns = module.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(4, columns, generator=drawn) * 0.02
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(rows, 4, generator=drawn) * 0.02
    save_file(tensors, root / "lora.safetensors")
    tower = pipeline.model.text.towers[0]
    ids = [spot.id for spot in tower.vocabulary.spots([COLOUR])[0]]
    vectors = tower.model.tokens().weight[ids].detach().clone()
    save_file({"zork": vectors}, root / "word.safetensors")
    return {"lora": root / "lora.safetensors", "word": root / "word.safetensors"}


def request(names: tuple[str, ...], files: Mapping[str, Path], **more: Any) -> Request:
    """The fields of some features in one request; pictures are made, guidance is merged."""
    fields: dict[str, Any] = {"prompt": PROMPT, "count": COUNT, "steps": 12, "seed": 1, "guidance": {"scale": 4.0}}
    for name in names:
        for key, value in FEATURES[name].items():
            made = value() if callable(value) else value
            fields[key] = fields[key] | made if key == "guidance" else made
    if PAINTED & set(names):  # where the hole is
        fields["prompt"] = fields["prompt"].replace(" on a white", " on the right on a white")
    if "loras" in fields:
        fields["loras"] = (LoraUse(path=files["lora"]),)
    if "embeddings" in fields:
        fields["embeddings"] = (files["word"],)
    if "controls" in fields:
        hint = wide_edges() if "outpaint" in names else edges()
        fields["controls"] = (ControlUse(model="edges", image=hint),)
    for key, record in (("hires", HiresUse), ("tile", TileUse)):
        if key in fields:
            fields[key] = record(**fields[key])
    return Request(**fields | more)


def judged(picture: Picture, names: tuple[str, ...]) -> Found:
    """What is seen in the part that was painted."""
    rgb = picture.rgb()
    if "outpaint" in names:
        return read(rgb[:, 20:])
    if {"mask", "soft", "only masked"} & set(names):
        return read(rgb[HOLE])
    return read(rgb)


@pytest.mark.parametrize("names", thinned(((pair,) for pair in PAIRS), 9), ids=" + ".join)
def test_pair(names: tuple[str, str], pipeline: Pipeline, files: Mapping[str, Path]) -> None:
    results = pipeline.results(request(names, files))
    found = [judged(r.picture, names) for r in results]
    needed = NEEDED_IN_TILES if "tiles" in names else NEEDED
    assert sum(f.has(SHAPE, COLOUR) for f in found) >= needed, found
    assert sum(f.has("triangle", "green") for f in found) == 0


@pytest.mark.parametrize("name", thinned(FEATURES, 2))
def test_without_the_words_the_thing_is_not_there(name: str, pipeline: Pipeline, files: Mapping[str, Path]) -> None:
    """The control case: the same settings, and words for another thing (or none, and a negative against it)."""
    more: dict[str, Any] = {"prompt": "a green triangle on a white background"}
    more |= {"prompt": "", "negative": PROMPT} if name == "negative" else {}
    more |= {"image": scene()} if name == "image" else {}
    results = pipeline.results(request((name,), files, **more))
    assert sum(judged(r.picture, (name,)).has(SHAPE, COLOUR) for r in results) <= COUNT - NEEDED


def test_the_outline_says_where(pipeline: Pipeline, files: Mapping[str, Path]) -> None:
    """With the control the circle stands on the right, where it was drawn; without it, anywhere."""
    there = {
        names: [read(r.picture.rgb()) for r in pipeline.results(request(names, files, count=8, batch=8))]
        for names in (("control",), ())
    }
    right = {n: sum(t.position == "right" for f in found for t in f.things[:1]) for n, found in there.items()}
    assert right[("control",)] >= 7
    assert right[()] <= 4


def test_tiles_are_really_tiles(pipeline: Pipeline, files: Mapping[str, Path]) -> None:
    calls: list[int] = []
    hook = pipeline.model.network.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    pipeline.results(request(("tiles",), files, steps=1))
    hook.remove()
    assert len(calls) == 4
