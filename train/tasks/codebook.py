"""The codebook of a VQ model while it learns: which code is nearest, how much each is used, and dead ones brought back.

diffusers' own quantiser finds the codes and passes gradients straight through, but its loss has the commitment weight
at the wrong term, it does not count, and a code that nothing is near to never moves again. So the loss, the count and
the revival are here, and the network that is saved stays a plain `VQModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from train.processes import gather
from train.task import Turn

EVERY = 10  # steps between two looks at the whole batch
USED = 0.03  # of its fair part: a code that gets less counts as unused
_KEPT = 0.9  # of the moving count, at each look
_UNTIL = 0.8  # share of the run: later no code is moved, so that the average of the weights settles
_AT_ONCE = 1 << 24  # distances


@torch.no_grad()
def nearest(latents: Tensor, codes: Tensor) -> Tensor:
    """[m] numbers of the codes [K,C] nearest to latents [m,C], found as the quantiser of diffusers finds them."""
    rows = max(1, _AT_ONCE // len(codes))
    return torch.cat([torch.cdist(part.float(), codes.float()).argmin(1) for part in torch.split(latents, rows)])


def flat(latents: Tensor) -> Tensor:
    """[n,C,h,w] as [n h w,C]."""
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


class Watch(nn.Module):
    """How much each code is used, as a multiple of its fair part (a moving average), and where dead codes are to go.

    `life` is the use since a code was moved last: it starts at 1, so that there is time to be found.

    Buffers, so that a resumed run is the same; floating ones, since those are put back when a turn is given up. Codes
    are chosen at one step and moved at the next, so that a step that is done again finds the same codebook.
    """

    usage: Tensor
    life: Tensor
    goal: Tensor
    moving: Tensor

    def __init__(self, codes: Tensor, fresh: bool, revive: float, steps: int) -> None:
        super().__init__()
        self.revive, self.until = revive, _UNTIL * steps
        self.register_buffer("usage", torch.zeros(len(codes)))
        self.register_buffer("life", torch.zeros(len(codes)) if fresh else torch.ones(len(codes)))
        self.register_buffer("goal", torch.zeros_like(codes, requires_grad=False))
        self.register_buffer("moving", torch.zeros(len(codes)))

    @property
    def used(self) -> Tensor:
        """Share of the codes that are in use."""
        return (self.usage > USED * self.usage.mean()).float().mean()

    @property
    def perplexity(self) -> Tensor:
        """exp of the entropy of the use of codes: K where all are used alike, 1 where one code is everything."""
        share = self.usage / self.usage.sum().clamp(min=1e-12)
        perplexity: Tensor = torch.special.entr(share).sum().exp()
        return perplexity

    @torch.no_grad()
    def observe(
        self, turn: Turn, micros: Sequence[Batch], codes: nn.Parameter, encode: Callable[[Tensor], Tensor]
    ) -> None:
        """Moves what was chosen before; when it is time, counts over the batch and chooses places for dead codes."""
        if isinstance(codes, DTensor):
            raise LdmError(
                Code.USAGE,
                "run.sharding=full does not go with a codebook.",
                "Codes are counted and moved as whole vectors.",
                "Leave run.sharding out: an autoencoder is small beside its activations.",
            )
        if bool(self.moving.any()):
            codes.copy_(torch.where(self.moving[:, None] > 0, self.goal.to(codes), codes))
            self.moving.zero_()
        if turn.step % EVERY == 0:
            self._count(turn, micros, codes, encode)

    def _count(self, turn: Turn, micros: Sequence[Batch], codes: Tensor, encode: Callable[[Tensor], Tensor]) -> None:
        counts, rows = torch.zeros_like(self.usage), []
        for micro in micros:
            assert micro.image is not None
            latents = encode(micro.image).float()
            vectors = flat(latents)
            index = nearest(vectors, codes)
            counts += torch.bincount(index, minlength=len(codes))
            apart = (vectors - codes[index]).square().sum(1)
            rows.append(_candidates(turn, micro, vectors, apart))
        counts = gather(counts[None]).sum(0)
        now = counts * len(codes) / counts.sum()
        for average in (self.usage, self.life):
            average.mul_(_KEPT).add_((1 - _KEPT) * now)
        if self.revive and turn.step < self.until:
            self._revive(torch.cat(rows))

    def _revive(self, rows: Tensor) -> None:
        """Dead codes take the places of the latents that come first; of all processes, and in the order of all."""
        dead = (self.life < self.revive).nonzero()[:, 0]
        if not len(dead):
            return
        most = min(len(dead), len(rows))
        rows = gather(rows[rows[:, 0].argsort(stable=True)[:most]])
        rows = rows[rows[:, 1].argsort(stable=True)]
        rows = rows[rows[:, 0].argsort(stable=True)][: len(dead)]
        rows = rows[torch.isfinite(rows).all(1)]
        chosen = dead[: len(rows)]
        self.goal[chosen] = rows[:, 2:]
        self.moving[chosen] = 1.0
        self.life[chosen] = 1.0


def _candidates(turn: Turn, micro: Batch, vectors: Tensor, apart: Tensor) -> Tensor:
    """[m,2+C]: the key by which latents come first, the example's place, the latent.

    With u uniform, the least keys -log(u) / d^2 are a sample without replacement in which a latent's chance is its
    squared distance d^2 to the nearest code (Efraimidis & Spirakis 2006): as k-means++ spreads its centres.
    """
    each = len(vectors) // len(micro)
    u = replace(turn.draws, places=micro.places).uniform("revive", (each,)).flatten().clamp(min=2.0**-25)
    key = -u.log() / apart
    place = (micro.places % turn.total).repeat_interleave(each).to(vectors)
    return torch.cat([key[:, None], place[:, None], vectors], dim=1)
