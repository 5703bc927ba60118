"""What a control would see is what it sees; what a form offers is what there is."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.server.hints import controls, hints, made_for, seen
from app.server.options import options
from app.server.service import Service
from ldm.data.hints import HINTS, make_hint
from ldm.diffusion.solver import SOLVERS, Run, Solver
from ldm.errors import Code, LdmError
from ldm.images import open_image
from ldm.store.find import find_model
from ldm.store.shards import read_json
from pipelines.conditions import companion
from tests.app.server.conftest import QUICK, made


def picture(size: tuple[int, int] = (48, 40)) -> bytes:
    """A red disc on a blue ground, with a transparent corner."""
    y, x = np.mgrid[: size[1], : size[0]]
    rgba = np.zeros((size[1], size[0], 4), np.uint8)
    rgba[...] = (20, 30, 200, 255)
    rgba[(x - 20) ** 2 + (y - 20) ** 2 < 120] = (220, 30, 20, 255)
    rgba[:5, :5, 3] = 0
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG")
    return file.getvalue()


def samples(png: bytes) -> np.ndarray:
    return np.asarray(open_image(png).pixels)


@pytest.mark.parametrize("name", [*HINTS, "depth", "openpose"])
def test_every_detector_is_shown_as_a_control_sees_it(service: Service, name: str) -> None:
    data = picture()
    shown = samples(seen(service, {"image": service.uploads.add(data).id, "hint": name, "width": 64, "height": 32}))
    wanted = make_hint(name, companion(open_image(data), (64, 32), None))
    assert shown.shape == (32, 64, 3) and (shown == np.rint(wanted * 255)).all() and shown.std() > 1


def test_what_is_seen_is_what_the_network_is_told(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint that reaches the control of a job, beside the one that is shown before."""
    from ldm.models.latent import Control

    told = []
    plain = Control.__init__

    def heard(self: Control, network: Any, hint: Any, *more: Any, **others: Any) -> None:
        told.append(np.asarray(hint))
        plain(self, network, hint, *more, **others)

    name = service.uploads.add(picture()).id
    service.worker.bring_in()
    monkeypatch.setattr(Control, "__init__", heard)
    made(service, QUICK | {"controls": [{"model": "edges", "image": name, "hint": "soft"}]})
    shown = samples(seen(service, {"image": name, "hint": "soft", "model": "scenes"}))
    assert (shown == np.rint(told[0][0].transpose(1, 2, 0) * 255)).all()


def test_a_size_that_is_left_out_is_the_model_s(service: Service) -> None:
    image = base64.b64encode(picture()).decode()
    for model, side in (("scenes", 32), ("emoji", 64)):
        assert samples(seen(service, {"image": image, "hint": "canny", "model": model})).shape == (side, side, 3)
    assert samples(seen(service, {"image": image, "width": 16})).shape == (64, 16, 3)
    assert not service.uploads.folder.exists()  # what is only looked at is not kept


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "image"),
        ({"hint": "cany"}, "write canny"),
        ({"hint": ""}, "hint"),
        ({"width": 33}, "nearest legal size is 32"),
        ({"width": 4096, "height": 4096}, "2,000,000 pixels"),
        ({"image": "0" * 64}, "no upload"),
        ({"image": "/etc/passwd"}, "is no picture"),
        ({"image": "http://127.0.0.1/a.png"}, "is no picture"),
        ({"image": "aGFsbG8="}, "none of PNG"),
        ({"model": "../emoji"}, "no model"),
        ({"strength": 1}, "unknown key"),
    ],
)
def test_what_is_wrong_is_said(service: Service, given: dict[str, Any], said: str) -> None:
    asked = given if not given else {"image": service.uploads.add(picture()).id} | given
    with pytest.raises(LdmError) as caught:
        seen(service, asked)
    assert said in str(caught.value) and caught.value.code in (Code.USAGE, Code.REFUSED)


def test_detectors_are_told_in_a_sentence_each(service: Service) -> None:
    told = hints(service)
    assert list(told) == list(HINTS)
    assert all(text.endswith(".") and "\n" not in text and 10 < len(text) < 120 for text in told.values())
    assert len(set(told.values())) == len(told)
    assert controls(service) == {"emoji-scribble": "scribble", "edges": "canny"}


@pytest.mark.parametrize(
    ("control", "hint"),
    [
        ("control_v11p_sd15_canny", "canny"), ("controlnet-softedge-sdxl", "soft"), ("lllyasviel/sd-mlsd", "lines"),
        ("control_v11f1p_sd15_depth", "none"), ("mine", None), ("cannyon", None), ("t2i_OpenPose", "none"),
    ],
)  # fmt: skip
def test_a_control_s_name_tells_its_detector(control: str, hint: str | None) -> None:
    assert made_for(control) == hint and (hint is None or hint in HINTS)


def test_a_form_is_offered_what_acts(service: Service) -> None:
    """Each pair of the table can be built, and no other."""
    told = options(service)
    assert [solver["name"] for solver in told["solvers"]] == list(SOLVERS)
    config = read_json(find_model("scenes") / "scheduler" / "scheduler_config.json")
    for solver in told["solvers"]:
        for spacing in told["spacings"]:
            sigmas = (0.9, 0.5, 0.1) if spacing == "sigmas" else None
            run = Run(solver["name"], 4, spacing, sigmas=sigmas)
            if spacing in solver["spacings"]:
                assert Solver(run, config).count >= 3
            else:
                with pytest.raises(LdmError, match="does not take the spacing"):
                    Solver(run, config)
        assert solver["spacing"] in solver["spacings"]
    assert told["hints"] == hints(service) and "none" in told["hints"]
    assert told["guidance"]["method"]["enum"] == ["cfg", "apg", "cfg-zero"]
    assert told["guidance"]["scale"]["maximum"] == 100 and told["guidance"]["scale"]["default"] == 7.5
    assert "blur" in told["fills"] and "comfy" in told["dialects"]


def test_defaults_are_what_a_request_that_says_nothing_gets(service: Service) -> None:
    told = options(service)["defaults"]
    assert set(told) == set(service.catalog.models())
    for model, fields in told.items():
        asked = service.understanding({"model": model, "prompt": "a"}).request
        assert {name: fields[name] for name in ("steps", "solver", "spacing", "guidance_scale", "strength")} == {
            "steps": asked.steps, "solver": asked.solver, "spacing": asked.spacing,
            "guidance_scale": asked.guidance.scale, "strength": asked.strength,
        }  # fmt: skip
        said = {n: v for n, v in fields.items() if n not in ("side", "guidance_scale", "strength", "fill", "mask_blur")}
        again = service.understanding({"model": model, "prompt": "a", "seed": asked.seed} | said).request
        assert again == asked
    assert (told["emoji"]["side"], told["emoji"]["steps"], told["scenes"]["steps"]) == (64, 15, 25)


def test_what_an_adapter_asks_for_is_told(service: Service) -> None:
    told = options(service)["adapters"]
    asked = service.understanding({"prompt": "a", "loras": [{"name": "emoji-fast"}]}).request
    wanted = {"steps": asked.steps, "solver": asked.solver, "guidance_scale": asked.guidance.scale}
    assert told == {"emoji-fast": wanted} and wanted["steps"] == 4


@pytest.mark.loopback
def test_they_are_asked_over_http(http: httpx.Client) -> None:
    name = http.post("/v1/uploads", content=picture(), headers={"content-type": "image/png"}).json()["id"]
    answer = http.post("/v1/hints", json={"image": name, "hint": "canny", "width": 64, "height": 64})
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert samples(answer.content).shape == (64, 64, 3)
    told, listed = http.get("/v1/options").json(), http.get("/v1/hints").json()
    assert listed["hints"] == told["hints"] and listed["controls"]["edges"] == "canny"
    wrong = http.post("/v1/hints", json={"image": name, "hint": "cany"})
    assert wrong.status_code == 422 and "canny" in wrong.json()["fix"]
