"""From one request to the pictures that it asks for: each with its own seed, words and random numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ldm.models.prompt import Lora, Resolved, resolve
from pipelines.request import Request


@dataclass(frozen=True)
class Job:
    """One picture of a request."""

    index: int
    seed: int
    variation_seed: int | None
    prompt: Resolved
    negative: Resolved | None

    @property
    def loras(self) -> tuple[Lora, ...]:
        """The adapters that the prompt's tags ask for."""
        return self.prompt.loras


def jobs(request: Request) -> list[Job]:
    """Picture i has seed + i; with a variation the seed stays and the variation seed counts up, as in A1111."""
    made = []
    for i in range(request.count):
        varied = request.variation_seed is not None and request.variation > 0
        seed = request.seed if varied else request.seed + i
        variation_seed = request.variation_seed + i if varied and request.variation_seed is not None else None
        drawn = seed if variation_seed is None else variation_seed
        negative = None
        if request.negative is not None:
            negative = resolve(request.negative, seed=drawn, wildcards=request.wildcards)
        made.append(
            Job(i, seed, variation_seed, resolve(request.prompt, seed=drawn, wildcards=request.wildcards), negative)
        )
    return made


def batches(all_jobs: Sequence[Job], size: int, alike: Callable[[Job], Hashable]) -> Iterator[list[Job]]:
    """Runs of at most `size` jobs for which `alike` is the same: they may share network calls."""
    for _, group in itertools.groupby(all_jobs, alike):
        members = list(group)
        yield from (members[i : i + size] for i in range(0, len(members), size))


def generator(seed: int) -> Generator:
    """A CPU generator, whatever the device: the same numbers on every machine."""
    return torch.Generator("cpu").manual_seed(seed)


def start_noise(job: Job, shape: Sequence[int], variation: float, drawn: Generator) -> Tensor:
    """[1,C,h,w] of unit normal noise; a variation turns it towards a second draw, on the sphere."""
    noise = torch.randn((1, *shape), generator=drawn)
    if job.variation_seed is None:
        return noise
    other = torch.randn((1, *shape), generator=generator(job.variation_seed))
    return slerp(noise, other, variation)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point `share` of the way from a to b along the great circle: norms stay as noise has them."""
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if float(angle.sin()) < 1e-4:
        return (1 - share) * a + share * b
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
