"""The `openai` package as its users use it, against a server here."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from app.server.service import Service
from ldm.images import open_image
from tests.app.server.conftest import listened
from tests.app.server.test_asking import png

pytestmark = pytest.mark.loopback
FEW = {"ldm": {"steps": 2, "seed": 1}}


@pytest.fixture
def client(http: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{http.base_url}/v1".replace("//v1", "/v1"), api_key="none", max_retries=0) as one:
        yield one


def holed() -> bytes:
    """A red square whose left half is transparent."""
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    picture.paste((255, 0, 0, 0), (0, 0, 16, 32))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_pictures_of_a_prompt(client: openai.OpenAI, service: Service, http: httpx.Client) -> None:
    told = client.images.generate(model="scenes", prompt="a red circle", n=2, size="32x32", extra_body=FEW)
    assert told.data is not None and len(told.data) == 2 and told.created > 1e9
    for made in told.data:
        assert made.b64_json is not None and open_image(base64.b64decode(made.b64_json)).size == (32, 32)
    job = service.jobs.list()[0]
    assert job.asked == {
        "model": "scenes",
        "prompt": "a red circle",
        "count": 2,
        "width": 32,
        "height": 32,
        **FEW["ldm"],
    }
    by_url = client.images.generate(model="scenes", prompt="a star", response_format="url", extra_body=FEW)
    assert by_url.data is not None and by_url.data[0].url is not None
    assert http.get(by_url.data[0].url).headers["content-type"] == "image/png"


def test_a_picture_is_edited_where_its_mask_is_transparent(client: openai.OpenAI) -> None:
    more = {"ldm": {"steps": 2, "seed": 1, "guidance": {"scale": 2.5}}}
    told = client.images.edit(image=png(), mask=holed(), prompt="a blue star", model="scenes", extra_body=more)
    assert told.data is not None and told.data[0].b64_json is not None
    made = open_image(base64.b64decode(told.data[0].b64_json)).pixels
    assert (made[:, 16:] == (255, 0, 0)).all() and (made[:, :16] != (255, 0, 0)).any()
    alone = client.images.edit(image=[holed()], prompt="a blue star", model="scenes", extra_body=FEW)
    assert alone.data is not None and alone.data[0].b64_json is not None
    again = open_image(base64.b64decode(alone.data[0].b64_json))
    assert np.asarray(again.pixels)[:, 16:].max() == 255
    whole = client.images.edit(image=png(), prompt="a blue star", model="scenes", extra_body=FEW)
    assert whole.data is not None


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["emoji", "scenes"]
    assert client.models.retrieve("scenes").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model": "gpt-image-1"}, "no model"),
        ({"model": "scenes", "size": "large"}, "WIDTHxHEIGHT"),
        ({"model": "scenes", "size": "33x32"}, "nearest legal size is 32"),
        ({"model": "scenes", "n": 101}, "100 pictures"),
        ({"model": "scenes", "quality": "hd"}, "quality 'hd'"),
        ({"model": "scenes", "output_format": "jpeg"}, "PNG"),
        ({"model": "scenes", "extra_body": {"ldm": {"stps": 1}}}, "did you mean steps"),
        ({"model": "scenes", "extra_body": {"promt": "a"}}, "unknown key"),
    ],
)
def test_errors_are_told_as_its_users_know_them(client: openai.OpenAI, more: dict[str, object], said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a star", **more)  # type: ignore[call-overload]
    assert said in caught.value.message and caught.value.type == "invalid_request_error"


def test_an_edit_needs_a_picture_and_a_mask_with_a_hole(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="transparent"):
        client.images.edit(image=png(), mask=png(), prompt="a", model="scenes")
    with pytest.raises(openai.BadRequestError, match="2 pictures"):
        client.images.edit(image=[png(), png()], prompt="a", model="scenes")
    with pytest.raises(openai.BadRequestError, match="none of PNG"):
        client.images.edit(image=b"hello", prompt="a", model="scenes")


def test_a_full_queue_is_its_rate_limit(service: Service, client: openai.OpenAI) -> None:
    object.__setattr__(service.jobs, "longest", 0)
    with pytest.raises(openai.RateLimitError):
        client.images.generate(model="scenes", prompt="a", extra_body=FEW)


def test_a_token_is_its_key(service: Service) -> None:
    from app.server.guard import LOOPBACK, Doors

    token = "0123456789abcdef"
    with listened(service, Doors(frozenset(LOOPBACK), token)) as http:
        base = f"{http.base_url}/v1".replace("//v1", "/v1")
        with openai.OpenAI(base_url=base, api_key=token, max_retries=0) as good:
            assert [model.id for model in good.models.list()]
        with (
            openai.OpenAI(base_url=base, api_key="another", max_retries=0) as bad,
            pytest.raises(openai.AuthenticationError),
        ):
            bad.models.list()
