"""Features of pictures [n,3,H,W] in [0,1]: rows of length 1, compared by their scalar product."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.source import srgb
from ldm.data.transforms import centred, resized, shown
from ldm.images import Picture
from ldm.models.clip import Clip

Extractor = Callable[[Tensor], Tensor]
AT_ONCE = 256
COLOURS, EDGES, BINS = 8, 8, 6  # cells a side, cells a side, directions of an edge


def colour_and_edges(image: Tensor) -> Tensor:
    """[n, 8*8*3 + 8*8*6]: mean colours of 8x8 cells, and how strong edges of 6 directions are in each cell.

    Nothing is learned, so no model was trained to please it. Both halves have length 1 before they are joined.
    """
    colours = F.adaptive_avg_pool2d(image, COLOURS).flatten(1)
    edges = F.adaptive_avg_pool2d(directions(image), EDGES).flatten(1).sqrt()
    return F.normalize(torch.cat([_centred(colours), _centred(edges)], 1), dim=1)


def directions(image: Tensor) -> Tensor:
    """[n,6,H,W]: the length of the brightness gradient, shared between the two nearest of six directions mod pi."""
    grey = (image * image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    length, place = torch.hypot(dx, dy), torch.atan2(dy, dx) % math.pi * BINS / math.pi
    centres = torch.arange(BINS, device=image.device, dtype=image.dtype).view(1, BINS, 1, 1)
    away = (place - centres).abs()
    return length * (1 - torch.minimum(away, BINS - away)).clamp(min=0)


def _centred(x: Tensor) -> Tensor:
    """Differences to the mean of its own numbers, of length 1: plain pictures are not all alike."""
    return F.normalize(x - x.mean(1, keepdim=True), dim=1)


def clips(models: Sequence[Clip]) -> Extractor:
    """The image towers of several CLIPs side by side; their scalar product is the mean of theirs."""

    def extract(image: Tensor) -> Tensor:
        return torch.cat([model.encode_image(image * 2 - 1) for model in models], 1) / math.sqrt(len(models))

    return extract


def squares(pictures: Iterable[Picture], size: int) -> Tensor:
    """[n,3,size,size] in [0,1]: the middle of each picture, as training shows it."""
    made = []
    for picture in pictures:
        pixels = srgb(picture)
        cut = centred((pixels.shape[1], pixels.shape[0]), (size, size))
        made.append(shown(resized(pixels, cut.cover), cut))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def extracted(extract: Extractor, image: Tensor) -> Tensor:
    """Features of many pictures, some at a time."""
    return torch.cat([extract(image[start : start + AT_ONCE]) for start in range(0, len(image), AT_ONCE)])
