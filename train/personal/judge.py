"""The features by which pictures are judged: what a CLIP sees, if one is at hand, beside plain colours and edges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ldm.metrics.features import Extractor, clips, colour_and_edges, extracted
from ldm.store.clip import load_clip
from ldm.store.find import find_model, ranker_of


class Judge:
    """`name` says what looks, and goes into the report."""

    def __init__(self, clip: str | None, model: Path) -> None:
        found = clip or ranker_of(model)
        self.clip = None if found is None else load_clip(find_model(found)).eval()
        self.name = f"{found}, colours and edges" if found is not None else "colours and edges"

    @property
    def see(self) -> Extractor | None:
        """What the CLIP makes of pictures, where there is one."""
        return None if self.clip is None else clips([self.clip])

    @torch.no_grad()
    def look(self, pictures: Tensor, seen: Tensor | None = None) -> Tensor:
        """[n,3,H,W] in [0,1] to rows of length 1: both kinds of features count the same. `seen`, where it is known."""
        plain = extracted(colour_and_edges, pictures)
        seen = self.seen(pictures) if seen is None else seen
        return plain if seen is None else normalize(torch.cat([plain, seen], 1), dim=1)

    @torch.no_grad()
    def seen(self, pictures: Tensor) -> Tensor | None:
        """What a CLIP sees, to be held against texts."""
        return None if self.see is None else extracted(self.see, pictures)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor | None:
        """Texts beside `seen`."""
        return None if self.clip is None or not texts else self.clip.encode_text(list(texts))
