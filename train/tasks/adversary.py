"""The critic of an autoencoder as a task uses it: when it starts, how hard it pulls, and its own turn.

It starts late (a share of the run) and guarded: not before the average L1 error is below a bound, since a critic that
meets blurred pictures wins at once and then pulls at nothing else. Once started it stays, and its pull grows from 0, so
that the first steps, in which it knows nothing, do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.critic import PatchCritic, adaptive_weight, critic_loss, maker_loss, smallest
from train.processes import gather
from train.task import Figures, Phase, Turn
from train.tasks.parts import seeded
from train.tasks.settings import Critic

EVERY = 10  # steps between two looks at the whole batch
EXCEPTION = "the critic's adaptive weight is a ratio of gradients, and each micro-batch has its own"
_KEPT = 0.9  # of the moving average, at each look


class Guard(nn.Module):
    """The moving average of the L1 error, and since which step it lets the critic in (-1: not yet).

    All of it lies in buffers, so that a resumed run decides as one that was not interrupted. They are floating, since
    those are put back when a turn is given up.
    """

    average: Tensor
    looks: Tensor
    since: Tensor

    def __init__(self, start: int, bound: float) -> None:
        super().__init__()
        self.start, self.bound = start, bound
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("looks", torch.zeros(()))
        self.register_buffer("since", torch.full((), -1.0))

    def wants(self, step: int) -> bool:
        """Whether to look at this step: at every tenth, from a hundred before the start until the critic is in."""
        return step % EVERY == 0 and step >= self.start - 10 * EVERY and not self.open(step)

    def see(self, step: int, error: Tensor) -> None:
        """Takes the mean error of a whole batch into the average, and decides."""
        kept = _KEPT if float(self.looks) else 0.0
        self.average.copy_(kept * self.average + (1 - kept) * error)
        self.looks += 1
        if step >= self.start and float(self.average) < self.bound:
            self.since.fill_(float(step))

    def open(self, step: int) -> bool:
        """Never before the start, also where it was open in a shorter run that goes on: until then the critic itself
        rests, and must not pull."""
        return step >= self.start and 0 <= float(self.since) <= step


class Adversary:
    """A critic with its guard. `last` is the convolution that makes the pictures, at which two losses are balanced."""

    def __init__(self, settings: Critic, last: nn.Conv2d, size: int, steps: int, seed: int) -> None:
        if size < smallest(settings.layers):
            raise LdmError(
                Code.USAGE,
                f"task.critic.layers={settings.layers} is too deep for pictures of {size} pixels.",
                f"Each layer halves the picture; {settings.layers} need {smallest(settings.layers)} pixels.",
                "Set fewer layers, or train on larger pictures.",
            )
        with seeded(seed):
            self.critic = PatchCritic(settings.channels, settings.layers)
        self.settings, self.last = settings, last
        self.guard = Guard(int(settings.start * steps), settings.guard)
        self.ramp = max(1, int(settings.ramp * steps))
        self._fed: list[Tensor] = []
        last.register_forward_pre_hook(_Keeper(self._fed))

    def networks(self) -> dict[str, nn.Module]:
        return {"critic": self.critic, "guard": self.guard}

    def phase(self) -> Phase:
        """Of the critic alone; before the guard opens its loss depends on nothing, and nothing moves."""
        return Phase("critic", list(self.critic.parameters()), rate=self.settings.rate, start=self.guard.start)

    @torch.no_grad()
    def observe(self, turn: Turn, micros: Sequence[Batch], error: Callable[[Turn, Batch], Tensor]) -> None:
        """Looks at the whole batch when it is time; `error` gives the L1 errors [n] of a micro-batch."""
        if isinstance(self.last.weight, DTensor):
            raise LdmError(
                Code.USAGE,
                "run.sharding=full does not go with task.critic.",
                "The critic is balanced at whole weights of the last layer.",
                "Leave run.sharding out: an autoencoder is small beside its activations.",
            )
        if self.guard.wants(turn.step):
            total = torch.stack([error(turn, micro).sum() for micro in micros]).sum() / turn.total
            self.guard.see(turn.step, gather(total[None]).sum())

    def balanced(self, turn: Turn, made: Tensor, error: Callable[[Tensor], Tensor]) -> tuple[Tensor, Figures]:
        """The maker's loss for pictures it made just now: `error` [n], and the critic's part once the guard is open.

        Both are derived by the pictures alone, each once; what is returned has their value and carries the derivative
        of their weighted sum on to the maker.
        """
        if not self.guard.open(turn.step):
            return turn.mean(error(made)), {}
        fed = self._fed.pop()
        size = made.numel() ** 0.5  # keeps derivatives within half precision: they are about 1 / numel
        shown = made.detach().float().requires_grad_()
        loss, judged = turn.mean(error(shown)), turn.mean(maker_loss(self.critic(shown)))
        pull, push = (torch.autograd.grad(part * size, shown)[0] / size for part in (loss, judged))
        share = adaptive_weight(fed, self.last, pull, push)
        weight = self.settings.weight * min(1.0, (turn.step - float(self.guard.since) + 1) / self.ramp) * share
        carried = (made.float() * (pull + weight * push)).sum()
        value = (loss + weight * judged).detach()
        part = len(made) / turn.total
        return carried - carried.detach() + value, {"judged": judged.detach(), "critic weight": weight * part}

    def teach(self, turn: Turn, real: Tensor, make: Callable[[], Tensor]) -> tuple[Tensor, Figures]:
        """The critic's own loss on real pictures and on those that `make` makes."""
        if not self.guard.open(turn.step):
            return torch.zeros((), device=real.device, requires_grad=True), {}
        with torch.no_grad():
            made = make()
        return turn.mean(critic_loss(self.critic(real), self.critic(made))), {}


class _Keeper:
    """Keeps what a layer was given last, without its graph."""

    def __init__(self, fed: list[Tensor]) -> None:
        self.fed = fed

    def __call__(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self.fed[:] = [given[0].detach()]

    def __deepcopy__(self, memo: dict[int, object]) -> _Keeper:
        return _Keeper([])  # a copy of the network feeds nobody
