"""How long a prompt is: the same as the model that draws it finds, before anything of it is loaded."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from app.server.service import Service
from app.server.words import tokens
from ldm.errors import Code, LdmError
from ldm.models.prompt import MAX_CHUNKS, parse, resolve
from ldm.models.text import TextEncoder
from ldm.store.find import find_model
from ldm.store.write import write_weights
from pipelines.adapting import read_embedding
from pipelines.pipeline import Pipeline
from tests.app.server.conftest import Open

TEXTS = (
    "", "a red circle", "a (big:1.3) [red] circle, (on (the left))", "a red circle " * 12, "x, " * 400, "a " * 2000,
    "one BREAK two BREAK", "[a red circle:a blue square and more of it, and again:5]", "[a|a much longer text] here",
    "a circle <lora:emoji-fast:0.5>", r"\(not a weight\) <b>bold</b> &amp; <script>alert(1)</script>",
    "e\u0301 \U0001f600 \u4e2d",
)  # fmt: skip


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("scenes")


def expected(text: TextEncoder, prompt: str, dialect: str) -> dict[str, Any]:
    """What the encoder itself makes of it."""
    parsed = parse(resolve(prompt, seed=0).text, dialect, steps=25)
    layouts = [text._layouts(parsed, at)[0] for at in (0.0, *parsed.switches)]
    room = text.towers[0].vocabulary.room
    count, windows = max(sum(map(len, x.chunks)) for x in layouts), max(len(x.chunks) for x in layouts)
    assert windows == text.chunks(parsed)
    return {"count": count, "limit": room, "windows": windows, "window": room + 2}


@pytest.mark.parametrize("dialect", ["a1111", "comfy", "compel"])
def test_a_prompt_is_as_long_as_the_model_finds_it(service: Service, pipeline: Pipeline, dialect: str) -> None:
    for text in TEXTS:
        told = tokens(service, {"model": "scenes", "prompt": text, "negative": text, "dialect": dialect})
        assert told["prompt"] == told["negative"]
        outside = told["prompt"].pop("outside")
        assert told["prompt"] == expected(pipeline.model.text, text, dialect), text
        dropped = pipeline.model.text.encode(parse(resolve(text, seed=0).text, dialect, steps=25)).dropped
        assert outside == list(dropped), text
        assert bool(outside) == (told["prompt"]["windows"] == MAX_CHUNKS and len(text) > 1000)


def test_an_empty_text_takes_one_window_and_nothing_of_it(service: Service) -> None:
    told = tokens(service, {"model": "emoji"})
    nothing = {"count": 0, "limit": 22, "windows": 1, "window": 24, "outside": []}
    assert told == {"model": "emoji", "prompt": nothing, "negative": nothing}


def test_words_of_embeddings_count_as_their_vectors(tmp_path: Path, open_service: Open, pipeline: Pipeline) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    write_weights(folder / "zwx.safetensors", {"emb_params": torch.ones(5, 64)})
    with open_service(adapters=folder) as service:
        asked = {"model": "scenes", "prompt": "a zwx, ZWX"}
        plain, told = tokens(service, asked), tokens(service, asked | {"embeddings": ["zwx"]})
        pipeline.model.text.add_embedding("zwx", read_embedding(folder / "zwx.safetensors").for_towers([64]))
        try:
            wanted = expected(pipeline.model.text, "a zwx, ZWX", "a1111")
        finally:
            pipeline.model.text.clear_embeddings()
        assert told["prompt"] == wanted | {"outside": []} and wanted["count"] == 12 != plain["prompt"]["count"]
        with pytest.raises(LdmError, match="no adapter"):
            tokens(service, asked | {"embeddings": ["other"]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"promt": "a"}, "did you mean prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x" * 20_001}, "20000"),
        ({"model": "../emoji"}, "no model"),
        ({"dialect": "klingon"}, "dialect"),
        ({"prompt": "<lora:emoji-fast:b:c>"}, "cannot be read"),
        ({"prompt": "<lora:nobody:1>"}, "no adapter"),
        ({"prompt": "__colours__"}, "wildcard"),
        ({"prompt": "[a|b]", "steps": 1000}, "150 steps"),
    ],
)
def test_what_is_wrong_is_said(service: Service, given: dict[str, Any], said: str) -> None:
    with pytest.raises(LdmError, match=said) as caught:
        tokens(service, given)
    assert caught.value.code in (Code.USAGE, Code.FILE)


def test_it_is_quick_once_the_tokenizer_is_there(service: Service) -> None:
    tokens(service, {"prompt": "a cat"})
    began = time.perf_counter()
    for n in range(20):
        tokens(service, {"prompt": f"a cat {n} " * 20, "negative": "a dog"})
    assert (time.perf_counter() - began) / 20 < 0.1  # 4 ms on a quiet machine


MARKS = "".join(f"[a:b:{n % 150}]" for n in range(1400))


def test_what_changes_at_every_step_is_refused_before_it_is_read(service: Service) -> None:
    tokens(service, {"prompt": "a cat"})
    asked = {"prompt": MARKS, "negative": MARKS, "steps": 150}
    began = time.process_time()
    for call in (service.understanding, lambda given: tokens(service, given)):
        with pytest.raises(LdmError, match="changes too often") as caught:
            call(asked)
        assert caught.value.code is Code.USAGE
    assert time.process_time() - began < 10  # it was 72 s, and hours before the first step of a job
    half = "".join(f"[a:b:{n % 150}]" for n in range(300))
    with pytest.raises(LdmError, match="read for a picture"):
        service.understanding(asked | {"prompt": half, "negative": half})
    long = "a red circle on a blue square " * 90
    turns = service.understanding({"prompt": f"[cat|dog|cow] {long}", "negative": long, "steps": 150})
    assert turns.request.steps == 150
    choices = {"prompt": "{red|blue} " + long * 6, "count": 30}
    assert service.understanding(choices)
    with pytest.raises(LdmError, match="read for a job"):
        service.understanding(choices | {"count": 60})


def test_pictures_that_say_the_same_are_laid_out_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, chunks = list[object](), TextEncoder.chunks

    def counted(text: TextEncoder, prompt: Any, **more: Any) -> int:
        seen.append(prompt)
        return chunks(text, prompt, **more)

    monkeypatch.setattr(TextEncoder, "chunks", counted)
    request = pipeline.request("a red circle", negative="a blue square", count=20, steps=1, batch=20)
    next(pipeline.run(request))
    assert seen == ["a red circle", "a blue square"]


def test_a_folder_s_tokenizer_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from ldm.store.tokenizers import readers_of; "
        f"print([r.vocabulary.room for r in readers_of(Path({str(find_model('emoji'))!r}))], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[22] False\n", done.stderr


@pytest.mark.loopback
def test_it_is_asked_over_http(http: httpx.Client) -> None:
    told = http.post("/v1/tokens", json={"prompt": "a cat", "negative": "dog " * 400})
    assert told.status_code == 200 and told.json()["prompt"]["windows"] == 1 and told.json()["negative"]["outside"]
    for body in (b"", b"[]", b"{"):
        wrong = http.post("/v1/tokens", content=body)
        assert wrong.status_code == 422 and "JSON" in wrong.text
