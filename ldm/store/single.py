"""Single-file checkpoints in their original layouts, read straight from the mapped file: no state dict is made of it.

diffusers' own converters make a state dict of the whole file and drop what they do not know; here each tensor of a
network is looked up by its original name (names.py), so that nothing is copied and everything left over is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ldm.diffusion.level import Kind
from ldm.errors import Code, LdmError
from ldm.store.build import build, check, fill
from ldm.store.configs import family_config
from ldm.store.detect import Facts, Family, Shapes, facts_of_config, facts_of_shapes, family_of, prediction_of_file
from ldm.store.fingerprint import unet_fingerprint
from ldm.store.folder import canonical, plan_for
from ldm.store.header import printable
from ldm.store.names import Piece, clip_plan, open_clip_plan, unet_plan, vae_plan
from ldm.store.parts import Parts, Tower
from ldm.store.shape import controlnet_config
from ldm.store.weights import Weights, load_weights

UNET, VAE, CONTROL = "model.diffusion_model.", "first_stage_model.", "control_model."
TEXT = ("cond_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1.")
# What published files hold besides the weights: the noise schedule, averages of the training, marks, and constants.
TOLERATED = re.compile(
    r"model_ema\.|(betas|alphas_cumprod\w*|sqrt_\w+|log_one_minus_\w+|posterior_\w+|logvar|lvlb_weights|v_pred|ztsnr|edm_\w+)"
    r"(\.|$)|denoiser\.|.*(position_ids|logit_scale|text_projection|attn_mask)$"
)


@dataclass(frozen=True)
class Place:
    """Where a text tower lies in a file: folder name, prefix, and whose names it has."""

    role: str
    prefix: str
    open_clip: bool


def towers_of(family: Family) -> tuple[Place, ...]:
    """The text towers of a family in the original layout."""
    if family == "sd2":
        return (Place("text_encoder", "cond_stage_model.model.", True),)
    if family == "xl":
        return (
            Place("text_encoder", "conditioner.embedders.0.transformer.", False),
            Place("text_encoder_2", "conditioner.embedders.1.model.", True),
        )
    if family == "xl-refiner":
        return (Place("text_encoder_2", "conditioner.embedders.0.model.", True),)
    return (Place("text_encoder", "cond_stage_model.transformer.", False),)


@dataclass(frozen=True)
class Layout:
    """What a single file is: its family, the configurations of its parts, and how its prediction type was found."""

    family: Family
    configs: Mapping[str, Mapping[str, Any]]
    prediction: Kind
    reason: str


def layout_of(weights: Weights) -> Layout:
    """From names, shapes and metadata alone."""
    facts = facts_of_shapes(weights.shapes)
    if facts is None or not any(name.startswith(UNET) for name in weights):
        raise _not_a_model(weights)
    has_second = any(name.startswith(TEXT[2]) for name in weights)
    has_first = any(name.startswith(TEXT[1]) for name in weights)
    family = family_of(facts, 1 if has_first and not has_second else None)
    own = _own_configs(weights)
    if family == "own" and not own:
        raise LdmError(
            Code.MODEL,
            f"{weights.source} is of no known family: {facts}.",
            "Its sizes are those of none of the Stable Diffusion families, and it carries no configuration of ours.",
            "Use the model folder (diffusers layout) of this model.",
        )
    configs = own or _family_configs(family, facts, weights.shapes)
    if own:
        family = family_of(facts_of_config(own["unet"]), 1 if family == "xl-refiner" else None)
    kind, reason, zero = prediction_of_file(family, weights.shapes, weights.metadata, weights.source.name)
    scheduler = {**configs["scheduler"], "prediction_type": kind}
    if zero:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    unet = dict(configs["unet"])
    if family == "sd2" and kind == "epsilon" and not own:
        unet["sample_size"] = 64
    return Layout(family, {**configs, "scheduler": scheduler, "unet": unet}, kind, reason)


def _family_configs(family: Family, facts: Facts, shapes: Shapes) -> dict[str, dict[str, Any]]:
    """As the family has them, with the two sizes in which published variants of one family differ."""
    roles = ("unet", "vae", "scheduler", *(place.role for place in towers_of(family)))
    configs = {role: family_config(family, role) for role in roles}
    configs["unet"]["in_channels"] = facts.channels  # 9: the inpainting variants
    if len(guided := shapes.get(f"{UNET}time_embedding.cond_proj.weight", ())) == 2:
        configs["unet"]["time_cond_proj_dim"] = guided[1]  # consistency models are told the guidance scale
    return configs


def _own_configs(weights: Weights) -> dict[str, dict[str, Any]]:
    """The configurations that `save_single` writes into the metadata."""
    text = weights.metadata.get("ldm.config")
    if text is None:
        return {}
    try:
        configs = json.loads(text)
        if not isinstance(configs, dict) or not all(
            isinstance(configs.get(k), dict) for k in ("unet", "vae", "scheduler")
        ):
            raise ValueError
    except (ValueError, RecursionError):
        raise LdmError(
            Code.FILE,
            f"{weights.source}: its metadata ldm.config is not usable.",
            "It is not a JSON object with unet, vae and scheduler.",
            "Save the file again from its folder.",
        ) from None
    return configs


def load_single(path: Path, *, dtype: torch.dtype, components: Collection[str], prediction: Kind | None) -> Parts:
    """A single-file checkpoint as `Parts`."""
    weights = load_weights(path)
    layout = layout_of(weights)
    _refuse_leftover(weights)
    notes: list[str] = []
    unet, more = _unet(weights, layout, dtype, fill_it="unet" in components)
    vae: Any = None
    if "vae" in components:
        vae, notes_vae = _network("AutoencoderKL", "vae", VAE, weights, layout, dtype)
        more += notes_vae
    towers = _towers(weights, layout, dtype, notes) if "text" in components else ()
    kind, reason = (layout.prediction, layout.reason) if prediction is None else (prediction, "set by hand")
    scheduler = {**layout.configs["scheduler"], "prediction_type": kind}
    return Parts(
        path.stem,
        layout.family,
        path,
        unet_fingerprint(weights.headers),
        unet if "unet" in components else cast(Any, None),
        vae,
        towers,
        scheduler,
        kind,
        reason,
        notes + more,
    )


def _unet(weights: Weights, layout: Layout, dtype: torch.dtype, fill_it: bool) -> tuple[Any, list[str]]:
    where = f"{weights.source} (unet)"
    unet, notes = build("UNet2DConditionModel", layout.configs["unet"], where)
    plan = _complete(unet_plan(unet.state_dict(), unet.config.layers_per_block, UNET), weights, UNET)
    found = facts_of_shapes(weights.shapes)
    extra = {"The configuration says": str(facts_of_config(layout.configs["unet"])), "The file looks like": str(found)}
    check(unet, plan, weights, where, extra)
    if fill_it:
        fill(unet, plan, weights, dtype)
    return unet, notes


def _network(
    name: str, role: str, prefix: str, weights: Weights, layout: Layout, dtype: torch.dtype
) -> tuple[Any, list[str]]:
    if not any(n.startswith(prefix) for n in weights):
        raise LdmError(
            Code.MODEL,
            f"{weights.source} holds no {role}: nothing in it begins with {prefix}.",
            "The file was published without it.",
            "Pass one with --vae FILE, or use a complete checkpoint.",
        )
    network, notes = build(name, layout.configs[role], f"{weights.source} ({role})")
    plan = _complete(vae_plan(network.state_dict(), prefix), weights, prefix)
    check(network, plan, weights, f"{weights.source} ({role})")
    fill(network, plan, weights, dtype)
    return network, notes


def tower_configs(path: Path) -> list[dict[str, Any]]:
    """The configurations of the text towers in a file, from its header alone."""
    weights = load_weights(path)
    layout = layout_of(weights)
    return [dict(layout.configs[place.role]) for place in _places(weights, layout.family)]


def _towers(weights: Weights, layout: Layout, dtype: torch.dtype, notes: list[str]) -> tuple[Tower, ...]:
    from ldm.models.tokenizer import clip_tokenizer

    towers = []
    for place in _places(weights, layout.family):
        config = layout.configs[place.role]
        name = (config.get("architectures") or ["CLIPTextModel"])[0]
        model, more = build(str(name), config, f"{weights.source} ({place.role})")
        plan = tower_plan(model, place, weights)
        check(model, plan, weights, f"{weights.source} ({place.role})")
        fill(model, plan, weights, dtype)
        notes += more
        towers.append((clip_tokenizer(pad_token=_padding(place)), model))
    return tuple(towers)


def _places(weights: Weights, family: Family) -> tuple[Place, ...]:
    """As the family has them; a small model of ours may have SD 2's open_clip tower."""
    second = towers_of("sd2")
    return second if family == "own" and any(n.startswith(second[0].prefix) for n in weights) else towers_of(family)


def _padding(place: Place) -> str:
    """open_clip's towers were trained with the token 0 ("!") as padding, the others with the end token."""
    return "!" if place.open_clip else "<|endoftext|>"


def tower_plan(model: Any, place: Place, weights: Weights) -> dict[str, Piece]:
    """Where the tensors of a text tower lie in a file."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if place.open_clip:
        plan = open_clip_plan(shapes, place.prefix)
        unused = f"{place.prefix}transformer.resblocks.{model.config.num_hidden_layers}."
        return _complete(plan, weights, place.prefix, unused if place.role == "text_encoder" else None)
    plan = clip_plan(shapes, place.prefix)
    if f"{place.prefix}embeddings.token_embedding.weight" in weights:  # written by some programs of today
        plan = {n: Piece(place.prefix + canonical(n, "text")) for n in shapes}
    return _complete(plan, weights, place.prefix)


def _complete(plan: dict[str, Piece], weights: Weights, prefix: str, unused: str | None = None) -> dict[str, Piece]:
    """The plan, with what the file holds under the prefix and nothing asks for: `check` names it.

    `unused`: SD 2 never runs the last layer of its text tower, and the diffusers layout leaves it out.
    """
    used = {piece.source for piece in plan.values()}
    left = [n for n in weights if n.startswith(prefix) and n not in used and not TOLERATED.match(n)]
    return plan | {n: Piece(n) for n in left if unused is None or not n.startswith(unused)}


def _refuse_leftover(weights: Weights) -> None:
    """Tensors outside every known part, other than those that published files are known to hold."""
    left = [n for n in weights if not n.startswith((UNET, VAE, *TEXT)) and not TOLERATED.match(n)]
    if left:
        raise LdmError(
            Code.MODEL,
            f"{weights.source} holds {len(left)} tensors that belong to no part of the model.",
            f"The first are {', '.join(printable(n) for n in left[:5])}.",
            "Get the file as its author published it, or use the model folder.",
        )


def _not_a_model(weights: Weights) -> LdmError:
    from ldm.store.describe import kind_of

    kind = kind_of(weights.shapes)
    return LdmError(
        Code.MODEL,
        f"{weights.source} is not a complete model: it looks like a {kind}.",
        f"A model file holds {UNET}*, {VAE}* and a text tower; the first tensor here is "
        f"{printable(next(iter(weights), 'none'))}.",
        "Pass it with --lora, --embedding, --control or --vae if it is one of those.",
    )


def load_single_vae(path: Path, dtype: torch.dtype, like: Mapping[str, Any] | None) -> tuple[Any, list[str]]:
    """An autoencoder from a file in either layout, alone or inside a checkpoint.

    A lone file does not tell its latent scale; `like` is the configuration of the one that it replaces.
    """
    weights = load_weights(path)
    _refuse_other(weights)
    own = _own_configs(weights)
    config = own["vae"] if own else like or family_config("sd1", "vae")
    network, notes = build("AutoencoderKL", config, f"{path} (vae)")
    if any(".down_blocks." in name for name in weights):
        plan = plan_for(network.state_dict(), weights, "vae")
    else:
        prefix = VAE if any(name.startswith(VAE) for name in weights) else ""
        plan = _complete(vae_plan(network.state_dict(), prefix), weights, prefix)
    check(network, plan, weights, str(path))
    fill(network, plan, weights, dtype)
    return network, notes


def _refuse_other(weights: Weights) -> None:
    """A file that is known to be something else than an autoencoder, named as such."""
    from ldm.store.describe import kind_of

    kind = kind_of(weights.shapes)
    if kind in ("controlnet", "unet", "lora", "text tower", "textual inversion"):
        raise LdmError(
            Code.MODEL,
            f"{weights.source} is a {kind}, not an autoencoder.",
            f"The first tensor in it is {printable(next(iter(weights), 'none'))}.",
            "Pass the file or folder of an autoencoder.",
        )


def load_single_controlnet(path: Path, dtype: torch.dtype) -> Any:
    """A ControlNet from a file in the diffusers or the original layout."""
    weights = load_weights(path)
    names = {
        n.removeprefix(CONTROL): n for n in weights if not TOLERATED.match(n) and not n.startswith((UNET, VAE, *TEXT))
    }
    facts = facts_of_shapes({bare: weights.entry(n).shape for bare, n in names.items()})
    if facts is None or not any(n.startswith(("input_hint_block.", "controlnet_cond_embedding.")) for n in names):
        from ldm.store.describe import kind_of

        raise LdmError(
            Code.MODEL,
            f"{path} is not a ControlNet: it looks like a {kind_of(weights.shapes)}.",
            f"It has no hint embedding; the first tensor is {printable(next(iter(weights), 'none'))}.",
            "Pass a ControlNet file or folder.",
        )
    config = controlnet_config({bare: weights.entry(n).shape for bare, n in names.items()}, facts)
    network, _ = build("ControlNetModel", config, f"{path} (controlnet)")
    wanted = network.state_dict()
    if "input_hint_block.0.weight" in names:
        plan = {
            n: Piece(names.get(p.source, p.source))
            for n, p in unet_plan(wanted, config["layers_per_block"], "").items()
        }
        used = {p.source for p in plan.values()}
        plan |= {n: Piece(n) for n in names.values() if n not in used}
    else:
        plan = {bare: Piece(n) for bare, n in names.items()} | {n: Piece(n) for n in wanted if n not in names}
    check(network, plan, weights, str(path))
    fill(network, plan, weights, dtype)
    return network
