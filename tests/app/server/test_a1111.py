"""`webuiapi` as its users use it, against a server here; and what its dialect asks for that nothing here does."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from PIL import Image

from app.server.a1111_fields import fields_of, model_of
from app.server.service import Service
from ldm.errors import LdmError
from tests.app.server.conftest import ended, made
from tests.app.server.test_asking import png
from tests.app.server.test_worker import Gate
from tests.thin import thinned

pytestmark = pytest.mark.loopback
Small = dict[str, Any]
SMALL: Small = {"prompt": "a red circle", "steps": 2, "seed": 1, "width": 32, "height": 32}


@pytest.fixture
def api(http: httpx.Client) -> webuiapi.WebUIApi:
    client = webuiapi.WebUIApi(host=http.base_url.host, port=http.base_url.port, sampler="Euler")
    client.set_options({"sd_model_checkpoint": "scenes"})
    return client


def test_a_prompt_becomes_pictures_with_their_recipe(api: webuiapi.WebUIApi, service: Service) -> None:
    made = api.txt2img(**SMALL, negative_prompt="blue", batch_size=2, n_iter=2, cfg_scale=3, sampler_name="Euler a")
    assert len(made.images) == 4 and made.image.size == (32, 32)
    assert made.info["all_seeds"] == [1, 2, 3, 4] and made.info["sd_model_name"] == "scenes"
    assert "Negative prompt: blue" in made.info["infotexts"][0] and "Sampler: Euler a" in made.info["infotexts"][0]
    asked = service.jobs.list()[0].asked
    assert asked["negative"] == "blue" and asked["guidance"] == {"scale": 3.0} and asked["solver"] == "euler-a"
    again = api.txt2img(**SMALL, negative_prompt="blue", cfg_scale=3, sampler_name="Euler a")
    assert (np.asarray(again.image) == np.asarray(made.image)).all()
    info = api.png_info(made.image)
    assert info.info.startswith("a red circle") or info.info == ""  # PIL hands on no text by itself


def test_a_picture_is_painted_over_and_inpainted(api: webuiapi.WebUIApi) -> None:
    red, mask = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    whole = api.img2img(images=[red], **SMALL, denoising_strength=0.5)
    assert whole.image.size == (32, 32)
    more = {"images": [red], "mask_image": mask, "denoising_strength": 1.0, "mask_blur": 0, "inpaint_full_res": False}
    made = np.asarray(api.img2img(**more, **SMALL).image.convert("RGB"))
    assert (made[:, 16:] == (255, 0, 0)).all() and (made[:, :16] != (255, 0, 0)).any()
    other = np.asarray(api.img2img(**more, **SMALL, inpainting_mask_invert=1).image.convert("RGB"))
    assert (other[:, :16] == (255, 0, 0)).all() and (other[:, 16:] != (255, 0, 0)).any()


def test_controls_and_a_second_pass(api: webuiapi.WebUIApi, service: Service) -> None:
    unit = webuiapi.ControlNetUnit(
        image=Image.new("RGB", (32, 32), "white"), module="canny", model="edges [0123abcd]", weight=0.5
    )
    off = webuiapi.ControlNetUnit(model="None")
    assert api.txt2img(**SMALL, controlnet_units=[unit, off]).image.size == (32, 32)
    control = service.jobs.list()[0].asked["controls"]
    assert [(c["model"], c["hint"], c["weight"]) for c in control] == [("edges", "canny", 0.5)]
    made = api.txt2img(**SMALL, enable_hr=True, hr_upscaler=webuiapi.HiResUpscaler.Lanczos, hr_scale=2)
    assert made.image.size == (64, 64)
    assert api.custom_get("controlnet/model_list")["model_list"] == ["edges", "emoji-scribble"]
    assert "canny" in api.custom_get("controlnet/module_list")["module_list"]


def test_what_is_here_is_listed(api: webuiapi.WebUIApi) -> None:
    assert {"Euler a", "DPM++ 2M", "DDIM"} <= {told["name"] for told in api.get_samplers()}
    assert {"Karras", "Automatic"} <= {told["label"] for told in api.get_schedulers()}
    assert [told["model_name"] for told in api.get_sd_models()] == ["emoji", "scenes"]
    assert [told["name"] for told in api.get_loras()] == ["emoji-fast"]
    assert api.get_options()["sd_model_checkpoint"] == "scenes" and api.util_get_current_model() == "scenes"
    for call in (api.get_sd_vae, api.get_upscalers, api.get_latent_upscale_modes, api.get_hypernetworks,
                 api.get_cmd_flags, api.get_face_restorers, api.get_realesrgan_models, api.get_prompt_styles,
                 api.get_embeddings,
                 api.get_memory, api.get_scripts, api.refresh_checkpoints):  # fmt: skip
        call()
    assert api.controlnet_version() == 2


def test_progress_is_told_and_what_is_interrupted_is_answered_as_far_as_it_is(
    api: webuiapi.WebUIApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, answers = Gate(monkeypatch), list[Any]()
    asked = threading.Thread(target=lambda: answers.append(api.txt2img(**SMALL | {"steps": 20})))
    asked.start()
    gate.wait()
    told = api.get_progress()
    assert told["state"]["sampling_steps"] == 20 and 0 <= told["progress"] < 0.5 and told["state"]["job"]
    api.interrupt()
    gate.go(30)
    asked.join(60)
    assert len(answers) == 1 and answers[0].image.size == (32, 32)
    assert api.get_progress()["progress"] == 0


@pytest.mark.parametrize(("steps", "turn"), thinned(product((0, 1, 3), range(5)), 5))
def test_who_leaves_wants_no_picture_any_more(
    http: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch, steps: int, turn: int
) -> None:
    """F16, five times each: while it waits for its turn, in its first step, later. The worker goes on to others, and no
    file is left."""
    gate = Gate(monkeypatch)
    before = service.submit({"model": "scenes", "steps": 2, "exact": True}, "other")
    gate.wait()
    body = json.dumps(SMALL | {"steps": 50, "override_settings": {"sd_model_checkpoint": "scenes"}}).encode()
    head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((http.base_url.host, http.base_url.port)) as raw:
        raw.sendall(head + body)
        reached(lambda: len(service.jobs.list()) == 2)
        for _ in range(steps and steps + 1):  # of the other job the last one, too
            gate.go()
            gate.wait()
    job = service.jobs.list()[0]
    reached(lambda: service.jobs.job(job.id).state == "cancelled" or bool(service.worker._unwanted))
    gate.go(2)
    assert ended(service, job).state == "cancelled" and ended(service, before).state == "done"
    assert len(list(service.gallery.folder.iterdir())) == 1
    reached(lambda: not service.hub._listeners)
    gate.go(9)
    made(service, {"model": "scenes", "steps": 2})


def reached(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"styles": ["photo"]}, "styles"),
        ({"script_name": "x/y/z plot"}, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {}]}}}, "ADetailer"),
        ({"sampler_name": "DPM adaptive"}, "solver"),
        ({"scheduler": "KL Optimal", "sampler_name": "Euler"}, "spacing"),
        ({"subseed_strength": 0.5}, "subseed"),
        ({"batch_size": 0}, "batch_size"),
        ({"prompt": 5}, "prompt"),
        ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "R-ESRGAN"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, "eta_noise_seed_delta"),
        ({"override_settings": {"sd_model_checkpoint": "sd_xl"}}, "no model"),
        ({"width": 33}, "nearest legal size"),
    ],
)
def test_what_is_not_done_here_is_refused(http: httpx.Client, given: dict[str, Any], said: str) -> None:
    answer = http.post("/sdapi/v1/txt2img", json=SMALL | given)
    assert answer.status_code == 422 and said in answer.text and answer.json()["fix"]


def unchanged(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ({"module": "depth_midas"}, "depth_midas"),
        ({"control_mode": "My prompt is more important"}, "control_mode"),
    ],
)
def test_units_that_cannot_act_are_refused(unit: dict[str, Any], said: str) -> None:
    given = {"alwayson_scripts": {"controlnet": {"args": [{"model": "edges", "image": "a", **unit}]}}}
    with pytest.raises(LdmError, match=said):
        fields_of(given, "scenes", unchanged, unchanged, False)


def test_fields_have_the_names_of_this_house() -> None:
    given = {
        "sampler_name": "DPM++ 2M", "scheduler": "Automatic", "seed": 5, "subseed": 7, "subseed_strength": 0.25,
        "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "mine.safetensors [abcdef12]"},
        "init_images": ["picture"], "mask": "mask", "inpainting_fill": 2, "inpaint_full_res_padding": 9, "mask_blur": 3,
        "denoising_strength": 0.4, "do_not_save_grid": True, "s_noise": 1,
    }  # fmt: skip
    assert model_of(given) == "mine"
    told = fields_of(given, "mine", unchanged, unchanged, True)
    assert told == {
        "model": "mine", "prompt": "", "seed": 5, "count": 1, "batch": 1, "solver": "dpm++ 2m", "spacing": "karras",
        "variation": 0.25, "variation_seed": 7, "clip_skip": 1, "image": "picture", "strength": 0.4, "mask": "mask",
        "resize_mask": True, "mask_blur": 3, "fill": "noise", "only_masked": True, "padding": 9,
    }  # fmt: skip
    guess = {
        "alwayson_scripts": {"ControlNet": {"args": [{"model": "edges", "control_mode": 2, "image": {"image": "a"}}]}}
    }
    assert fields_of(guess, "mine", unchanged, unchanged, False)["controls"] == [
        {"model": "edges", "hint": "none", "image": "a", "guess": True}
    ]


def test_a_recipe_is_read_from_a_picture(http: httpx.Client, service: Service) -> None:
    made = http.post("/sdapi/v1/txt2img", json=SMALL | {"override_settings": {"sd_model_checkpoint": "scenes"}}).json()
    told = http.post("/sdapi/v1/png-info", json={"image": made["images"][0]}).json()
    assert told["info"].startswith("a red circle\nSteps: 2") and "ldm" in told["items"]
    bare = base64.b64encode(png()).decode()
    assert http.post("/sdapi/v1/png-info", json={"image": bare}).json()["info"] == ""
    assert http.post("/sdapi/v1/options", json={"samples_format": "jpg"}).status_code == 422
    assert http.post("/sdapi/v1/options", json={"samples_format": "png"}).status_code == 200
