"""A model in memory: its parts, where they came from, and how to load them from a folder or a single file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm.diffusion.level import Kind
from ldm.errors import Code, LdmError
from ldm.models.clip_tokenizer import ClipTokenizer
from ldm.models.nets.coder import KLCoder, VQCoder
from ldm.models.nets.controlnet import ControlNet
from ldm.models.nets.known import ours
from ldm.models.nets.text import ProjectedTextTower, TextTower
from ldm.models.nets.tiny import TinyCoder
from ldm.models.nets.unet import UNet2D
from ldm.store.detect import Family

Tower = tuple[ClipTokenizer, TextTower | ProjectedTextTower]
Coder = KLCoder | VQCoder | TinyCoder
COMPONENTS = frozenset({"unet", "vae", "text", "scheduler"})


@dataclass
class Parts:
    """Everything that makes pictures: networks in evaluation mode, without gradients, on the CPU."""

    name: str
    family: Family
    source: Path
    fingerprint: str  # of the U-Net, equal for folder and single file, fp16 and fp32 (see fingerprint.py)
    unet: UNet2D
    vae: Coder
    towers: tuple[Tower, ...]
    scheduler: dict[str, Any]  # as in scheduler_config.json
    prediction: Kind
    reason: str  # how the prediction type was found
    notes: list[str] = field(default_factory=list)
    words: frozenset[str] = frozenset()  # that its text tower learned from; none: it is not told, as of large models

    def __post_init__(self) -> None:
        self.unet, self.vae = ours(self.unet), ours(self.vae)
        self.towers = tuple((words, ours(tower)) for words, tower in self.towers)


def load_parts(
    where: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    vae: str | Path | None = None,
    prediction: Kind | None = None,
    components: Collection[str] | None = None,
) -> Parts:
    """A model from a folder or a single file. What `components` leaves out (of "unet", "vae", "text") is None."""
    from ldm.store import folder, single
    from ldm.store.find import find_model

    path = find_model(str(where))
    wanted = COMPONENTS if components is None else frozenset(components)
    load = folder.load_folder if path.is_dir() else single.load_single
    parts = load(path, dtype=dtype, components=wanted if vae is None else wanted - {"vae"}, prediction=prediction)
    if vae is not None and "vae" in wanted:
        parts.vae, notes = load_vae(vae, dtype, like=_vae_config(path, parts))
        parts.notes += [f"the autoencoder is {vae}", *notes]
    return parts


def _vae_config(path: Path, parts: Parts) -> dict[str, Any] | None:
    """The configuration of the autoencoder that a model was made with."""
    from ldm.store.configs import family_config
    from ldm.store.folder import read_config

    if path.is_dir() and (path / "vae" / "config.json").is_file():
        return read_config(path / "vae")
    return None if parts.family == "own" else family_config(parts.family, "vae")


def load_vae(
    where: str | Path, dtype: torch.dtype = torch.float32, like: Mapping[str, Any] | None = None
) -> tuple[Coder, list[str]]:
    """An autoencoder: a folder with config.json (or a model folder with vae/), or a file in either layout.

    A lone file does not tell its latent scale: `like` is the configuration of the one that it replaces.
    """
    from ldm.store import folder, single
    from ldm.store.find import find_model

    path = find_model(str(where))
    if path.is_dir():
        return folder.load_component(path / "vae" if (path / "vae").is_dir() else path, "vae", dtype)
    return single.load_single_vae(path, dtype, like)


def load_controlnet(where: str | Path, dtype: torch.dtype = torch.float32) -> ControlNet:
    """A ControlNet: a folder with config.json, or a file in the diffusers or the original layout (control_model.*)."""
    from ldm.store import folder, single
    from ldm.store.find import OPEN_CLIP, find_model

    path = find_model(str(where))
    if (path / "unet").is_dir():
        raise LdmError(
            Code.MODEL,
            f"{path} is a whole model, not a ControlNet.",
            "It holds a U-Net of its own in unet/.",
            "Point to the ControlNet's own folder or file.",
        )
    if (path / OPEN_CLIP).is_file():
        why, fix = "It scores pictures and steers nothing.", "Point to the ControlNet's own folder or file."
        raise LdmError(Code.MODEL, f"{path} is a CLIP, not a ControlNet.", why, fix)
    if path.is_dir():
        found: ControlNet = folder.load_component(path, "controlnet", dtype)[0]
        return found
    alone: ControlNet = single.load_single_controlnet(path, dtype)
    return alone
