"""The recipe in a picture becomes a request that makes the same pixels, or says what it lacks."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from app.server import recognising
from app.server.recipes import recipe
from app.server.recognising import find_adapter, find_model
from app.server.service import Service
from ldm.errors import Code, LdmError
from ldm.images import open_image, save_image
from ldm.store.find import find_model as path_of
from ldm.store.find import shipped_adapters
from ldm.store.write import write_weights
from pipelines.a1111 import Parameters, write
from pipelines.pipeline import Pipeline
from pipelines.recipe import ModelId, Recipe, chunks, read_recipe
from tests.app.server.conftest import QUICK, Open, made
from tests.thin import thinned

ODD = (
    "<script>alert('x')</script> a red circle & \"quotes\" \u202e \U0001f600 e\u0301 \u4e2d\u6587 <b onclick=1> "
    "{one|two} \\(x\\) &amp;"
)


def png(size: tuple[int, int] = (32, 32), colour: str = "red", text: dict[str, str] | None = None) -> bytes:
    file, told = io.BytesIO(), PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        told.add_itxt(name, value)
    Image.new("RGB", size, colour).save(file, "PNG", pnginfo=told)
    return file.getvalue()


def half() -> bytes:
    """A mask that paints on the left."""
    file = io.BytesIO()
    Image.fromarray(np.repeat([[255, 0]], 16, axis=1).repeat(32, axis=0).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def file_of(service: Service, given: dict[str, Any], place: int = 0) -> tuple[bytes, str]:
    """A picture that the server makes: its file, and what its pixels hash to."""
    job = made(service, given)
    return service.gallery.path(job, place).read_bytes(), str(job.pictures[place].told["pixels"])


def asked(name: str, service: Service) -> dict[str, Any]:
    image, mask = service.uploads.add(png()).id, service.uploads.add(half()).id
    return {
        "text": QUICK | {"prompt": ODD, "negative": "<i>\u00fc</i>", "seed": 2**52},
        "what a model says otherwise": {"model": "emoji", "prompt": "cat", "steps": 25, "solver": "auto",
                                        "guidance": {"scale": 7.5}, "seed": 3},
        "what a model says": {"model": "emoji", "prompt": "cat, noto style", "seed": 4},
        "variation": QUICK | {"variation": 0.3, "variation_seed": 9, "width": 40},
        "image": QUICK | {"image": image, "strength": 0.8, "steps": 3},
        "image at another size": QUICK | {"image": image, "strength": 1.0, "width": 64, "height": 32},
        "mask": QUICK | {"image": image, "mask": mask, "strength": 1.0, "fill": "noise", "mask_blur": 1.5},
        "only the mask": QUICK | {"image": image, "mask": mask, "only_masked": True, "padding": 4, "strength": 1.0},
        "margins": QUICK | {"image": image, "pad": [8, 0, 0, 8], "strength": 1.0, "fill": "blur"},
        "control": QUICK | {"controls": [{"model": "edges", "image": image, "hint": "canny", "weight": 2, "end": 0.5}]},
        "controls": QUICK | {"image": image, "strength": 1.0,
                             "controls": [{"model": "edges", "hint": "soft"},
                                          {"model": "edges", "image": mask, "mask": mask, "guess": True}]},
        "adapter": {"model": "emoji", "prompt": "cat", "seed": 1, "loras": [{"name": "emoji-fast", "weight": 0.7}]},
        "tag": {"model": "emoji", "prompt": "cat <lora:emoji-fast:0.5:0.4>", "seed": 1, "steps": 2},
        "two passes": QUICK | {"hires": {"scale": 2, "steps": 2, "upscale": "latent"}},
        "sigmas": QUICK | {"sigmas": [10.0, 2.0, 0.5], "solver": "euler"},
    }[name]  # fmt: skip


CASES = (
    "text", "what a model says otherwise", "what a model says", "variation", "image", "image at another size", "mask",
    "only the mask", "margins", "control", "controls", "adapter", "tag", "two passes", "sigmas",
)  # fmt: skip


@pytest.mark.parametrize("case", thinned(CASES, 3))
def test_a_picture_of_this_server_is_made_again_to_the_byte(service: Service, case: str) -> None:
    given = asked(case, service)
    file, pixels = file_of(service, given)
    told = recipe(service, file)
    assert (told["source"], told["notes"]) == ("ldm", [])
    assert all(told["request"].get(name) == given[name] for name in ("model", "prompt", "negative") if name in given)
    job = made(service, json.loads(json.dumps(told["request"])))
    assert job.pictures[0].told["pixels"] == pixels
    first = open_image(file)
    assert (open_image(service.gallery.path(job, 0)).pixels == first.pixels).all()
    again = recipe(service, service.gallery.path(job, 0).read_bytes())
    assert again["request"] == told["request"]


def test_each_picture_of_a_job_has_its_own(service: Service) -> None:
    job = made(service, QUICK | {"count": 3, "exact": True, "prompt": "a {red|blue|green} {circle|square}"})
    for picture in job.pictures:
        told = recipe(service, service.gallery.path(job, picture.place).read_bytes())
        assert told["request"]["seed"] == QUICK["seed"] + picture.place and "count" not in told["request"]
        assert made(service, told["request"]).pictures[0].told["pixels"] == picture.told["pixels"]


def test_embeddings_and_adapters_are_known_by_their_content(tmp_path: Path, open_service: Open) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    write_weights(folder / "zwx.safetensors", {"emb_params": torch.ones(2, 64)})
    (folder / "quick.safetensors").write_bytes(shipped_adapters()["emoji-fast"].read_bytes()[:-8] + bytes(8))
    with open_service(adapters=folder) as service:
        word, _ = file_of(service, QUICK | {"prompt": "a zwx", "embeddings": ["zwx"]})
        given = {"model": "emoji", "prompt": "cat <lora:quick:1>", "steps": 1, "seed": 1}
        lora, pixels = file_of(service, given | {"loras": [{"name": "quick", "weight": 0.5}]})
        for name in ("zwx", "quick"):
            (folder / f"{name}.safetensors").rename(folder / f"new {name}.safetensors")
        assert recipe(service, word)["request"]["embeddings"] == ["new zwx"]
        told = recipe(service, lora)
        assert told["request"]["loras"] == [{"name": "new quick", "weight": 0.5}] and told["notes"] == []
        assert told["request"]["prompt"] == "cat <lora:new quick:1>"
        assert made(service, told["request"]).pictures[0].told["pixels"] == pixels
        (folder / "new quick.safetensors").rename(folder / "other.txt")
        write_weights(folder / "zwx.safetensors", {"emb_params": torch.zeros(2, 64)})
        (folder / "new zwx.safetensors").unlink()
        told = recipe(service, lora)
        assert told["request"]["prompt"] == "cat " and "loras" not in told["request"]
        assert [note for note in told["notes"] if "'quick" in note and "not here" in note]
        changed = recipe(service, word)
        assert changed["request"]["embeddings"] == ["zwx"] and "not the one that was used" in changed["notes"][0]


def test_inputs_that_are_gone_are_named_and_left_out(service: Service) -> None:
    image, mask = service.uploads.add(png(colour="blue")).id, service.uploads.add(half()).id
    inside, _ = file_of(
        service, QUICK | {"image": image, "mask": mask, "strength": 1.0, "mask_blur": 1, "fill": "blur"}
    )
    control, _ = file_of(service, QUICK | {"controls": [{"model": "edges", "image": image, "hint": "canny"}]})
    (service.uploads.folder / mask).unlink()
    told = recipe(service, inside)
    assert told["request"]["image"] == image and not {"mask", "fill", "mask_blur"} & set(told["request"])
    assert told["notes"] == ["The mask is not here: bring it again."]
    (service.uploads.folder / image).unlink()
    told = recipe(service, inside)
    assert not {"image", "strength", "mask"} & set(told["request"])
    assert told["notes"] == ["The picture is not here: bring it again."]
    assert made(service, told["request"])
    told = recipe(service, control)
    assert "controls" not in told["request"] and "edges was left out" in told["notes"][1]
    assert recipe(service, inside)["recipe"]["request"]["mask"]["sha256"] == mask


def test_a_model_is_known_by_its_fingerprint(tmp_path: Path, open_service: Open) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "mine").symlink_to(path_of("scenes"))
    result = Pipeline.load("scenes").results(Pipeline.load("scenes").request("a red circle", steps=2))[0]

    def file(**model: str) -> bytes:
        told = result.recipe.model_copy(update={"model": result.recipe.model.model_copy(update=model)})
        save_image(result.picture, path := tmp_path / f"{len(list(tmp_path.iterdir()))}.png", text=chunks(told))
        return path.read_bytes()

    with open_service(models=models) as service:
        assert recipe(service, file())["request"]["model"] == "scenes"
        renamed = recipe(service, file(name="another name"))
        assert (renamed["request"]["model"], renamed["notes"]) == ("scenes", [])
        other = recipe(service, file(fingerprint="0" * 16))
        assert other["request"]["model"] == "scenes" and "not the one that was used" in other["notes"][0]
        gone = recipe(service, file(name="nobody", fingerprint="0" * 16))
        assert "model" not in gone["request"] and "'nobody' is not here; emoji is used" in gone["notes"][0]
        assert (gone["request"]["width"], gone["request"]["height"]) == (32, 32)


def test_a_private_recipe_says_what_it_hides(service: Service, tmp_path: Path) -> None:
    file, _ = file_of(service, QUICK)
    (tmp_path / "a.png").write_bytes(file)
    picture = open_image(file)
    save_image(picture, tmp_path / "private.png", text=chunks(read_recipe(tmp_path / "a.png"), private=True))
    told = recipe(service, (tmp_path / "private.png").read_bytes())
    assert "prompt" not in told["request"] and told["request"]["model"] == "scenes" and "private" in told["notes"][0]


A1111 = {
    "Steps": "20", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "6.5", "Seed": "42",
    "Size": "64x64", "Model hash": "0123456789", "Model": "scenes", "Clip skip": "2", "Denoising strength": "0.6",
    "TI hashes": "bad: 0123456789ab", "Mask blur": "4",
}  # fmt: skip


def test_pictures_of_a1111_are_read(service: Service) -> None:
    text = write(Parameters("<b>a</b> cat <lora:emoji-fast:0.8> <lora:gone:1>", "ugly", A1111))
    told = recipe(service, png(text={"parameters": text}))
    assert told["source"] == "a1111" and told["recipe"]["foreign"]["Model"] == "scenes"
    assert told["request"] == {
        "model": "scenes", "prompt": "<b>a</b> cat <lora:emoji-fast:0.8> ", "negative": "ugly", "steps": 20,
        "solver": "dpm++ 2m", "spacing": "karras", "guidance": {"scale": 6.5}, "seed": 42, "width": 64, "height": 64,
        "clip_skip": 1,
    }  # fmt: skip
    said = " ".join(told["notes"])
    for words in ("'gone' is not here", "'bad' is not here", "strength 0.6", "a mask", "drawn on a GPU"):
        assert words in said, words
    assert "--" not in said and all(note[0].isupper() and note.endswith(".") for note in told["notes"])
    assert service.understanding(told["request"])


def test_our_own_a1111_text_names_the_model_by_its_hash(service: Service) -> None:
    file, _ = file_of(service, QUICK)
    text = open_image(file).text["parameters"].replace("Model: scenes", "Model: renamed")
    told = recipe(service, png(text={"parameters": text}))
    assert told["source"] == "a1111" and told["request"]["model"] == "scenes" and told["request"]["steps"] == 2


def test_a_file_of_weights_is_known_by_the_hash_that_a1111_writes() -> None:
    there = dict(shipped_adapters())
    hashed = hashlib.sha256(there["emoji-fast"].read_bytes()).hexdigest()
    assert find_model(ModelId(name="other", fingerprint=hashed[:10]), there) == ("emoji-fast", True)
    assert find_model(ModelId(name="emoji-fast", fingerprint="0" * 10), there) == ("emoji-fast", False)
    assert find_model(ModelId(name="other", fingerprint=hashed[:9]), there) is None  # too short to mean something
    assert find_model(ModelId(name="other", fingerprint="0" * 10), there) is None
    assert find_model(ModelId(), there) is None


def test_no_more_adapters_are_hashed_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    there = dict(shipped_adapters())
    hashed = hashlib.sha256(there["emoji-fast"].read_bytes()).hexdigest()
    assert find_adapter("other", hashed, there) == find_adapter("emoji-fast", hashed, there) == ("emoji-fast", True)
    monkeypatch.setattr(recognising, "HASHED", there["emoji-fast"].stat().st_size - 1)
    assert find_adapter("other", hashed, there) is None
    assert find_adapter("emoji-fast", hashed, there) == ("emoji-fast", False)


def test_pictures_of_comfyui_are_read(service: Service) -> None:
    sampler = {"steps": 9, "sampler_name": "euler", "scheduler": "normal", "cfg": 5, "seed": 7, "positive": ["2", 0]}
    graph = {
        "1": {"class_type": "KSampler", "inputs": sampler | {"negative": ["3", 0], "model": ["4", 0]}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a (cat:1.2) <script>"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog"}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub\\emoji.safetensors"}},
    }
    told = recipe(service, png(text={"prompt": json.dumps(graph)}))
    assert told["source"] == "comfyui"
    assert told["request"] == {
        "model": "emoji", "prompt": "a (cat:1.2) <script>", "negative": "dog", "dialect": "comfy", "steps": 9,
        "seed": 7, "guidance": {"scale": 5.0}, "solver": "euler", "spacing": "linspace",
    }  # fmt: skip


def ours(**request: Any) -> bytes:
    return png(text={"ldm": json.dumps({"ldm": 1, "request": request, "model": {"name": "scenes"}})})


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"steps": 5000}, "steps is 5000"),
        ({"steps": "many", "prompt": ["a"]}, "prompt is"),
        ({"wonder": 1}, "'wonder' is not known"),
        ({"image": "/etc/passwd"}, "picture is not here"),
        ({"image": {"name": "../../etc/passwd", "sha256": "/etc"}}, "picture 'passwd' is not here"),
        ({"image": {"name": 5, "sha256": [1]}, "pad": 5, "mask": 7}, "picture is not here"),
        ({"controls": [{"model": "/etc/passwd", "image": None}, 5]}, "control 'passwd' is not here"),
        ({"loras": [{"path": {"name": "/etc/x.safetensors", "sha256": "0" * 64}}, {}]}, "is not here"),
        ({"embeddings": {"a": 1}, "guidance": [1]}, "guidance is [1]"),
        ({"refiner": "/etc/passwd"}, "refiner 'passwd' is not here"),
        ({"prompt": "x" * 20_001}, "prompt is"),
        ({"prompt": "__colours__ [a|b]", "width": 4096, "height": 4096}, "request is refused"),
        ({"model": "/etc/passwd", "lora_folder": "/etc", "seed": -1}, ""),
    ],
)
def test_a_recipe_of_a_stranger_does_no_harm(service: Service, request_: dict[str, Any], said: str) -> None:
    told = recipe(service, ours(**request_))
    assert said in " ".join(told["notes"]), told["notes"]
    assert told["request"]["model"] == "scenes" and "/etc" not in json.dumps(told["request"])
    assert all(isinstance(note, str) and note.endswith(".") for note in told["notes"])


def test_lone_surrogates_are_left_out_as_they_are_when_it_is_drawn(service: Service) -> None:
    told = recipe(service, ours(prompt="a \ud800 cat \ud83d\ude00"))
    assert told["request"]["prompt"] == "a  cat \U0001f600" and json.dumps(told, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (png(), "holds no recipe"),
        (png(text={"Comment": "hello", "prompt": "{}"}), "holds no recipe"),
        (png(text={"ldm": "{"}), "cannot be read"),
        (png(text={"ldm": json.dumps({"ldm": 2})}), "format"),
        (png(text={"ldm": '{"ldm": 1, "request": {"steps": NaN}}'}), "damaged"),
        (png(text={"ldm": '{"ldm": 1, "request": {"loras": [{"weight": Infinity, "path": {}}]}}'}), "damaged"),
        (png(text={"ldm": '{"ldm": 1, "request": {"steps": ' + "[" * 400 + "]" * 400 + "}}"}), "damaged"),
        (png(text={"ldm": '{"ldm": 1, "request": {"prompt": "' + "x" * 2_000_001 + '"}}'}), "too long"),
        (b"", "is no picture"),
        (b"<svg onload=alert(1)>", "SVG"),
    ],
)
def test_a_picture_without_a_recipe_says_so(service: Service, file: bytes, said: str) -> None:
    with pytest.raises(LdmError) as caught:
        recipe(service, file)
    assert caught.value.code is Code.REFUSED and caught.value.fix
    assert said in str(caught.value) or file == b""
    assert not service.uploads.folder.exists()  # what is only read is not kept


@pytest.mark.loopback
def test_it_is_read_over_http(http: httpx.Client, service: Service) -> None:
    file, _ = file_of(service, QUICK | {"prompt": ODD})
    told = http.post("/v1/recipes", content=file, headers={"content-type": "image/png"})
    form = http.post("/v1/recipes", files={"file": ("a.png", file, "image/png")})
    assert told.status_code == 200 and told.json() == form.json() == recipe(service, file)
    assert http.post("/v1/jobs", json=told.json()["request"]).status_code == 202
    none = http.post("/v1/recipes", content=png(), headers={"content-type": "image/png"})
    assert none.status_code == 422 and "no recipe" in none.json()["title"] and "as it was made" in none.json()["fix"]
    assert http.post("/v1/recipes", json={}).status_code == 415


def test_recipes_are_as_they_were(service: Service) -> None:
    """What is told beside the request is the recipe itself."""
    file, _ = file_of(service, QUICK)
    told = recipe(service, file)["recipe"]
    assert (
        Recipe.from_json(json.dumps(told)).model_dump() == Recipe.from_json(open_image(file).text["ldm"]).model_dump()
    )
