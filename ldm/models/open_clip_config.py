"""What an open_clip configuration says, and whether the CLIP towers of transformers can hold what it describes.

open_clip knows many more architectures than the two towers that diffusers and this project read. Which of them fit is
decided from the configuration alone, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.errors import Code, LdmError

# What a tower may not have, and the value (open_clip's default) that it may: transformers has no place for the rest.
_NEITHER = {
    "ls_init_value": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "output_tokens": False,
}
_IMAGE = {**_NEITHER, "timm_model_name": None, "attentional_pool": False, "no_ln_pre": False, "pool_type": "tok"}
_TEXT = {**_NEITHER, "hf_model_name": None, "embed_cls": False, "no_causal_mask": False, "proj_type": "linear"}
_TEXT |= {"proj_bias": False}
_WORDS = {
    "timm_model_name": "its image tower is one of timm",
    "hf_model_name": "its text tower is a language model of its own kind",
    "attentional_pool": "its image tower pools by attention, not by a class token",
    "pool_type": "its image tower pools over all places, not by a class token",
    "no_ln_pre": "its image tower has no norm before the first layer",
    "no_causal_mask": "its text tower reads in both directions",
}
_SMOOTH = {None: "gelu", "none": "gelu", "tanh": "gelu_pytorch_tanh"}


def misfits(config: Mapping[str, Any]) -> list[str]:
    """Why the towers of transformers cannot hold this architecture, a clause each; empty when they can."""
    image, text = config["vision_cfg"], config["text_cfg"]
    found = ["it has a third, generating tower"] if "multimodal_cfg" in config else []
    if isinstance(image.get("layers"), list | tuple):
        found.append("its image tower is a ResNet")
    if text.get("pool_type", "argmax") not in ("argmax", "eos"):
        found.append("its text tower does not pool at the end of the text")
    if image.get("patch_dropout"):  # and its draws are no function of the seed
        found.append("its image tower drops patches at random")
    for side in ("image_size", "patch_size"):
        if isinstance(image.get(side), list | tuple) and len(set(image[side])) > 1:
            found.append(f"its {side} is not square")
    for name, part, allowed in (("vision_cfg", image, _IMAGE), ("text_cfg", text, _TEXT)):
        for key, value in allowed.items():
            if part.get(key, value) != value:
                found.append(_WORDS.get(key, f"{name}.{key} is set"))
        if part.get("block_type", None) not in (None, "default"):
            found.append(f"{name}.block_type is {part['block_type']}")
        if set(part.get("norm_kwargs") or {}) - {"eps"} or _activation(part, False) is None:
            found.append(f"{name} has a norm or an activation that transformers does not know")
    return found


def check_fits(config: Mapping[str, Any], where: str) -> None:
    """Raises for an architecture that could be trained, but whose towers nothing else here could read."""
    reasons = misfits(config)
    if reasons:
        raise LdmError(
            Code.MODEL,
            f"{where} cannot be used: {', and '.join(reasons)}.",
            "A CLIP is written as towers of transformers (text_encoder, image_encoder), which cannot hold that.",
            "Use a plain vision transformer (ViT-B-32, ViT-B-16, ViT-L-14, ...) or a .json with small sizes of one.",
        )


def side_of(config: Mapping[str, Any]) -> int:
    """The side in pixels of the pictures that the image tower takes."""
    return _one(config["vision_cfg"].get("image_size", 224))


def text_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the shapes of the text tower do not tell, in the words of transformers."""
    text = config["text_cfg"]
    quick = bool(config.get("quick_gelu", False))
    return {
        "heads": int(text.get("heads", 8)),
        "hidden_act": _activation(text, quick),
        "layer_norm_eps": float((text.get("norm_kwargs") or {}).get("eps", 1e-5)),
    }


def image_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the image tower, in the words of transformers; absent keys mean open_clip's defaults."""
    image = config["vision_cfg"]
    width = int(image.get("width", 768))
    return {
        "hidden_size": width,
        "intermediate_size": int(width * image.get("mlp_ratio", 4.0)),
        "projection_dim": int(config["embed_dim"]),
        "num_hidden_layers": int(image.get("layers", 12)),
        "num_attention_heads": width // int(image.get("head_width", 64)),
        "image_size": side_of(config),
        "patch_size": _one(image.get("patch_size", 16)),
        "hidden_act": _activation(image, bool(config.get("quick_gelu", False))),
        "layer_norm_eps": float((image.get("norm_kwargs") or {}).get("eps", 1e-5)),
    }


def _activation(part: Mapping[str, Any], quick: bool) -> str | None:
    options = dict(part.get("act_kwargs") or {})
    smooth = _SMOOTH.get(options.pop("approximate", None))
    return None if options else "quick_gelu" if quick else smooth


def _one(side: Any) -> int:
    return int(side[0] if isinstance(side, list | tuple) else side)
