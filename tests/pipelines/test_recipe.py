"""Recipes: what goes in comes out byte for byte, as JSON and as A1111 text; names instead of paths; nothing private."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image, save_image
from ldm.store.describe import describe
from pipelines import a1111
from pipelines.a1111 import Parameters, a1111_name, comfy_name, solver_from_name, spacing_from_name
from pipelines.comfyui import read_graph
from pipelines.mask_rule import is_rule, mask_from_rule
from pipelines.recipe import (
    AdapterSource,
    Machine,
    ModelId,
    Recipe,
    Source,
    chunks,
    file_name,
    pixel_hash,
    read_recipe,
    recipe_of,
    request_json,
)
from pipelines.repeat import MissingInputError, request_fields, with_prompt
from pipelines.request import ControlUse, GuidanceUse, HiresUse, LoraUse, Request
from tests import components

SHARDS = [
    "Negative prompt: ",
    "Steps: 3, ",
    "\n",
    ", ",
    '"',
    "\\",
    "a",
    ": ",
    " ",
    "\r",
    "é",
    "Prompt text: x, ",
    "\x85",
]
SHARDS += [
    "Sampler: e, CFG scale: 2, Seed: 1",
    "<lora:x:0.5>",
    "👩‍🎨",
    "(b:1.3)",
    "[c:d:0.5]",
    "\t",
    "{",
    "Negative text: y",
]
words = st.text(max_size=40) | st.lists(st.sampled_from(SHARDS), max_size=10).map("".join)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    solver, spacing = draw(st.sampled_from(sorted(a1111.SOLVERS))), draw(st.sampled_from(sorted(a1111.SPACINGS)))
    scale = draw(st.floats(0, 100, allow_nan=False).map(lambda v: round(v, 2)))
    request: dict[str, Any] = {
        "prompt": draw(words),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "guidance": {"scale": scale},
    }
    if draw(st.booleans()):
        request |= {
            "clip_skip": draw(st.integers(1, 12)),
            "variation": 0.25,
            "variation_seed": draw(st.integers(0, 2**32)),
        }
    adapters = draw(st.lists(st.builds(AdapterSource, name=words, sha256=hashes, weight=st.floats(-2, 2)), max_size=3))
    return Recipe(
        request=request,
        model=ModelId(name=draw(words), fingerprint=draw(hashes)[:16], family="sd1"),
        vae=draw(st.none() | st.builds(ModelId, name=words, fingerprint=hashes)),
        adapters=tuple(adapters),
        prompt=request["prompt"],
        negative=draw(st.none() | words),
        solver=solver,
        spacing=spacing,
        steps=draw(st.integers(1, 1000)),
        width=draw(st.integers(1, 2048)) * 8,
        height=draw(st.integers(1, 2048)) * 8,
        seed=request["seed"],
        machine=Machine(
            software={"torch": "2.15.0"}, threads=2, processor="x86_64 AVX2", device="cpu", dtype="float32"
        ),
        notes=tuple(draw(st.lists(words, max_size=2))),
    )


@pytest.mark.parametrize("path", ["A:A:", "a/b:c:d:", "C:\\models\\x.safetensors", "x/y", "A:", "plain"])
def test_the_name_of_a_file_is_its_own_name(path: str) -> None:
    assert file_name(file_name(path)) == file_name(path)
    assert not set("/\\") & set(file_name(path))


@settings(max_examples=500, deadline=None)
@given(recipes())
def test_500_recipes_round_trip_byte_for_byte(recipe: Recipe) -> None:
    told = recipe.to_json()
    again = Recipe.from_json(told)
    assert again == recipe
    assert again.to_json() == told

    text = recipe.to_a1111()
    foreign = Recipe.from_a1111(text)
    assert foreign.to_a1111() == text
    assert (foreign.prompt, foreign.negative, foreign.seed) == (recipe.prompt, recipe.negative, recipe.seed)
    assert (foreign.solver, foreign.spacing, foreign.steps) == (recipe.solver, recipe.spacing, recipe.steps)
    assert (foreign.width, foreign.height) == (recipe.width, recipe.height)
    assert foreign.request["guidance"]["scale"] == recipe.request["guidance"]["scale"]
    assert foreign.request.get("clip_skip", 0) == recipe.request.get("clip_skip", 0)


@settings(max_examples=200, deadline=None)
@given(
    words,
    st.none() | words,
    st.dictionaries(st.from_regex(r"[A-Z][a-z]{1,8}( [a-z]{1,5})?", fullmatch=True), words, min_size=3),
)
def test_text_reads_back_whatever_it_holds(prompt: str, negative: str | None, pairs: dict[str, str]) -> None:
    parameters = Parameters(prompt, negative, pairs)
    assert a1111.read(a1111.write(parameters)) == parameters


@pytest.mark.parametrize(
    "prompt",
    [
        "two\nlines",
        'a, "quoted", word',
        "Steps: 3",
        "a\nSteps: 3, Sampler: Euler, CFG scale: 2, Seed: 4",
        "Negative prompt: no",
    ],
)
def test_adversarial_prompts_stay_prompts(prompt: str) -> None:
    pairs = {"Steps": "20", "Sampler": "Euler a", "Seed": "1"}
    found = a1111.read(a1111.write(Parameters(prompt, "ugly", pairs)))
    assert (found.prompt, found.negative, found.pairs) == (prompt, "ugly", pairs)


def test_a_plain_text_has_the_form_that_other_programs_expect() -> None:
    recipe = Recipe(
        request={"guidance": {"scale": 7}},
        model=ModelId(name="dream", fingerprint="0123456789abcdef"),
        prompt="a cat",
        negative="blurry, low",
        solver="dpm++ 2m",
        spacing="karras",
        steps=20,
        width=512,
        height=768,
        seed=42,
    )
    prompt, negative, last = recipe.to_a1111().split("\n")
    assert (prompt, negative) == ("a cat", "Negative prompt: blurry, low")
    assert last.startswith(
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 512x768, "
    )
    assert "Model hash: 0123456789, Model: dream, RNG: CPU, Version: ldm " in last


def test_texts_of_a1111_are_read() -> None:
    text = (
        "a cat, <lora:soft:0.8>\nsecond line\nNegative prompt: blurry\nmore\n"
        "Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 7, Size: 640x448, Model hash: abcdef, Model: v1, "
        "Clip skip: 2, Denoising strength: 0.4, Hires upscale: 2, Hires upscaler: Latent, "
        'Lora hashes: "soft: 12, b: 3", Version: v1.6.0'
    )
    recipe = Recipe.from_a1111(text)
    assert recipe.prompt == "a cat, <lora:soft:0.8>\nsecond line"
    assert recipe.negative == "blurry\nmore"
    assert (recipe.solver, recipe.spacing, recipe.steps, recipe.seed) == ("dpm++ 2m", "karras", 30, 7)
    assert recipe.request["clip_skip"] == 1
    assert recipe.request["hires"] == {"scale": 2.0, "strength": 0.4, "upscale": "latent"}
    assert recipe.foreign["Lora hashes"] == "soft: 12, b: 3"
    assert any("GPU" in note for note in recipe.notes)
    assert recipe.to_a1111() == text
    Request.model_validate(recipe.request)


def test_a_text_without_parameters_is_a_prompt() -> None:
    assert a1111.read("just a prompt: nice").prompt == "just a prompt: nice"
    assert a1111.read("") == Parameters()


def test_reading_takes_linear_time_on_hostile_texts() -> None:
    import time

    began = time.perf_counter()
    for text in ("a" * 10**6, 'a:"' * 3 * 10**5, "x," * 5 * 10**5 + ":", "a:\\" * 3 * 10**5):
        a1111.read(text)
    assert time.perf_counter() - began < 3


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("DPM++ 2M Karras", ("dpm++ 2m", "karras")),
        ("dpmpp_2m_karras", ("dpm++ 2m", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpm++ 2m sde", "exponential")),
        ("Euler a", ("euler-a", "auto")),
        ("euler_ancestral", ("euler-a", "auto")),
        ("uni_pc", ("unipc", "auto")),
        ("DDIM", ("ddim", "auto")),
        ("LCM SGM Uniform", ("lcm", "trailing")),
    ],
)
def test_sampler_names_are_understood(name: str, ours: tuple[str, str]) -> None:
    assert solver_from_name(name) == ours


def test_every_solver_and_spacing_has_names_that_lead_back() -> None:
    from ldm.diffusion import schedule, solver

    assert set(a1111.SOLVERS) == set(solver.SOLVERS)
    assert set(a1111.SPACINGS) == set(schedule.SPACINGS)
    for ours in a1111.SOLVERS:
        for spacing in a1111.SPACINGS:
            for label, schedule_label in (a1111_name(ours, spacing), comfy_name(ours, spacing)):
                assert solver_from_name(label) == (ours, "auto")
                assert spacing_from_name(schedule_label, ours) == spacing


def test_automatic_means_what_it_means_there() -> None:
    assert spacing_from_name("Automatic", "dpm++ 2m") == "karras"
    assert spacing_from_name("Automatic", "euler") == "auto"


@pytest.mark.parametrize("name", ["DPM fast", "Euller a", "", "Karras"])
def test_unknown_samplers_name_the_nearest(name: str) -> None:
    with pytest.raises(LdmError) as caught:
        solver_from_name(name)
    assert caught.value.code == Code.USAGE
    assert "euler-a" in str(caught.value)


def graph(**inputs: Any) -> str:
    sampler = {
        "seed": 5,
        "steps": 12,
        "cfg": 4.5,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "model": ["8", 0],
        "positive": ["9", 0],
        "negative": ["7", 0],
        "latent_image": ["5", 0],
    }
    nodes = {
        "3": {"class_type": "KSampler", "inputs": sampler | inputs},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub\\dream.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 384, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
        "8": {"class_type": "LoraLoader", "inputs": {"model": ["4", 0], "lora_name": "x", "strength_model": 1}},
        "9": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["6", 0], "negative": ["7", 0]}},
    }
    return json.dumps(nodes)


def test_a_comfyui_graph_gives_the_fields_of_its_sampler(tmp_path: Path) -> None:
    picture = Picture(np.zeros((8, 8, 3), np.uint8), text={"prompt": graph()})
    recipe = recipe_of(open_image(save_image(picture, tmp_path / "comfy.png")))
    assert (recipe.origin, recipe.prompt, recipe.negative, recipe.model.name) == ("comfyui", "a fox", "blurry", "dream")
    assert (recipe.solver, recipe.spacing, recipe.steps, recipe.seed) == ("dpm++ 2m", "karras", 12, 5)
    assert (recipe.width, recipe.height, recipe.request["guidance"]["scale"]) == (640, 384, 4.5)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"1": 3}', '{"1": {"class_type": "SaveImage", "inputs": {}}}', "[" * 99999]
)
def test_other_graphs_are_none(text: str) -> None:
    assert read_graph(text) is None


def test_a_graph_that_runs_in_circles_ends() -> None:
    loop = json.loads(graph(positive=["9", 0]))
    loop["6"]["inputs"] = {"text": ["9", 0]}
    loop["9"]["inputs"]["positive"] = ["6", 0]
    found = read_graph(json.dumps(loop))
    assert found is not None
    assert found.prompt == ""


def square(tmp_path: Path, name: str, value: int) -> Path:
    return save_image(Picture(np.full((16, 16, 3), value, np.uint8)), tmp_path / name)


def test_a_request_is_told_without_paths_and_found_again(tmp_path: Path) -> None:
    image, mask = square(tmp_path, "photo.png", 90), square(tmp_path, "hole.png", 255)
    lora = tmp_path / "style.safetensors"
    lora.write_bytes(b"weights")
    request = Request(
        prompt="a cat",
        image=image,
        mask=mask,
        seed=3,
        guidance=GuidanceUse(scale=4.0, rescale=0.5),
        hires=HiresUse(scale=2.0),
        controls=(ControlUse(model=str(tmp_path / "edges"), image=image, hint="canny", weight=0.5),),
        loras=(LoraUse(path=lora, weight=0.7),),
    )
    told = request_json(request)
    recipe = Recipe.from_json(Recipe(request=told, prompt="a cat").to_json())
    assert str(tmp_path) not in recipe.to_json()
    assert recipe.request["controls"][0]["model"] == "edges"

    moved = tmp_path / "elsewhere"
    moved.mkdir()
    image.rename(moved / "renamed.png")  # found by its content
    again = Request.model_validate(request_fields(recipe, [tmp_path, moved]))
    assert request_json(again.model_copy(update={"image": None, "controls": ()})) == {
        k: v for k, v in told.items() if k not in ("image", "controls")
    }
    assert isinstance(again.image, Picture)
    assert again.image.sha256 == told["image"]["sha256"]
    assert again.loras[0].path == lora


def test_every_missing_input_is_named(tmp_path: Path) -> None:
    image, mask = square(tmp_path, "photo.png", 90), square(tmp_path, "hole.png", 255)
    recipe = Recipe(request=request_json(Request(image=image, mask=mask)))
    image.unlink()
    mask.unlink()
    square(tmp_path, "hole.png", 254)
    with pytest.raises(MissingInputError) as caught:
        request_fields(recipe, [tmp_path])
    assert len(caught.value.inputs) == 2
    assert "photo.png" in caught.value.inputs[0]
    assert "other content" in caught.value.inputs[1]
    assert request_fields(recipe, [tmp_path], skip={"image", "mask"})["seed"] == 0


def test_masks_made_by_rule_are_made_again(tmp_path: Path) -> None:
    path = square(tmp_path, "photo.png", 90)
    image = open_image(path)
    mask = mask_from_rule("box:2,3,4,5", image)
    assert [int(v) for v in np.argwhere(mask.pixels[..., 0] == 255)[[0, -1]].ravel()] == [3, 2, 7, 5]
    recipe = Recipe(request=request_json(Request(image=path, mask=mask)))
    assert recipe.request["mask"]["name"] == "box:2,3,4,5"
    again = request_fields(recipe, [tmp_path])["mask"]
    assert pixel_hash(again) == pixel_hash(mask)


@pytest.mark.parametrize(
    "rule", ["box:1,2", "box:a,b,c,d", "box:nan,0,1,1", "polygon:1,1 2,2", "colour:#12", "colour:#000000:x"]
)
def test_wrong_mask_rules_say_how_to_write_them(rule: str) -> None:
    assert is_rule(rule)
    with pytest.raises(LdmError) as caught:
        mask_from_rule(rule, Picture(np.zeros((8, 8, 3), np.uint8)))
    assert caught.value.code == Code.USAGE


@pytest.mark.parametrize(
    ("rule", "why"), [("box:2,2,0,0", "width and height"), ("box:100,100,5,5", "8x8"), ("box:-9,0,5,5", "8x8")]
)
def test_a_box_is_spoken_of_as_it_is_written(rule: str, why: str) -> None:
    with pytest.raises(LdmError) as caught:
        mask_from_rule(rule, Picture(np.zeros((8, 8, 3), np.uint8)))
    assert repr(rule) in caught.value.what and why in caught.value.why
    assert "box:x,y,width,height" in caught.value.fix


def test_rules_and_files_are_told_apart() -> None:
    assert is_rule("alpha") and is_rule("colour:#00ff00:20")
    assert not is_rule("mask.png") and not is_rule("alpha.png") and not is_rule("box:") and not is_rule("C:x")


def test_private_holds_hashes_and_no_words(tmp_path: Path) -> None:
    image = square(tmp_path, "my-secret-photo.png", 9)
    request = Request(prompt="secret words", negative="hidden", image=image, seed=4)
    recipe = Recipe(
        request=request_json(request),
        prompt="secret words",
        negative="hidden",
        template="{secret|silent} words",
        wildcards={"secretlist": "ab"},
        adapters=(AdapterSource(name="secret.safetensors", sha256="00", weight=0.5),),
        notes=("secret.safetensors: 4 of 4 tensors applied",),
        seed=4,
    )
    written = chunks(recipe, private=True, kept={"prompt": "secret graph"})
    assert "secret" not in json.dumps(written) and "hidden" not in json.dumps(written)
    private = Recipe.from_json(written["ldm"])
    assert private.request["image"]["sha256"] == recipe.request["image"]["sha256"]
    with pytest.raises(MissingInputError, match="private"):
        request_fields(private, [tmp_path])
    back = with_prompt(private, "secret words", "hidden")
    assert request_fields(back, [tmp_path])["prompt"] == "secret words"
    with pytest.raises(LdmError, match="not the one"):
        with_prompt(private, "secret word", "hidden")


def test_private_models_have_fingerprints_and_no_names(tmp_path: Path) -> None:
    """Shipped models keep their names: everybody has them. The others are found again by what they are."""
    image = square(tmp_path, "photo.png", 9)
    net = components.controlnet(components.unet())
    net.save_pretrained(tmp_path / "secret-control")
    known = describe(tmp_path / "secret-control").fingerprint or ""
    use = ControlUse(model=str(tmp_path / "secret-control"), image=image)
    recipe = Recipe(
        request=request_json(Request(controls=(use,), refiner="me/secret-refiner")),
        model=ModelId(name="secret-model", fingerprint="aa"),
        vae=ModelId(name="secret-vae", fingerprint="bb"),
        refiner=ModelId(name="secret-refiner", fingerprint="cc"),
        controls=(ModelId(name="secret-control", fingerprint=known),),
        adapters=(AdapterSource(name="secret.safetensors", sha256="ff"),),
    )
    written = chunks(recipe, private=True)
    assert "secret" not in json.dumps(written)
    assert "Lora hashes" not in written["parameters"]
    private = Recipe.from_json(written["ldm"])
    assert [m.fingerprint for m in (private.model, private.vae, private.refiner) if m] == ["aa", "bb", "cc"]

    told = with_prompt(private, "", None)
    with pytest.raises(MissingInputError, match=r"refiner \(fingerprint cc\)") as caught:
        request_fields(told, [tmp_path])
    assert len(caught.value.inputs) == 1
    fields = request_fields(told.model_copy(update={"request": told.request | {"refiner": "scenes"}}), [tmp_path])
    assert fields["controls"][0]["model"] == str(tmp_path / "secret-control")

    shipped = Recipe(model=ModelId(name="scenes", fingerprint="dd")).without_prompt()
    assert shipped.model.name == "scenes"


def test_chunks_of_comfyui_are_kept_and_others_are_not() -> None:
    written = chunks(Recipe(prompt="x"), kept={"prompt": "{}", "workflow": "{}", "Software": "y", "ldm": "old"})
    assert set(written) == {"prompt", "workflow", "ldm", "parameters"}
    assert written["ldm"] != "old"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_recipe_survives_each_format(tmp_path: Path, suffix: str) -> None:
    recipe = Recipe(prompt='a "cat"\nétoile 👩‍🎨\ud800\x00', seed=9, steps=3, request={"prompt": "x"})
    path = save_image(Picture(np.zeros((8, 8, 3), np.uint8)), tmp_path / f"a.{suffix}", text=chunks(recipe))
    assert read_recipe(path) == recipe
    assert open_image(path).text["parameters"] == chunks(recipe)["parameters"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"ldm": 2}', "reads 1"),
        ('{"ldm": 1, "spam": 3}', "spam"),
        ('{"ldm": 1, "seed": "x"}', "seed"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_damaged_recipes_are_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(LdmError) as caught:
        Recipe.from_json(text, "a.png")
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\x\\passwd", "a/../../passwd", "..\\passwd"])
def test_names_never_lead_out_of_a_folder(name: str) -> None:
    assert Source(name=name).name == "passwd"
    assert ModelId(name=name).name == "passwd"


@pytest.mark.parametrize(
    "request_",
    [
        {"image": "/etc/passwd"},
        {"mask": ["x"]},
        {"loras": [{"path": "/etc/passwd"}]},
        {"loras": "x"},
        {"controls": [3]},
        {"embeddings": ["/etc/passwd"]},
        {"image": {"name": "../../etc/passwd", "sha256": "0" * 64}},
    ],
)
def test_a_hostile_recipe_names_no_file_by_path(tmp_path: Path, request_: dict[str, Any]) -> None:
    with pytest.raises(LdmError) as caught:
        request_fields(Recipe(request=request_), [tmp_path])
    assert caught.value.code in (Code.FILE, Code.DIFFERENT)
    assert "/etc" not in str(caught.value)


def test_a_hostile_recipe_chooses_no_folder_and_no_amount(tmp_path: Path) -> None:
    recipe = Recipe(
        request={"wildcards": "/etc", "lora_folder": "/etc", "count": 10_000, "refiner": "../../x/y", "seed": 1}
    )
    assert request_fields(recipe, [tmp_path]) == {"refiner": "y", "seed": 1}


def test_hub_ids_stay_whole() -> None:
    assert ModelId(name="owner/model-1.0").name == "owner/model-1.0"


def test_hashes_of_pixels_see_every_sample() -> None:
    pixels = np.arange(192, dtype=np.uint16).reshape(8, 8, 3)
    other = pixels.copy()
    other[7, 7, 2] += 1
    assert pixel_hash(Picture(pixels.copy())) != pixel_hash(Picture(other))
    assert pixel_hash(Picture(pixels.copy())) == pixel_hash(Picture(pixels.astype(">u2").astype(np.uint16)))
    alpha = np.zeros((8, 8), np.uint16)
    assert pixel_hash(Picture(pixels.copy(), alpha)) != pixel_hash(Picture(pixels.copy()))
