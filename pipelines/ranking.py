"""Of several pictures of one prompt, the one that a CLIP finds most like its words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ldm.images import to_tensor
from ldm.models.clip import Clip
from ldm.models.prompt import parse
from ldm.store.clip import load_clip
from ldm.store.find import find_model
from pipelines.steps import Result


class Ranker:
    """Both towers of a CLIP, and the name by which it was asked for."""

    def __init__(self, clip: Clip, name: str) -> None:
        self.clip, self.name = clip.eval(), name

    @classmethod
    def load(cls, where: str) -> Ranker:
        """A CLIP folder, or the name of a shipped one."""
        return cls(load_clip(find_model(where)), where)

    @torch.no_grad()
    def scores(self, results: Iterable[Result]) -> list[float]:
        """The similarity of each picture and the words it was made for, from -1 to 1."""
        return [self._score(result) for result in results]

    def _score(self, result: Result) -> float:
        words = plain(result.recipe.prompt, str(result.recipe.request.get("dialect", "a1111")))
        return float(self.clip.similarity(to_tensor(result.picture.rgb()), [words]))


def plain(prompt: str, dialect: str) -> str:
    """The words of a prompt as they are at its start, without weights."""
    return "".join(piece.text for section in parse(prompt, dialect, steps=1).sections() for piece in section).strip()


def best_of(results: Iterable[Result], each: int, ranker: Ranker) -> Iterator[Result]:
    """Of every `each` results that follow one another the best; finished ones go before partial ones."""
    group: list[Result] = []
    for result in results:
        group.append(result)
        if len(group) == each:
            yield _best(group, ranker)
            group = []
    if group:
        yield _best(group, ranker)


def _best(group: list[Result], ranker: Ranker) -> Result:
    finished = [result for result in group if not result.recipe.partial] or group
    scores = ranker.scores(finished)
    score, place = max((score, -i) for i, score in enumerate(scores))
    chosen = finished[-place]
    others = ", ".join(f"{s:.3f}" for i, s in enumerate(scores) if i != -place)
    note = f"the best of {len(finished)} by {ranker.name}: {score:.3f}" + (f", the others {others}" if others else "")
    return replace(chosen, recipe=chosen.recipe.model_copy(update={"notes": (*chosen.recipe.notes, note)}))
