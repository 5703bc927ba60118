"""What the loader gives and a task takes: pictures, words, and what is known of them; one size in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """n examples. `places` [n] int64 is step * (examples in the whole batch) + position, the same on any number of
    processes; `examples` [n] int64 is their number in the data set. Everything else is there when the run asks for it.

    `extra` holds further tensors by name, each with n rows: "hint" [n,3,H,W] in [0,1] for controls, "mask" [n,1,H,W] in
    [0,1], "mean" and "std" [n,C,h,w] of cached latents, "text_states" [n,L,D] of cached text.
    """

    places: Tensor
    examples: Tensor
    image: Tensor | None = None  # [n,3,H,W] fp32 in [-1,1]
    text: tuple[str, ...] = ()
    label: Tensor | None = None  # [n] int64
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def split(self, size: int) -> list[Batch]:
        """Micro-batches of at most `size` examples, in order."""
        return [self[i : i + size] for i in range(0, len(self), size)]

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(
            self.places[rows],
            self.examples[rows],
            None if self.image is None else self.image[rows],
            self.text[rows],
            None if self.label is None else self.label[rows],
            {name: tensor[rows] for name, tensor in self.extra.items()},
        )

    def chosen(self, rows: Sequence[int]) -> Batch:
        """These examples alone."""
        index = torch.tensor(rows, device=self.places.device)
        return Batch(
            self.places[index],
            self.examples[index],
            None if self.image is None else self.image[index],
            tuple(self.text[row] for row in rows) if self.text else (),
            None if self.label is None else self.label[index],
            {name: tensor[index] for name, tensor in self.extra.items()},
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; places stay exact, so everything drawn from them does too."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            places=moved(self.places),
            examples=moved(self.examples),
            image=None if self.image is None else moved(self.image),
            label=None if self.label is None else moved(self.label),
            extra={name: moved(tensor) for name, tensor in self.extra.items()},
        )


def join(batches: Sequence[Batch]) -> Batch:
    """Several batches as one, in order; all hold the same kinds of things."""
    first = batches[0]
    return Batch(
        torch.cat([b.places for b in batches]),
        torch.cat([b.examples for b in batches]),
        None if first.image is None else torch.cat([b.image for b in batches if b.image is not None]),
        tuple(text for b in batches for text in b.text),
        None if first.label is None else torch.cat([b.label for b in batches if b.label is not None]),
        {name: torch.cat([b.extra[name] for b in batches]) for name in first.extra},
    )
