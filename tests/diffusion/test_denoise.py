"""Guidance and kept regions against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.diffusion.denoise import Guidance, clamped, guided, keeping
from ldm.diffusion.level import Kind, Level
from ldm.diffusion.sample import Prediction
from ldm.errors import LdmError


def randn(seed: int) -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


X, COND, NULL, PERTURBED = (randn(i) for i in range(4))


def level(index: int = 0, count: int = 10, flow: bool = False) -> Level:
    alpha, sigma = (0.4, 0.6) if flow else (0.6, 0.8)
    return Level(*(torch.tensor([v]) for v in (500, alpha, sigma, index, count)))


class Calls:
    """Answers with fixed predictions and remembers which branches were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, x: Tensor, at: Level, names: tuple[str, ...]) -> dict[str, Prediction]:
        self.asked.append(names)
        said = {"cond": COND, "null": NULL, "perturbed": PERTURBED}
        return {n: Prediction(said[n]) for n in names}


def clean(guidance: Guidance, at: Level | None = None) -> Tensor:
    return guided(Calls(), guidance)(X, at or level()).clean


def test_scale_one_asks_once_and_changes_nothing() -> None:
    calls = Calls()
    assert torch.equal(guided(calls, Guidance(scale=1.0))(X, level()).clean, COND)
    assert calls.asked == [("cond",)]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_plain_guidance_is_the_same_in_every_space(kind: Kind) -> None:
    at = level()
    out = {n: at.output(c, X, kind) for n, c in (("c", COND), ("u", NULL))}
    want = at.clean(out["u"] + 5 * (out["c"] - out["u"]), X, kind)
    assert (clean(Guidance(scale=5.0, kind=kind)) - want).abs().max() < 1e-4


def test_interval_asks_for_the_null_branch_only_inside() -> None:
    calls = Calls()
    denoise = guided(calls, Guidance(scale=5.0, interval=(0.2, 0.5)))
    for i in range(10):
        denoise(X, level(i))
    assert [len(a) for a in calls.asked] == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]


def test_full_rescale_gives_the_spread_of_the_conditional_output() -> None:
    at = level()
    out = at.output(clean(Guidance(scale=9.0, rescale=1.0)), X, "epsilon")
    assert torch.allclose(out.std((1, 2, 3)), at.output(COND, X, "epsilon").std((1, 2, 3)), atol=1e-4)


def test_apg_with_all_of_the_parallel_part_is_plain_guidance() -> None:
    assert (clean(Guidance(scale=4.0, method="apg", apg_eta=1.0)) - clean(Guidance(scale=4.0))).abs().max() < 1e-4


def test_apg_without_the_parallel_part_adds_only_orthogonal_change() -> None:
    change = clean(Guidance(scale=4.0, method="apg")) - COND
    assert ((change * COND).sum((1, 2, 3)).abs() < 1e-2).all()
    assert change.abs().max() > 0.1


def test_apg_norm_limits_the_change() -> None:
    change = clean(Guidance(scale=2.0, method="apg", apg_eta=1.0, apg_norm=3.0)) - COND
    assert torch.allclose(change.flatten(1).norm(dim=1), torch.full((2,), 3.0), atol=1e-3)


def test_apg_momentum_belongs_to_one_run() -> None:
    guidance = Guidance(scale=4.0, method="apg", apg_eta=1.0, apg_momentum=-0.5)
    denoise = guided(Calls(), guidance)
    first, second = denoise(X, level()).clean, denoise(X, level(1)).clean
    assert not torch.allclose(first, second)
    assert torch.equal(guided(Calls(), guidance)(X, level()).clean, first)


def test_cfg_zero_removes_the_best_multiple_of_null() -> None:
    at = level(flow=True)
    out = at.output(clean(Guidance(scale=1.0001, method="cfg-zero", kind="flow"), at), X, "flow")
    assert (out - at.output(COND, X, "flow")).abs().max() < 1e-2  # at scale 1 it is the conditional output
    c, u = at.output(COND, X, "flow"), at.output(NULL, X, "flow")
    best = (c * u).sum((1, 2, 3), keepdim=True) / (u * u).sum((1, 2, 3), keepdim=True)
    want = at.clean(best * u + 3 * (c - best * u), X, "flow")
    assert (clean(Guidance(scale=3.0, method="cfg-zero", kind="flow"), at) - want).abs().max() < 1e-4


def test_zero_steps_stand_still_and_need_a_flow() -> None:
    at = level(flow=True)
    assert torch.equal(at.output(clean(Guidance(zero_steps=1, kind="flow"), at), X, "flow"), torch.zeros_like(X))
    with pytest.raises(LdmError, match="zero_steps"):
        guided(Calls(), Guidance(zero_steps=1))


def test_perturbed_attention_moves_away_from_the_perturbed_prediction() -> None:
    want = COND + 2.0 * (COND - PERTURBED)
    assert (clean(Guidance(scale=1.0, pag=2.0)) - want).abs().max() < 1e-5


def test_grey_masks_are_painted_for_the_last_part_of_the_run() -> None:
    mask = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    known = torch.full((1, 4, 4, 4), 7.0)
    denoise = keeping(lambda x, at: Prediction(torch.zeros(1, 4, 4, 4)), known, mask)
    painted = torch.stack([denoise(X, level(i)).clean[0, 0, 0] == 0 for i in range(10)])
    assert painted.sum(0).tolist() == [0, 2, 5, 10]


def test_clamped_stays_in_range() -> None:
    assert clamped(lambda x, at: Prediction(9 * COND), 1.0)(X, level()).clean.abs().max() == 1.0
