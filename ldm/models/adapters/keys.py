"""The names that adapter files use: which layer a key speaks of, and which factor of its change it holds.

A key is prefix + layer + role. Dotted dialects (diffusers, peft, comfy) spell a layer `mid_block.attentions.0.proj_in`;
kohya's writes underscores, `mid_block_attentions_0_proj_in`, and for XL the names of the original code,
`middle_block_1_proj_in`. All are compared with every dot turned into an underscore: the `flat` name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"

# prefix -> component and dialect; "" means that the file does not say which network it changes
_PREFIXES = (
    (re.compile(r"lora_unet[_.]"), UNET, "kohya"),
    (re.compile(r"lora_te1?[_.]"), TEXT, "kohya"),
    (re.compile(r"lora_te2[_.]"), TEXT_2, "kohya"),
    (re.compile(r"lycoris_"), "", "kohya"),
    (re.compile(r"unet\.(?:base_model\.model\.)?"), UNET, "diffusers"),
    (re.compile(r"text_encoder\.(?:base_model\.model\.)?"), TEXT, "diffusers"),
    (re.compile(r"text_encoder_2\.(?:base_model\.model\.)?"), TEXT_2, "diffusers"),
    (re.compile(r"diffusion_model\."), UNET, "comfy"),
    (re.compile(r"text_encoders\.clip_l\.(?:transformer\.)?"), TEXT, "comfy"),
    (re.compile(r"text_encoders\.clip_g\.(?:transformer\.)?"), TEXT_2, "comfy"),
    (re.compile(r"base_model\.model\."), "", "peft"),
)

_NAME = r"(?:\.[^.]+)?"  # peft writes the adapter's own name into the key: lora_A.default.weight
_ROLES = (
    ("down", rf"lora_down\.weight|lora_A{_NAME}\.weight|(?:lora|lora_linear_layer)\.down\.weight"),
    ("up", rf"lora_up\.weight|lora_B{_NAME}\.weight|(?:lora|lora_linear_layer)\.up\.weight"),
    ("up_bias", rf"lora_up\.bias|lora_B{_NAME}\.bias|(?:lora|lora_linear_layer)\.up\.bias"),
    ("mid", r"lora_mid\.weight"),
    ("alpha", r"alpha"),
    ("dora_scale", r"dora_scale"),
    ("magnitude", rf"lora_magnitude_vector{_NAME}(?:\.weight)?"),
    ("diff", r"diff|w_norm"),
    ("diff_b", r"diff_b|b_norm"),
    *((role, role + _NAME) for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    *((role, role + _NAME) for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")),
    ("lokr_t2", "lokr_t2" + _NAME),
)
_ROLE = re.compile(r"(?P<path>.+?)\.(?:" + "|".join(f"(?P<{role}>{pattern})" for role, pattern in _ROLES) + r")$")

# attention processors of early diffusers: `attn1.processor.to_q_lora.down.weight`, `self_attn.to_out_lora.up.weight`
_OLD = re.compile(r"\.(?:processor\.)?to_(q|k|v|out)_lora\.(down|up)\.weight$")

# kinds that exist in the wild and are not read here: a mark in the key -> the name people know
_UNREAD = {
    "oft_": "OFT",
    "boft_": "BOFT",
    "on_input": "IA3",
    "lora_embedding_": "LoRA of an embedding table",
    "bundle_emb.": "textual inversion bundled into a LoRA",
    "a1.weight": "GLoRA",
}

# names of more than one word, so that a flat name can be dotted again without a model at hand
_WORDS = (
    "down_blocks up_blocks mid_block transformer_blocks time_emb_proj conv_shortcut conv_in conv_out conv_norm_out "
    "time_embedding add_embedding linear_1 linear_2 to_q to_k to_v to_out proj_in proj_out self_attn q_proj k_proj "
    "v_proj out_proj text_model text_projection token_embedding position_embedding final_layer_norm layer_norm1 "
    "layer_norm2 input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection time_embed "
    "label_emb"
)
_WORD = re.compile(rf"(?:{'|'.join(sorted(_WORDS.split(), key=len, reverse=True))}|[^_]+)(?=_|$)")

_INNER = {  # inside a residual block: diffusers -> original
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {  # outside the blocks: diffusers -> original
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_INNER_BACK = {original: name for name, original in _INNER.items()}
_OUTER_BACK = {original: name for name, original in _OUTER.items()}


@dataclass(frozen=True)
class Key:
    """One key of a file, taken apart; `path` is dotted where the dialect is."""

    component: str
    dialect: str
    path: str
    role: str

    @property
    def flat(self) -> str:
        return flat(self.path)


def split(key: str) -> Key | None:
    """The parts of a key, or None if no known role ends it."""
    component, dialect, rest = next(
        (
            (component, dialect, key[found.end() :])
            for pattern, component, dialect in _PREFIXES
            if (found := pattern.match(key))
        ),
        ("", "bare", key),
    )
    in_text = component.startswith(TEXT) or ".self_attn." in rest
    match = _ROLE.match(_modern(rest, in_text))
    if match is None or match.lastgroup is None:
        return None
    path = match["path"]
    if match.lastgroup == "magnitude" and path.endswith(".to_out"):  # written by diffusers before to_out became a list
        path += ".0"
    return Key(component, dialect, path.removeprefix("text_model."), match.lastgroup)


def _modern(rest: str, in_text: bool) -> str:
    def name(found: re.Match[str]) -> str:
        which, role = found[1], found[2]
        layer = f"{which}_proj" if in_text else f"to_{which}" + (".0" if which == "out" else "")
        return f".{layer}.lora.{role}.weight"

    return _OLD.sub(name, rest).replace(".processor.", ".")


def unread_kind(key: str) -> str | None:
    """The name of a known adapter kind that is not read here, if this key belongs to one."""
    return next((kind for mark, kind in _UNREAD.items() if mark in key), None)


def flat(path: str) -> str:
    return path.replace(".", "_").removeprefix("text_model_")


def dotted(path: str) -> str:
    """The diffusers name of a layer written in any dialect, from the vocabulary of the family alone."""
    words = ".".join(_WORD.findall(path)) if "." not in path else path
    return to_diffusers(words.removeprefix("text_model."))


def aliases(names: Iterable[str]) -> dict[str, str]:
    """Flat name -> layer name, for every way in which a file may spell the layers of this network."""
    layers = list(names)
    first = [name for name in layers if re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1", name)]
    table = {}
    for name in layers:
        table[flat(name)] = name
        if first and (original := to_original(name, depth=len(first))):
            table[flat(original)] = name
            # the original numbers an upsampler 1 or 2, by whether attention stands before it
            table[re.sub(r"_2_conv$", "_1_conv", flat(original))] = name
    return table


def to_original(path: str, depth: int = 2) -> str | None:
    """diffusers name -> name in the original U-Net of `depth` residual layers a block; None: no such name.

    input_blocks[1 + b (depth + 1) + l] is layer l of down block b, output_blocks[b (depth + 1) + l] of up block b.
    """
    if path in _OUTER:
        return _OUTER[path]
    match = re.match(
        r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(resnets|attentions|\w+samplers)\.(\d+)\.(.+)$", path
    )
    if match is None:
        return None
    side, part, layer, rest = match[1], match[3], int(match[4]), match[5]
    if part == "resnets":
        rest = _INNER.get(rest, rest)
    if side == "mid_block":
        return f"middle_block.{2 * layer if part == 'resnets' else 2 * layer + 1}.{rest}"
    start = int(match[2]) * (depth + 1)
    inner = {"resnets": 0, "attentions": 1}.get(part, 2)
    if side == "down_blocks":
        return (
            f"input_blocks.{start + depth + 1}.0.op"
            if inner == 2
            else f"input_blocks.{start + 1 + layer}.{inner}.{rest}"
        )
    return f"output_blocks.{start + depth if inner == 2 else start + layer}.{inner}.{rest}"


def to_diffusers(path: str, depth: int = 2) -> str:
    """Name in the original U-Net -> diffusers name; every other name comes back as it is."""
    if path in _OUTER_BACK:
        return _OUTER_BACK[path]
    match = re.match(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:(\d+)\.)?(.+)$", path)
    if match is None:
        return path
    number, rest = int(match[2]), match[4]
    if match[1] == "middle_block":
        part = "attentions" if number == 1 else "resnets"
        return f"mid_block.{part}.{0 if number < 2 else 1}.{_INNER_BACK.get(rest, rest)}"
    if match[3] is None:
        return path
    side = "down_blocks" if match[1] == "input_blocks" else "up_blocks"
    block, layer = divmod(number - (side == "down_blocks"), depth + 1)
    if rest == "op" or (rest == "conv" and side == "up_blocks"):
        return f"{side}.{block}.{'down' if rest == 'op' else 'up'}samplers.0.conv"
    part = "resnets" if match[3] == "0" else "attentions"
    return f"{side}.{block}.{part}.{layer}.{_INNER_BACK.get(rest, rest)}"
