"""What strangers may have written does nothing on the page, nobody else is spoken to, and everybody can use it."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from gradio_client import Client
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import save_file

from app.page.build import SECTIONS
from app.server.guard import LOOPBACK, Doors
from ldm.store.find import find_adapter
from ldm.store.weights import load_weights
from tests.app.page.conftest import PATIENCE, READY, Site, go, made, set_form, shows
from tests.app.server.conftest import ended, listened
from tests.thin import thinned

pytestmark = pytest.mark.loopback
QUICK = {"model": "scenes", "steps": 1, "seed": 1}
PAYLOADS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "'-alert(1)-'",
    "\"><script>alert(1)</script>", "javascript:alert(1)", "<a href='javascript:alert(1)'>x</a>", "${alert(1)}",
    "<iframe srcdoc='<script>alert(1)</script>'>", "{{constructor.constructor('alert(1)')()}}",
    "<details open ontoggle=alert(1)>", "<body onload=alert(1)>", "<math><mtext></p><img src=x onerror=alert(1)>",
    "</textarea><script>alert(1)</script>", "<style>@import 'http://127.0.0.2/x';</style>",
)  # fmt: skip


def test_no_word_of_a_stranger_is_run(page: Page, site: Site) -> None:
    """15 payloads as prompts, in every place that shows prompts; the context holds that no dialog was opened."""
    for payload in PAYLOADS:
        job = site.service.submit({**QUICK, "prompt": payload}, "stranger")
    set_form(page, **QUICK | {"prompt": PAYLOADS[1]})
    made(page)
    ended(site.service, job)
    go(page, "gallery")
    page.wait_for_function(f"document.querySelectorAll('#ldm-gallery-grid .ldm-picture').length > {len(PAYLOADS)}")
    shown = page.locator("#ldm-gallery-grid .ldm-name").all_text_contents()
    assert set(PAYLOADS) <= set(shown)
    page.locator("#ldm-gallery-grid .ldm-frame").first.click()
    for _ in PAYLOADS:
        page.wait_for_selector("#ldm-look table")
        page.keyboard.press("ArrowRight")
    page.click("#ldm-look >> text=Use settings")
    page.wait_for_timeout(300)
    go(page, "compare")  # as values of an axis, which are told back as labels
    page.get_by_label("Across: setting").select_option("prompt")
    page.get_by_label("Across: values").fill(f"{PAYLOADS[1]}|{PAYLOADS[2]}")
    page.get_by_label("Down: setting").select_option("")
    page.click("text=What will it cost?")
    page.click("text=Make them")
    page.wait_for_selector("#ldm-compare-grid th >> text=onerror")
    go(page, "personalize")  # as the name of a file, and as a word
    png = page.request.get(f"/v1/jobs/{job.id}/pictures/0").body()
    photo = {"name": PAYLOADS[1], "mimeType": "image/png", "buffer": png}
    page.set_input_files("#ldm-photos-bring input", files=[photo])
    page.wait_for_selector("#ldm-photos li")
    page.fill("#ldm-learn-token", PAYLOADS[2])
    page.click("#ldm-learn-plan")
    page.wait_for_selector(".ldm-error")
    go(page, "gallery")
    names = page.evaluate(
        "[...document.querySelectorAll('#ldm-gallery *, #ldm-look *, #ldm-tokens *')].map(one => one.tagName)"
    )
    assert not {"SCRIPT", "IFRAME", "MATH", "STYLE"} & set(names)


def test_no_word_in_a_file_of_a_stranger_is_run(page: Page, site: Site, tmp_path: Path) -> None:
    """An adapter whose metadata are payloads: on its card, in its details, and among the adapters of the form."""
    weights = load_weights(find_adapter("emoji-fast"))
    evil = {"modelspec.license": PAYLOADS[0], "modelspec.trigger_phrase": PAYLOADS[1], "ldm.base_name": PAYLOADS[2]}
    evil |= {f"{PAYLOADS[1]} {i}": payload for i, payload in enumerate(PAYLOADS)}
    file = tmp_path / "kind.safetensors"
    save_file({name: weights[name].clone() for name in weights}, file, evil)
    go(page, "models")
    page.set_input_files("#ldm-models-bring input", file)
    card = page.locator("#ldm-models [data-name='kind']")
    expect(card).to_contain_text(PAYLOADS[1])
    card.get_by_text("What it is").click()
    card.get_by_text("Details of the file").click()
    expect(card).to_contain_text(PAYLOADS[-1])
    card.get_by_text("Use it").click()
    go(page, "create")
    expect(page.get_by_label("Weight of kind")).to_be_visible()
    page.wait_for_timeout(300)  # for what would run
    tags = page.evaluate("[...document.querySelectorAll('#ldm-models *, .ldm-adapters *')].map(one => one.tagName)")
    assert tags and not {"SCRIPT", "IFRAME", "MATH", "STYLE", "IMG", "SVG"} & {tag.upper() for tag in tags}


def test_pictures_are_pictures_and_nothing_else(page: Page, site: Site) -> None:
    set_form(page, **QUICK | {"prompt": "a red circle"})
    made(page)
    url = str(page.get_attribute("#ldm-runs .ldm-done img", "src"))
    answer = page.request.get(url)
    assert answer.headers["content-type"] == "image/png" and answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("theme", thinned(["light", "dark"], 2))
def test_everybody_can_use_it(browser: Browser, site: Site, theme: Any) -> None:
    """No finding of axe that is serious or worse, in any section, light and dark."""
    context = browser.new_context(base_url=site.url, color_scheme=theme, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto("/")
    page.wait_for_selector(READY)
    set_form(page, **QUICK | {"prompt": "a red circle"})
    made(page)
    found = {}
    for section in SECTIONS:
        go(page, section)
        page.wait_for_timeout(400)  # what it fetches is there
        told = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
        for one in told.response["violations"]:
            if one["impact"] in ("serious", "critical"):
                found[f"{section}: {one['id']}"] = [node["html"][:160] for node in one["nodes"][:3]]
    context.close()
    assert not found, json.dumps(found, indent=1)


def test_narrow_screens_need_no_sideways_scrolling(browser: Browser, site: Site) -> None:
    context = browser.new_context(base_url=site.url, viewport={"width": 390, "height": 800})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto("/")
    page.wait_for_selector(READY)
    for section in SECTIONS:
        page.locator(f"#ldm-tab-{section}").click()
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390, section
    button = page.locator("#ldm-go")
    page.locator("#ldm-tab-create").click()
    box = button.bounding_box()
    assert box is not None and box["y"] < 800  # seen without scrolling
    context.close()


def test_everything_can_be_reached_by_keys(page: Page) -> None:
    page.locator("#ldm-tab-create").focus()
    for section in list(SECTIONS)[1:]:
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#ldm-tab-{section}")).to_be_focused()
        assert [name for name in SECTIONS if shows(page, name)] == [section]
    page.keyboard.press("ArrowRight")
    expect(page.locator("#ldm-tab-create")).to_be_focused()


def test_clients_of_gradio_make_pictures(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(site.url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 60})
    told = client.predict("a red circle", model="scenes", seed=3, settings={"steps": 2}, api_name="/generate")
    assert told["state"] == "done" and told["request"]["seed"] == 3
    png = httpx.get(site.url + told["pictures"][0]["url"], trust_env=False)
    assert png.content.startswith(b"\x89PNG")
    with pytest.raises(Exception, match="no model"):
        client.predict("a red circle", model="nothing", api_name="/generate")


@contextmanager
def sink() -> Iterator[tuple[str, list[str]]]:
    """An address that notes who comes."""
    came: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append(self.path)
            self.send_response(200)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/x.png", came
    finally:
        server.shutdown()
        server.server_close()


def test_gradio_fetches_nothing_and_gives_no_file(site: Site) -> None:
    """Its own addresses for files, uploads and proxies are shut; a file that a call names is refused."""
    closed = (
        "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/upload_progress?upload_id=1", "/gradio_api/runs", "/gradio_api/deep_link", "/monitoring", "/login",
        "/gradio_api/openapi.json", "/gradio_api/stream/x/0/0/playlist.m3u8", "/dev/reload", "/gradio_api/token",
        "/gradio_api/custom_component/x/y/z/a.py", "/gradio_api/heartbeat/x", "/gradio_api/infoX",
        "/gradio_api/call/generate",
        "/static/../../../../etc/passwd", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/assets/../../config.json",
        "/assets/%2e%2e/%2e%2e/config.json", "/page/../mount.py", "/page/%2e%2e%2fmount.py", "/page/build.py",
        "/page/edit.html",
    )  # fmt: skip
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as http, sink() as (address, came):
        for path in closed:
            assert status_of(site, path) in (400, 403, 404), path
        for path in ("upload", "component_server", "stream/1", "run-history/connect", "api/generate"):
            assert http.post(f"/gradio_api/{path}", json={}).status_code in (404, 405), path
        file = {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}
        for path in ("queue/join", "run/predict"):
            for data in ([file], [[file]], ["x", "scenes", 1, 1, {"steps": file}], [{"a": {"b": [file]}}]):
                given = {"data": data, "fn_index": 0, "session_hash": "x", "event_data": None}
                assert http.post(f"/gradio_api/{path}", json=given).status_code == 422, path
        assert http.post("/gradio_api/queue/join", content=b"x" * (2 << 20)).status_code == 413
        assert http.post("/gradio_api/queue/join", content=b"[" * 60_000).status_code == 422
        page = http.get("/")
        assert "access-control-allow-origin" not in page.headers
        assert http.get("/", headers={"origin": "http://evil.example"}).status_code == 403
        assert http.get("/", headers={"host": "evil.example"}).status_code == 421
        told = page.headers["content-security-policy"]
        assert "default-src 'self'" in told and "http" not in told.replace("https", "http")
        assert came == []


def status_of(site: Site, path: str) -> int:
    """As it stands there: a client would tidy the path up."""
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 60) as wire:
        wire.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        return int(wire.makefile("rb").readline().split()[1])


def test_calls_past_the_queue_of_gradio_are_not_taken(site: Site) -> None:
    """They would hold the threads that everybody needs."""
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as http:
        calls = http.get("/config").json()["dependencies"]
        generate = next(call["id"] for call in calls if call["api_name"] == "generate")
        given = {"data": ["x", "emoji", 1, 1, {"steps": 150}], "fn_index": generate, "session_hash": "y"}
        before = len(site.service.jobs.list(limit=200))
        assert http.post("/gradio_api/run/predict", json=given).status_code in (401, 404)
        assert len(site.service.jobs.list(limit=200)) == before
        several = [{**given, "session_hash": f"s{i}"} for i in range(60)]
        taken = [http.post("/gradio_api/queue/join", json=one).status_code for one in several]
        assert 200 in taken and 503 in taken, taken  # bounded
        assert http.get("/v1/limits", timeout=30).status_code == 200
    quiet = 0
    while quiet < 5:  # those that were taken come one after another
        left = site.service.jobs.list(("queued", "running"))
        for job in left:
            site.service.cancel(job.id, keep=False)
        quiet = 0 if left else quiet + 1
        time.sleep(0.2)


def test_an_upload_is_given_back_as_a_picture_or_as_nothing_in_particular(site: Site) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    with httpx.Client(base_url=site.url, timeout=60, trust_env=False) as http:
        kept = http.post("/v1/uploads", content=file.getvalue(), headers={"content-type": "image/png"}).json()["id"]
        given = http.get(f"/v1/uploads/{kept}")
        assert given.headers["content-type"] == "image/png", given.text
        assert given.content == file.getvalue()
        assert given.headers["x-content-type-options"] == "nosniff"
        for path in ("0" * 64, "x", "..%2f..%2fjobs.sqlite", "%2e%2e"):
            assert http.get(f"/v1/uploads/{path}").status_code == 404, path


def test_the_page_needs_the_token_too(site: Site) -> None:
    token = "0123456789abcdef"
    with listened(site.service, Doors(frozenset(LOOPBACK), token)) as http:
        for path in ("/", "/config", "/page/ldm.js", "/assets/x.js", "/gradio_api/info", "/theme.css"):
            assert http.get(path).status_code == 401, path
        assert http.get("/", auth=("me", token)).status_code == 200
