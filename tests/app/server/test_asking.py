"""What a caller may ask for: names and ids, never paths; everything wrong is told before it is queued."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.server.asking import Ask, Understanding
from app.server.catalog import Catalog
from app.server.decoding import Decoder
from app.server.limits import Limits
from app.server.uploads import Uploads
from ldm.errors import Code, LdmError
from ldm.store.find import find_model, shipped_adapters
from pipelines.request import Request


def png(size: tuple[int, int] = (32, 32), colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    one = Decoder(Limits().input_pixels)
    yield one
    one.close()


@pytest.fixture
def understand(tmp_path: Path, decoder: Decoder) -> Understanding:
    return Understanding(Catalog(), Uploads(tmp_path / "uploads", decoder), Limits())


def test_what_is_left_out_suits_the_model_and_what_is_kept_asks_for_the_same_again(understand: Understanding) -> None:
    told = understand({"prompt": "a cat", "guidance": {"rescale": 0.5}})
    assert told.asked["model"] == "emoji" and told.request.steps == 15 and told.request.guidance.rescale == 0.5
    assert 0 <= told.request.seed < 2**53 and told.asked["seed"] == told.request.seed
    again = understand.request(json.loads(json.dumps(told.asked)))
    assert again == told.request
    assert told.work == 64 * 64 * 15


def test_pictures_are_named_by_ids_or_brought_along(understand: Understanding) -> None:
    name = understand.uploads.add(png()).id
    data = base64.b64encode(png(colour="white")).decode()
    given = {"model": "scenes", "image": name, "mask": f"data:image/png;base64,{data}", "strength": 0.5}
    given["controls"] = [{"model": "edges", "image": data}, {"model": "edges", "hint": "canny"}]
    told = understand(given)
    assert isinstance(told.request.image, object) and told.request.image.size == (32, 32)  # type: ignore[union-attr]
    assert told.asked["image"] == name and len(told.asked["mask"]) == 64
    assert told.asked["controls"][0]["image"] == told.asked["mask"]  # the same picture is kept once
    assert told.request.controls[1].image is told.request.image
    assert len(list((understand.uploads.folder).iterdir())) == 2
    assert data not in json.dumps(told.asked) and told.kind == ""


def test_requests_that_may_share_calls_are_of_one_kind(understand: Understanding) -> None:
    def kind(**given: Any) -> str:
        return understand({"prompt": "a cat", **given}).kind

    plain = kind()
    assert plain and plain == kind(prompt="a dog", steps=7, seed=4, count=3, solver="euler")
    others = [
        kind(width=128), kind(model="scenes"), kind(guidance={"scale": 1}), kind(loras=[{"name": "emoji-fast"}]),
    ]  # fmt: skip
    assert len({plain, *others}) == 5
    assert kind(exact=True) == kind(hires={"scale": 2}) == kind(tile={"size": 32}) == ""


def test_adapters_and_models_of_a_folder_are_offered_by_name(tmp_path: Path, understand: Understanding) -> None:
    adapters, models = tmp_path / "adapters", tmp_path / "models"
    adapters.mkdir()
    models.mkdir()
    mine = shipped_adapters()["emoji-fast"]
    (adapters / "mine.safetensors").write_bytes(mine.read_bytes())
    (adapters / ".hidden.safetensors").write_bytes(mine.read_bytes())
    (adapters / "away.safetensors").symlink_to(mine)  # leads out of the folder
    (models / "own").symlink_to(find_model("scenes"))
    catalog = Catalog(models, adapters)
    assert set(catalog.adapters()) == {"emoji-fast", "mine"} and "own" not in catalog.models()
    asking = Understanding(catalog, understand.uploads, Limits())
    told = asking({"prompt": "a cat", "loras": [{"name": "mine", "weight": 0.5}]})
    assert told.request.loras[0].path == adapters / "mine.safetensors" and told.request.loras[0].weight == 0.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"promt": "a"}, "did you mean prompt"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"steps": 151}, "150 steps"),
        ({"count": 101}, "100 pictures"),
        ({"width": 4096, "height": 4096}, "2,000,000 pixels"),
        ({"width": 1024, "height": 1024, "hires": {"scale": 2}}, "2,000,000 pixels"),
        ({"width": 1024, "height": 1024, "count": 50, "steps": 100}, "1,000,000,000 pixels x steps"),
        ({"width": 33}, "nearest legal size is 32"),
        ({"guidance": {"scale": float("nan")}}, "finite"),
        ({"seed": -2}, "seed"),
        ({"prompt": "x" * 20_001}, "20000 bytes"),
        ({"model": "../emoji"}, "no model"),
        ({"model": "/etc"}, "no model"),
        ({"model": "emojj"}, "Use emoji"),
        ({"loras": [{"name": "../../secret"}]}, "no adapter"),
        ({"loras": [{"path": "/etc/passwd"}]}, "unknown key"),
        ({"embeddings": ["/etc/passwd"]}, "no adapter"),
        ({"lora_folder": "/etc"}, "unknown key"),
        ({"wildcards": "/etc"}, "unknown key"),
        ({"refiner": "/etc"}, "no model"),
        ({"image": "/etc/passwd"}, "is no picture"),
        ({"image": "http://127.0.0.1/a.png"}, "is no picture"),
        ({"image": "0" * 64}, "no upload"),
        ({"image": "aGFsbG8="}, "none of PNG"),
        ({"controls": [{"model": "edges"}]}, "no image"),
        ({"controls": [{"image": "0" * 64}]}, "no upload"),
        ({"mask": base64.b64encode(png()).decode()}, "mask needs an image"),
        ({"strength": 0.5}, "strength needs image"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_read(understand: Understanding, given: Any, said: str) -> None:
    with pytest.raises(LdmError) as caught:
        understand(given)
    assert said in str(caught.value) and caught.value.code in (Code.USAGE, Code.REFUSED)
    assert "passwd" not in str(caught.value) or "'/etc/passwd'" in str(caught.value)


def test_an_upload_is_of_margins_too(understand: Understanding) -> None:
    name = understand.uploads.add(png((1000, 1000))).id
    with pytest.raises(LdmError, match="2,000,000 pixels"):
        understand({"image": name, "pad": [600, 600, 0, 0]})


def test_every_field_of_a_request_may_be_asked_for_but_folders() -> None:
    assert set(Request.model_fields) - set(Ask.model_fields) == {"wildcards", "lora_folder"}
    assert set(Ask.model_fields) - set(Request.model_fields) == {"model"}
