"""CLIP as a ruler: pictures and words become unit vectors of one space, whose products say how well they fit.

`ldm.store.clip.load_clip(folder)` reads one. Scores, perceptual losses and previews use it; it never learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.clip_tokenizer import ClipTokenizer
from ldm.models.nets.text import ProjectedTextTower
from ldm.models.prompt import clean
from ldm.models.tokenizer import Vocabulary


def token_rows(vocabulary: Vocabulary, texts: Sequence[str]) -> Tensor:
    """Captions as towers read them, [n,L] int64 on the CPU: cleaned, between BOS and EOS, padded, the rest cut off.

    Unlike a prompt, a caption has no grammar: brackets and colons are letters.
    """
    spots = vocabulary.spots([clean(text) for text in texts])
    rows = [vocabulary.wrap([spot.id for spot in found[: vocabulary.room]]) for found in spots]
    return torch.tensor(rows, dtype=torch.long).view(len(rows), vocabulary.positions)


def prepare(image: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[n,3,H,W] in [-1,1] to [n,3,side,side], normalised: (x - mean) / std of x in [0,1].

    As CLIP's own preparation: the shorter side becomes `side` by antialiased cubic resizing, the middle is cut out.
    """
    height, width = image.shape[-2:]
    if (height, width) != (side, side):
        scale = side / min(height, width)
        size = (max(side, round(height * scale)), max(side, round(width * scale)))
        image = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        image = image[..., top : top + side, left : left + side]
    centre = torch.tensor(mean, dtype=image.dtype, device=image.device)[:, None, None]
    spread = torch.tensor(std, dtype=image.dtype, device=image.device)[:, None, None]
    return ((image + 1) / 2 - centre) / spread


class Clip(nn.Module):
    """Two towers, and what they need to read pictures and words. Gradients reach the pictures, never the weights."""

    def __init__(
        self,
        text: ProjectedTextTower,
        image: Any,
        tokenizer: ClipTokenizer,
        mean: Sequence[float],
        std: Sequence[float],
        scale: float = 100.0,
    ) -> None:
        super().__init__()
        self.text: Any = text
        self.image: Any = image
        self.vocabulary = Vocabulary(tokenizer, int(text.config.max_position_embeddings))
        self.side = int(image.config.image_size)
        self.mean, self.std = tuple(mean), tuple(std)
        self.scale = scale  # that it was trained with: softmax(scale * similarities) are probabilities
        self.eval().requires_grad_(False)

    def encode_image(self, image: Tensor) -> Tensor:
        """[n,3,H,W] in [-1,1], of any size, to [n,P] of length 1."""
        return F.normalize(self.image(self._pixels(image)).image_embeds.float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """n texts to [n,P] of length 1; what is beyond the tower's places is cut off."""
        ids = token_rows(self.vocabulary, texts).to(self.text.device)
        return F.normalize(self.text(ids).pooled.float(), dim=-1)

    def similarity(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """[n,m]: the cosine between each of n pictures and each of m texts."""
        return self.encode_image(image) @ self.encode_text(texts).T

    def states(self, image: Tensor) -> tuple[Tensor, ...]:
        """The image tower's hidden states, [n,1+patches,D] each: the first layer's input, then every layer's output."""
        hidden: tuple[Tensor, ...] = self.image(self._pixels(image), output_hidden_states=True).hidden_states
        return hidden

    def _pixels(self, image: Tensor) -> Tensor:
        return prepare(image.to(self.image.device), self.side, self.mean, self.std).to(self.image.dtype)
