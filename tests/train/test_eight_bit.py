"""Moments in one byte: what they are rounded to, how close it stays to AdamW, and what it saves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.eight_bit import BLOCK, SMALL, AdamW8bit, Moment, codes


@pytest.mark.parametrize("signed", [True, False])
def test_a_byte_stands_for_256_values_that_meet_large_and_tiny_ones_to_a_few_percent(signed: bool) -> None:
    table = codes(signed)
    assert len(table) == 256 and bool((table.diff() > 0).all()) and float(table[-1]) == 1 and 0.0 in table.tolist()
    moment = Moment(signed)
    for decade in range(3):  # each has half as many values as the one above it
        size, places = 0.1**decade, 2 ** (6 - decade + (not signed))
        most = 0.5 * 0.9 / places / 0.3  # half of the distance between two, at the least of the values below
        values = torch.linspace(0.3, 0.99, 250) * size
        values = torch.cat([values, torch.ones(1)])  # the largest of the block
        back = moment.unpack(*moment.pack(values), values)
        assert ((back - values) / values).abs().max() < 1.001 * most
    if signed:
        assert torch.equal(moment.unpack(*moment.pack(-values), values)[:-1], -back[:-1])  # there is no -1


def test_blocks_do_not_spoil_each_other_and_shapes_come_back() -> None:
    moment = Moment(True)
    values = torch.cat([torch.full((BLOCK,), 1e-6), torch.full((BLOCK,), 5.0), torch.zeros(7)]).view(1, -1)
    back = moment.unpack(*moment.pack(values), values)
    assert back.shape == values.shape and torch.allclose(back, values, rtol=1e-3)
    assert torch.equal(back[:, -7:], torch.zeros(1, 7))


def learned(
    kind: type[torch.optim.Optimizer], **settings: float
) -> tuple[list[float], nn.Module, torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(32, 160), nn.SiLU(), nn.Linear(160, 32))
    x = torch.randn(256, 32, generator=generator)
    y = (x.roll(3, 1) * 2).tanh()
    optimiser, losses = kind(network.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.01), []  # type: ignore[call-arg]
    for _ in range(120):
        loss = (network(x) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses, optimiser


def test_it_learns_as_adamw_does() -> None:
    (whole, usual), (rounded, ours) = learned(torch.optim.AdamW), learned(AdamW8bit)
    assert rounded[-1] < 0.05 * rounded[0] and rounded[-1] == pytest.approx(whole[-1], rel=0.1)
    assert rounded[0] == whole[0] and rounded[1] == pytest.approx(whole[1], rel=1e-5)
    large = next(p for p in ours.param_groups[0]["params"] if p.numel() >= SMALL)
    kept = sum(t.numel() * t.element_size() for t in ours.state[large].values())
    assert kept < 0.27 * 8 * large.numel()
    small = next(p for p in ours.param_groups[0]["params"] if p.numel() < SMALL)
    assert ours.state[small]["m"].dtype == torch.float32
    assert usual.state[next(iter(usual.state))]["exp_avg"].dtype == torch.float32
