"""The report of the emoji models: who is asked for, what counts as the same picture, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.data.emoji import KEPT, TRAIN, Emoji
from ldm.data.emoji_table import write_table
from ldm.errors import LdmError
from tests.data.test_emoji import STYLES, in_all_styles
from train.emoji_report import Judges, least, pairs, report
from train.emoji_settings import others
from train.tasks.sampling import Look


def row(name: str, style: str, group: int | None = 1, names: tuple[str, ...] = (), split: str = TRAIN) -> Emoji:
    return Emoji(f"{name} {style}".encode(), name, style, group=group, names=names or (name,), split=split)


def picture(*colour: float) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.float32), (8, 8, 3)).copy()


def mean_colours(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(image.mean((2, 3)) - 0.4, dim=1)


def test_a_picture_is_asked_for_once_without_tones_and_only_where_it_has_a_group() -> None:
    rows = [
        row("wave: dark skin tone", "noto"), row("wave", "noto"), row("letter A", "noto", group=None),
        row("Norway", "noto", names=("Norway", "Bouvet", "Svalbard")), row("Norway", "blob", split=KEPT),
    ]  # fmt: skip
    assert sorted(pair.place for pair in pairs(rows, False)) == [1, 3]
    assert [pair.place for pair in pairs(rows, True)] == [4]
    assert len(pairs(rows, False, each=1)) == 1


def test_settings_are_chosen_by_pairs_that_the_report_leaves_out() -> None:
    rows = [row(f"thing {i}", "noto", group=i % 2) for i in range(40)]
    reported = {pair.place for pair in pairs(rows, False, 6)}
    left = {pair.place for pair in others(rows, 6)}
    assert len(reported) == 12 and left and not reported & left


def test_equal_pictures_are_one_with_the_styles_and_names_of_all() -> None:
    rows = [row("flag", "noto"), row("flag", "blob"), row("octopus", "noto"), row("octopus", "blob")]
    real = [picture(1, 0, 0), picture(1, 0, 0), picture(0, 1, 0), picture(0, 0, 1)]
    judges = Judges(rows, real, {"colours": mean_colours})
    assert judges.places == [0, 0, 1, 2] and judges.galleries["colours"].styles[0] == {"noto", "blob"}
    asked = pairs(rows, False)
    assert judges.shares([real[pair.place] for pair in asked], asked) == {"colours": 1.0, "all": 1.0}
    assert judges.shares([real[pair.place] for pair in asked], asked, shift=1)["all"] < 1.0
    octopus = next(number for number, pair in enumerate(asked) if pair.place == 2)
    flags = {number for number, pair in enumerate(asked) if pair.name == "flag"}
    other = judges.elsewhere(asked)
    assert other[octopus] == 3 and not flags & set(other)  # the other style's flag is the same picture


def test_what_counts_is_the_kind_of_features_that_finds_fewest() -> None:
    assert least({"clip": 0.6, "colour and edges": 0.8, "all": 0.5}) == 0.6


def test_a_table_without_unseen_pairs_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    rows = [emoji for emoji in in_all_styles(20) if emoji.style != STYLES[0]]
    write_table([Emoji(**{**vars(emoji), "group": 1}) for emoji in rows], tmp_path / "two.parquet")
    with pytest.raises(LdmError, match="0 unseen pairs"):
        report(tmp_path / "none", tmp_path / "two.parquet", [], tmp_path / "out", each=60, look=Look())
    assert not (tmp_path / "out").exists()
