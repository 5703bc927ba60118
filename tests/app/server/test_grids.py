"""Grids: the bill before anything is made, cells that share their noise, room for others, and the sheet at the end."""

from __future__ import annotations

import base64
import io
import json
import sqlite3
import time
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.server.axes import read
from app.server.catalog import Catalog
from app.server.grids import GOING
from app.server.limits import Limits
from app.server.service import Service
from ldm.errors import Code, LdmError
from ldm.images import open_image
from tests.app.server.conftest import QUICK, Open, ended, listened, made
from tests.app.server.test_asking import png
from tests.app.server.test_worker import Gate

WEIGHTS = {"field": "guidance.scale", "values": [1.5, 3, 5]}


def asked(service: Service, x: Any = None, y: Any = None, z: Any = None, **request: Any) -> list[dict[str, Any]]:
    """The requests of the cells, as they would be queued."""
    grid = read({"request": QUICK | request, "x": x, "y": y, "z": z})
    return [dict(cell.asked) for cell in service.grids.plan(grid)]


def started(service: Service, client: str = "me", request: dict[str, Any] | None = None, **axes: Any) -> str:
    grid = read({"request": QUICK if request is None else request, **axes, "dry": False})
    name = service.grids.submit(grid, service.grids.plan(grid), client).id
    service.worker.wake()
    return name


def done(service: Service, name: str, seconds: float = 120) -> dict[str, Any]:
    until = time.monotonic() + seconds
    while (told := service.grids.told(name))["state"] == "running":
        assert time.monotonic() < until, told["counts"]
        time.sleep(0.02)
    return told


def test_cells_run_along_x_first_and_share_what_is_no_axis(service: Service) -> None:
    y, z = {"field": "solver", "values": ["euler", "ddim"]}, {"field": "steps", "values": [2, 3]}
    cells = asked(service, WEIGHTS, y, z, seed=-1, guidance={"rescale": 0.5})
    assert [(c["guidance"]["scale"], c["solver"], c["steps"]) for c in cells[:4]] == [
        (1.5, "euler", 2), (3, "euler", 2), (5, "euler", 2), (1.5, "ddim", 2),
    ]  # fmt: skip
    assert len(cells) == 12 and cells[6]["steps"] == 3
    assert len({c["seed"] for c in cells}) == 1 and {c["guidance"]["rescale"] for c in cells} == {0.5}
    assert asked(service, WEIGHTS, seed=-1)[0]["seed"] != cells[0]["seed"]


@pytest.mark.parametrize(
    ("axis", "request_", "wanted"),
    [
        ({"field": "prompt", "values": ["a", "b"]}, {}, [{"prompt": "a"}, {"prompt": "b"}]),
        (
            {"field": "prompt", "replace": "red", "values": ["red", "blue"]},
            {},
            [{"prompt": "a red circle"}, {"prompt": "a blue circle"}],
        ),
        (
            {"field": "negative", "replace": "a.b", "values": ["c"]},
            {"negative": "a.b axb a.b"},
            [{"negative": "c axb c"}],
        ),
        ({"field": "seed", "values": [4, 9]}, {}, [{"seed": 4}, {"seed": 9}]),
        ({"field": "negative", "values": [None, "blur"]}, {}, [{}, {"negative": "blur"}]),
        ({"field": "model", "values": ["scenes", "emoji"]}, {}, [{"model": "scenes"}, {"model": "emoji"}]),
        ({"field": "exact", "values": [True]}, {}, [{"exact": True}]),
        (
            {"field": "guidance", "values": [{"scale": 2}]},
            {"guidance": {"rescale": 0.5}},
            [{"guidance": {"scale": 2.0, "rescale": 0.5}}],
        ),
        (
            {"field": "loras.0.weight", "values": [0.5]},
            {"model": "emoji", "loras": [{"name": "emoji-fast"}]},
            [{"loras": [{"name": "emoji-fast", "weight": 0.5}]}],
        ),
        ({"field": "hires.scale", "values": [2]}, {}, [{"hires": {"scale": 2.0}}]),
    ],
)  # fmt: skip
def test_any_field_may_be_an_axis(
    service: Service, axis: dict[str, Any], request_: dict[str, Any], wanted: list[dict[str, Any]]
) -> None:
    cells = asked(service, axis, **request_)
    assert len(cells) == len(wanted)
    assert all(told.items() <= cell.items() for cell, told in zip(cells, wanted, strict=True)), cells


def test_two_words_of_a_prompt_are_replaced_at_once(service: Service) -> None:
    x = {"field": "prompt", "replace": "red", "values": ["red", "circle"]}
    y = {"field": "prompt", "replace": "circle", "values": ["circle", "red"]}
    prompts = [cell["prompt"] for cell in asked(service, x, y)]
    assert prompts == ["a red circle", "a circle circle", "a red red", "a circle red"]
    z = {"field": "prompt", "values": ["red circle", "circle, red"]}
    assert len({cell["prompt"] for cell in asked(service, x, y, z)}) == 8


def test_a_text_that_no_job_takes_is_not_made(service: Service) -> None:
    axis = {"field": "prompt", "replace": "a", "values": ["b" * 10_000]}
    tracemalloc.start()
    try:
        for prompt in ("a" * 60_000, "a" * 100, "a\u00e9" * 7_000, "a"):
            given = axis if prompt != "a" else axis | {"values": ["b" * 20_001]}
            with pytest.raises(LdmError, match="The prompt is too long") as caught:
                asked(service, given, prompt=prompt)
            assert caught.value.code is Code.USAGE
        assert tracemalloc.get_traced_memory()[1] < 20e6  # it was 600 MB
    finally:
        tracemalloc.stop()
    assert len(asked(service, axis, prompt="a c")[0]["prompt"]) == 10_002


def test_a_list_of_grids_is_short(service: Service) -> None:
    values = [f"{n} {'long ' * 120}" for n in range(390)]
    names = [started(service, x={"field": "prompt", "values": values}) for _ in range(3)]
    for name in names:
        service.grids.withdraw(name)
    told = service.grids.list()
    assert len(json.dumps(told)) < 10_000 and [one["id"] for one in told] == names[::-1]
    axis = told[0]["axes"]["x"]
    assert axis["field"] == "prompt" and axis["count"] == 390 and axis["values"][0].startswith("0 long long")
    assert max(map(len, axis["values"])) == 60
    assert service.grids.told(names[0])["axes"]["x"]["values"] == values
    with pytest.raises(LdmError, match="grid is too long") as caught:
        started(service, x={"field": "prompt", "values": [f"{n} {'long ' * 150}" for n in range(390)]})
    assert caught.value.code is Code.USAGE and len(service.grids.list()) == 3


def test_pictures_along_an_axis_are_kept_by_their_ids(service: Service) -> None:
    pictures = [base64.b64encode(png(colour=colour)).decode() for colour in ("red", "blue")]
    name = started(service, x={"field": "image", "values": pictures})
    assert [len(value) for value in service.grids.told(name)["axes"]["x"]["values"]] == [64, 64]
    done(service, name)


def test_the_folders_of_models_are_read_once_for_a_grid(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, models = list[int](), Catalog.models

    def counted(catalog: Catalog) -> dict[str, Path]:
        reads.append(1)
        return models(catalog)

    monkeypatch.setattr(Catalog, "models", counted)
    assert len(asked(service, {"field": "seed", "values": list(range(50))})) == 50
    assert len(reads) == 1


def test_a_picture_that_comes_along_is_kept_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    image = base64.b64encode(png()).decode()
    cells = asked(service, {"field": "strength", "values": [0.5, 0.9]}, image=image)
    assert {len(cell["image"]) for cell in cells} == {64} and len({cell["image"] for cell in cells}) == 1
    control = {"controls": [{"model": "edges", "hint": "canny"}]}
    two = {"field": "controls.0.image", "values": [image, base64.b64encode(png(colour="blue")).decode()]}
    assert len({cell["controls"][0]["image"] for cell in asked(service, two, **control)}) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no axis"),
        ({"x": {"field": "steps"}}, "values"),
        ({"x": {"field": "steps", "values": []}}, "values"),
        ({"x": {"field": "steps", "values": [2], "more": 1}}, "more"),
        ({"w": {"field": "steps", "values": [2]}}, "w: unknown key"),
        ({"x": {"field": "steps", "values": [2] * 401}}, "400"),
        ({side: {"field": f"a{side}", "values": [1] * 9} for side in "xyz"}, "729"),
        ({"x": WEIGHTS, "y": WEIGHTS}, "x and y both set guidance.scale"),
        ({"x": WEIGHTS, "z": {"field": "guidance", "values": [{}]}}, "x and z both set"),
        ({"x": {"field": "prompt", "replace": "red", "values": [4]}}, "4 is no text"),
        ({"x": {"field": "steps", "replace": "red", "values": ["4"]}}, "steps is no text"),
        ({"x": {"field": "prompt", "replace": "", "values": ["4"]}}, "replace"),
        ({"x": WEIGHTS, "request": []}, "request"),
    ],
)  # fmt: skip
def test_a_grid_that_is_none_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(LdmError) as caught:
        read({"request": QUICK} | given)
    assert caught.value.code is Code.USAGE and said in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ({"field": "steps", "values": [2, 0]}, "x steps 0"),
        ({"field": "guidance.scale", "values": [3, 500]}, "x scale 500"),
        ({"field": "guidence.scale", "values": [3]}, "did you mean guidance"),
        ({"field": "guidance.scal", "values": [3]}, "scale"),
        ({"field": "model", "values": ["scenes", "../emoji"]}, "no model"),
        ({"field": "loras.0.weight", "values": [1]}, "no '0'"),
        ({"field": "prompt.0", "values": ["a"]}, "no '0'"),
        ({"field": "prompt", "replace": "green", "values": ["blue"]}, "'green' does not occur"),
        ({"field": "count", "values": [1, 2]}, "count is 2"),
        ({"field": "image", "values": ["http://example.org"]}, "no picture"),
        ({"field": "steps", "values": [{"a": ["b"]}]}, "whole number"),
        ({"field": "", "values": [1]}, "field"),
        ({"field": "..", "values": [1]}, "unknown key"),
    ],
)
def test_a_cell_that_is_wrong_refuses_all_and_is_named(service: Service, axis: dict[str, Any], said: str) -> None:
    with pytest.raises(LdmError) as caught:
        started(service, x=axis, y={"field": "seed", "values": [1, 2]})
    assert said in str(caught.value), caught.value
    assert service.grids.list() == [] and service.jobs.list() == []


def test_lists_have_places(service: Service) -> None:
    lora = {"model": "emoji", "loras": [{"name": "emoji-fast"}]}
    with pytest.raises(LdmError, match="no '1'"):
        asked(service, {"field": "loras.1.weight", "values": [1]}, **lora)


def test_the_bill_is_told_first_and_seconds_when_they_are_known(service: Service) -> None:
    grid = read({"request": QUICK, "x": WEIGHTS, "y": {"field": "steps", "values": [2, 4]}})
    told = service.grids.bill(service.grids.plan(grid))
    assert told == {"cells": 6, "pictures": 6, "steps": 18, "work": 18.0 * 32 * 32, "seconds": None}
    assert service.jobs.list() == [] and service.grids.list() == []
    made(service, QUICK)
    job = made(service, QUICK | {"steps": 4})
    assert service.grids.bill(service.grids.plan(grid))["seconds"] > 0
    service.jobs._db.execute("update jobs set started=100, ended=100.5 where id=?", (job.id,))
    service.jobs._db.execute("update jobs set started=100.2, ended=100.6 where id<>?", (job.id,))
    assert service.grids.bill(service.grids.plan(grid))["seconds"] == pytest.approx(0.6 / 6 * 18)  # they shared it
    both = read({"request": QUICK, "x": {"field": "model", "values": ["scenes", "emoji"]}})
    assert service.grids.bill(service.grids.plan(both))["seconds"] is None  # another model has another pace


def test_a_grid_is_larger_than_the_queue_and_leaves_room_for_others(
    open_service: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with open_service(Limits(waiting=4)) as service:
        first = service.submit(QUICK | {"exact": True}, "other")
        gate.wait()
        exact = QUICK | {"exact": True}
        name = started(service, request=exact, x=WEIGHTS, y={"field": "seed", "values": list(range(4))})
        rest = [service.submit(exact | {"seed": n}, "other") for n in range(4)]  # all places of the queue
        assert service.grids.told(name)["counts"] == {"waiting": 12}
        many = list[int]()

        def counted(db: sqlite3.Connection) -> None:
            service.grids.feed(db)
            many.append(service.jobs.waiting(cells=True))

        service.jobs.kept_back = counted
        gate.go(1000)
        told = done(service, name)
        assert told["counts"] == {"done": 12} and [ended(service, job).state for job in (first, *rest)] == ["done"] * 5
        assert max(many) == 2  # half as many as callers may have there
        ends = [service.jobs.job(job.id).ended or 0 for job in rest]
        cells = [service.jobs.job(cell["job"]).ended or 0 for cell in told["cells"]]
        assert max(ends) < max(cells)  # callers take turns


def test_two_callers_with_grids_take_turns(open_service: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with open_service(Limits(waiting=4)) as service:
        exact = QUICK | {"exact": True}
        large = started(service, "large", exact, x={"field": "seed", "values": list(range(9))})
        small = started(service, "small", exact, x={"field": "seed", "values": [1, 2]})
        gate.go(1000)
        done(service, small)
        ends = [service.jobs.job(c["job"]).ended or 0 for c in done(service, large)["cells"]]
        late = max(service.jobs.job(c["job"]).ended or 0 for c in service.grids.told(small)["cells"])
        assert sum(end < late for end in ends) <= 5


def test_a_grid_goes_on_when_its_server_is_started_again(open_service: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        gate = Gate(patched)
        with open_service(Limits(waiting=4)) as service:
            seeds = {"field": "seed", "values": list(range(5))}
            name = started(service, request=QUICK | {"exact": True}, x=seeds)
            for _ in range(3):
                gate.wait()
                gate.go()
            gate.wait()
            service.worker._ending.set()
            gate.go(10)
    with open_service(Limits(waiting=4)) as service:
        told = done(service, name)
        assert told["counts"] == {"done": 5} and told["axes"]["x"] == seeds and told["seed"] is None
        assert len(service.jobs.list()) == 5  # each cell is asked for once
        asked = [service.jobs.job(cell["job"]).asked["seed"] for cell in told["cells"]]
        assert asked == list(range(5)) and [cell["x"] for cell in told["cells"]] == list(range(5))


def test_a_grid_that_is_ended_makes_no_more(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    name = started(service, request=QUICK | {"exact": True}, x={"field": "seed", "values": list(range(40))})
    gate.wait()
    for job in service.grids.withdraw(name):
        service.cancel(job, keep=False)
    gate.go(1000)
    told = done(service, name)
    assert told["counts"] == {"cancelled": 40} and len(service.jobs.list()) <= 17
    assert made(service, QUICK).state == "done"
    assert service.grids.told(name) == told


def test_no_more_grids_wait_than_may(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    service.submit(QUICK | {"exact": True}, "me")
    gate.wait()
    seeds = {"field": "seed", "values": [1, 2]}
    names = [started(service, x=seeds) for _ in range(GOING)]
    with pytest.raises(LdmError, match="many grids") as caught:
        started(service, x=seeds)
    assert caught.value.code is Code.BUSY
    for name in names:
        service.grids.withdraw(name)
    assert started(service, x=seeds)
    gate.go(10_000)


def test_cells_that_share_a_model_follow_each_other(service: Service) -> None:
    x = {"field": "model", "values": ["scenes", "emoji"]}
    name = started(service, request=QUICK | {"exact": True}, x=x, y={"field": "seed", "values": [1, 2]})
    told = done(service, name)
    assert service.worker.together is not None and service.worker.together.shelf.loads <= 2
    begun = sorted(told["cells"], key=lambda cell: service.jobs.job(cell["job"]).started or 0)
    assert [cell["x"] for cell in begun] in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert [(cell["x"], cell["y"]) for cell in told["cells"]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    asked = [service.jobs.job(cell["job"]).asked for cell in told["cells"]]
    assert [(a["model"], a["seed"]) for a in asked] == [("scenes", 1), ("emoji", 1), ("scenes", 2), ("emoji", 2)]


@pytest.mark.loopback
def test_a_grid_over_http(http: httpx.Client, service: Service) -> None:
    given = {
        "request": QUICK, "x": WEIGHTS, "y": {"field": "prompt", "replace": "red", "values": ["red", "a " * 9_000]},
        "z": {"field": "steps", "values": [1, 2]},
    }  # fmt: skip
    bill = http.post("/v1/grids", json=given)
    assert bill.status_code == 200 and (bill.json()["cells"], bill.json()["steps"]) == (12, 18), bill.text
    answer = http.post("/v1/grids", json=given | {"dry": False})
    told = answer.json()
    assert answer.status_code == 201 and answer.headers["location"] == f"/v1/grids/{told['id']}", answer.text
    assert set(told["cells"][0]) == {"x", "y", "z", "job", "state", "url"} and len(told["cells"]) == 12
    assert told["axes"] == {side: given[side] for side in "xyz"} and told["seed"] == 1
    done(service, told["id"])
    whole = http.get(f"/v1/grids/{told['id']}").json()
    assert whole["state"] == "ended" and whole["counts"] == {"done": 12}
    cell = next(cell for cell in whole["cells"] if (cell["x"], cell["y"], cell["z"]) == (2, 0, 1))
    assert http.get(f"/v1/jobs/{cell['job']}").json()["request"] == QUICK | {"guidance": {"scale": 5.0}, "steps": 2}
    assert http.get(cell["url"]).headers["content-type"] == "image/png"
    listed = http.get("/v1/grids").json()["grids"]
    assert [grid["id"] for grid in listed] == [told["id"]] and "cells" not in listed[0]
    assert http.get("/v1/grids", params={"before": told["id"]}).json() == {"grids": []}
    service.pictures.throw(cell["job"], 0)
    assert http.get(f"/v1/grids/{told['id']}").json()["cells"][8]["url"] is None
    sheet = http.get(f"/v1/grids/{told['id']}/sheet")
    assert sheet.status_code == 200 and sheet.headers["content-type"] == "image/png"
    drawn = Image.open(io.BytesIO(sheet.content))
    assert 3 * 128 < drawn.width < 1200 and 4 * 128 < drawn.height < 800
    assert http.post(f"/v1/grids/{told['id']}/cancel").json()["counts"] == {"done": 12}


@pytest.mark.loopback
def test_a_sheet_shows_each_picture_in_its_place(http: httpx.Client, service: Service) -> None:
    x, y = {"field": "seed", "values": [1, 2]}, {"field": "prompt", "values": ["a red circle", "a blue square"]}
    told = http.post("/v1/grids", json={"request": QUICK | {"steps": 6}, "x": x, "y": y, "dry": False}).json()
    done(service, told["id"])
    sheet = open_image(http.get(f"/v1/grids/{told['id']}/sheet").content).pixels
    cells = http.get(f"/v1/grids/{told['id']}").json()["cells"]
    for cell in cells:
        large = open_image(http.get(cell["url"]).content).pixels.repeat(4, axis=0).repeat(4, axis=1)
        left, top = sheet.shape[1] - 2 * 134 + 134 * cell["x"], 26 + 134 * cell["y"]
        assert (sheet[top : top + 128, left : left + 128] == large).all()
    service.pictures.throw(cells[3]["job"], 0)
    without = open_image(http.get(f"/v1/grids/{told['id']}/sheet").content).pixels
    assert without.shape == sheet.shape and (without[:-134] == sheet[:-134]).all() and (without != sheet).any()


@pytest.mark.loopback
def test_what_is_wrong_with_a_grid_is_told(open_service: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with open_service() as service, listened(service) as http:
        good = {"request": QUICK, "x": WEIGHTS, "dry": False}
        name = http.post("/v1/grids", json=good).json()["id"]
        gate.wait()
        for method, path, body, status, said in [
            ("GET", "/v1/grids/nobody", None, 404, "no grid"),
            ("GET", "/v1/grids/nobody/sheet", None, 404, "no grid"),
            ("POST", "/v1/grids/nobody/cancel", None, 404, "no grid"),
            ("GET", "/v1/grids?before=nobody", None, 404, "no grid"),
            ("GET", "/v1/grids?limit=0", None, 422, "limit"),
            ("GET", f"/v1/grids/{name}/sheet", None, 409, "still to come"),
            ("POST", "/v1/grids", [], 422, "object"),
            ("POST", "/v1/grids", good | {"x": {"field": "steps", "values": [2, 0]}}, 422, "x steps 0"),
            ("POST", "/v1/grids", good | {"dry": "perhaps"}, 422, "dry"),
        ]:
            answer = http.request(method, path, **({} if body is None else {"json": body}))
            assert answer.status_code == status and said in answer.text, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
        assert len(http.get("/v1/grids").json()["grids"]) == 1
        for job in service.grids.withdraw(name):
            service.cancel(job, keep=True)
        gate.go(1000)
        done(service, name)
        sheet = http.get(f"/v1/grids/{name}/sheet")
        assert sheet.status_code == 200 and Image.open(io.BytesIO(sheet.content)).width > 3 * 128
        kept = json.dumps(http.get(f"/v1/grids/{name}").json())
        assert str(Path.cwd()) not in kept
