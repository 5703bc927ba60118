"""The critic of pictures: its scores, its losses, and the weight that balances it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.models.critic import PatchCritic, adaptive_weight, critic_loss, maker_loss, smallest
from tests.components import seeded


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_picture_has_one_score_and_a_smaller_one_none(layers: int) -> None:
    critic, side = PatchCritic(8, layers), smallest(layers)
    assert critic(torch.zeros(2, 3, side, side)).shape == (2, 1, 1, 1)
    with pytest.raises(RuntimeError):
        critic(torch.zeros(1, 3, side - 2**layers, side - 2**layers))


def test_what_is_said_of_a_picture_does_not_depend_on_those_beside_it() -> None:
    with seeded(0):
        critic, pictures = PatchCritic(8, 2), torch.randn(3, 3, 32, 32)
    alone = torch.cat([critic(picture[None]) for picture in pictures])
    assert float((critic(pictures) - alone).abs().max()) < 1e-6


def test_hinge_losses() -> None:
    real, made = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[-2.0, 0.0], [1.0, -1.0]])
    assert critic_loss(real, made).tolist() == [0.5 * (0.25 + 0.5), 0.5 * (1.0 + 1.0)]
    assert maker_loss(made).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("bias", [True, False])
def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer(bias: bool) -> None:
    with seeded(1):
        body, last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1, bias=bias)
        critic, x = PatchCritic(8, 2), torch.randn(2, 3, 16, 16)
    fed = body(x).tanh()
    made = last(fed)
    other, judged = (made - x).abs().mean(), maker_loss(critic(made)).mean()
    plain = [torch.autograd.grad(part, last.weight, retain_graph=True)[0].norm() for part in (other, judged)]
    pull, push = (torch.autograd.grad(part, made, retain_graph=True)[0] for part in (other, judged))
    weight = adaptive_weight(fed, last, pull, push)
    assert float(weight) == pytest.approx(float(plain[0] / (plain[1] + 1e-4)), rel=1e-5)
    assert not weight.requires_grad
    assert float(adaptive_weight(fed, last, 1e9 * pull, push)) == pytest.approx(1e4)
    assert float(adaptive_weight(fed, last, pull, 0 * push)) < 1e4  # a critic that says nothing is not divided by
