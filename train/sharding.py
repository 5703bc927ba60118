"""Parameters split over processes (`run.sharding: full`): each keeps a part of every weight, gradient and average.

FSDP of torch does the work (Rajbhandari et al. 2020, "ZeRO", stage 3). What is here: where a network is cut, and how
whole tensors come out for a checkpoint and go in again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

HALVES = ("encode", "decode", "encode_image", "encode_text")  # methods that tasks call instead of `forward`


def shard(network: nn.Module, world: int, device: torch.device) -> None:
    """Splits a network in place, block by block, so that only one block's weights are whole at a time."""
    mesh = init_device_mesh(device.type, (world,))
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums: `Turn.mean` has divided by the whole batch already
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    for name in HALVES:
        if hasattr(network, name):
            register_fsdp_forward_method(network, name)


def synchronise(network: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums gradients over processes: only a turn's last one does."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor of a part; all processes ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` lies: on its device, in its memory layout, split as it is. Numbers stay whole.

    The layout matters: a fused optimiser walks over weights and state side by side, as they lie in memory.
    """
    if tensor.shape != like.shape:
        return tensor.to(like.device, copy=True)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


@contextmanager
def unsharded(networks: Mapping[str, nn.Module], main: bool) -> Iterator[None]:
    """Inside, on the main process, split networks are plain ones on the CPU, which stock code can save."""
    parts = [m for network in networks.values() for m in network.modules() if isinstance(m, FSDPModule)]
    held: list[tuple[dict[str, Any], str, Any]] = []
    classes = {module: type(module) for module in parts}
    for network in networks.values():
        for module in network.modules():
            for name, p in module._parameters.items():
                if isinstance(p, DTensor):
                    full = p.full_tensor().cpu()
                    if main:
                        held.append((module._parameters, name, p))
                        module._parameters[name] = nn.Parameter(full, requires_grad=p.requires_grad)
    if main:
        for module in parts:
            module.__class__ = type(module).__bases__[1]  # what it was before `fully_shard`
    try:
        yield
    finally:
        for parameters, name, p in held:
            parameters[name] = p
        for module, kind in classes.items():
            module.__class__ = kind


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a network: members of its outermost lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from _blocks(child)
