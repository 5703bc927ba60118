"""Pickles are known by content and never read; a trusted one is converted in a process that can do nothing else."""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm.errors import Code, LdmError
from ldm.store.convert import _refusal, convert
from ldm.store.describe import describe
from ldm.store.parts import load_controlnet, load_parts, load_vae
from ldm.store.weights import load_weights
from tests.thin import thinned


class Bomb:
    """Unpickling this runs `call(*arguments)`."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def bombs(canary: Path) -> list[tuple[str, bytes]]:
    """Twenty-four hostile files; each would leave the canary if it were unpickled without care."""
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (os.system, (f"touch {canary}",)),
        (os.mkdir, (str(canary),)),
        (subprocess.check_call, (["touch", str(canary)],)),
        (eval, (f"open({str(canary)!r}, 'w')",)),
    ]
    found = []
    for i, (call, arguments) in enumerate(calls):
        for protocol in (0, 2, 4):
            found.append((f"{i}-{protocol}.ckpt", pickle.dumps({"state_dict": Bomb(call, *arguments)}, protocol)))
    system = Bomb(os.system, f"touch {canary}")
    for name in ("model.SAFETENSORS", "rng_state.pth", "custom_checkpoint_0.pkl", "training_args.bin"):
        found.append((name, _saved(system, zipped=True)))
        found.append((f"old-{name}", _saved(system, zipped=False)))
    found.append(("late.pt", _zip({"padding": b"x" * 6000, "archive/data.pkl": pickle.dumps(system)})))
    found.append(("opcode.safetensors", b"cos\nsystem\n(S'touch " + os.fsencode(canary) + b"'\ntR."))
    found.append(("list.safetensors", pickle.dumps([1, 2, system], 0)))
    found.append(("tar.pt", _tar(pickle.dumps(system))))
    return found


def _saved(value: Any, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": torch.ones(2), "x": value}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _tar(data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_the_bombs_are_live(tmp_path: Path) -> None:
    """The control case: read without care they do leave the canary."""
    canary = tmp_path / "canary"
    name, data = bombs(canary)[0]
    pickle.loads(data)
    assert canary.exists(), name


def test_no_hostile_pickle_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    files = bombs(canary)
    assert len(files) == 24
    for name, data in files:
        path = tmp_path / name
        path.write_bytes(data)
        assert describe(path).kind == "pickle", name
        for door in (load_weights, load_parts, load_vae, load_controlnet, convert):
            with pytest.raises(LdmError) as caught:
                door(path)
            assert caught.value.code is Code.REFUSED, (name, door)
            assert "pickle" in caught.value.what
        assert not canary.exists(), name


@pytest.mark.parametrize(
    ("index", "said"), thinned([(1, "posix.system"), (2, "instructions"), (13, "posix.system")], 3)
)
def test_trusted_conversion_runs_no_code_either(tmp_path: Path, index: int, said: str) -> None:
    canary = tmp_path / "canary"
    name, data = bombs(canary)[index]
    (tmp_path / name).write_bytes(data)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LdmError) as caught:
        convert(tmp_path / name, tmp_path / "out.safetensors", trusted=True)
    assert caught.value.code is Code.REFUSED
    assert said in caught.value.why
    assert "weights_only" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("zipped", [True, False])
def test_trusted_tensors_come_out_equal(tmp_path: Path, zipped: bool) -> None:
    state = {"a.weight": torch.randn(3, 2).half(), "b": torch.arange(4), "view": torch.randn(4, 4).t()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
    out = convert(tmp_path / "m.ckpt", trusted=True)
    assert out == tmp_path / "m.safetensors"
    back = load_file(out)
    assert set(back) == set(state)
    assert all(torch.equal(back[n], state[n]) for n in state)
    with pytest.raises(LdmError, match="exists already"):
        convert(tmp_path / "m.ckpt", trusted=True)


@pytest.mark.parametrize("name", ["evil.safetensors", "EVIL.SafeTensors"])
def test_a_pickle_that_claims_to_be_safetensors_is_converted_beside_itself(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(LdmError) as caught:
        convert(path)
    out = convert(path, trusted=True)
    assert str(out) in caught.value.fix
    assert out.parent == tmp_path
    assert torch.equal(load_file(out)["a"], torch.ones(2))


@pytest.mark.parametrize("index", range(24))
def test_a_refusal_is_in_our_own_words(tmp_path: Path, index: int) -> None:
    """What torch says is not passed on: it advises to read the file without care."""
    name, data = bombs(tmp_path / "canary")[index]
    (tmp_path / name).write_bytes(data)
    try:
        with (tmp_path / name).open("rb") as file:
            torch.load(file, weights_only=True)
    except Exception as error:
        said = _refusal(error)
    assert "weights_only" not in said and "torch" not in said
    named = {1: "posix.system", 4: "posix.mkdir", 7: "commands.check_call", 10: "eval", 21: "os.system"}
    assert named.get(index, "it") in said


def test_a1111_embedding(tmp_path: Path) -> None:
    vector = torch.randn(2, 768)
    torch.save({"string_to_param": {"*": vector}, "string_to_token": {"*": 265}, "name": "style"}, tmp_path / "e.pt")
    out = convert(tmp_path / "e.pt", tmp_path / "e.safetensors", trusted=True)
    assert torch.equal(load_file(out)["*"], vector)
    assert load_weights(out).metadata["ldm.name"] == "style"


def test_the_child_has_neither_tokens_nor_network_nor_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of the child process itself, asked in a process of its own."""
    import sys

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    code = (
        "import sys, os, socket, subprocess, pathlib\n"
        "from ldm.store import convert\n"
        "goal = pathlib.Path(sys.argv[1])\n"
        "convert._guard(goal)\n"
        "goal.write_text('fine')\n"
        f"tries = [lambda: socket.create_connection(('127.0.0.1', {server.getsockname()[1]})),\n"
        "         lambda: subprocess.run(['true']), lambda: os.system('true'), lambda: open(sys.argv[2], 'w'),\n"
        "         lambda: os.remove(goal), lambda: os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY)]\n"
        "for i, attempt in enumerate(tries):\n"
        "    try:\n"
        "        attempt()\n"
        "    except PermissionError as error:\n"
        "        assert 'while a pickle' in str(error)\n"
        "    else:\n"
        "        raise SystemExit(f'attempt {i} was not stopped')\n"
    )
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    done = subprocess.run([sys.executable, "-c", code, str(allowed), str(other)], capture_output=True, text=True)
    server.close()
    assert done.returncode == 0, done.stderr
    assert allowed.read_text() == "fine"
    assert not other.exists()


def test_what_is_no_pickle_needs_no_conversion(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"<html>")
    with pytest.raises(LdmError, match="not a pickle"):
        convert(path, trusted=True)
    with pytest.raises(LdmError, match="cannot be read"):
        convert(tmp_path / "none.ckpt", trusted=True)


def test_environment_of_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What `convert` hands to the child: nothing but the way to the interpreter."""
    seen: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> Any:
        seen.update(options)
        raise subprocess.TimeoutExpired(command, 1)

    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "https_proxy"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setattr("ldm.store.convert.subprocess.run", run)
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(LdmError, match="not converted"):
        convert(tmp_path / "a.pt", trusted=True)
    assert "secret" not in seen["env"].values()
    assert Path(seen["cwd"]) != Path.cwd()
