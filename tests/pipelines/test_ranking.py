"""`best_of`: of several pictures of one prompt the one that a CLIP finds most like it, and what its recipe says."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm.images import from_rgb
from pipelines.ranking import Ranker, best_of, plain
from pipelines.recipe import Recipe
from pipelines.steps import Result


class Redness(torch.nn.Module):
    """A judge with two axes: a picture lies as far towards "red" as it is red."""

    def similarity(self, image: Tensor, texts: list[str]) -> Tensor:
        red = (image[:, 0].mean((1, 2)) + 1) / 2
        shown = torch.nn.functional.normalize(torch.stack([red, 1 - red], 1), dim=1)
        return shown @ torch.tensor([[1.0, 0.0] if "red" in text else [0.0, 1.0] for text in texts]).T


def result(seed: int, red: float, prompt: str = "red", partial: bool = False) -> Result:
    pixels = np.full((8, 8, 3), red, np.float32)
    return Result(from_rgb(pixels), Recipe(prompt=prompt, seed=seed, partial=partial), seed, seed)


RANKER = Ranker(Redness(), "redness")  # type: ignore[arg-type]


def test_the_best_of_each_few_is_kept_with_its_own_seed_and_told_why() -> None:
    made = [
        result(0, 0.2),
        result(1, 0.9),
        result(2, 0.5),
        result(3, 0.1, "blue"),
        result(4, 0.8, "blue"),
        result(5, 0.9, "blue"),
    ]
    first, second = best_of(made, 3, RANKER)
    assert (first.seed, second.seed) == (1, 3)
    (note,) = first.recipe.notes
    assert note.startswith("the best of 3 by redness: 0.99") and note.count(",") == 2


def test_equal_ones_leave_the_first_and_a_finished_one_goes_before_a_partial_one() -> None:
    assert next(best_of([result(0, 0.5), result(1, 0.5)], 2, RANKER)).seed == 0
    assert next(best_of([result(0, 0.9, partial=True), result(1, 0.2)], 2, RANKER)).seed == 1
    assert next(best_of([result(7, 0.9, partial=True)], 4, RANKER)).seed == 7  # stopped before there was another


def test_what_a_prompt_says_has_no_weights_in_it() -> None:
    assert plain("(crying:1.3) face, [noto] style", "a1111") == "crying face, noto style"
