"""`pull` against a local stand-in through HF_ENDPOINT: plan first, safetensors only, resumed, verified, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.errors import Code, LdmError
from ldm.store.find import find_model
from ldm.store.pull import RemoteFile, _choose, plan
from tests.store.hub import COMMIT, Hub, files_of, serving

REPO = "author/tiny-model"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
# A process of its own, because huggingface_hub reads HF_ENDPOINT and HF_HOME once, when it is imported.
SCRIPT = """
import json, sys
from ldm.errors import LdmError
from ldm.store.pull import plan, pull
from ldm.store.find import find_model, fetched_ids
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # the models here are small
try:
    wanted = plan(sys.argv[1])
    folder = pull(wanted)
    assert find_model(sys.argv[1]) == folder and fetched_ids() == [sys.argv[1]]
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    answer = {"licence": wanted.licence, "size": wanted.size, "commit": wanted.commit}
    print(json.dumps(answer | {"names": names, "folder": str(folder)}))
except LdmError as error:
    print(json.dumps(error.as_dict()))
assert "torch" not in sys.modules
"""


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(home)}


def run(hub: Hub, home: Path) -> dict[str, object]:
    command = [sys.executable, "-c", SCRIPT, hub.repo]
    done = subprocess.run(command, env=environment(hub, home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.fixture
def files(tiny_sd1: Path) -> dict[str, bytes]:
    found = files_of(tiny_sd1)
    return found | {
        "README.md": b"text",
        "v1.safetensors": b"root checkpoint",
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"variant",
        "unet/model.py": b"code",
        "safety_checker/model.safetensors": b"unused",
    }


@pytest.mark.loopback
def test_plan_pull_and_find(files: dict[str, bytes], tmp_path: Path) -> None:
    hub = Hub(REPO, files, cut=WEIGHTS)
    with serving(hub):
        answer = run(hub, tmp_path / "home")
    assert "names" in answer, answer
    names = answer["names"]
    assert isinstance(names, list)
    assert WEIGHTS in names
    assert "tokenizer/merges.txt" in names
    assert not [
        n for n in names if n.endswith((".bin", ".py", ".md", ".fp16.safetensors")) or n.startswith(("v1", "safety"))
    ]
    assert answer["licence"] == "openrail++"
    assert answer["commit"] == COMMIT
    assert answer["size"] == sum(len(files[str(n)]) for n in names)
    assert all(REPO in path for _, path, _ in hub.asked)  # nothing is told but what is asked for
    assert spans(hub)[0] is None
    assert half_way(spans(hub)[1], files)  # it went on where the line broke
    folder = Path(str(answer["folder"]))
    assert all((folder / str(n)).read_bytes() == files[str(n)] for n in names)


def spans(hub: Hub) -> list[str | None]:
    """The Range of each request for the U-Net's weights."""
    return [span for method, path, span in hub.asked if method == "GET" and path.endswith(WEIGHTS)]


def half_way(span: str | None, files: dict[str, bytes]) -> bool:
    half = len(files[WEIGHTS]) // 2
    return span is not None and half - (1 << 17) <= int(span.removeprefix("bytes=").removesuffix("-")) <= half


@pytest.mark.loopback
def test_a_killed_pull_goes_on_in_the_next_run(files: dict[str, bytes], tmp_path: Path) -> None:
    hub = Hub(REPO, files, stall=WEIGHTS)
    with serving(hub):
        first = subprocess.Popen([sys.executable, "-c", SCRIPT, REPO], env=environment(hub, tmp_path / "home"))
        assert hub.stalled.wait(60)
        part = tmp_path / "home" / "hub" / "models--author--tiny-model" / "blobs"
        for _ in range(200):  # what was sent is written by the other process
            if any(p.stat().st_size for p in part.glob("*.ldm-partial")):
                break
            time.sleep(0.05)
        first.kill()
        first.wait()
        asked = len(spans(hub))
        answer = run(hub, tmp_path / "home")
    assert "names" in answer, answer
    assert any(spans(hub)[asked:])
    assert (Path(str(answer["folder"])) / WEIGHTS).read_bytes() == files[WEIGHTS]


@pytest.mark.loopback
def test_damaged_transfer_is_found_and_fetched_again(files: dict[str, bytes], tmp_path: Path) -> None:
    hub = Hub(REPO, files, spoil=WEIGHTS)
    with serving(hub):
        answer = run(hub, tmp_path / "home")
        assert answer["code"] == "file"
        assert WEIGHTS in str(answer["what"])
        hub.spoil = None
        assert WEIGHTS in run(hub, tmp_path / "home")["names"]  # type: ignore[operator]


@pytest.mark.loopback
def test_pickles_only_and_unknown_models(tmp_path: Path) -> None:
    with serving(Hub(REPO, {"model_index.json": b"{}", "unet/diffusion_pytorch_model.bin": b"x"})) as hub:
        with pytest.raises(LdmError, match="no safetensors") as caught:
            plan(REPO, endpoint=hub.address)
        assert caught.value.code is Code.REFUSED
        with pytest.raises(LdmError, match="was not fetched"):
            plan("author/other", endpoint=hub.address)


@pytest.mark.parametrize("repo", ["../x", "a/b/c", "a", "a/..", "https://x/y", "a b/c", ""])
def test_odd_ids_are_refused_without_asking(repo: str) -> None:
    with pytest.raises(LdmError) as caught:
        plan(repo)
    assert caught.value.code is Code.USAGE


def test_choice_of_files() -> None:
    def chosen(names: list[str], variant: str | None = None) -> list[str]:
        return sorted(f.name for f in _choose("a/b", [RemoteFile(n, 1, None, None) for n in names], variant))

    shards = [f"unet/m-0000{i}-of-00002.safetensors" for i in (1, 2)] + ["unet/m.safetensors.index.json"]
    half = ["unet/m.fp16-00001-of-00002.safetensors", "unet/m.safetensors.index.fp16.json"]
    assert chosen(["model_index.json", *shards, *half]) == sorted(["model_index.json", *shards])
    assert chosen(["model_index.json", *shards, *half], "fp16") == sorted(["model_index.json", *half])
    part = ["vae/m.safetensors"]  # has no half-precision file: its plain one is taken
    assert chosen(["model_index.json", *shards, *half, *part], "fp16") == sorted(["model_index.json", *half, *part])
    assert chosen(["a.safetensors", "b.bin", "../c.safetensors", "/d.safetensors"]) == ["a.safetensors"]


@pytest.mark.loopback
def test_a_variant_that_no_file_has_is_refused(files: dict[str, bytes]) -> None:
    plain = {name: data for name, data in files.items() if ".fp16." not in name}
    for there, variant, fix in ((files, "fp61", "--variant fp16"), (plain, "fp16", "Leave --variant out")):
        with serving(Hub(REPO, there)) as hub:
            with pytest.raises(LdmError, match=f"no weights of the variant '{variant}'") as caught:
                plan(REPO, variant=variant, endpoint=hub.address)
            assert caught.value.code is Code.USAGE
            assert fix in caught.value.fix
            assert [f.name for f in plan(REPO, endpoint=hub.address).files if "unet/" in f.name] == [
                "unet/config.json",
                WEIGHTS,
            ]


def test_nothing_is_fetched_by_finding() -> None:
    with pytest.raises(LdmError, match="was not found") as caught:
        find_model("author/never-fetched")
    assert "ldm models pull author/never-fetched" in caught.value.fix
    for odd in ("a\0b", "../..//none", "x" * 5000):
        with pytest.raises(LdmError):
            find_model(odd)
