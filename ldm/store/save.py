"""Saves a model: as a diffusers folder that stock code reads, or as a single file in the original layout."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.nets.coder import KLCoder
from ldm.models.tokenizer import CLIPS_OWN
from ldm.store.find import TINY_DECODER
from ldm.store.folder import WORDS
from ldm.store.names import Piece, clip_plan, open_clip_plan, unet_plan, vae_plan
from ldm.store.parts import Parts
from ldm.store.sampling import PROMPTS, SAMPLING, Suited
from ldm.store.single import UNET, VAE, towers_of
from ldm.store.write import staged, write_weights

_ARCHITECTURE = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2", "xl": "stable-diffusion-xl-v1-base",
                 "xl-refiner": "stable-diffusion-xl-v1-refiner", "own": "ldm"}  # fmt: skip


def save_folder(parts: Parts, path: str | Path, along: Path | None = None, suits: Suited | None = None) -> Path:
    """The diffusers layout, complete or not at all. What else this project keeps beside the networks in the folder
    `along` (settings and prompts that suit the model, its tiny decoder) goes with them; `suits`: other settings."""
    goal = Path(path)
    with staged(goal) as stage:
        stage.mkdir()
        index: dict[str, Any] = {"_class_name": _pipeline(parts), "_diffusers_version": version("diffusers")}
        for role, network in (("unet", parts.unet), ("vae", parts.vae)):
            _part(stage / role, network.state_dict(), _config(network), "diffusion_pytorch_model")
            index[role] = ["diffusers", network.STOCK]
        for suffix, (tokenizer, tower) in zip(_suffixes(parts), parts.towers, strict=True):
            names = {
                f"text_model.{n.removeprefix('text_model.')}" if "projection" not in n else n: t
                for n, t in tower.state_dict().items()
            }
            _part(stage / f"text_encoder{suffix}", names, _config(tower), "model")
            tokenizer.save(stage / f"tokenizer{suffix}")
            index[f"text_encoder{suffix}"] = ["transformers", tower.STOCK]
            index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
        if parts.words:
            (stage / WORDS).write_text("\n".join(sorted(parts.words)) + "\n", "utf-8")
        scheduler = {"_class_name": "DDIMScheduler", **parts.scheduler}
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
        _write(stage / "scheduler" / "scheduler_config.json", scheduler)
        _write(stage / "model_index.json", {**index, **_empties(parts)})
        for beside in () if along is None else (along / name for name in (SAMPLING, PROMPTS, TINY_DECODER)):
            if beside.is_dir():
                shutil.copytree(beside, stage / beside.name)
            elif beside.is_file():
                shutil.copy2(beside, stage / beside.name)
        if suits is not None and (told := suits.model_dump(exclude_none=True)):
            _write(stage / SAMPLING, told)
    return goal


def _pipeline(parts: Parts) -> str:
    """The stock pipeline that can run the whole model."""
    inpaints = parts.unet.config.in_channels == 9
    names = {
        "xl": "StableDiffusionXL",
        "xl-refiner": "StableDiffusionXLImg2Img",
    }
    return f"{names.get(parts.family, 'StableDiffusion')}{'Inpaint' if inpaints else ''}Pipeline"


def _suffixes(parts: Parts) -> list[str]:
    return ["_2"] if parts.family == "xl-refiner" else ["", "_2"][: len(parts.towers)]


def _empties(parts: Parts) -> dict[str, Any]:
    """What stock pipelines expect to be named even where there is none."""
    if parts.family == "xl-refiner":
        nothing = {"text_encoder": [None, None], "tokenizer": [None, None]}
        return {**nothing, "requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    if parts.family == "xl":
        return {"force_zeros_for_empty_prompt": True}
    return {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}


def _part(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], stem: str) -> None:
    folder.mkdir()
    write_weights(folder / f"{stem}.safetensors", tensors)
    _write(folder / "config.json", config)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(network: Any) -> dict[str, Any]:
    """The constructor call of a network, without any path of this machine."""
    if network.STOCK.startswith("CLIP"):  # as transformers writes it
        return {**network.config, "architectures": [network.STOCK], "model_type": "clip_text_model"}
    return {**network.config, "_class_name": network.STOCK}


def save_single(parts: Parts, path: str | Path) -> Path:
    """One safetensors file in the original layout of the family, with our configurations in its metadata."""
    goal = Path(path)
    if not isinstance(parts.vae, KLCoder):
        raise LdmError(
            Code.MODEL,
            f"{parts.name} cannot be one file: its autoencoder is a {parts.vae.STOCK}.",
            "The original layout has names for AutoencoderKL only.",
            "Save it as a folder.",
        )
    for tokenizer, _ in parts.towers:
        if len(tokenizer) != CLIPS_OWN:
            raise LdmError(
                Code.MODEL,
                f"{parts.name} cannot be one file: its tokenizer has {len(tokenizer)} entries.",
                "The original layout holds no tokenizer and means CLIP's 49408 entries.",
                "Save it as a folder.",
            )
    with staged(goal) as stage:
        write_weights(stage, single_state(parts), _metadata(parts))
    return goal


def _metadata(parts: Parts) -> dict[str, str]:
    configs = {"unet": _config(parts.unet), "vae": _config(parts.vae), "scheduler": parts.scheduler}
    configs |= {
        f"text_encoder{s}": _config(tower) for s, (_, tower) in zip(_suffixes(parts), parts.towers, strict=True)
    }
    side = int(parts.unet.config.sample_size or 64) * 2 ** (len(parts.vae.config.block_out_channels) - 1)
    kinds = {"epsilon": "epsilon", "v_prediction": "v"}
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _ARCHITECTURE[parts.family]
        + ("/inpaint" if parts.unet.config.in_channels == 9 else ""),
        "modelspec.implementation": "diffusers",
        "modelspec.title": parts.name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": kinds.get(parts.prediction, parts.prediction),
        "ldm.config": json.dumps(configs, sort_keys=True, separators=(",", ":")),
    }


def single_state(parts: Parts) -> dict[str, Tensor]:
    """All tensors under their original names; works on the meta device too."""
    unet, vae = parts.unet.state_dict(), parts.vae.state_dict()
    layers = parts.unet.config.layers_per_block
    if not isinstance(layers, int):
        raise LdmError(
            Code.MODEL,
            f"{parts.name} cannot be one file: its levels have {layers} layers.",
            "The original layout has one number of layers for all levels.",
            "Save it as a folder.",
        )
    state = dict(_backwards(unet, unet_plan(unet, layers, UNET)))
    state |= {n: _as_convolution(n, t) for n, t in _backwards(vae, vae_plan(vae, VAE))}
    for place, (_, tower) in zip(towers_of(parts.family), parts.towers, strict=True):
        tensors = tower.state_dict()
        if place.open_clip:
            shapes = {n: tuple(t.shape) for n, t in tensors.items()}
            state |= dict(_backwards(tensors, open_clip_plan(shapes, place.prefix)))
            state |= _unused(tower, place.prefix, state)
        else:
            state |= dict(_backwards(tensors, clip_plan(tensors, place.prefix)))
            ids = torch.arange(tower.config.max_position_embeddings)[None]
            state[f"{place.prefix}text_model.embeddings.position_ids"] = ids
    return state


def _backwards(tensors: Mapping[str, Tensor], plan: Mapping[str, Piece]) -> Iterator[tuple[str, Tensor]]:
    """A plan read from right to left: rows are joined again, turned matrices turned back."""
    whole: dict[str, list[tuple[int, Tensor]]] = {}
    for name, piece in plan.items():
        tensor = tensors[name].t() if piece.turned else tensors[name]
        whole.setdefault(piece.source, []).append((piece.rows[0] if piece.rows else 0, tensor))
    for source, pieces in whole.items():
        rows = [tensor for _, tensor in sorted(pieces, key=lambda p: p[0])]
        yield source, torch.cat(rows) if len(rows) > 1 else rows[0]


def _as_convolution(name: str, tensor: Tensor) -> Tensor:
    """The original autoencoder's attention is made of 1x1 convolutions."""
    inside = ".attn" in name and tensor.dim() == 2
    return tensor[:, :, None, None] if inside else tensor


def _unused(tower: Any, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the original holds and no picture depends on: the temperature of CLIP's training, and for SD 2 (whose text
    is read before the last layer) that layer as an identity (zeros) and the projection as the unit matrix."""
    weight = state[f"{prefix}ln_final.weight"]
    made = {f"{prefix}logit_scale": torch.full((), math.log(100.0), dtype=weight.dtype, device=weight.device)}
    if f"{prefix}text_projection" in state:
        return made
    made[f"{prefix}text_projection"] = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    first = f"{prefix}transformer.resblocks.0."
    last = f"{prefix}transformer.resblocks.{tower.config.num_hidden_layers}."
    blocks = {n: t for n, t in state.items() if n.startswith(first)}
    return made | {last + n.removeprefix(first): torch.zeros_like(t) for n, t in blocks.items()}
