"""Files that callers bring: whole under a plain name, or refused with the reason and without a trace."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save

from app.server.library import LONGEST_NAME, SPARE, plain
from app.server.limits import Limits
from app.server.service import Service
from ldm.store.find import find_model, shipped_adapters
from tests.app.server.conftest import QUICK, Open, listened, made

pytestmark = pytest.mark.loopback
LORA = shipped_adapters()["emoji-fast"]
RAW = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def lora() -> bytes:
    return LORA.read_bytes()


@pytest.fixture
def own(service: Service) -> Path:
    """The folder of the server."""
    return service.library.folder


def brought(http: httpx.Client, data: bytes, name: str | None = "mine", **more: Any) -> httpx.Response:
    params = {} if name is None else {"name": name}
    return http.post("/v1/imports", params=params, content=data, headers=RAW, **more)


def kept(folder: Path) -> list[str]:
    """Everything that lies in the server's own folders, hidden or not."""
    return sorted(path.name for kind in ("models", "adapters") for path in (folder / kind).glob("*"))


def test_a_lora_is_brought_and_used_at_once(http: httpx.Client, service: Service, own: Path, lora: bytes) -> None:
    answer = brought(http, lora)
    assert answer.status_code == 201, answer.text
    assert answer.json() == {
        "name": "mine", "kind": "lora", "family": None, "size": len(lora), "fits": ["emoji"],
    }  # fmt: skip
    assert (own / "adapters" / "mine.safetensors").read_bytes() == lora
    told = {one["name"]: one for one in http.get("/v1/adapters").json()["adapters"]}
    assert (told["mine"]["source"], told["mine"]["model"], told["mine"]["size"]) == ("imported", "emoji", len(lora))
    assert (told["emoji-fast"]["source"], told["emoji-fast"]["model"]) == ("shipped", "emoji")
    drawn = {"model": "emoji", "steps": 1, "width": 32, "height": 32, "exact": True}
    for prompt in ({"prompt": "a <lora:mine:1>"}, {"prompt": "a", "loras": [{"name": "mine"}]}):
        assert made(service, QUICK | drawn | prompt).state == "done"


def test_a_form_brings_a_file_under_its_own_name(http: httpx.Client, own: Path, lora: bytes) -> None:
    answer = http.post("/v1/imports", files={"file": ("Wörter & Töne (v2).safetensors", lora)})
    assert (answer.status_code, answer.json()["name"]) == (201, "Worter-Tone-v2"), answer.text
    assert (own / "adapters" / "Worter-Tone-v2.safetensors").read_bytes() == lora
    named = http.post("/v1/imports?name=other", files={"file": ("x.ckpt", lora)})  # content decides, no suffix
    assert named.json()["name"] == "other"
    two = http.post("/v1/imports", files=[("file", ("a", lora)), ("file", ("b", lora))])
    assert two.status_code == 422 and "one file" in two.text.lower()
    for bad in (b"", b"--", b"nothing of the kind\r\n\r\n"):
        headers = {"content-type": "multipart/form-data; boundary=b"}
        assert http.post("/v1/imports", content=bad, headers=headers).status_code == 422
    assert http.post("/v1/imports", content=b"", headers={"content-type": "multipart/form-data"}).status_code == 422
    assert http.post("/v1/imports", content=lora, headers={"content-type": "text/plain"}).status_code == 415
    assert kept(own) == ["Worter-Tone-v2.safetensors", "other.safetensors"]


def test_an_embedding_and_a_control_go_where_they_belong(http: httpx.Client, own: Path) -> None:
    word = brought(http, save({"emb_params": torch.ones(2, 768)}), "mood")
    assert (word.status_code, word.json()["kind"]) == (201, "textual inversion")
    control = (find_model("emoji-scribble") / "diffusion_pytorch_model.safetensors").read_bytes()
    told = brought(http, control, "lines").json()
    assert (told["kind"], told["fits"]) == ("controlnet", ["emoji"])
    assert kept(own) == ["lines.safetensors", "mood.safetensors"] and (own / "models" / "lines.safetensors").is_file()
    assert "lines" in [one["name"] for one in http.get("/v1/controls").json()["controls"]]


def header(tensors: Any, data: bytes = b"") -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def zipped(name: str) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x" * 5000)
    return file.getvalue()


A = "lora_unet_mid.lora_down.weight"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "pickle": (b"\x80\x02}q\x00." + b"x" * 5000, "ldm models convert"),
    "pickle in a zip": (zipped("archive/data.pkl"), "ldm models convert"),
    "zip": (zipped("a.txt"), "zip archive"),
    "web page": (b"<!DOCTYPE html><html>" + b" " * 5000, "web page"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"x" * 5000, "picture"),
    "noise": (bytes(range(256)) * 40, "first bytes"),
    "header of exabytes": (struct.pack("<Q", 2**56 - 1) + b"{" + b"x" * 5000, "header claims"),
    "header beyond the file": (struct.pack("<Q", 9000) + b"{" + b" " * 5000, "truncated"),
    "no JSON": (header(b"{" + b"x" * 5000), "not valid JSON"),
    "deep": (header(b'{"a":' + b"[" * 100_000), "header"),
    "a list": (header(b"{}" + b" " * 5000), "no known kind"),
    "tensors of exabytes": (header({A: entry([2**40, 2**20], 0, 2**62)}), "truncated"),
    "negative": (header({A: entry([-1], 0, 4)}), "shape"),
    "overlap": (header({A: entry([2], 0, 8), "b": entry([2], 4, 12)}, b"x" * 12), "overlap"),
    "a gap": (header({A: entry([1], 0, 4), "b": entry([1], 8, 12)}, b"x" * 12), "gap"),
    "more than it says": (header({A: entry([1], 0, 4)}, b"x" * 5000), "no tensor uses"),
    "twice": (header(b'{"a":1,"a":2}'), "twice"),
    "unknown type": (header({A: entry([1], 0, 4, "F33")}, b"xxxx"), "unknown type"),
    "unprintable": (header({"a\x00b": entry([1], 0, 4)}, b"xxxx"), "printable"),
    "of no kind": (save({"weird": torch.ones(3, 3, 3, 3)}), "no known kind"),
    "an autoencoder": ((find_model("emoji") / "vae" / "diffusion_pytorch_model.safetensors").read_bytes(), "part of"),
    "a U-Net": ((find_model("emoji") / "unet" / "diffusion_pytorch_model.safetensors").read_bytes(), "part of a model"),
    "half a model": (save({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)}), "part of"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_usable_file_is_refused_and_leaves_nothing(http: httpx.Client, own: Path, name: str) -> None:
    data, said = HOSTILE[name]
    forms = [brought(http, data), http.post("/v1/imports", files={"file": ("../../x.safetensors", data)})]
    chunked = iter([data[:10], data[10:]])
    forms.append(http.post("/v1/imports", content=chunked, headers=RAW))
    for answer in forms:
        assert answer.status_code in (422, 413), (answer.status_code, answer.text)
        told = answer.json()
        assert told["title"] and told["detail"] and told["fix"] and str(own) not in answer.text
    assert said in f"{forms[0].json()['title']} {forms[0].json()['detail']} {forms[0].json()['fix']}"
    assert kept(own) == []


def test_the_reason_is_heard_by_who_listens_only_when_all_is_sent(http: httpx.Client, own: Path) -> None:
    pickle = b"\x80\x02}q\x00." + b"x" * (64 << 20)
    with raw(http) as line:  # as browsers do: what comes before is lost where the connection is closed meanwhile
        line.sendall(POST + f"content-length: {len(pickle)}\r\n\r\n".encode() + pickle)
        answer = line.recv(1 << 16)
        while answer.endswith(b"\r\n\r\n"):  # its head came alone
            answer += line.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 422") and b"ldm models convert" in answer
    with raw(http) as line:  # who waits to be asked for the body sends none
        line.sendall(POST + b"expect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n")
        assert line.recv(1 << 16).startswith(b"HTTP/1.1 413")
    assert kept(own) == []


def test_one_flipped_bit_is_found_where_the_file_tells_its_hash(http: httpx.Client, own: Path, lora: bytes) -> None:
    wrong = bytearray(lora)
    wrong[-1] ^= 1
    answer = brought(http, bytes(wrong))
    assert answer.status_code == 422 and "damaged" in answer.text and kept(own) == []


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        ("mine", "mine"), ("../../x", "x"), ("/etc/passwd", "passwd"), ("..\\..\\x", "x"), (".hidden", "hidden"),
        ("...", "adapter"), ("", "adapter"), ("con", "adapter-con"), ("NUL.safetensors", "adapter-NUL"),
        ("lpt1.x", "adapter-lpt1.x"), ("x" * 500, "x" * LONGEST_NAME), ("\u65e5\u672c", "adapter"),
        ("caf\u00e9 \u2116 5", "cafe-No-5"), ("a\0b\nc", "a-b-c"), ("-rf", "rf"), ("a..b", "a.b"), ("a. ", "a"),
        ("trash", "adapter-trash"), ("a/", "adapter"), ("A.SAFETENSORS", "A"), ("\u202egpj", "gpj"),
    ],
)  # fmt: skip
def test_names_become_plain(wish: str, name: str) -> None:
    found = plain(wish, "adapter")
    assert found == name and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", found) and len(found) < 100


def test_a_name_is_given_once(http: httpx.Client, own: Path, lora: bytes) -> None:
    wishes = ("mine", "mine", "MINE", "emoji-fast", "emoji", "edges", "../mine", ".hidden", "con")
    names = [brought(http, lora, wish).json()["name"] for wish in wishes]
    assert names == [
        "mine",
        "mine-2",
        "MINE-3",
        "emoji-fast-2",
        "emoji-2",
        "edges-2",
        "mine-4",
        "hidden",
        "adapter-con",
    ]
    assert len(kept(own)) == len(wishes)
    assert brought(http, lora, "x" * 2000).status_code == 422
    assert brought(http, lora, None).json()["name"] == "adapter"


def test_two_at_once_get_two_names_and_a_third_waits_for_its_turn(
    http: httpx.Client, service: Service, own: Path, lora: bytes
) -> None:
    going, go = threading.Barrier(3), threading.Event()
    names = []

    def slowly() -> Iterator[bytes]:
        yield lora[:100_000]
        going.wait(30)
        go.wait(30)
        yield lora[100_000:]

    def bring() -> None:
        with httpx.Client(base_url=http.base_url, timeout=60, trust_env=False) as client:
            names.append(client.post("/v1/imports?name=both", content=slowly(), headers=RAW).json()["name"])

    threads = [threading.Thread(target=bring) for _ in range(2)]
    for thread in threads:
        thread.start()
    going.wait(30)
    until = time.monotonic() + 30
    while len(kept(own)) < 2 and time.monotonic() < until:  # what was sent has come
        time.sleep(0.01)
    third = brought(http, lora, "third")
    assert (third.status_code, third.headers["retry-after"]) == (429, "5")
    assert made(service, QUICK).state == "done" and http.get("/healthz").status_code == 200  # others are served
    go.set()
    for thread in threads:
        thread.join(60)
    assert sorted(names) == ["both", "both-2"] and len(kept(own)) == 2
    assert brought(http, lora, "third").status_code == 201


POST = b"POST /v1/imports?name=raw HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\n"


def raw(http: httpx.Client) -> socket.socket:
    return socket.create_connection((http.base_url.host, http.base_url.port), timeout=60)


def gone(own: Path, seconds: float = 20) -> None:
    """Nothing is left of what was half-written."""
    until = time.monotonic() + seconds
    while kept(own):
        assert time.monotonic() < until, kept(own)
        time.sleep(0.01)


def test_who_breaks_off_in_the_middle_leaves_nothing(
    http: httpx.Client, service: Service, own: Path, lora: bytes
) -> None:
    with raw(http) as line:
        line.sendall(POST + f"content-length: {len(lora)}\r\n\r\n".encode() + lora[: len(lora) // 2])
        until = time.monotonic() + 20
        while not kept(own):  # it is being written
            assert time.monotonic() < until
            time.sleep(0.01)
        assert kept(own)[0].startswith(".ldm-")
        assert not service.catalog.adapters().keys() - shipped_adapters().keys()
    gone(own)
    assert brought(http, lora).status_code == 201


def test_a_file_may_take_its_time_as_long_as_some_of_it_comes(open_service: Open, lora: bytes) -> None:
    with open_service(Limits(body_seconds=0.5)) as service, listened(service) as http:
        with raw(http) as line:
            line.sendall(POST + f"content-length: {len(lora)}\r\n\r\n".encode())
            for place in range(0, len(lora), 1 << 18):  # ten parts, in three times the time of any other body
                line.sendall(lora[place : place + (1 << 18)])
                time.sleep(0.15)
            assert line.recv(1 << 16).startswith(b"HTTP/1.1 201")
        with raw(http) as line:
            line.sendall(POST + f"content-length: {len(lora)}\r\n\r\n".encode() + lora[:200_000])
            began, answer = time.monotonic(), b""
            for place in range(40):  # a little of it all the time is too little
                try:
                    line.sendall(lora[200_000 + place * 100 :][:100])
                    line.settimeout(0.1)
                    answer = line.recv(1 << 16)
                    break
                except TimeoutError:
                    continue
            assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - began < 4
        assert kept(service.library.folder) == ["raw.safetensors"]


def test_a_file_that_is_too_large_is_refused_by_what_is_said_of_it(open_service: Open, lora: bytes) -> None:
    with open_service(Limits(imported=len(lora) - 1)) as service, listened(service) as http:
        with raw(http) as line:  # by its length, with nothing of it sent
            line.sendall(POST + b"content-length: 100000000000\r\n\r\n")
            assert line.recv(1 << 16).startswith(b"HTTP/1.1 413")
        for answer in (
            brought(http, lora),
            http.post("/v1/imports", content=iter([lora]), headers=RAW),  # by its header
            http.post("/v1/imports", files={"file": lora}),
        ):
            assert answer.status_code == 413 and "too large" in answer.text
        assert kept(service.library.folder) == []


def test_a_length_that_lies_is_found_out(http: httpx.Client, own: Path, lora: bytes) -> None:
    for said, sent in ((len(lora) + 5, lora + b"12345"), (len(lora) - 5, lora[:-5])):
        with raw(http) as line:
            line.sendall(POST + f"content-length: {said}\r\n\r\n".encode() + sent)
            assert line.recv(1 << 16).startswith(b"HTTP/1.1 422")
    more = http.post("/v1/imports", content=iter([lora, b"x"]), headers=RAW)
    less = http.post("/v1/imports", content=iter([lora[:-1]]), headers=RAW)
    assert (more.status_code, less.status_code) == (422, 422)
    assert "longer" in more.text and "broke off" in less.text and kept(own) == []


def test_the_room_is_limited_and_a_full_disk_is_told_before(
    open_service: Open, lora: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_service(Limits(library=int(len(lora) * 1.5))) as service, listened(service) as http:
        assert brought(http, lora).status_code == 201
        full = brought(http, lora)
        assert full.status_code == 507 and "no room" in full.text
        assert http.delete("/v1/adapters/mine").status_code == 200
        assert brought(http, lora).status_code == 507  # what lies in the trash takes room as well
        (service.library.folder / "trash" / "mine.safetensors").unlink()
        assert brought(http, lora).status_code == 201
        usage = type("usage", (), {"free": SPARE + len(lora) - 1})
        monkeypatch.setattr("app.server.library.shutil.disk_usage", lambda path: usage)
        object.__setattr__(service.limits, "library", 1 << 40)
        no = brought(http, lora)
        assert no.status_code == 507 and "disk" in no.text
        assert kept(service.library.folder) == ["mine.safetensors"]


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(
    http: httpx.Client, own: Path, lora: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("app.server.importing._finish", full)
        answer = brought(http, lora)
    assert answer.status_code == 507 and "No space left" in answer.text and kept(own) == []
    assert brought(http, lora).status_code == 201


def test_what_a_kill_left_is_swept_and_nothing_else(open_service: Open, tmp_path: Path, lora: bytes) -> None:
    own = tmp_path / "server"
    for kind in ("models", "adapters"):
        (own / kind / ".half.tmp-123" / "unet").mkdir(parents=True)
        (own / kind / ".half.tmp-123" / "unet" / "x").write_bytes(b"x")
        (own / kind / ".ldm-0123.tmp").write_bytes(lora[:1000])
    (own / "adapters" / "mine.safetensors").write_bytes(lora)
    with open_service() as service:
        assert kept(own) == ["mine.safetensors"] and "mine" in service.catalog.adapters()


def test_limits_of_imports_are_told(http: httpx.Client) -> None:
    told = http.get("/v1/limits").json()
    assert (told["imported"], told["imports"]) == (8 << 30, 2) and told["library"] > told["imported"]
    assert "8.6 GB, 2 at a time" in str(Limits())
