"""Model folders in the diffusers layout: one folder per part, with its constructor call and its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ldm.diffusion.level import Kind
from ldm.errors import Code, LdmError
from ldm.store.build import build, check, fill, known_class
from ldm.store.detect import facts_of_config, facts_of_shapes, family_of, prediction_of_scheduler
from ldm.store.find import OPEN_CLIP
from ldm.store.fingerprint import unet_fingerprint
from ldm.store.header import printable
from ldm.store.names import Piece
from ldm.store.parts import Parts, Tower
from ldm.store.shards import read_json
from ldm.store.tokenizers import load_tokenizer
from ldm.store.weights import Weights, load_weights

STEM = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "controlnet": "diffusion_pytorch_model",
        "text_encoder": "model", "text_encoder_2": "model"}  # fmt: skip
DEFAULT_CLASS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel",
                 "text_encoder_2": "CLIPTextModelWithProjection", "controlnet": "ControlNetModel"}  # fmt: skip
WORDS = "tokenizer/words.txt"  # one a line
_TOWERS = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"})
_VAES = frozenset({"AutoencoderKL", "VQModel", "AutoencoderTiny"})
_WORDS = {"UNet2DConditionModel": "a U-Net", "AutoencoderKL": "an autoencoder", "ControlNetModel": "a ControlNet",
          "VQModel": "an autoencoder", "AutoencoderTiny": "an autoencoder",
          "CLIPTextModel": "a text tower", "CLIPTextModelWithProjection": "a text tower"}  # fmt: skip
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_folder(path: Path, *, dtype: torch.dtype, components: Collection[str], prediction: Kind | None) -> Parts:
    """A model folder as `Parts`."""
    index = read_json(path / "model_index.json") if (path / "model_index.json").is_file() else {}
    classes = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    _refuse_foreign(path, classes, index)
    notes: list[str] = []
    unet: Any = None
    vae: Any = None
    weights = component_weights(path / "unet", "unet", dtype)
    if "unet" in components:
        unet = _part(path, "unet", classes, dtype, notes)
    if "vae" in components:
        vae = _part(path, "vae", classes, dtype, notes)
    towers = _towers(path, classes, dtype, notes) if "text" in components else ()
    scheduler = _scheduler(path)
    kind, reason = prediction_of_scheduler(scheduler)
    if prediction is not None:
        kind, reason = prediction, "set by hand"
    count = sum((path / name).is_dir() for name in ("text_encoder", "text_encoder_2"))
    family = family_of(facts_of_config(read_config(path / "unet")), count)
    return Parts(
        path.name, family, path, unet_fingerprint(weights.headers), unet, vae, towers, scheduler, kind, reason, notes,
        read_words(path),
    )  # fmt: skip


def read_words(path: Path) -> frozenset[str]:
    """The words that the text tower of a small model learned from, where its folder tells them."""
    file = path / WORDS
    if not file.is_file():
        return frozenset()
    try:
        return frozenset(file.read_text("utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        why = f"{error}"[:200]
        raise LdmError(Code.FILE, f"{file} cannot be read.", why, "Restore or remove it.") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a part."""
    return read_json(folder / "config.json", 1_000_000)


def load_component(folder: Path, role: str, dtype: torch.dtype, name: str | None = None) -> tuple[Any, list[str]]:
    """One part of a model folder: its class is in its config, or in `name`, and must be in the closed table."""
    config = read_config(folder)
    architectures = config.get("architectures")
    own = architectures[0] if isinstance(architectures, list) and architectures else None
    where = str(folder / "config.json")
    if (said := config.get("_class_name")) is not None:
        known_class(str(said), where)
    name = str(name or said or own or DEFAULT_CLASS[role])
    _right_kind(folder, role, name, str(said or name))
    network, notes = build(name, config, where)
    weights = component_weights(folder, role, dtype)
    plan = plan_for(network.state_dict(), weights, role)
    check(network, plan, weights, str(folder), _both(role, config, weights))
    fill(network, plan, weights, dtype)
    return network, notes


def _right_kind(folder: Path, role: str, *names: str) -> None:
    """The network that a configuration names is the one that its place asks for."""
    wanted = _TOWERS if role.startswith("text") else _VAES if role == "vae" else {DEFAULT_CLASS[role]}
    for name in names:
        known_class(name, str(folder / "config.json"))
        if name not in wanted:
            raise LdmError(
                Code.MODEL,
                f"{folder} is {_WORDS[name]}, not {_WORDS[DEFAULT_CLASS[role]]}.",
                f"Its config.json describes the class {name}.",
                f"Point to the folder of {_WORDS[DEFAULT_CLASS[role]]}.",
            )


def plan_for(wanted: Mapping[str, Any], weights: Weights, role: str) -> dict[str, Piece]:
    """Name for name, up to the two spellings that the libraries have used; what is left over stays, to be refused."""
    spelled = {canonical(name, role): name for name in wanted}
    plan = {}
    for source in weights:
        if source.endswith("position_ids") and len(weights.entry(source).shape) <= 2:
            continue  # a constant that older versions stored
        if source == "text_projection.weight" and role.startswith("text") and source not in wanted:
            continue  # a tower with a projection, read as one without
        plan[spelled.get(canonical(source, role), source)] = Piece(source)
    return plan


def canonical(name: str, role: str) -> str:
    """Text towers with and without `text_model.`; old and new names of the autoencoder's attention."""
    if role.startswith("text"):
        return name.removeprefix("text_model.")
    if role == "vae" and ".attentions." in name:
        head, _, kind = name.rpartition(".")
        stem, _, last = head.rpartition(".")
        return f"{stem}.{_OLD_ATTENTION[last]}.{kind}" if last in _OLD_ATTENTION else name
    return name


def component_weights(folder: Path, role: str, dtype: torch.dtype) -> Weights:
    """The weights of a part: whole or sharded, plain or a variant; half precision prefers the fp16 variant."""
    stem = STEM[role]
    order = ["", ".fp16"] if dtype not in (torch.float16, torch.bfloat16) else [".fp16", ""]
    others = sorted(
        {p.name.removeprefix(f"{stem}.").split(".")[0] for p in folder.glob(f"{stem}.*.safetensors")} - {"fp16"}
    )
    for variant in [*order, *(f".{other}" for other in others if "-of-" not in other)]:
        for name in (f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"):
            if (folder / name).is_file():
                return load_weights(folder / name)
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".ckpt", ".pth"))
    if pickles:
        raise LdmError(
            Code.REFUSED,
            f"{folder} holds weights only as a pickle ({pickles[0]}).",
            "Reading a pickle can run any program of its author.",
            f"Run `ldm models convert {folder / pickles[0]} {folder / stem}.safetensors --i-trust-this-file`, "
            "or get the safetensors variant.",
        )
    raise LdmError(
        Code.FILE,
        f"{folder} holds no weights.",
        f"There is no {stem}.safetensors, shard index or variant of it.",
        "Fetch the whole model again, or point to a folder with unet/, vae/ and text_encoder/.",
    )


def _part(path: Path, role: str, classes: Mapping[str, str], dtype: torch.dtype, notes: list[str]) -> Any:
    network, more = load_component(path / role, role, dtype, classes.get(role))
    notes += more
    return network


def _towers(path: Path, classes: Mapping[str, str], dtype: torch.dtype, notes: list[str]) -> tuple[Tower, ...]:
    towers = []
    for suffix in ("", "_2"):
        if (path / f"text_encoder{suffix}").is_dir():
            towers.append((load_tokenizer(path, suffix), _part(path, f"text_encoder{suffix}", classes, dtype, notes)))
    if not towers:
        raise LdmError(
            Code.FILE,
            f"{path} has no text tower.",
            "There is neither text_encoder/ nor text_encoder_2/.",
            "Fetch the whole model again.",
        )
    return tuple(towers)


def _scheduler(path: Path) -> dict[str, Any]:
    file = path / "scheduler" / "scheduler_config.json"
    return read_json(file, 1_000_000)


def _refuse_foreign(path: Path, classes: Mapping[str, str], index: Mapping[str, Any]) -> None:
    """A model of another kind is named as such, before its parts are looked at."""
    for role, name in classes.items():
        if role in DEFAULT_CLASS and name is not None and name not in {*DEFAULT_CLASS.values(), *_VAES}:
            raise LdmError(
                Code.REFUSED,
                f"{path / 'model_index.json'} asks for the class '{printable(str(name))}' as {role}.",
                f"The model is a {printable(str(index.get('_class_name')))}, not of the Stable Diffusion family.",
                "Use a model of the Stable Diffusion 1, 2 or XL family.",
            )
    if not (path / "unet" / "config.json").is_file():
        _refuse_part(path)
        raise LdmError(
            Code.FILE,
            f"{path} is not a model folder.",
            "It has no unet/config.json.",
            "Point to the folder that holds model_index.json, unet/, vae/ and text_encoder/.",
        )


def _refuse_part(path: Path) -> None:
    """A folder that is something else than a whole model is named as what it is, and with its place."""
    if (path / OPEN_CLIP).is_file():
        why, fix = "It scores pictures and draws none.", f"Use it as --best-of 4 --ranker {path.name}."
        raise LdmError(Code.MODEL, f"{path} is a CLIP, not a whole model.", why, fix)
    if (path / "config.json").is_file() and read_config(path).get("_class_name") == "ControlNetModel":
        why, fix = "It steers a model and draws nothing alone.", f"Use it as --control model={path.name},image=FILE."
        raise LdmError(Code.MODEL, f"{path} is a ControlNet, not a whole model.", why, fix)


def _both(role: str, config: Mapping[str, Any], weights: Weights) -> dict[str, str]:
    """For the error: what the configuration says beside what the file looks like."""
    if role != "unet":
        return {}
    found = facts_of_shapes(weights.shapes)
    said = "no U-Net" if found is None else str(found)
    return {"The configuration says": str(facts_of_config(config)), "The file looks like": said}
