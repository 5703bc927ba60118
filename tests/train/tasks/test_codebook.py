"""The codebook while it learns: the nearest code, its loss, the count, and dead codes that come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.data.batch import Batch, join
from tests.components import seeded
from tests.train.tasks.making import batch, turn
from tests.train.toys import together
from train.processes import Processes
from train.tasks.codebook import Watch, flat, nearest

CODES, STEPS = 32, 1000


def codebook() -> nn.Parameter:
    """One code in the middle of everything, all others far off: dead."""
    with seeded(2):
        codes = torch.randn(CODES, 4) + 50
    codes[0] = 0
    return nn.Parameter(codes)


def encode(picture: Tensor) -> Tensor:
    """[n,3,16,16] to [n,4,8,8], each by itself."""
    small = nn.functional.avg_pool2d(picture, 2)
    return torch.cat([small, small.prod(1, keepdim=True)], dim=1)


def looked(micros: list[Batch], step: int, watch: Watch, codes: nn.Parameter, total: int = 8) -> None:
    places = torch.cat([micro.places for micro in micros])
    watch.observe(turn(total, places, step), micros, codes, encode)


def test_codes_and_their_loss_are_those_of_the_stock_quantiser() -> None:
    """With its `legacy` mistake off: the commitment weight stands at the latents' term."""
    with seeded(0):
        stock, z = VectorQuantizer(20, 4, beta=0.25, legacy=False), torch.randn(3, 4, 5, 6)
        stock.embedding.weight.data.normal_()
    z.requires_grad_()
    q, loss, (_, _, index) = stock(z)
    codes = stock.embedding.weight
    assert torch.equal(nearest(flat(z), codes), index)
    e = codes[index].view(3, 5, 6, 4).permute(0, 3, 1, 2)
    ours = ((z.detach() - e) ** 2).mean() + 0.25 * ((z - e.detach()) ** 2).mean()
    straight = z + (e - z).detach()
    assert float((straight - q).abs().max().detach()) < 1e-6 and float(ours.detach()) == pytest.approx(
        float(loss.detach())
    )
    wanted = torch.autograd.grad(loss + (q**3).sum(), [z, codes], retain_graph=True)
    found = torch.autograd.grad(ours + (straight**3).sum(), [z, codes])
    assert all(float((f - w).abs().max()) < 1e-5 for f, w in zip(found, wanted, strict=True))


def test_nearest_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    with seeded(1):
        latents, codes = torch.randn(1000, 4), torch.randn(64, 4)
    whole = nearest(latents, codes)
    monkeypatch.setattr("train.tasks.codebook._AT_ONCE", 64 * 7)
    assert torch.equal(nearest(latents, codes), whole)


@pytest.mark.parametrize("revive", [0.0, 0.03])
def test_dead_codes_come_back(revive: float) -> None:
    codes = codebook()
    watch, micros = Watch(codes.detach(), True, revive, STEPS), [batch(8)]
    looked(micros, 0, watch, codes)
    assert float(watch.used) == pytest.approx(1 / CODES) and float(watch.perplexity) == pytest.approx(1.0)
    before = codes.detach().clone()
    for step in (1, *range(10, 200, 10)):
        looked(micros, step, watch, codes)
    if not revive:
        assert torch.equal(codes, before) and float(watch.used) == pytest.approx(1 / CODES)
        return
    assert float(watch.used) > 0.8 and float(watch.perplexity) > CODES / 2
    latents = flat(encode(torch.cat([m.image for m in micros if m.image is not None])))
    apart = torch.cdist(codes.detach(), latents, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert float(apart[1:].max()) == 0  # every code that was dead lies on a latent


def test_no_code_is_moved_near_the_end() -> None:
    codes = codebook()
    watch = Watch(codes.detach(), True, 0.03, STEPS)
    looked([batch(8)], STEPS - 100, watch, codes)
    assert not bool(watch.moving.any()) and float(watch.used) == pytest.approx(1 / CODES)


def test_a_look_that_is_taken_back_is_taken_again_alike() -> None:
    """As the trainer does when a turn is given up: floating buffers are put back, the step is done once more."""
    whole, again = codebook(), codebook()
    one, other = (Watch(c.detach(), True, 0.03, STEPS) for c in (whole, again))
    for step in (0, 1):
        looked([batch(8)], step, one, whole)
        kept = [(b, b.clone()) for b in other.buffers() if b.is_floating_point()]
        assert len(kept) == len(list(other.buffers()))
        looked([batch(8)], step, other, again)
        for buffer, value in kept:
            buffer.copy_(value)
        looked([batch(8)], step, other, again)
    assert torch.equal(whole, again)
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def revived(micros: list[Batch]) -> dict[str, Tensor]:
    codes = codebook()
    watch = Watch(codes.detach(), True, 0.03, STEPS)
    for step in (0, 1, 10):
        looked(micros, step, watch, codes)
    return {"codes": codes.detach(), **dict(watch.named_buffers())}


def test_codes_do_not_depend_on_micro_batches() -> None:
    whole = batch(8)
    one, many = revived([whole]), revived(whole.split(3))
    assert all(float((one[n] - many[n]).abs().max()) < 1e-5 for n in one)


def share_of(rank: int, world: int, folder: Path) -> None:
    Processes.start("cpu")
    whole = batch(8)
    mine = join([whole[i : i + 1] for i in range(8) if i % world == rank])
    save_file(revived([mine]), folder / f"{rank}.safetensors")


def test_codes_are_the_same_on_two_processes_as_on_one(tmp_path: Path) -> None:
    together(2, share_of, tmp_path)
    one, *parts = revived([batch(8)]), *(load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(parts[0][n], parts[1][n]) for n in one)
    assert all(float((parts[0][n] - one[n]).abs().max()) < 1e-5 for n in one)


def test_what_is_not_finite_is_no_code() -> None:
    codes, sick = codebook(), batch(8)
    assert sick.image is not None
    before, watch = codes.detach().clone(), Watch(codes.detach(), True, 0.03, STEPS)
    for step in (0, 1):
        looked([replace(sick, image=torch.full_like(sick.image, float("nan")))], step, watch, codes)
    assert torch.equal(codes, before)


def test_a_code_that_was_moved_is_given_time() -> None:
    """Latents go elsewhere after the first look: what was moved is not found, and is moved again only after a while."""
    codes, plain = codebook(), batch(8)
    assert plain.image is not None
    away = replace(plain, image=plain.image + 20)
    watch, moved = Watch(codes.detach(), True, 0.03, STEPS), []
    for step in range(0, 400, 10):
        looked([plain if step == 0 else away], step, watch, codes)
        moved.append(int(watch.moving.sum()))
    assert moved[0] > CODES / 2 and not any(moved[1:30]) and max(moved[30:]) > CODES / 2
