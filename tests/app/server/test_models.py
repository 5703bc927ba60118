"""What is here, what it is, how it becomes something else and how it goes: told without loading or naming folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file

from app.server import converting
from app.server.catalog import Catalog
from app.server.fitting import fits
from app.server.library import Library
from app.server.service import Service
from ldm.errors import Code, LdmError
from ldm.store.find import find_model, shipped_adapters
from ldm.store.header import read_header
from ldm.store.parts import load_parts
from ldm.store.save import save_folder, save_single
from ldm.store.weights import load_weights
from tests.app.server.conftest import QUICK, Open, ended, listened, made
from tests.store import models as tiny

LORA = shipped_adapters()["emoji-fast"]
loopback = pytest.mark.loopback


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single file in the original layout."""
    folder = tmp_path_factory.mktemp("single")
    tiny.sd1().save_pretrained(folder / "stock")
    return save_single(load_parts(folder / "stock"), folder / "one.safetensors")


@pytest.fixture
def own(service: Service) -> Path:
    """The folder of the server, with an adapter in it."""
    folder = service.library.folder
    (folder / "adapters").mkdir()
    (folder / "models").mkdir()
    shutil.copy(LORA, folder / "adapters" / "mine.safetensors")
    return folder


def converted(service: Service, *asked: Any) -> Any:
    """A conversion when it has ended."""
    one = service.conversions.start(*asked)
    until = time.monotonic() + 120
    while (now := next(c for c in service.conversions.list() if c.id == one.id)).state == "running":
        assert time.monotonic() < until
        time.sleep(0.01)
    return now


@loopback
def test_lists_tell_source_kind_family_and_size(open_service: Open, tmp_path: Path, single: Path) -> None:
    mine = tmp_path / "models"
    mine.mkdir()
    shutil.copy(single, mine / "theirs.safetensors")
    with open_service(models=mine) as service, listened(service) as http:
        shutil.copytree(find_model("scenes"), service.library.folder / "models" / "ours")
        told = {one["id"]: one for one in http.get("/v1/models").json()["data"]}
        assert {name: one["source"] for name, one in told.items()} == {
            "emoji": "shipped", "scenes": "shipped", "theirs": "folder", "ours": "imported",
        }  # fmt: skip
        assert (told["theirs"]["kind"], told["theirs"]["size"]) == ("single file", single.stat().st_size)
        assert (told["ours"]["kind"], told["ours"]["family"]) == ("model folder", "own")
        assert told["ours"]["size"] == told["scenes"]["size"] > 1_000_000
        assert http.get("/v1/models/ours").json() == told["ours"]
        controls = {one["name"]: one for one in http.get("/v1/controls").json()["controls"]}
        assert controls["edges"]["source"] == "shipped" and controls["edges"]["kind"] == "controlnet"


def test_lists_read_a_header_once(service: Service, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.server.about import listed_adapter, listed_model

    def look() -> list[dict[str, Any]]:
        found = [listed_model(service.catalog, *one) for one in service.catalog.models().items()]
        return found + [listed_adapter(service.catalog, *one) for one in service.catalog.adapters().items()]

    first = look()

    def again(path: Path) -> None:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr("app.server.catalog.describe", again)
    assert look() == first


@loopback
def test_what_a_model_is(http: httpx.Client, own: Path, single: Path) -> None:
    told = http.get("/v1/about", params={"model": "scenes"}).json()
    assert (told["kind"], told["family"], told["prediction"]) == ("model folder", "own", "v_prediction")
    assert told["parts"].keys() == {"unet", "vae", "text_encoder", "controlnet-edges"}
    assert sum(count for part, count in told["parts"].items() if part != "controlnet-edges") == told["parameters"]
    assert (told["dtypes"], told["side"], told["controls"]) == ({"F16": told["tensors"]}, 32, ["edges"])
    shutil.copy(single, own / "models" / "one.safetensors")
    told = http.get("/v1/about?model=one").json()
    assert told["parts"].keys() == {"unet", "vae", "text_encoder"} and sum(told["parts"].values()) == told["parameters"]
    assert told["metadata"]["modelspec.sai_model_spec"] == "1.0.1"
    assert all(len(value) <= 500 and value.isprintable() for value in told["metadata"].values())


@loopback
def test_what_an_adapter_is_and_which_models_it_fits(http: httpx.Client, own: Path) -> None:
    told = http.get("/v1/about?adapter=mine").json()
    assert (told["kind"], told["source"], told["model"], told["dialect"]) == ("lora", "imported", "emoji", "diffusers")
    assert told["ranks"] == {"16": 129} and told["targets"]["unet: to_q"] == 14 and told["parameters"] == 1_266_176
    fits = {fit["model"]: fit["fits"] for fit in told["fits"]}
    assert fits == {"emoji": True, "scenes": False}
    assert all(fit["why"] for fit in told["fits"])
    control = http.get("/v1/about?control=edges").json()
    assert {fit["model"]: fit["fits"] for fit in control["fits"]} == {"emoji": False, "scenes": True}


@loopback
def test_metadata_is_printable_and_cut_and_its_licence_told(http: httpx.Client, own: Path) -> None:
    weights = load_weights(LORA)
    evil = {
        "modelspec.license": "CC-BY\x1b[31m-4.0", "modelspec.trigger_phrase": "a\u202e\nwo\x00rd" + "x" * 5000,
        "ldm.base_name": "<script>", "k" * 5000: "v", "long": "y" * 100_000, **{f"n{i}": "v" for i in range(1000)},
    }  # fmt: skip
    save_file({name: weights[name].clone() for name in weights}, own / "adapters" / "evil.safetensors", evil)
    told = http.get("/v1/about?adapter=evil").json()
    assert told["licence"].startswith("CC-BY") and "\x1b" not in told["licence"]
    assert len(told["metadata"]) <= 64 and len(json.dumps(told)) < 60_000
    texts = [*told["metadata"], *told["metadata"].values(), told["word"], told["base"], *told["words"]]
    assert all(text.isprintable() and len(text) <= 500 for text in texts)
    assert told["base"] == "<script>" and told["model"] is None
    save_file({"x.lora_down.weight": torch.ones(2, 4)}, own / "adapters" / "half.safetensors")  # its other factor lacks
    half = http.get("/v1/about?adapter=half")
    assert half.status_code == 200 and half.json()["problem"]["what"] and half.json()["kind"] == "lora"


@loopback
def test_no_folder_of_the_machine_is_told(http: httpx.Client, own: Path, single: Path) -> None:
    shutil.copy(single, own / "models" / "one.safetensors")
    lists = ("/v1/models", "/v1/adapters", "/v1/controls", "/v1/conversions")
    about = [f"/v1/about?{kind}={name}" for kind, name in (
        ("model", "scenes"), ("model", "one"), ("adapter", "mine"), ("adapter", "emoji-fast"), ("control", "edges"),
    )]  # fmt: skip
    for address in (*lists, *about):
        answer = http.get(address)
        assert answer.status_code == 200, answer.text
        assert not any(root in answer.text for root in (str(own), str(Path.home()), str(find_model("emoji").parent)))


@loopback
@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("?model=nothing", 404), ("?adapter=../../etc/passwd", 404), ("?control=%00", 404), ("?model=/etc/passwd", 404),
        ("", 422), ("?model=emoji&adapter=emoji-fast", 422), ("?model=", 404),
    ],
)  # fmt: skip
def test_what_is_not_here_is_said(http: httpx.Client, address: str, status: int) -> None:
    answer = http.get(f"/v1/about{address}")
    assert answer.status_code == status and answer.json()["fix"], answer.text


def test_a_licence_stands_in_a_models_card(tmp_path: Path) -> None:
    from app.server.about import licence_of

    for text, found in (
        ("---\nlicense: openrail++\ntags:\n- a\n---\n# x", "openrail++"),
        ("---\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
        ("# license: mit\n", None),
        ("---\n" + "x" * 100_000, None),
    ):
        (tmp_path / "README.md").write_text(text)
        assert licence_of(tmp_path, {}) == found


def test_of_published_families_only_the_same_one_fits(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    for name, pipeline in (("one", tiny.sd1()), ("xl", tiny.xl())):
        pipeline.save_pretrained(tmp_path / name)
    models = catalog.models()
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"
    save_file({key: torch.ones(2, 2048)}, tmp_path / "a.safetensors", {"modelspec.architecture": "sdxl"})
    told = {fit.model: fit for fit in fits(tmp_path / "a.safetensors", models)}
    assert told["xl"].fits is True and "family xl" in told["xl"].why, told
    assert told["emoji"].fits is None  # a family of its own, and nothing is said of its base
    save_file({"emb_params": torch.ones(2, 32)}, tmp_path / "word.safetensors")
    told = {fit.model: fit for fit in fits(tmp_path / "word.safetensors", models)}
    assert (told["one"].fits, told["xl"].fits) == (True, False) and "32 and 64" in told["xl"].why
    save_file({"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 64)}, tmp_path / "both.safetensors")
    told = {fit.model: fit for fit in fits(tmp_path / "both.safetensors", models)}
    assert (told["one"].fits, told["xl"].fits) == (False, True)


@loopback
def test_what_was_brought_is_removed_to_the_trash_and_nothing_else_is(
    open_service: Open, tmp_path: Path, single: Path
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    shutil.copy(LORA, theirs / "yours.safetensors")
    shutil.copy(single, theirs / "given.safetensors")
    with open_service(adapters=theirs, models=theirs) as service, listened(service) as http:
        own = service.library.folder
        for number in (1, 2):
            shutil.copytree(find_model("scenes"), own / "models" / "copy")
            (own / "adapters").mkdir(exist_ok=True)
            shutil.copy(LORA, own / "adapters" / "mine.safetensors")
            suffix = "" if number == 1 else "-2"
            for address, name in (("models/copy", f"copy{suffix}"), ("adapters/mine", f"mine{suffix}.safetensors")):
                answer = http.delete(f"/v1/{address}")
                assert (answer.status_code, answer.json()["trash"]) == (200, name), answer.text
                assert http.delete(f"/v1/{address}").status_code == 404
        assert (own / "trash" / "mine.safetensors").read_bytes() == LORA.read_bytes()
        assert (own / "trash" / "copy-2" / "unet" / "config.json").is_file()
        for address, said in (
            ("models/emoji", "comes with"), ("models/given", "whoever runs"), ("adapters/yours", "whoever runs"),
            ("adapters/emoji-fast", "comes with"), ("controls/edges", "comes with"),
        ):  # fmt: skip
            answer = http.delete(f"/v1/{address}")
            assert answer.status_code == 422 and said in answer.text, answer.text
        for address in ("adapters/..%2f..%2fjobs", "models/../x", "models//etc", "adapters/.mine"):
            assert http.delete(f"/v1/{address}").status_code in (404, 405), address
        assert len(list(theirs.iterdir())) == 2 and find_model("emoji").is_dir()


def test_a_job_that_waits_for_a_removed_adapter_fails_and_says_so(service: Service, own: Path) -> None:
    long = service.submit(QUICK | {"steps": 100, "count": 20}, "me")
    asked = {"model": "emoji", "prompt": "a", "steps": 1, "seed": 1, "loras": [{"name": "mine"}]}
    waiting = [service.submit(asked, "me"), service.submit(asked | {"loras": [], "prompt": "a <lora:mine:1>"}, "me")]
    service.library.remove("adapter", "mine")
    service.cancel(long.id)
    for job in waiting:
        failure = ended(service, job).failure
        assert failure is not None and "no adapter 'mine' here" in failure.what and failure.fix
    assert made(service, QUICK).state == "done"


def test_a_model_that_takes_the_place_of_another_is_not_drawn_from_memory(service: Service, own: Path) -> None:
    asked = QUICK | {"model": "copy", "exact": True}
    shutil.copytree(find_model("scenes"), own / "models" / "copy")
    first = made(service, asked)
    service.library.remove("model", "copy")
    parts = load_parts("scenes")
    with torch.no_grad():
        parts.unet.conv_out.weight.mul_(0.5)
    save_folder(parts, own / "models" / "copy", along=find_model("scenes"))
    second = made(service, asked)
    pixels = [service.gallery.path(job, 0).read_bytes() for job in (first, second)]
    assert pixels[0] != pixels[1] and first.pictures[0].told != second.pictures[0].told


def test_a_file_becomes_a_folder_and_a_file_again(service: Service, own: Path, single: Path) -> None:
    shutil.copy(single, own / "models" / "one.safetensors")
    folder = converted(service, "one", "folder")
    assert (folder.state, folder.name) == ("done", "one-2"), folder
    assert service.catalog.models()["one-2"] == own / "models" / "one-2"
    back = converted(service, "one-2", "file", "../again")
    assert (back.state, back.name) == ("done", "again")
    assert read_header(own / "models" / "again.safetensors").shapes == read_header(single).shapes
    before, after = load_parts(single), load_parts(own / "models" / "again.safetensors")
    assert tiny.difference(before.unet, after.unet) == tiny.difference(before.vae, after.vae) == 0
    assert before.fingerprint == after.fingerprint
    assert made(service, QUICK | {"model": "again", "width": 16, "height": 16}).state == "done"


def test_half_precision_stays_half(service: Service, own: Path, tmp_path: Path) -> None:
    tiny.sd1().to(torch.float16).save_pretrained(own / "models" / "half")
    done = converted(service, "half", "file")
    assert done.state == "done", done
    types = {entry.dtype for entry in read_header(own / "models" / f"{done.name}.safetensors").tensors.values()}
    assert types == {"F16", "I64"}


def test_what_is_half_of_it_half_precision_is_promised_the_room_that_it_takes(
    service: Service, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.sd1()
    model.unet.half()
    model.save_pretrained(own / "models" / "mixed")
    promised, room = list[int](), Library.room

    def noted(self: Library, size: int) -> Any:
        promised.append(size)
        return room(self, size)

    monkeypatch.setattr(Library, "room", noted)
    monkeypatch.setattr(converting, "check_memory", lambda model, size: promised.append(size))
    done = converted(service, "mixed", "file")
    assert done.state == "done", done
    header = read_header(own / "models" / f"{done.name}.safetensors")
    assert "F16" not in {entry.dtype for entry in header.tensors.values()}
    assert all(size >= 0.99 * header.size for size in promised) and len(promised) == 2


def test_what_cannot_be_converted_says_why(service: Service, own: Path, single: Path) -> None:
    failed = converted(service, "scenes", "file")
    assert failed.state == "failed" and failed.error.code is Code.MODEL and "640 entries" in failed.error.what
    for asked, said in ((("scenes", "folder"), "already"), (("nothing", "file"), "no model")):
        with pytest.raises(LdmError, match=said):
            service.conversions.start(*asked)
    (own / "models" / "broken").mkdir()
    shutil.copytree(find_model("scenes"), own / "models" / "broken", dirs_exist_ok=True)
    (own / "models" / "broken" / "vae" / "config.json").write_text("{}")
    broken = converted(service, "broken", "file")
    assert broken.state == "failed" and broken.error.fix
    assert str(own) not in " ".join((broken.error.what, broken.error.why, broken.error.fix))
    object.__setattr__(service.limits, "library", 1)
    shutil.copy(single, own / "models" / "one.safetensors")
    full = converted(service, "one", "folder")
    assert full.error.code is Code.RESOURCE and "no room" in full.error.what
    assert sorted(path.name for path in (own / "models").iterdir()) == ["broken", "one.safetensors"]


@loopback
def test_conversions_are_asked_for_and_followed(http: httpx.Client, own: Path, single: Path) -> None:
    shutil.copy(single, own / "models" / "one.safetensors")
    answer = http.post("/v1/conversions", json={"model": "one", "to": "folder", "name": "two"})
    assert (answer.status_code, answer.json()["state"]) == (202, "running"), answer.text
    busy = http.post("/v1/conversions", json={"model": "one", "to": "folder"})
    assert busy.status_code in (202, 429)  # as fast as it is
    until = time.monotonic() + 120
    while any(one["state"] == "running" for one in http.get("/v1/conversions").json()["conversions"]):
        assert time.monotonic() < until
        time.sleep(0.02)
    told = {one["id"]: one for one in http.get("/v1/conversions").json()["conversions"]}[answer.json()["id"]]
    assert (told["state"], told["name"], told["model"], told["to"]) == ("done", "two", "one", "folder")
    assert "two" in [one["id"] for one in http.get("/v1/models").json()["data"]]
    for bad in ({}, {"model": "one"}, {"model": "one", "to": "ckpt"}, {"model": "one", "to": "file", "out": "/x"}, []):
        assert http.post("/v1/conversions", json=bad).status_code == 422


def test_one_conversion_at_a_time(service: Service, own: Path, single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(single, own / "models" / "one.safetensors")
    first = service.conversions.start("one", "folder")
    with pytest.raises(LdmError) as caught:
        service.conversions.start("one", "folder")
    assert caught.value.code is Code.BUSY
    service.conversions.stop()
    assert [(one.id, one.state) for one in service.conversions.list()] == [(first.id, "done")]


def test_lists_need_no_torch(tmp_path: Path) -> None:
    """In a process of its own: they are asked for before anything is made."""
    (tmp_path / "adapters").mkdir()
    shutil.copy(LORA, tmp_path / "adapters" / "mine.safetensors")
    code = (
        "import sys; from pathlib import Path; from app.server.catalog import Catalog;"
        "from app.server.about import about_model, listed_adapter, listed_model;"
        "from app.server import models_api;"
        "own = Path(sys.argv[1]); catalog = Catalog(None, None, own / 'models', own / 'adapters');"
        "print([listed_model(catalog, *one) for one in catalog.models().items()],"
        " [listed_adapter(catalog, *one) for one in catalog.adapters().items()], about_model(catalog, 'emoji'));"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]" and "mine" in done.stdout
