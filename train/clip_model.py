"""What a CLIP run starts from: a name of open_clip, an architecture in its format, or the weights of a folder."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.clip_tokenizer import ClipTokenizer
from ldm.models.open_clip_config import check_fits, misfits
from ldm.store.clip import OpenClip, read_open_clip
from train.tasks.parts import read_architecture, seeded
from train.tasks.settings import ClipSettings
from train.tokenizer import open_tokenizer

_TOP = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias",
        "nonscalar_logit_scale")  # fmt: skip
_WITHOUT_LIMIT = 100_000
MOST = math.log(100)  # of the logarithm of the scale (Radford et al. 2021, section 2.5)
_SIGLIP = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}  # Zhai et al. 2023, section 3.2


def start(settings: ClipSettings, captions: Callable[[], Iterable[str]], seed: int) -> tuple[Any, OpenClip]:
    """The model, in training mode, and what it is; new weights are a function of the seed."""
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        known = read_open_clip(folder)
        return _continued(settings, known), known
    config, where = architecture(settings.model)
    _check(config, where)
    length = int(config["text_cfg"].get("context_length", 77))
    tokenizer = open_tokenizer(settings.tokenizer, captions(), settings.vocabulary, length)
    config["text_cfg"] |= _words(tokenizer, settings.tokenizer is None)
    if settings.loss == "siglip":
        config = {**_SIGLIP, **config}
    with seeded(seed):
        model = build(config, where)
    return model, OpenClip(config, tokenizer, model.state_dict())


def architecture(name: str) -> tuple[dict[str, Any], str]:
    """The constructor call that a name of open_clip or a `.json` stands for, and what to call it in an error."""
    if name.endswith(".json"):
        told = read_architecture(Path(name))
        return copy.deepcopy(told.get("model_cfg", told)), name
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.6)
        usable = [n for n in open_clip.list_models() if not misfits(open_clip.get_model_config(n))]
        raise LdmError(
            Code.USAGE,
            f"task.model={name} is no folder, no .json file and no architecture of open_clip.",
            f"open_clip has no such name; {len(usable)} of its architectures can be trained here.",
            f"Did you mean {' or '.join(near)}?" if near else f"Choose one of {', '.join(usable)}.",
        )
    return config, f"task.model={name}"


def build(config: Mapping[str, Any], where: str) -> Any:
    """An open_clip model; its scale keeps one dimension inside, because sharding knows no scalars."""
    values = {k: v for k, v in config.items() if k != "custom_text"} | {"nonscalar_logit_scale": True}
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    try:
        return kind(**values, output_dict=True).train()
    except Exception as error:  # constructors raise many kinds, and the architecture is the user's to mend
        raise LdmError(
            Code.MODEL,
            f"{where} does not describe a model that can be built.",
            f"{type(error).__name__}: {str(error).splitlines()[0][:200]}.",
            "Widths must be multiples of head_width (image) and heads (text), and image_size of patch_size.",
        ) from error


def saved_state(model: Any, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's tensors as its configuration has them: a scale without a dimension, unless it says otherwise."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    state["logit_scale"] = state["logit_scale"].clamp(0, MOST)
    for name in ("logit_scale", "logit_bias"):
        if name in state and not config.get("nonscalar_logit_scale"):
            state[name] = state[name].reshape(())
    return state


def _continued(settings: ClipSettings, known: OpenClip) -> Any:
    """Weights that learn on. Their tokenizer stays: other numbers for the same words would make them forget all."""
    if settings.tokenizer is not None:
        raise LdmError(
            Code.USAGE,
            "task.tokenizer is set, and task.model is a folder of weights.",
            "Weights know the numbers of their own tokenizer only.",
            "Leave task.tokenizer out, or start from an architecture.",
        )
    config = known.config
    _check(config, settings.model)
    if settings.loss == "siglip" and "logit_bias" not in known.state:
        config |= {"init_logit_bias": _SIGLIP["init_logit_bias"]}
    model = build(config, settings.model)
    wanted = model.state_dict()
    state = {n: t.reshape(wanted[n].shape) if n.startswith("logit_") else t for n, t in known.state.items()}
    state = {"logit_bias": wanted["logit_bias"], **state} if "logit_bias" in wanted else state
    wrong = [n for n in wanted if n not in state or state[n].shape != wanted[n].shape]
    wrong += [n for n in state if n not in wanted]
    if wrong:
        raise LdmError(
            Code.MODEL,
            f"{settings.model} does not fit its configuration: {', '.join(wrong[:5])}.",
            f"{len(wrong)} tensors are missing, of another shape or unknown.",
            "Use weights and configuration of one and the same model.",
        )
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model


def _words(tokenizer: ClipTokenizer, made: bool) -> dict[str, Any]:
    """The part of an architecture that follows the tokenizer."""
    last = int(tokenizer.eos_token_id) == len(tokenizer) - 1
    end = {"pool_type": "argmax"} if last else {"pool_type": "eos", "eos_id": int(tokenizer.eos_token_id)}
    declared = int(tokenizer.model_max_length)  # astronomic where its folder names none
    length = {} if made or declared >= _WITHOUT_LIMIT else {"context_length": declared}
    return {"vocab_size": len(tokenizer), "hf_tokenizer_name": None, **end, **length}


def _check(config: Mapping[str, Any], where: str) -> None:
    """Every key is known, and what is described can be written for others at the end."""
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(config.get(part), dict):
            raise _unknown(where, f"it has no {part}", "Write it in open_clip's format, as its model_configs are.")
    check_fits(config, where)
    fields = [(set(_TOP), config, "")]
    for part, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        fields.append(({f.name for f in dataclasses.fields(kind)}, config[part], f"{part}."))
    for allowed, told, place in fields:
        for key in told:
            if key not in allowed:
                near = difflib.get_close_matches(key, sorted(allowed), n=1)
                fix = f"Did you mean {place}{near[0]}?" if near else f"Remove {place}{key}."
                raise _unknown(where, f"it holds the unknown key {place}{key}", fix)
    if "embed_dim" not in config:
        raise _unknown(where, "it has no embed_dim", "Add the width of the space that both towers share.")


def _unknown(where: str, why: str, fix: str) -> LdmError:
    return LdmError(Code.MODEL, f"{where} does not describe a CLIP of open_clip.", f"In it, {why}.", fix)
