"""The parts that a task is made of: from a folder (these weights) or a `.json` (this architecture, new weights)."""

from __future__ import annotations

import contextlib
import copy
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.clip_tokenizer import ClipTokenizer
from ldm.models.nets.known import NETWORKS
from ldm.models.nets.text import TextTower
from ldm.store.build import build, known_class
from ldm.store.configs import config_path
from ldm.store.find import find_model
from ldm.store.folder import load_component
from ldm.store.parts import load_vae
from ldm.store.shards import read_json
from ldm.store.tokenizers import load_tokenizer
from ldm.store.write import staged, write_weights
from train.tokenizer import open_tokenizer

MOST_BESIDE = 200  # files of a folder that are looked at for a name like the one that is missing


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """New weights are drawn inside: they come from `seed`, and the generator outside is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def is_new(path: Path) -> bool:
    """Whether a path of a run file means an architecture with new weights."""
    return path.suffix == ".json"


def read_architecture(path: Path) -> dict[str, Any]:
    """A `config.json`: a file, or one that ships with the package as configs/..."""
    if not path.is_file():
        path = _shipped(path)
    return read_json(path, 1_000_000)


def _shipped(path: Path) -> Path:
    """An architecture that ships, where a path says configs/...; else the error that names those that are like it."""
    if path.parts[:1] == ("configs",):
        with contextlib.suppress(LdmError):
            return config_path(str(Path(*path.parts[1:])))
    folder = config_path("models")
    known = [f"configs/models/{p.relative_to(folder).as_posix()}" for p in sorted(folder.rglob("*.json"))]
    beside = [str(p) for p in sorted(path.parent.glob("*.json"))[:MOST_BESIDE]]
    near = difflib.get_close_matches(str(path), [*beside, *known], n=1, cutoff=0.6)
    raise LdmError(
        Code.FILE,
        f"The architecture {path} is not there.",
        "The run file names it as a .json file with the networks' configuration.",
        f"Write {near[0]}, if that is what you mean." if near else "Check the path; configs/models/ has examples.",
    )


def new_network(name: str, config: Mapping[str, Any], where: str, seed: int) -> Any:
    """A network of the closed table with new weights, in training mode; its config is checked on the meta device."""
    shaped, _ = build(str(config.get("_class_name", name)), config, where)
    found = shaped.STOCK
    if found != NETWORKS[name].STOCK:
        raise LdmError(
            Code.MODEL,
            f"{where} describes a {found}.",
            f"A {name} is needed here.",
            "Name another file.",
        )
    with seeded(seed):
        return known_class(name, where).from_config(dict(shaped.config)).train()


def open_network(path: Path, role: str, name: str, seed: int) -> Any:
    """A U-Net or the like, to be trained: a `.json`, its own folder, or a whole model with a folder of that role."""
    if is_new(path):
        return new_network(name, read_architecture(path), str(path), seed)
    folder = find_model(str(path))
    if (folder / role).is_dir():
        folder = folder / role
    return owned(load_component(folder, role, torch.float32)[0])


def open_vae(path: Path) -> Autoencoder:
    """A trained autoencoder, frozen."""
    if is_new(path):
        raise LdmError(
            Code.USAGE,
            f"task.vae={path} has no weights",
            "a .json is an architecture, and an autoencoder with random weights has no latents to learn from",
            "Train it first (task type autoencoder) and name the folder of its result.",
        )
    return Autoencoder(load_vae(path)[0].eval())


def open_text(
    path: Path, tokenizer: Path | Literal["clip"] | None, captions: Iterable[str], vocabulary: int, seed: int
) -> list[tuple[ClipTokenizer, Any]]:
    """Tokenizers and text towers: those of a model folder (two of XL), or a new tower for a tokenizer that is given or
    made here."""
    if not is_new(path):
        folder = find_model(str(path))
        place = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
        tower = load_component(place, "text_encoder", torch.float32)[0]
        if tokenizer is not None:
            return [(open_tokenizer(tokenizer, (), vocabulary, tower.config.max_position_embeddings), tower)]
        first = (load_tokenizer(folder, ""), tower)
        if not (folder / "text_encoder_2").is_dir():
            return [first]
        second = load_component(folder / "text_encoder_2", "text_encoder_2", torch.float32)[0]
        return [first, (load_tokenizer(folder, "_2"), second)]
    config = {k: v for k, v in read_architecture(path).items() if k not in ("architectures", "model_type")}
    words = open_tokenizer(tokenizer, captions, vocabulary, int(config.get("max_position_embeddings", 77)))
    config |= {
        "vocab_size": len(words),
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    shaped, _ = build("CLIPTextModel", config, str(path))
    with seeded(seed):
        return [(words, TextTower.from_config(shaped.config).train())]


def changed(network: Any, **config: Any) -> Any:
    """The same network with another configuration: what is new is zero, more channels are zeros, fewer are the first.

    So a U-Net that is shown a mask as well, or is told a guidance scale, answers at first as before.
    """
    with seeded(0):
        wider = type(network).from_config({**dict(network.config), **config})
    state = wider.state_dict()
    for name, known in network.state_dict().items():
        state[name] = _fitted(known, state[name].shape)
    for name in state.keys() - network.state_dict().keys():
        state[name] = torch.zeros_like(state[name])
    wider.load_state_dict(state)
    return wider.train(network.training)


def _fitted(known: Tensor, shape: torch.Size) -> Tensor:
    """`known` in the first rows and columns, zeros in those that are more; those that are too many are left out."""
    if known.shape == shape:
        return known
    fitted = known.new_zeros(shape)
    common = tuple(slice(0, min(pair)) for pair in zip(known.shape, shape, strict=True))
    fitted[common] = known[common]
    return fitted


def frozen(network: nn.Module) -> nn.Module:
    """For use alone: evaluation mode, no gradients."""
    return network.eval().requires_grad_(False)


def owned(network: Any) -> Any:
    """The same network with weights of its own, to be trained: those of a file are views of it."""
    for p in network.parameters():
        p.data = p.data.clone()
    return network.train().requires_grad_(True)


def twin(network: Any) -> Any:
    """A copy with its own weights."""
    return copy.deepcopy(network)


def refuse_told(config: Mapping[str, Any], where: object, towers: int = 1) -> None:
    """Networks that are told what a task does not give. XL's pooled text and sizes need two text towers; tasks that
    give neither say that they have one."""
    told = config.get("addition_embed_type")
    if told in (None, "text"):  # "text" pools the states that cross-attention reads anyway
        return
    if told != "text_time":
        family, why = f"told more than text ({told})", "training gives it nothing but text"
    elif towers > 1:
        return
    else:
        family = "of the XL family"
        why = "it is told pooled text and picture sizes, which take two text towers and a task that gives them"
    raise LdmError(
        Code.MODEL,
        f"{where} is {family}",
        why,
        "Take a U-Net with one text tower (Stable Diffusion 1 or 2, or one of configs/models). XL is trained by the "
        "tasks diffusion and lora, with a whole XL model as task.text or task.model.",
    )


def save_network(network: Any, folder: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """One network in the diffusers layout: config.json and safetensors, complete or not at all."""
    with staged(folder) as stage:
        stage.mkdir()
        write_weights(stage / "diffusion_pytorch_model.safetensors", network.state_dict(), metadata)
        config = {**dict(network.config), "_class_name": network.STOCK}
        kept = {k: v for k, v in config.items() if not k.startswith(("_name_or_path", "_use_default_values"))}
        (stage / "config.json").write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder
