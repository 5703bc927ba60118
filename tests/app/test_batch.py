"""`ldm batch`: a file of requests, made once each, whatever ends it in the middle."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from app.batch.sharing import Plan, here
from app.batch.source import Source
from app.batch.store import OLD, Store
from app.progress import Stop
from ldm.errors import Code, LdmError
from pipelines.pipeline import Pipeline
from pipelines.recipe import read_recipe
from pipelines.repeat import MissingInputError
from tests.app.conftest import Ldm

SHORT = ("--model", "scenes", "--set", "steps=2")


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(out.glob("manifest/*")) for line in path.read_text().splitlines()]


def pictures_of(out: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in out.glob("pictures/*/*.png")}


def test_requests_become_pictures_by_the_hash_of_what_was_asked(ldm: Ldm, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    written(
        tmp_path, '"a red circle"', {"prompt": "two squares", "seed": 7, "count": 2}, "",
        {"prompt": "a star", "seed": 9, "image": "red.png", "strength": 0.5},
        {"prompt": "two squares", "seed": 7, "count": 2},
    )  # fmt: skip
    done = ldm("batch", "prompts.jsonl", "--out", "made", "--chunk", 2, *SHORT)
    assert done.status == 0, done.err
    told = lines_of(tmp_path / "made")
    assert [(line["line"], line["seed"]) for line in told] == [(0, 0), (1, 7), (3, 9), (4, 7)]
    made = pictures_of(tmp_path / "made")
    assert set(made) == {name for line in told for name in line["pictures"]} and len(made) == 4
    assert told[1]["pictures"] == told[3]["pictures"]
    first = next((tmp_path / "made").glob(f"pictures/*/{told[0]['pictures'][0]}.png"))
    recipe = read_recipe(first)
    assert (recipe.prompt, recipe.seed, recipe.steps) == ("a red circle", 0, 2)
    again = ldm("batch", "prompts.jsonl", "--out", "made", "--chunk", 2, *SHORT)
    assert again.status == 0 and "0 left" in again.err and pictures_of(tmp_path / "made") == made
    other = ldm("batch", "prompts.jsonl", "--out", "made", "--chunk", 2, "--model", "scenes", "--set", "steps=3")
    assert other.status == Code.DIFFERENT and "defaults" in other.err


def test_pictures_are_those_that_are_made_alone(ldm: Ldm, tmp_path: Path) -> None:
    written(tmp_path, *({"prompt": f"{n} circles", "exact": n == 1} for n in range(4)))
    assert ldm("batch", "prompts.jsonl", "--out", "made", "--seed", 5, *SHORT).status == 0
    assert ldm("generate", "1 circles", "--model", "scenes", "--steps", 2, "--seed", 6, "--exact").status == 0
    line = lines_of(tmp_path / "made")[1]
    path = next((tmp_path / "made").glob(f"pictures/*/{line['pictures'][0]}.png"))
    assert read_recipe(path).pixels == read_recipe(tmp_path / "outputs" / "0001-6.png").pixels


def test_shards_are_read_by_webdataset(ldm: Ldm, tmp_path: Path) -> None:
    written(tmp_path, *({"prompt": f"{n} circles"} for n in range(3)))
    assert ldm("batch", "prompts.jsonl", "--out", "made", "--chunk", 2, "--format", "webdataset", *SHORT).status == 0
    assert sorted(path.name for path in (tmp_path / "made" / "shards").iterdir()) == ["000000.tar", "000001.tar"]
    with tarfile.open(tmp_path / "made" / "shards" / "000000.tar") as archive:
        names = archive.getnames()
        assert [name.rpartition(".")[2] for name in names] == ["png", "txt", "json"] * 2
        png, txt = (archive.extractfile(names[place]) for place in (0, 1))
        assert png is not None and txt is not None
        assert Image.open(io.BytesIO(png.read())).size == (32, 32) and txt.read() == b"0 circles"


def test_what_cannot_be_made_is_told_and_tried_anew_when_asked(ldm: Ldm, tmp_path: Path) -> None:
    home = "~nobody-of-that-name/x.png"
    written(
        tmp_path, '"a star"', "no json", {"prompt": "a", "stps": 2}, {"prompt": "a", "image": "later.png"}, [1],
        {"prompt": "a", "image": home}, {"prompt": "a", "loras": [{"path": home}]},
    )  # fmt: skip
    done = ldm("batch", "prompts.jsonl", "--out", "made", *SHORT)
    assert done.status == Code.USAGE and "6 requests could not be made" in done.err
    assert "line 2: " in done.err and "did you mean steps" in done.err and "line 4: " in done.err
    assert [line["line"] for line in lines_of(tmp_path / "made") if "error" in line] == [1, 2, 3, 4, 5, 6]
    assert all("no user" in line["error"] for line in lines_of(tmp_path / "made")[5:])
    Image.new("RGB", (32, 32), "red").save(tmp_path / "later.png")
    assert "0 left" in ldm("batch", "prompts.jsonl", "--out", "made", *SHORT).err
    before = pictures_of(tmp_path / "made")
    again = ldm("batch", "prompts.jsonl", "--out", "made", "--again", *SHORT)
    assert again.status == Code.USAGE and "5 requests could not be made" in again.err
    assert len(pictures_of(tmp_path / "made")) == 2 and before.items() <= pictures_of(tmp_path / "made").items()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("nothing.jsonl",), Code.FILE, "cannot be read"),
        (("empty.jsonl",), Code.FILE, "no request"),
        (("text.txt",), Code.FILE, "no requests"),
        (("good.jsonl", "--model", "nothing"), Code.FILE, "nothing"),
        (("good.jsonl", "--format", "zip"), Code.USAGE, "--format"),
        (("good.jsonl", "--set", "seed=1"), Code.USAGE, "--seed"),
        (("good.jsonl", "--out", "full"), Code.FILE, "not empty"),
        (("good.jsonl", "--out", "nowhere://x"), Code.USAGE, "nowhere"),
        (("good.jsonl", "--ray", "192.0.2.1:1x"), Code.USAGE, "Ray"),
    ],
)
def test_bad_input_is_said_and_nothing_is_left(ldm: Ldm, tmp_path: Path, words: Any, status: Code, said: str) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "text.txt").write_text("a star\na circle\n")
    (tmp_path / "good.jsonl").write_text('"a star"\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    out = () if "--out" in words else ("--out", "made")
    done = ldm("batch", *words, *out)
    assert (done.status, said in done.err) == (status, True), done
    assert not (tmp_path / "made" / "pictures").exists()


def test_a_dry_run_says_what_is_left(ldm: Ldm, tmp_path: Path) -> None:
    written(tmp_path, *(f'"{n}"' for n in range(5)))
    told = ldm("batch", "prompts.jsonl", "--out", "made", "--chunk", 2, "--dry-run", "--json")
    assert told.json == {"requests": 5, "chunks": 3, "left": 3} and not (tmp_path / "made").exists()


def test_a_stop_leaves_finished_pictures_and_the_same_command_goes_on(
    ldm: Ldm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, *(f'"{n} circles"' for n in range(4)))
    keep, kept = Store.keep, list[str]()
    asked = list[Stop]()
    enter = Stop.__enter__

    def entered(self: Stop) -> Stop:
        asked.append(self)
        return enter(self)

    def counted(self: Store, name: str, data: bytes) -> None:
        keep(self, name, data)
        kept.append(name)
        if len(kept) == 2:
            asked[-1].status = 130

    monkeypatch.setattr(Store, "keep", counted)
    monkeypatch.setattr(Stop, "__enter__", entered)
    words = ("batch", "prompts.jsonl", "--out", "made", "--together", 1, *SHORT)
    assert ldm(*words).status == 130
    assert len(pictures_of(tmp_path / "made")) == 2 and not (tmp_path / "made" / "manifest").exists()
    assert ldm(*words).status == 0
    assert len(kept) == len(set(kept)) == 4


def plan(tmp_path: Path, count: int, size: int, **more: Any) -> Plan:
    path = written(tmp_path, *({"prompt": f"{n} circles", **more} for n in range(count)))
    return Plan(Source(str(path), size, 0, {"steps": 2}), Store(str(tmp_path / "made")), "scenes", "cpu", "auto", 4)


def test_processes_of_a_launch_share_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan(tmp_path, 5, 1)
    found = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        found.append([told["chunk"] for told in here(asked, list(range(5)), lambda: True)])
    assert found == [[0, 2, 4], [1, 3]] and asked.store.done() == set(range(5))


def test_a_killed_process_loses_what_it_had_under_way_and_nothing_else(tmp_path: Path) -> None:
    """Of two processes one is killed in the middle of a chunk; the same command again makes what is missing."""
    written(tmp_path, *({"prompt": f"{n} circles", "steps": 12} for n in range(12)))
    command = [sys.executable, "-c", "from app.cli import main; main()", "batch", "prompts.jsonl", "--out", "made",
               "--chunk", "6", "--model", "scenes", "--together", "1"]  # fmt: skip
    ranks = [
        subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"})
        for rank in range(2)
    ]
    until = time.monotonic() + 200
    while len(pictures_of(tmp_path / "made")) < 2:
        assert time.monotonic() < until
        time.sleep(0.02)
    ranks[1].send_signal(signal.SIGKILL)
    assert ranks[0].wait(200) == 0 and ranks[1].wait(200) == -9
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").glob("pictures/*/*.png")}
    assert 6 <= len(before) < 12
    assert subprocess.run(command, cwd=tmp_path, timeout=200).returncode == 0
    assert len(pictures_of(tmp_path / "made")) == 12 and len(lines_of(tmp_path / "made")) == 12
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    left = [path for path in (tmp_path / "made").rglob("*") if path.is_file() and ".json" not in path.suffix]
    assert {path.parent.name for path in left if path.suffix != ".png"} <= {".parts"}


def test_parts_of_killed_processes_are_swept_when_nobody_can_be_writing_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "made"))
    store.begin({"source": "a"})
    old, young = tmp_path / "made" / ".parts" / "1", tmp_path / "made" / ".parts" / "2"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * OLD,) * 2)
    store.begin({"source": "a"})
    assert young.exists() and not old.exists() and store.told() == {"source": "a"}


def test_what_is_written_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the manifest may survive a power loss, and the pictures that it names not."""
    sync, replace, did = os.fsync, Path.replace, list[str]()
    monkeypatch.setattr(os, "fsync", lambda file: did.append("sync") or sync(file))
    monkeypatch.setattr(Path, "replace", lambda self, to: did.append("name") or replace(self, to))
    Store(str(tmp_path / "made")).keep("3f", b"data")
    assert did == ["sync", "name", "sync"]
    assert (tmp_path / "made" / "pictures" / "3f" / "3f.png").read_bytes() == b"data"


def test_equal_lines_share_their_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No manifest names a picture that is not there."""
    same = {"prompt": "a star", "seed": 1}
    path = written(tmp_path, same, {"prompt": "two stars", "seed": 1}, same)
    asked = Plan(Source(str(path), 9, 0, {"steps": 2}), Store(str(tmp_path / "made")), "scenes", "cpu", "auto", 1)
    maker = asked.maker()
    run = maker.pipeline.run

    def full(request: Any) -> Any:
        if request.prompt == "a star":
            raise MemoryError
        yield from run(request)

    monkeypatch.setattr(maker.pipeline, "run", full)
    assert maker.chunk(0) == {"chunk": 0, "requests": 3, "made": 1, "wrong": 2}
    told = asked.store.manifest(0)
    assert ["error" in line for line in told] == [True, False, True]
    assert all(asked.store.has(name) for line in told for name in line.get("pictures", ()))


def test_a_shard_names_nothing_twice_and_takes_any_text(tmp_path: Path) -> None:
    """Equal lines beside each other, and a text that has no bytes."""
    same = {"prompt": "a \ud800 star", "seed": 1}
    path = written(tmp_path, same, same)
    store = Store(str(tmp_path / "made"), "webdataset")
    asked = Plan(Source(str(path), 9, 0, {"steps": 2}), store, "scenes", "cpu", "auto", 1)
    assert [told["made"] for told in here(asked, [0], lambda: True)] == [1]
    with tarfile.open(tmp_path / "made" / "shards" / "000000.tar") as archive:
        names = archive.getnames()
        assert [name.rpartition(".")[2] for name in names] == ["png", "txt", "json"]
        text = archive.extractfile(names[1])
        assert text is not None and text.read() == b"a ? star"
    assert len(store.manifest(0)) == 2


def test_an_error_goes_from_process_to_process() -> None:
    error = LdmError(Code.FILE, "what", "why", "fix")
    for one in (error, MissingInputError(["a.png"], [Path("b")])):
        again = pickle.loads(pickle.dumps(one))
        assert type(again) is type(one) and again.as_dict() == one.as_dict() and vars(again) == vars(one)


def test_a_bucket_is_as_good_as_a_folder(tmp_path: Path) -> None:
    fsspec.filesystem("memory").rm("/", recursive=True) if fsspec.filesystem("memory").ls("/") else None
    there = plan(tmp_path, 3, 2)
    asked = Plan(there.source, Store("memory://batch"), "scenes", "cpu", "auto", 4)
    asked.store.begin({"source": "a"})
    assert [told["made"] for told in here(asked, [0, 1], lambda: True)] == [2, 1]
    assert asked.store.done() == {0, 1} and asked.store.told() == {"source": "a"}
    name = asked.store.manifest(1)[0]["pictures"][0]
    data = asked.store.picture(name)
    assert data is not None and Image.open(io.BytesIO(data)).size == (32, 32) and asked.store.has(name)
    with pytest.raises(LdmError, match="another batch: source differs"):
        Store("memory://batch").begin({"source": "b"})


def test_a_full_disk_is_told_and_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan(tmp_path, 1, 1)
    local = fsspec.filesystem("file")

    def full(self: Any, path: str, data: bytes, *more: Any, **named: Any) -> None:
        Path(path).write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(local), "pipe_file", full)
    with pytest.raises(LdmError, match="cannot be written") as caught:
        list(here(asked, [0], lambda: True))
    assert caught.value.code is Code.RESOURCE and "No space" in caught.value.why
    assert not [path for path in (tmp_path / "made").rglob("*") if path.is_file()]


def test_requests_share_calls_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, calls = plan(tmp_path, 4, 4), list[int]()
    maker = asked.maker()
    network = type(maker.pipeline.model.network)
    plain = network.__call__

    def counted(self: Any, x: Any, level: Any, conds: Any) -> Any:
        calls.append(len(x))
        return plain(self, x, level, conds)

    monkeypatch.setattr(network, "__call__", counted)
    assert maker.chunk(0) == {"chunk": 0, "requests": 4, "made": 4, "wrong": 0}
    assert calls == [4, 4]
    assert isinstance(maker.pipeline, Pipeline)
