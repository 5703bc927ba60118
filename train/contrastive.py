"""Contrastive losses over a whole batch, made of parts: exact under micro-batches and several processes.

Every picture is compared with every caption of the batch, so the loss of a part needs the features of all of it. They
are computed once without gradients, and with them the derivative of the whole loss by each feature (Gao et al. 2021,
"Scaling deep contrastive learning batch size under memory limited setup"). A part then runs its own examples again,
with gradients, and pulls its features along these derivatives: by the chain rule the parts add up to the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from train.processes import gather


@dataclass(frozen=True, eq=False)
class Features:
    """Unit vectors image and text [n,D], fp32; factor [] and summand [] (SigLIP) that make logits of cosines."""

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None = None

    def logits(self) -> Tensor:
        """[n,n]: a picture a row, a caption a column; in fp32, also where networks run in half precision."""
        with torch.autocast(self.image.device.type, enabled=False):
            cosines = self.scale * self.image @ self.text.T
        return cosines if self.bias is None else cosines + self.bias


Loss = Callable[[Tensor, Tensor], Tensor]  # logits [n,n] and which captions are equal [n,n] bool, to a loss a pair [n]


def softmax_loss(logits: Tensor, equal: Tensor) -> Tensor:
    """CLIP (Radford et al. 2021): cross entropy of each row and of each column, halved; one number a pair.

    Among equal captions the target is spread evenly, and its entropy taken off, so that 0 stays what a perfect model
    reaches. The gradient is that of open_clip's `ClipLoss`, and so is the value where all captions differ: since equal
    captions have equal features, one-hot targets among them amount to even ones.
    """
    count = equal.sum(1)
    target = equal / count[:, None]
    rows = -(target * F.log_softmax(logits, 1)).sum(1)
    columns = -(target * F.log_softmax(logits, 0)).sum(0)
    return (rows + columns) / 2 - count.log()


def sigmoid_loss(logits: Tensor, equal: Tensor) -> Tensor:
    """SigLIP (Zhai et al. 2023): -sum_j log sigmoid(z_ij logit_ij), z = 1 where the captions are equal and else -1."""
    return -F.logsigmoid(torch.where(equal, logits, -logits)).sum(1)


def found(logits: Tensor, equal: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each picture's nearest caption is right, and each caption's nearest picture: [n] and [n], 0 or 1."""
    each = torch.arange(len(logits), device=logits.device)
    return equal[each, logits.argmax(1)].float(), equal[logits.argmax(0), each].float()


@dataclass(frozen=True, eq=False)
class Pull:
    """What a part must know of the batch: the derivative of its loss by every feature, by the scale and by the bias."""

    places: Tensor  # [N] of the batch, ascending: whose rows these are
    image: Tensor  # [N,D]
    text: Tensor  # [N,D]
    scale: Tensor
    bias: Tensor | None
    figures: dict[str, Tensor]  # of the whole batch
    first: list[tuple[Tensor, Features]] = field(default_factory=list)  # places and features that still have a graph

    def part(self, places: Tensor, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the examples at `places` [n]: its gradient is theirs, its value their share of the batch's loss.

        Scale and bias belong to all examples, so that each part takes its share of their derivative.
        """
        rows = torch.searchsorted(self.places, places)
        share = len(places) / len(self.places)
        pulled = (features.image * self.image[rows]).sum() + (features.text * self.text[rows]).sum()
        pulled = pulled + share * features.scale * self.scale
        if features.bias is not None and self.bias is not None:
            pulled = pulled + share * features.bias * self.bias
        figures = {name: share * value for name, value in self.figures.items()}
        return pulled - pulled.detach() + figures["loss"], figures

    def take(self, places: Tensor) -> Features | None:
        """The features that were kept for these places; given away once."""
        if self.first and torch.equal(self.first[0][0], places):
            return self.first.pop()[1]
        return None


def pull(places: Tensor, groups: Tensor, features: Features, loss: Loss) -> Pull:
    """The derivatives, from all features of this process; the others' are gathered.

    `groups` [n] are equal where captions are.
    """
    places, groups = gather(places), gather(groups)
    image, text = gather(features.image), gather(features.text)
    order = places.argsort()
    with torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        leaves = [t.detach().float()[order].requires_grad_() for t in (image, text)]
        scale = features.scale.detach().float().requires_grad_()
        bias = None if features.bias is None else features.bias.detach().float().requires_grad_()
        whole = Features(leaves[0], leaves[1], scale, bias)
        logits, equal = whole.logits(), groups[order][:, None] == groups[order][None]
        mean = loss(logits, equal).mean()
        by = torch.autograd.grad(mean, [*leaves, scale, *([] if bias is None else [bias])])
    to_text, to_image = found(logits.detach(), equal)
    figures = {
        "loss": mean.detach(),
        "image_to_text": to_text.mean(),
        "text_to_image": to_image.mean(),
        "scale": scale.detach().reshape(()),
    }
    return Pull(places[order], by[0], by[1], by[2], by[3] if bias is not None else None, figures)
