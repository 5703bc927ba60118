"""Networks from a config and mapped weights: built on the meta device, checked name by name, filled without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ldm.errors import Code, LdmError
from ldm.models.nets.base import Net, unfilled
from ldm.models.nets.known import NETWORKS
from ldm.store.header import printable
from ldm.store.names import Piece
from ldm.store.weights import Weights

_HOSTILE = (
    "auto_map",
    "custom_pipelines",
    "trust_remote_code",
    "quantization_config",
    "_attn_implementation",
    "target",
)
_MOST = {
    "layers_per_block": 16,
    "num_hidden_layers": 128,
    "transformer_layers_per_block": 64,
    "layers_per_block_decoder": 16,
}
_WIDEST = 200_000
_SILENT = {"transformers_version", "dtype", "torch_dtype", "model_type", "architectures", "dropout",
           "block_out_channels"}  # the last: AutoencoderTiny notes its decoder's widths twice  # fmt: skip
# What these libraries write where nothing is asked for.
_IDLE = {"output_attentions": False, "output_hidden_states": False, "return_dict": True, "torchscript": False,
         "use_cache": True, "tie_word_embeddings": True}  # fmt: skip


Plan = Mapping[str, Piece]


def known_class(name: str, where: str) -> type[Net]:
    """A class of the closed table; any other name is refused, never looked up."""
    if name not in NETWORKS:
        raise LdmError(
            Code.REFUSED,
            f"{where} asks for the class '{printable(name)}'.",
            f"Only these are loaded, so that a config cannot run code: {', '.join(NETWORKS)}.",
            "Use a model of the Stable Diffusion family.",
        )
    return NETWORKS[name]


def build(name: str, config: Mapping[str, Any], where: str) -> tuple[Any, list[str]]:
    """An empty network (meta device) of a known class, and notes about config keys that it does not know."""
    kind = known_class(name, where)
    fields, notes = _known(config, kind, where)
    try:
        with unfilled():
            network = kind(**fields)
    except Exception as error:  # the constructors raise many kinds, and a bad config is the user's to mend
        raise LdmError(
            Code.MODEL,
            f"{where} does not describe a {name} that can be built.",
            f"{type(error).__name__}: {printable(str(error), 300)}.",
            "Restore the config of the original model.",
        ) from error
    return network.eval().requires_grad_(False), notes


def _known(config: Mapping[str, Any], kind: type[Net], where: str) -> tuple[dict[str, Any], list[str]]:
    """The keys that the constructor knows. Unknown ones are noted; those that can lead to code are refused."""
    for key in config:
        if str(key).startswith(_HOSTILE):
            raise LdmError(
                Code.REFUSED,
                f"{where} is refused: it holds the key '{printable(str(key))}'.",
                "Such keys make other programs run code or fetch it.",
                "Remove the key if you trust the rest, or get the model elsewhere.",
            )
    allowed = {*kind.DEFAULTS, *kind.SETTLED}
    fields = {key: value for key, value in config.items() if key in allowed}
    for key, value in fields.items():
        _sane(key, value, where)
    silent = _SILENT | {key for key, value in _IDLE.items() if config.get(key) is value}
    unknown = [k for k in config if k not in allowed and not k.startswith("_") and k not in silent]
    return fields, [
        f"{where}: the key '{printable(key)}' is not known here and was left out" for key in sorted(unknown)
    ]


def _sane(key: str, value: Any, where: str) -> None:
    """Numbers in a config stay within what such networks have, so that building one cannot exhaust the machine."""
    for number in _numbers(value):
        if number != number or abs(number) > _MOST.get(key, _WIDEST):
            raise LdmError(
                Code.MODEL,
                f"{where}: {key} = {number} is out of range.",
                f"Networks of this family have {key} up to {_MOST.get(key, _WIDEST)}.",
                "Restore the config of the original model.",
            ) from None


def _numbers(value: Any, depth: int = 0) -> list[float]:
    if isinstance(value, list | tuple):
        if len(value) > 64 or depth > 3:
            return [float("nan")]
        return [number for part in value for number in _numbers(part, depth + 1)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def check(network: nn.Module, plan: Plan, weights: Weights, where: str, extra: Mapping[str, str] | None = None) -> None:
    """Every tensor of the network is in the file with its shape, none is left over; else the first five that differ."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    shapes = weights.shapes
    lines = []
    for name, shape in wanted.items():
        piece = plan.get(name)
        if piece is None or piece.source not in shapes:
            lines.append(f"{name}: file none, config {_shown(shape)}")
        elif not _fits(found := piece.shape(shapes[piece.source]), shape):
            lines.append(f"{name}: file {_shown(found)}, config {_shown(shape)}")
    lines += [
        f"{printable(p.source)}: file {_shown(shapes[p.source])}, config none"
        for n, p in plan.items()
        if n not in wanted
    ]
    if lines:
        facts = "".join(f" {key}: {value}." for key, value in (extra or {}).items())
        raise LdmError(
            Code.MODEL,
            f"{where} does not fit its configuration: {len(lines)} of {len(wanted)} tensors differ.",
            f"First differences: {'; '.join(lines[:5])}.{facts}",
            "Use weights and configuration of one and the same model.",
        )


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Equal, up to trailing ones: a 1x1 convolution is a linear layer."""
    return found == wanted or (_bare(found) == _bare(wanted) and {len(found), len(wanted)} == {2, 4})


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _shown(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def fill(network: nn.Module, plan: Plan, weights: Weights, dtype: torch.dtype) -> None:
    """Puts the tensors in, one by one; with an equal type they stay views of the mapped file."""
    wanted = network.state_dict()
    state = {}
    for name, target in wanted.items():
        piece = plan[name]
        state[name] = piece.cut(weights.read(piece.source, dtype)).reshape(target.shape)
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False)
