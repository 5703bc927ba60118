"""Who looks at pictures: raw pixels, the lab's own classifier, a CLIP, or Inception with the user's weights. Each has a
name with the hash of its weights, and a rule by which a picture comes to the size that it sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.cache import feed_weights
from ldm.errors import Code, LdmError
from ldm.metrics.pictures import unit
from ldm.models.clip import Clip
from ldm.models.perceptual import SmallClassifier

AT_ONCE = 250
PIXELS = "pixels"
CLASSIFIER = "classifier"  # one that was trained on the data set
LARGEST = 16  # a side of raw pixels: beyond it their covariance takes minutes, and more pictures than there are


@dataclass(frozen=True)
class Extractor:
    """`features` of pictures [n,3,H,W] in [0,1] are [n,d]; `probabilities` [n,classes], where it knows classes. What is
    asked of many pictures is asked of bytes, too."""

    name: str
    resize: str
    features: Callable[[Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor] | None = None

    def seen(self, pictures: Tensor) -> Tensor:
        """Of many pictures, some at a time, in fp32 on the CPU; what is not finite is an error."""
        return _checked(_in_parts(self.features, pictures), self.name)

    def classified(self, pictures: Tensor) -> Tensor | None:
        return None if self.probabilities is None else _in_parts(self.probabilities, pictures)


def pixels(side: int) -> Extractor:
    """Every number of the picture; larger ones shrunk to 16 a side."""
    size = min(side, LARGEST)

    def features(x: Tensor) -> Tensor:
        if x.shape[-1] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        return x.flatten(1)

    return Extractor(PIXELS, f"antialiased cubic to {size}" if side != size else "none", features)


def by_classifier(net: SmallClassifier, classes: Sequence[int] | None = None) -> Extractor:
    """The mean over places of its last features. `classes` are those of its words that exclude each other, if any."""

    def features(x: Tensor) -> Tensor:
        return F.relu(net(2 * x - 1)[-1]).mean((2, 3))

    def probabilities(x: Tensor) -> Tensor:
        return net.logits(2 * x - 1)[:, list(classes or ())].softmax(1)

    return Extractor(f"{CLASSIFIER} {digest(net)}", "none", features, probabilities if classes else None)


def by_clip(clip: Clip, name: str) -> Extractor:
    side = int(clip.image.config.image_size)
    resize = f"antialiased cubic to {side}, the middle"
    return Extractor(f"{name} {digest(clip.image)}", resize, lambda x: clip.encode_image(2 * x - 1))


def digest(net: nn.Module) -> str:
    """Twelve digits of the hash of all weights."""
    found = hashlib.sha256()
    feed_weights(found, net)
    return found.hexdigest()[:12]


@torch.no_grad()
def _in_parts(look: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    return torch.cat([look(unit(part)).float().cpu() for part in torch.split(pictures, AT_ONCE)])


def _checked(features: Tensor, name: str) -> Tensor:
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).sum())
        raise LdmError(
            Code.MODEL,
            f"{bad} of {len(features)} pictures have features that are not finite.",
            f"{name} made infinite numbers, or none, of them; no statistic can be taken of such.",
            "Look whether these pictures are finite themselves, or measure with another extractor.",
        )
    return features
