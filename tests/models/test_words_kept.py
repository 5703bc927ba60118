"""A network that is told the same prompt at every step reads it once, whoever else's prompts it is told with."""

from __future__ import annotations

from dataclasses import replace

import torch

from ldm.diffusion.level import Level
from ldm.models.latent import Cond
from ldm.models.unet import READ, UNet
from tests import components


def level(i: int = 0) -> Level:
    return Level(*(torch.tensor([v]) for v in (500 - i, 0.8, 0.6, i, 10)))


def cond(seed: int, rows: int = 1) -> Cond:
    return Cond(text=torch.randn(rows, 7, 32, generator=torch.Generator().manual_seed(seed)))


def read(network: UNet) -> list[int]:
    """Where a layer's keys are computed, a row count is noted."""
    seen: list[int] = []
    layer = network.model.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    layer.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    return seen


def test_a_run_reads_its_prompt_once() -> None:
    network, x = UNet(components.unet(), "epsilon", reads_once=True), torch.randn(1, 4, 8, 8)
    seen, told, null = read(network), cond(1), cond(2)
    for i in range(4):  # with guidance in some steps, without it in others
        network(x, level(i), [told, null] if i % 2 else [told])
    assert seen == [1, 2]
    network(x, level(), [replace(told, text=told.text + 0)])  # the same words in another place, as of gathered runs
    assert seen == [1, 2]
    network(x, level(), [cond(3)])
    assert seen == [1, 2, 1]
    network.forget()
    network(x, level(), [told])
    assert seen == [1, 2, 1, 1]


def test_where_weights_learn_nothing_is_kept() -> None:
    network, x, told = UNet(components.unet(), "epsilon"), torch.randn(1, 4, 8, 8), cond(1)
    seen = read(network)
    for _ in range(3):
        network(x, level(), [told])
    assert seen == [1, 1, 1]


def test_what_is_kept_is_bounded_and_gives_the_same_picture() -> None:
    network, x = UNet(components.unet(), "epsilon", reads_once=True), torch.randn(READ, 4, 8, 8)
    for seed in range(6):
        told = cond(seed, READ)
        first = network(x, level(), [told])[0].clean
        assert torch.equal(network(x, level(), [told])[0].clean, first)
        assert torch.equal(UNet(components.unet(), "epsilon")(x, level(), [told])[0].clean, first)
        assert len(network._read) == 1
