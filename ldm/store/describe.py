"""What a file or folder is, from its headers alone: `ldm models show`. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from ldm.store.detect import (
    Facts,
    Shapes,
    facts_of_config,
    facts_of_shapes,
    family_of,
    prediction_of_file,
    prediction_of_scheduler,
)
from ldm.store.find import OPEN_CLIP
from ldm.store.fingerprint import fingerprint, unet_fingerprint
from ldm.store.header import Header
from ldm.store.shards import headers_of, read_json
from ldm.store.sniff import PICKLES, content_of

_LORA = re.compile(
    r"\.(lora_[AB]|lora_down|lora_up|lora\.down|lora\.up|hada_w\d_[ab]|lokr_w\d\w*|lora_linear_layer\.\w+)\b"
)
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "controlnet")


@dataclass(frozen=True)
class Description:
    """One model, adapter or part of one, as its headers tell it."""

    path: Path
    # model folder, single file, lora, textual inversion, controlnet, vae, clip, text tower, unet, unknown, pickle
    kind: str
    family: str | None = None  # sd1, sd2, xl, xl-refiner, own
    inpainting: bool = False  # a U-Net of 9 input channels
    prediction: str | None = None
    reason: str | None = None
    parameters: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)  # type -> tensors
    tensors: int = 0
    size: int = 0  # bytes on disk
    fingerprint: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; the file's name without its folder."""
        return {**asdict(self), "path": self.path.name}


def describe(path: str | Path) -> Description:
    """Kind, family, prediction type, size and fingerprint."""
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.name.endswith(".json") and path.is_file() and content_of(path) in PICKLES:
        return Description(
            path, "pickle", size=path.stat().st_size, reason=f"{content_of(path).value}; it is never loaded"
        )
    headers = headers_of(path)
    shapes = {name: entry.shape for header in headers.values() for name, entry in header.tensors.items()}
    metadata = {k: v for header in headers.values() for k, v in header.metadata.items()}
    kind = kind_of(shapes)
    facts = facts_of_shapes({n.removeprefix("control_model."): s for n, s in shapes.items()})
    family: str | None = None
    prediction = reason = None
    if kind == "single file" and facts is not None:
        refiner = _has(shapes, "conditioner.embedders.0.") and not _has(shapes, "conditioner.embedders.1.")
        found = family_of(facts, 1 if refiner else None)
        family = found
        prediction, reason, _ = prediction_of_file(found, shapes, metadata, path.name)
    elif facts is not None and kind in ("unet", "controlnet"):
        family = family_of(facts)
    elif kind == "lora":
        family = _lora_family(shapes)
    name = unet_fingerprint(headers) if kind in ("single file", "unet") else fingerprint(headers)
    return Description(
        path, kind, family, _inpaints(facts), prediction, reason, **_sums(headers), fingerprint=name, metadata=metadata
    )


def kind_of(shapes: Shapes) -> str:
    """What a set of tensor names is."""
    names = list(shapes)
    if any(_LORA.search(name) for name in names):
        return "lora"
    if any(n.startswith("model.diffusion_model.") for n in names):
        return "single file"
    if any("controlnet_cond_embedding." in n or "input_hint_block." in n for n in names):
        return "controlnet"
    if any(n.endswith(("mid.attn_1.q.weight", "decoder.conv_in.weight")) for n in names):
        return "vae"
    if "conv_in.weight" in shapes and any(n.startswith("down_blocks.") for n in names):
        return "unet"
    if "logit_scale" in shapes and any(n.startswith("visual.") for n in names):
        return "clip"
    if any(n.endswith(("token_embedding.weight", "positional_embedding")) for n in names):
        return "text tower"
    vectors = all(len(s) in (1, 2) for s in shapes.values())
    if 0 < len(names) <= 3 and vectors and all(s[-1] in (768, 1024, 1280) or s[-1] < 768 for s in shapes.values() if s):
        return "textual inversion"
    return "unknown"


def _folder(path: Path) -> Description:
    """A model folder, or the folder of one part."""
    if not (path / "unet" / "config.json").is_file():
        files = _weight_files(path)
        if files and any((path / name).is_file() for name in ("config.json", OPEN_CLIP)):
            return describe(files[0])
        raise LdmError(
            Code.FILE,
            f"{path} is neither a model folder nor a part of one.",
            "It has no unet/config.json and no weights beside a config.json.",
            "Point to a folder that holds model_index.json, or to a file.",
        )
    headers = {
        file: header
        for part in _PARTS
        for index in _weight_files(path / part)[:1]
        for file, header in headers_of(index).items()
    }
    unet = {file: header for file, header in headers.items() if file.parent.name == "unet"}
    scheduler = path / "scheduler" / "scheduler_config.json"
    prediction, reason = prediction_of_scheduler(read_json(scheduler) if scheduler.is_file() else {})
    facts = facts_of_config(read_json(path / "unet" / "config.json"))
    towers = sum((path / name).is_dir() for name in ("text_encoder", "text_encoder_2"))
    metadata = {k: v for header in unet.values() for k, v in header.metadata.items()}
    return Description(
        path,
        "model folder",
        family_of(facts, towers),
        _inpaints(facts),
        prediction,
        reason,
        **_sums(headers),
        fingerprint=unet_fingerprint(unet) if unet else None,
        metadata=metadata,
    )


def _weight_files(folder: Path) -> list[Path]:
    """Whole files first, then shard indexes; of several variants the plain one, then by name."""
    plain = [p for p in sorted(folder.glob("*.safetensors"), key=lambda p: len(p.name)) if "-of-" not in p.name]
    return [*plain, *sorted(folder.glob("*.safetensors.index*.json"), key=lambda p: len(p.name))]


def _sums(headers: Mapping[Path, Header]) -> dict[str, Any]:
    entries = [entry for header in headers.values() for entry in header.tensors.values()]
    dtypes: dict[str, int] = {}
    for entry in entries:
        dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + 1
    return {"parameters": sum(e.count for e in entries), "dtypes": dtypes, "tensors": len(entries),
            "size": sum(header.size for header in headers.values())}  # fmt: skip


def _inpaints(facts: Facts | None) -> bool:
    return facts is not None and facts.channels == 9


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def _lora_family(shapes: Shapes) -> str | None:
    """By the width of the text that its cross-attention reads."""
    known = {768: "sd1", 1024: "sd2", 2048: "xl", 1280: "xl-refiner"}
    for name, shape in shapes.items():
        if (
            re.search(r"attn2[._]to_[kv]", name)
            and re.search(r"(lora_down|lora_A|lora\.down|hada_w1_b)", name)
            and len(shape) == 2
        ):
            return known.get(shape[1])
    return None
