"""The networks that are known here, and those of diffusers and transformers as ours."""

from __future__ import annotations

from typing import Any

from torch import nn

from ldm.models.nets.base import Net, unfilled
from ldm.models.nets.coder import KLCoder, VQCoder
from ldm.models.nets.controlnet import ControlNet
from ldm.models.nets.text import ProjectedTextTower, TextTower
from ldm.models.nets.tiny import TinyCoder
from ldm.models.nets.unet import UNet2D

# The closed table of what a configuration may ask for.
NETWORKS: dict[str, type[Net]] = {
    kind.STOCK: kind for kind in (UNet2D, KLCoder, VQCoder, TinyCoder, ControlNet, TextTower, ProjectedTextTower)
}


def ours(network: Any) -> Any:
    """A network of diffusers or transformers in the class that stands for it here; any other stays what it is. Both
    see the same numbers from then on: nothing is copied."""
    kind = NETWORKS.get(type(network).__name__)
    if kind is None or isinstance(network, Net):
        return network
    told = network.config
    told = told.to_dict() if hasattr(told, "to_dict") else told
    with unfilled():
        made = kind(**{name: value for name, value in told.items() if name in kind.DEFAULTS or name in kind.SETTLED})
    state = {name: value for name, value in network.state_dict().items() if name in made.state_dict()}
    made.load_state_dict(state, assign=True)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(network.get_parameter(name).requires_grad)
    assert isinstance(network, nn.Module)
    return made.train(network.training)
