"""The parts of trainings without one: states in files, lines of a process, names of adapters, processes left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from app.server.catalog import Catalog
from app.server.decoding import Decoder
from app.server.learning import asking, process, trainings
from app.server.learning.asking import without_options
from app.server.learning.process import Child, Lines, end_earlier
from app.server.learning.publishing import publish
from app.server.learning.running import BROKEN, Run, published
from app.server.learning.story import BEGUN, Story
from app.server.learning.trainings import TRIES, Trainings
from app.server.limits import Limits
from app.server.uploads import Uploads
from ldm.errors import Code, LdmError
from tests.app.server.test_asking import png

ASKED = {"token": "sks dog", "model": "scenes"}
SERVE = ["serve", "--port", "0", "--out", "s"]  # a command that goes on until it is ended


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    one = Decoder(Limits().input_pixels)
    yield one
    one.close()


@pytest.fixture
def opened(tmp_path: Path, decoder: Decoder) -> Callable[..., Trainings]:
    """Trainings that nobody runs; again and again in one folder."""

    def call(**limits: int) -> Trainings:
        told = Limits(**limits)
        uploads = Uploads(tmp_path / "uploads", decoder, told.stored)
        return Trainings(tmp_path / "trainings", tmp_path / "adapters", Catalog(), uploads, told)

    return call


def asked(there: Trainings, **more: object) -> dict[str, object]:
    return ASKED | {"photos": [there.uploads.add(png(colour=colour)).id for colour in ("red", "green")]} | more


def changed(there: Trainings, name: str, **values: object) -> None:
    """Its file, as a server that was killed has left it."""
    path = there.folder / name / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_states_outlive_their_server(opened: Callable[..., Trainings]) -> None:
    there = opened()
    names = [there.submit(asked(there, seed=n)).id for n in range(7)]
    there.cancel(names[1])
    assert [one["state"] for one in there.listed()][-2:] == ["cancelled", "queued"]
    mark = {"pid": 2**22 + 1, "born": 1.0}
    changed(there, names[2], state="running", child=mark, tries=1, started=1.0)
    changed(there, names[3], state="running", unwanted=True)
    changed(there, names[4], state="planning", tries=TRIES)
    (there.folder / names[5] / "training.json").write_text("{")  # cannot be read
    changed(there, names[6], version=2)
    there = opened()
    told = {one["id"]: one["state"] for one in there.listed()}
    assert told == dict(zip(names, ["queued", "cancelled", "queued", "cancelled", "failed"], strict=False))
    assert "5 times" in there.told(names[4])["error"]["why"]
    following = there._next()
    assert following is not None and following.id == names[2]  # what had begun goes on first
    with pytest.raises(LdmError, match="no training"):
        there.told(names[5])
    assert (there.folder / names[5]).is_dir()


def test_a_folder_that_was_never_written_down_takes_no_room(opened: Callable[..., Trainings]) -> None:
    """Its server was killed before, or the disk was full."""
    there = opened()
    kept, lost = (there.submit(asked(there, seed=n)).id for n in range(2))
    (there.folder / lost / "training.json").unlink()
    (there.folder / "x").mkdir()  # no training
    there = opened()
    assert [one["id"] for one in there.listed()] == [kept]
    assert sorted(path.name for path in there.folder.iterdir()) == sorted([kept, "class-pictures", "x"])
    (there.folder / "class-pictures").rmdir()
    (there.folder / "class-pictures").write_text("in the way")
    with pytest.raises(OSError, match="exists"):
        there.submit(asked(there))
    assert len(list(there.folder.glob("*/photos"))) == 1


def test_a_training_is_cancelled_gone_on_with_and_forgotten(opened: Callable[..., Trainings]) -> None:
    there = opened()
    name = there.submit(asked(there)).id
    with pytest.raises(LdmError, match="has not ended"):
        there.forget(name)
    there.resume(name)  # it waits anyway
    assert there.told(name)["state"] == "queued"
    there.cancel(name)
    there.cancel(name)
    assert there.told(name)["state"] == "cancelled" and there.told(name)["ended"]
    there.resume(name)
    assert there.told(name)["state"] == "queued" and there.told(name)["ended"] is None
    there.cancel(name)
    there.forget(name)
    assert (there.folder / "trash" / name / "photos" / "0002.png").read_bytes() == png(colour="green")
    assert opened().listed() == []


def test_so_many_wait_and_no_more(opened: Callable[..., Trainings]) -> None:
    there = opened(trainings=1)
    there.submit(asked(there))
    with pytest.raises(LdmError, match="queue is full") as refused:
        there.submit(asked(there))
    assert refused.value.code is Code.BUSY
    assert len(list(there.folder.glob("*/training.json"))) == len(list(there.folder.glob("*/photos"))) == 1


def test_what_goes_on_waits_in_the_queue_like_others(
    opened: Callable[..., Trainings], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = opened(trainings=2)
    names = [there.submit(asked(there)).id for _ in range(2)]
    for name in names:
        there.cancel(name)
    others = [there.submit(asked(there)).id for _ in range(2)]
    with pytest.raises(LdmError, match="queue is full") as refused:
        there.resume(names[0])
    assert refused.value.code is Code.BUSY and there.told(names[0])["state"] == "cancelled"
    there.resume(others[0])  # it waits anyway
    there.cancel(others[0])
    with monkeypatch.context() as patched:
        patched.setattr(asking.shutil, "disk_usage", lambda path: SimpleNamespace(free=100 << 20))
        with pytest.raises(LdmError, match="not enough room"):
            there.resume(names[0])
    (there.uploads.folder / there.training(names[0]).asked["photos"][0]).unlink()  # it has its own
    there.resume(names[0])
    assert [there.told(name)["state"] for name in names] == ["queued", "cancelled"]


def test_photos_take_their_room_once_and_trainings_no_more_than_they_may(
    opened: Callable[..., Trainings], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = opened()
    first = there.submit(asked(there))
    kept = there.folder / first.id / "photos" / "0001.png"
    assert kept.samefile(there.uploads.folder / first.asked["photos"][0])
    size = asking.size_of(there.folder)
    assert size > sum(path.stat().st_size for path in there.folder.rglob("*") if path.is_file())
    os.link(kept, there.folder / "again")
    assert asking.size_of(there.folder) == size
    (there.folder / "again").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
        second = there.submit(asked(there))
    copied = there.folder / second.id / "photos" / "0001.png"
    assert copied.read_bytes() == kept.read_bytes() and not copied.samefile(kept)
    for name in (first.id, second.id):
        there.cancel(name)
        there.forget(name)
    there = opened(trained=asking.size_of(there.folder) + 10)  # of what is in the trash
    assert there.listed() == []
    with pytest.raises(LdmError, match="no room for another training") as refused:
        there.submit(asked(there))
    assert refused.value.code is Code.RESOURCE and "trash" in refused.value.fix
    shutil.rmtree(there.folder / "trash")
    assert there.submit(asked(there)).state == "queued"


def test_a_full_disk_is_said_before_anything_begins(
    opened: Callable[..., Trainings], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = opened()
    given = asked(there)
    monkeypatch.setattr(asking.shutil, "disk_usage", lambda path: SimpleNamespace(free=100 << 20))
    with pytest.raises(LdmError, match="not enough room") as refused:
        there.submit(given)
    assert refused.value.code is Code.RESOURCE and not list(there.folder.iterdir())


def test_words_of_a_caller_are_values_and_never_options(opened: Callable[..., Trainings]) -> None:
    there = opened()
    given = asked(there, token="  --out   ＂", kind="--help", prompts=["--json {}"], flip=False, name="x")
    with pytest.raises(LdmError, match="syntax"):
        there.understanding(given | {"token": "[sks] dog"})
    training = there.understanding(given | {"token": "  --out\n dog "})
    words = training.command("cpu")
    assert words[:2] == ["personalize", "photos"] and "--token=--out dog" in words and "--kind=--help" in words
    assert {"--prompt=--json {}", "--no-flip", "--device=cpu", "--model=scenes"} <= set(words)
    assert not any(word.startswith(("--name", "--photos", "--dry")) for word in words)
    assert there.understanding(asked(there)).name == "sks-dog"
    assert there.understanding(asked(there, token="犬 犬")).name == "subject"
    assert there.understanding(asked(there, token="Zo\u0065\u0301")).fields["token"] == "Zo\u00e9"


def test_errors_of_the_command_line_are_told_as_those_of_a_request() -> None:
    error = LdmError(
        Code.USAGE, "--batch-size is none.", f"{Path.home()}/x well-known --", "Use --precision bf16 or a--b."
    )
    told = without_options(error)
    assert (told.what, told.why, told.fix) == ("batch_size is none.", "x well-known --", "Use precision bf16 or a--b.")


def test_a_story_is_the_same_when_it_is_read_again_and_begins_again_where_it_was_saved() -> None:
    lines = [
        BEGUN,
        {"plan": {"steps": 10, "findings": [], "notes": [], "prompts": []}},
        {"cost": {"total": 100.0, "disk": 1}},
        {"progress": {"what": "class pictures", "done": 1, "total": 2}},
        {"run": {"steps": 10, "done": 0}},
        {"progress": {"what": "steps", "done": 2, "total": 10}},
        {"step": 2, "figures": {"loss": 0.5, "norm": 1.0}},
        {"measured": {"step": 2, "measures": {"subject": 0.1, "prompt": None}, "validation": 0.6}},
        {"step": 4, "figures": {"adapter/loss": 0.4}},
        {"strange": 1},
        {"error": {"code": "numeric", "what": "a", "why": "b", "fix": "c"}},
    ]
    story = Story()
    news = [story.hear(line) for line in lines]
    assert news[1:8] == ["state", "state", "progress", "state", "progress", "nothing", "measured"]
    assert story.eta == pytest.approx(80) and story.step == 2 and story.error
    assert story.curves["loss"] == [[2, 0.5], [4, 0.4]] and story.curves["subject"] == [[2, 0.1]]
    assert story.curves["prompt"] == []
    story.hear(BEGUN)
    assert story.error is None and not story.running
    story.hear({"run": {"steps": 10, "done": 3}})
    assert story.step == 3 and story.curves["loss"] == [[2, 0.5]] and story.curves["validation"] == [[2, 0.6]]


def test_lines_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "told.jsonl"
    assert list(Lines(path).new()) == []
    path.write_text('{"a": 1}\nno json\n[2]\n{"b":')
    lines = Lines(path, from_start=True)
    assert list(lines.new()) == [{"a": 1}]
    with path.open("a") as file:
        file.write(" 2}\n")
    assert list(lines.new()) == [{"b": 2}] and list(lines.new()) == []
    assert list(Lines(path).new()) == []


def test_a_name_that_is_taken_gets_a_number_and_what_is_there_already_is_found(tmp_path: Path) -> None:
    adapter, word = tmp_path / "a", tmp_path / "b"
    adapter.write_bytes(b"adapter")
    word.write_bytes(b"word")
    folder = tmp_path / "adapters"
    assert publish({"": adapter}, "dog", folder, {"emoji"}) == {"": "dog"}
    assert publish({"": adapter}, "dog", folder, {"dog"}) == {"": "dog"}  # its server was killed before it was told
    assert publish({"": word}, "dog", folder, {"dog"}) == {"": "dog-2"}
    assert publish({"": word}, "Emoji", folder, {"emoji"}) == {"": "Emoji-2"}
    assert publish({"": adapter, "-word": word}, "cat", folder, {"cat-word"}) == {"": "cat-2", "-word": "cat-2-word"}
    assert (folder / "cat-2-word.safetensors").read_bytes() == b"word" and not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("token", "files", "adapter", "embedding"),
    [
        ("sks dog", ["sks-dog.safetensors", "sks-dog-kohya.safetensors"], "sks-dog", None),
        ("sks dog", ["sks-dog.safetensors", "sks-dog-word.safetensors"], "sks-dog", "sks-dog-word"),
        ("sks dog", ["sks-dog-word.safetensors"], None, "sks-dog"),
        ("my-word", ["my-word.safetensors"], "my-word", None),  # called as the word of another one would be
    ],
)
def test_an_adapter_and_a_word_get_their_names(
    opened: Callable[..., Trainings], token: str, files: list[str], adapter: str | None, embedding: str | None
) -> None:
    there = opened()
    training = there.understanding(asked(there, token=token))
    record, home = there.submit(asked(there, token=token)), there.folder / "x"
    (home / "out").mkdir(parents=True)
    for name in files:
        (home / "out" / name).write_text(name)
    published(record, training, home, there.catalog, there.adapters)
    assert (record.adapter, record.embedding) == (adapter, embedding)
    names = {f"{name}.safetensors" for name in (adapter, embedding) if name}
    assert {path.name for path in there.adapters.iterdir()} == names


def test_why_a_training_failed_is_told(opened: Callable[..., Trainings], monkeypatch: pytest.MonkeyPatch) -> None:
    there = opened()
    record = there.submit(asked(there))
    run = Run(there.folder / record.id, record, there.understanding.again(record.asked), "auto", there.limits.trained)
    assert [run.failure(status).what for status in (143, -9)] == ["The training was ended."] * 2
    assert run.failure(0) is run.failure(1) is BROKEN
    record.story.hear({"error": {"code": "bug", "what": "KeyError: /secret/place", "why": "", "fix": ""}})
    assert run.failure(1) is BROKEN
    record.story.hear(
        {"error": {"code": "numeric", "what": "No number.", "why": "It burst.", "fix": "A lower --rate."}}
    )
    assert run.failure(3).code is Code.NUMERIC and run.failure(3).fix == "A lower rate."
    record.story.hear({"plan": {"steps": 6}})
    record.story.hear({"cost": {"disk": 1 << 60}})
    run._check_room()
    assert run.failure(143).code is Code.RESOURCE and "not enough room" in run.failure(143).what
    record.story.hear({"cost": {"disk": 1}})
    run = Run(there.folder / record.id, record, there.understanding.again(record.asked), "auto", 1)
    run._check_room()
    assert run.failure(143).code is Code.RESOURCE and "another training" in run.failure(143).what


def test_a_model_that_is_gone_fails_its_training_alone(opened: Callable[..., Trainings]) -> None:
    there = opened()
    name = there.submit(asked(there)).id
    changed(there, name, asked=asked(there, model="gone"))
    there = opened()
    there.start()
    end = time.monotonic() + 30
    while there.told(name)["state"] != "failed" and time.monotonic() < end:
        time.sleep(0.02)
    assert "no model 'gone'" in there.told(name)["error"]["what"]
    with pytest.raises(LdmError, match="no model 'gone'"):
        there.resume(name)
    there.stop()
    assert opened().told(name)["state"] == "failed"


def alive(pid: float) -> bool:
    return psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE


def gone(pid: float, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_a_process_of_an_earlier_server_is_ended_even_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.5)
    monkeypatch.setattr(process, "BY_ITSELF", 0.5)
    child = Child(SERVE, tmp_path)
    mark = child.mark
    end_earlier(mark | {"born": mark["born"] - 100})  # another process of that number is nobody's business
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    end_earlier({"pid": other.pid, "born": psutil.Process(other.pid).create_time()})  # nor one that is none of ours
    assert child.status() is None and other.poll() is None
    other.kill()
    other.wait()
    os.kill(int(mark["pid"]), signal.SIGSTOP)
    end_earlier(mark)
    assert child.status() is not None and gone(mark["pid"], 1)
    end_earlier(mark)
    end_earlier({})


def test_a_process_ends_by_itself_when_its_server_was_killed_and_knows_no_secret(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from app.server.learning.process import Child; "
        f"print(Child({SERVE!r}, Path(sys.argv[1])).mark['pid'], flush=True); time.sleep(600)"
    )
    environment = os.environ | {"LDM_TOKEN": "0123456789abcdef"}
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert server.stdout is not None
    with server.stdout as said:
        pid = int(said.readline())
        until = time.monotonic() + 60
        while "http" not in (tmp_path / "said.log").read_text() and time.monotonic() < until:
            time.sleep(0.05)
        assert alive(pid) and "LDM_TOKEN" not in psutil.Process(pid).environ()
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        assert gone(pid)


def test_a_folder_that_cannot_be_filled_is_not_begun(opened: Callable[..., Trainings]) -> None:
    there = opened()
    given = asked(there)
    photos = there.understanding(given).photos
    assert trainings.folder_for(there.understanding(given), there.folder / "x", there.uploads) is None
    shutil.rmtree(there.folder / "x")
    (there.uploads.folder / photos[1]).unlink()
    with pytest.raises(LdmError, match="no upload"):
        there.submit(given)
    assert not list(there.folder.iterdir())
