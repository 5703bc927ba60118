"""Damaged files are refused from the header with file, cause and remedy; what the peer wrote is read as written."""

from __future__ import annotations

import json
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ldm.errors import Code, LdmError
from ldm.store.header import BITS, MAX_TENSORS, read_header
from ldm.store.weights import TORCH
from ldm.store.write import check_content, write_weights


def sample(path: Path) -> Path:
    """A file written by the peer library."""
    tensors = {f"layer.{i}.weight": torch.arange(i + 2, dtype=torch.float32).reshape(1, -1) for i in range(5)}
    save_file(tensors | {"half": torch.ones(3, dtype=torch.bfloat16)}, path, metadata={"format": "pt", "title": "über"})
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The same file with its header changed and its data kept."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def refused(path: Path) -> LdmError:
    start = time.process_time()
    with pytest.raises(LdmError) as caught:
        read_header(path)
    assert time.process_time() - start < 1.0
    error = caught.value
    assert path.name in error.what
    assert len(error.why) > 10
    assert error.fix.split()[0].isalpha()
    return error


def test_reads_what_the_peer_wrote(tmp_path: Path) -> None:
    path = sample(tmp_path / "a.safetensors")
    header = read_header(path)
    with safe_open(path, "pt") as peer:
        assert set(header.tensors) == set(peer.keys())
        assert header.metadata == peer.metadata()
        for name in peer.keys():  # noqa: SIM118
            assert list(header.tensors[name].shape) == peer.get_slice(name).get_shape()
            assert header.tensors[name].dtype == peer.get_slice(name).get_dtype()


def test_every_known_type_has_its_width() -> None:
    assert set(TORCH) == set(BITS)
    for name, dtype in TORCH.items():
        assert torch.empty(0, dtype=dtype).element_size() * 8 == BITS[name]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", "git-lfs"),
        (b"<!DOCTYPE html><html><body>log in</body></html>", "web page"),
        (b"\n <html>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "picture"),
        (b"GGUF" + bytes(20), "GGUF"),
        (b'{"error": "not found"}', "JSON"),
        (b"\x1f\x8b" + bytes(20), "gzip"),
        (b"abcdefg", "first bytes"),
        (bytes(100), "first bytes"),
        ((10_000_001).to_bytes(8, "little") + b"{" + bytes(30), "claims"),
        ((500).to_bytes(8, "little") + b'{"a":1}', "truncated"),
    ],
)
def test_says_what_the_file_is_instead(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    error = refused(path)
    assert error.code is Code.FILE
    assert word in error.why


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(LdmError) as caught:
            read_header(path)
        assert caught.value.code is Code.FILE


def _set(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_set("half", "dtype", "F4"), "unknown type"),
        (_set("half", "dtype", 7), "unknown type"),
        (_set("half", "shape", [4]), "needs 8 bytes"),
        (_set("half", "shape", [-3]), "natural numbers"),
        (_set("half", "shape", [True, 3]), "natural numbers"),
        (_set("half", "shape", [1] * 9), "natural numbers"),
        (_set("half", "shape", [2**62, 2**62]), "needs"),
        (_set("half", "shape", 3), "natural numbers"),
        (_set("half", "data_offsets", [6, 0]), "in order"),
        (_set("half", "data_offsets", [0]), "in order"),
        (_set("half", "data_offsets", [0.0, 6.0]), "in order"),
        (_set("half", "data_offsets", [0, 6]), "overlap"),
        (_set("half", "extra", 1), "exactly"),
        (lambda h: h.pop("half"), "no tensor uses"),
        (lambda h: h.pop("layer.1.weight"), "gap"),
        (lambda h: h.__setitem__("half", []), "exactly"),
        (lambda h: h.__setitem__("\u202eevil", h.pop("half")), "printable"),
        (lambda h: h.__setitem__("", h.pop("half")), "printable"),
        (lambda h: h.__setitem__("\ud800", h.pop("half")), "printable"),
        (lambda h: h.__setitem__("__metadata__", {"a": 1}), "__metadata__"),
        (lambda h: h.__setitem__("__metadata__", ["a"]), "__metadata__"),
    ],
)
def test_broken_rule_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], object], word: str) -> None:
    path = sample(tmp_path / "a.safetensors")
    rewrite(path, change)
    assert word in refused(path).why


@pytest.mark.parametrize(
    "text", [b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}', b"{" * 50_000, b"[" * 900]
)
def test_duplicate_names_and_nesting(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.safetensors"
    text = text if text.startswith(b"{") else b'{"a":' + text
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    refused(path)


def test_bloated_headers_are_refused_in_time(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    entries = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    error = refused(path)
    assert str(MAX_TENSORS) in error.why


def test_two_hundred_mutations(tmp_path: Path, torture: int) -> None:
    """Cuts, zeros, trailing bytes, header flips: refused by the header. Data flips: by the hash in the metadata."""
    rng = random.Random(0)
    path = tmp_path / "m.safetensors"
    write_weights(path, {f"w{i}": torch.randn(3, i + 1) for i in range(8)}, {"title": "t"})
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    assert check_content(path)
    for i in range(200 * torture):
        data, kind = bytearray(good), i % 5
        if kind == 0:
            del data[rng.randrange(len(data)) :]
        elif kind == 1:
            at = rng.randrange(start - 40)
            data[at : at + 40] = bytes(40)
        elif kind == 2:
            data += rng.randbytes(1 + rng.randrange(64))
        elif kind == 3:
            data[rng.randrange(start)] ^= 1 << rng.randrange(8)
        else:
            data[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        if kind < 3:
            refused(path)
        elif kind == 4:
            with pytest.raises(LdmError, match="is damaged"):
                check_content(path)
        else:
            assert _noticed(path, good), f"mutation {i}"


def _noticed(path: Path, good: bytes) -> bool:
    """A flip in the header is refused, or another legal name, type or text is there for the later checks to see."""
    try:
        header = read_header(path)
    except LdmError as error:
        return error.code is Code.FILE
    was = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    told = was.pop("__metadata__", {})
    entries = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in was.items()}
    return told != header.metadata or entries != {n: (e.dtype, e.shape) for n, e in header.tensors.items()}


def test_our_writer_is_read_by_the_peer(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(2, 3).half(),
        "b": torch.randn(5),
        "c": torch.tensor(3),
        "d": torch.zeros(0, 4),
        "e": torch.randn(4, 6).t(),
        "f": torch.tensor([True, False]),
        "g": torch.randn(3).bfloat16(),
    }
    path = tmp_path / "o.safetensors"
    write_weights(path, tensors, {"x": "ü"})
    with safe_open(path, "pt") as peer:
        assert peer.metadata()["x"] == "ü"
        for name, tensor in tensors.items():
            assert torch.equal(peer.get_tensor(name), tensor)
    assert check_content(path) is not None
    assert path.stat().st_mode & 0o077 == 0o077 & ~_umask() & 0o666


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_non_finite_weights_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(LdmError) as caught:
        write_weights(tmp_path / "n.safetensors", {"bad.weight": torch.tensor([1.0, float("nan")])})
    assert caught.value.code is Code.NUMERIC
    assert "bad.weight" in caught.value.what


def test_the_peer_refuses_what_we_refuse(tmp_path: Path) -> None:
    """A control on our reading of the format: the library agrees on the structural damages."""
    for change in (_set("half", "shape", [4]), _set("half", "data_offsets", [0, 6]), lambda h: h.pop("half")):
        path = sample(tmp_path / "p.safetensors")
        rewrite(path, change)
        refused(path)
        with pytest.raises(SafetensorError), safe_open(path, "pt") as file:
            file.keys()


def test_zip_archive_is_told_from_a_pickle_in_one(tmp_path: Path) -> None:
    for inside, code in (("weights.safetensors", Code.FILE), ("archive/data.pkl", Code.REFUSED)):
        path = tmp_path / f"{code}.safetensors"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a" * 5000, "filler")
            archive.writestr(inside, "x")
        with pytest.raises(LdmError) as caught:
            read_header(path)
        assert caught.value.code is code
