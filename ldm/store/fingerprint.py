"""Two names of a model that do not depend on where it lies: a fast fingerprint, and the hash of all of its bytes.

The fingerprint of a U-Net is the same for folder and single file, fp32, fp16 and bf16: sha256 over the sorted original
names and shapes, and over the sign bits of 4,096 values of each of 64 tensors spread over the network. Rounding to
another type keeps every sign (an underflow keeps it as -0), while another training changes many. It reads about 1 MB.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from ldm.store.header import BITS, Header
from ldm.store.names import unet_plan

SAMPLED, VALUES = 64, 4096
_UNET = "model.diffusion_model."
_SIGN = bytes(byte >> 7 for byte in range(256))


def fingerprint(headers: Mapping[Path, Header], names: Mapping[str, str] | None = None) -> str:
    """16 hexadecimal digits. `names` maps canonical names to those in the file; without it the file's own are used."""
    home = {name: path for path, header in headers.items() for name in header.tensors}
    names = {name: name for name in home} if names is None else names
    digest = hashlib.sha256(b"ldm-fingerprint-1")
    order = sorted(names)
    for name in order:
        shape = headers[home[names[name]]].tensors[names[name]].shape
        bare = shape[:2] if shape[2:] == (1, 1) else shape  # a 1x1 convolution and a linear layer are one
        digest.update(f"\n{name} {','.join(map(str, bare))}".encode())
    signed = [
        n
        for n in order
        if headers[home[names[n]]].tensors[names[n]].dtype[0] in "FB" and _large(headers, home, names[n])
    ]
    for name in signed[:: max(1, len(signed) // SAMPLED)]:
        digest.update(_signs(home[names[name]], headers, names[name]))
    return digest.hexdigest()[:16]


def unet_fingerprint(headers: Mapping[Path, Header]) -> str:
    """Of a U-Net in the diffusers layout, or of the one inside a single file; equal for the same weights."""
    names = [name for header in headers.values() for name in header.tensors]
    original = [name for name in names if name.startswith(_UNET)]
    if original:
        return fingerprint(headers, {name.removeprefix(_UNET): name for name in original})
    layers = [int(m[1]) for name in names if (m := re.match(r"down_blocks\.\d+\.resnets\.(\d+)\.", name))]
    return fingerprint(
        headers, {piece.source: name for name, piece in unet_plan(names, 1 + max(layers, default=0), "").items()}
    )


def _large(headers: Mapping[Path, Header], home: Mapping[str, Path], name: str) -> bool:
    entry = headers[home[name]].tensors[name]
    return entry.dtype != "BOOL" and entry.count > 0


def _signs(path: Path, headers: Mapping[Path, Header], name: str) -> bytes:
    """The sign bits of the first values: the top bit of the last byte of each, little endian."""
    entry = headers[path].tensors[name]
    width = BITS[entry.dtype] // 8
    with path.open("rb") as file:
        file.seek(headers[path].start + entry.begin)
        return file.read(min(VALUES, entry.count) * width)[width - 1 :: width].translate(_SIGN)


def content_hash(where: str | Path) -> str:
    """sha256 of all weights: of a single file its bytes (what other programs call the model hash); of a folder the
    hashes of its .safetensors files with their relative names, in order."""
    where = Path(where)
    if where.is_file():
        return _sha256(where)
    digest = hashlib.sha256()
    for path in sorted(where.rglob("*.safetensors")):
        digest.update(f"{path.relative_to(where).as_posix()} {_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
