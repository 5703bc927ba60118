"""What the page says in words: of who is nearest, who is fast, who failed, and what was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.baselines.family import facts_of
from ldm.metrics.measured import NEARER_NOTE
from train.compare.gallery import times_of
from train.compare.ranking import by_distance, unranked
from train.compare.table import Row
from train.compare.verdict import in_words
from train.compare.wish import Wish, budget

WISH = Wish(data={"path": "photos"}, out=Path("out"), families=("vae",), budget=budget("2min"), seeds=2, samples=500)


def cell(kid: float, coverage: float, seconds: float, drawn: int = 500, **more: Any) -> dict[str, Any]:
    protocol = {"extractor": "pixels", "resize": "none", "made": drawn, "real": 2000, "reference": "one"}
    figures = {
        name: {"value": value, "low": value - 0.1, "high": value + 0.1, "protocol": protocol}
        for name, value in (("kid", kid), ("coverage", coverage))
    }
    return {"seed": 0, "drawn": drawn, "draw_seconds": seconds, "figures": figures, "protocol": protocol, **more}


def row(family: str, *cells: dict[str, Any]) -> Row:
    return Row(family, facts_of(family), cells, 2)


def said(*table: Row) -> str:
    return "\n".join(in_words(WISH, table))


def test_the_nearest_the_fastest_of_the_near_and_the_widest_are_named() -> None:
    text = said(
        row("ddpm", cell(10, 0.6, 0.5), cell(10.1, 0.6, 0.5)),
        row("dcgan", cell(14, 0.3, 0.001), cell(14.1, 0.3, 0.001)),
        row("vae", cell(90, 0.1, 0.0001), cell(90, 0.1, 0.0001)),
    )
    assert "by the kernel distance (KID) is ddpm, clearly." in text
    assert "up to 1.5 times the distance of ddpm, dcgan draws fastest: 1,000 pictures a second" in text
    assert "covered most by ddpm: 60 % of real pictures have a sample near." in text
    assert "Raw pixels say little" in text and "of 2,000 pictures that were trained on" in text


def test_one_seed_makes_nothing_clear() -> None:
    text = said(row("ddpm", cell(10, 0.6, 0.5)), row("dcgan", cell(14, 0.3, 0.001)))
    assert "clearly" not in text and "Of one seed alone (all): another may say otherwise" in text


def test_intervals_that_overlap_are_of_samples_where_there_is_one_seed() -> None:
    """A distance about zero has an interval that is wide beside it, and is no less known."""
    text = said(row("ddpm", cell(-0.02, 0.6, 0.5)), row("dcgan", cell(-0.01, 0.3, 0.001)))
    assert "is ddpm; dcgan cannot be told from it" in text and "another may say otherwise" in text
    assert "too wide" not in text and "Seeds of" not in text
    wide = cell(30, 0.3, 0.001)
    wide["figures"]["kid"] |= {"low": -40, "high": 100}
    assert "The intervals of dcgan are too wide for a rank" in said(row("ddpm", cell(10, 0.6, 0.5)), row("dcgan", wide))


def scale(kid: float, lost: int = 0, **figures: float) -> dict[str, Any]:
    told = {"kid": kid, "precision": 0.8, "coverage": 0.7} | figures
    found = {
        name: {"value": value, "low": value - 0.1, "high": value + 0.1, "protocol": {"made": 300, "real": 2000}}
        for name, value in told.items()
    }
    return {"figures": found, "classes": {"shares": [0.1] * 10, "lost": list(range(lost))}}


def test_real_pictures_are_the_end_of_the_scale() -> None:
    table = [row("ddpm", cell(0.05, 0.6, 0.5)), row("dcgan", cell(14, 0.3, 0.001))]
    text = "\n".join(in_words(WISH, table, scale(0.0)))
    assert "By it real pictures that were held out are no nearer than ddpm," in text
    # 300 of 2,000 reach 1 - (2000/2300)^5 = 50 % where they are of the data's own kind, 500 67 %: 0.7 * 0.67 / 0.50
    assert "where as many held-out ones would reach 94 % (300 reach 70 %)" in text
    assert "knows the classes badly" not in text
    assert "all but misses 8 of the 10 classes" in "\n".join(in_words(WISH, table, scale(0.0, lost=8)))


def test_what_is_nearer_than_real_pictures_is_looked_at_for_copies() -> None:
    table = [row("ddpm", cell(0.5, 0.6, 0.5)), row("dcgan", cell(3, 0.3, 0.001))]
    text = "\n".join(in_words(WISH, table, scale(3.0)))
    assert "Nearer to the training than held-out pictures, by KID: ddpm. Look for copies." in text
    assert "no nearer than dcgan, so" in text


def test_two_that_are_as_near_as_real_pictures_are_not_clearly_apart() -> None:
    pair = [row(name, cell(kid, 0.6, 0.5), cell(kid, 0.6, 0.5)) for name, kid in (("ddpm", 0.3), ("dcgan", 0.6))]
    assert "(KID) is ddpm, clearly." in "\n".join(in_words(WISH, pair, scale(0.0)))
    far = scale(0.0)
    far["figures"]["kid"]["high"] = 0.7
    text = "\n".join(in_words(WISH, pair, far))
    assert "clearly" not in text and "no nearer than ddpm and dcgan" in text


def test_one_family_is_not_clearly_the_nearest_and_seeds_are_told_of_the_rows_that_lack_them() -> None:
    assert "clearly" not in said(row("ddpm", cell(10, 0.6, 0.5), cell(10, 0.6, 0.5)))
    two = [row(name, cell(kid, 0.6, 0.5), cell(kid, 0.6, 0.5)) for name, kid in (("ddpm", 10), ("dcgan", 14))]
    assert "Of one seed alone (glow): another may say otherwise" in said(*two, row("glow", cell(20, 0.2, 0.1)))


def test_a_distance_below_zero_has_no_multiple() -> None:
    text = said(row("ddpm", cell(-0.02, 0.6, 0.5)), row("dcgan", cell(0.05, 0.3, 0.001)))
    assert "Of families with a distance in the interval of ddpm, dcgan draws fastest" in text


def with_both(kid: float, precision: float, recall: float) -> dict[str, Any]:
    told = cell(kid, 0.5, 0.1)
    for name, value in (("precision", precision), ("recall", recall)):
        told["figures"][name] = {**told["figures"]["kid"], "value": value, "low": value - 0.02, "high": value + 0.02}
    return told


def test_rows_that_are_good_at_one_of_precision_and_recall_are_named() -> None:
    text = said(row("dcgan", with_both(14, 0.9, 0.1)), row("ddpm", with_both(10, 0.8, 0.6)))
    assert "Realistic but not varied, by precision and recall: dcgan (0.90 and 0.10)." in text and "Varied" not in text
    assert "Varied, but much of it unlike any picture" in said(row("ppca", with_both(14, 0.2, 0.9)))


def test_where_all_are_like_no_picture_nobody_is_nearest() -> None:
    text = "\n".join(in_words(WISH, [row("mixture", *[with_none()] * 2)], scale(0.0)))
    assert "Nearest" not in text and "Do not believe the kernel distance of mixture" in text


def with_none() -> dict[str, Any]:
    noise = cell(9, 0.0, 0.001)
    noise["figures"]["precision"] = {**noise["figures"]["kid"], "value": 0.0, "low": 0.0, "high": 0.01}
    return noise


def test_rows_that_are_not_ranked_say_why_and_come_last() -> None:
    table = [row("mixture", with_none()), row("score", cell(1, 0.6, 0.5, drawn=300)), row("ddpm", cell(10, 0.6, 0.5))]
    reasons = unranked(WISH, table, scale(0.0))
    assert reasons == {"mixture": "like no picture: not ranked", "score": "only 300 samples: not ranked"}
    assert [one.name for one in by_distance(table, reasons)] == ["ddpm", "score", "mixture"]


def test_where_all_diverged_no_cell_is_called_unmeasured() -> None:
    text = said(row("ddpm", {"seed": 0, "failed": "the loss is none"}))
    assert "the notes say why" in text and "No cell has been measured" not in text and "ddpm (1 of 2)" in text


def test_kernel_distances_are_told_in_thousandths_but_of_features_that_are_large() -> None:
    assert [times_of("kid", name) for name in ("pixels", "classifier-clip 12ab", "classifier 12ab")] == [1000, 1000, 1]
    assert times_of("fid", "pixels") == 1


def test_a_distance_that_noise_fools_is_not_believed() -> None:
    """It is like no picture, but has the colours of all of them. One that calls it far is right."""

    def real(kid: float) -> dict[str, Any]:
        one = cell(kid, 0.6, 0.5)
        one["figures"]["precision"] = {**one["figures"]["kid"], "value": 0.7, "low": 0.6, "high": 0.8}
        return one

    noise = row("mixture", with_none())
    near = [row("ddpm", real(10)), row("dcgan", real(12))]
    text = "\n".join(in_words(WISH, [*near, noise], scale(0.0)))
    assert "(KID) is ddpm" in text and "Do not believe the kernel distance of mixture" in text
    far = [row("ddpm", real(1)), row("dcgan", real(2)), row("glow", real(5000))]
    assert "Do not believe" not in "\n".join(in_words(WISH, [*far, noise], scale(0.0)))


def test_fewer_bits_are_not_called_so_where_intervals_overlap() -> None:
    def with_bits(name: str, value: float) -> Row:
        told = {"value": value, "low": value - 0.01, "high": value + 0.01, "kind": "exact", "pictures": 256}
        return row(name, cell(10, 0.6, 0.5, bits_per_dim=told))

    text = said(with_bits("glow", 3.648), with_bits("realnvp", 3.654), with_bits("ppca", 4.5))
    assert "glow needs the fewest bits: 3.65 per dimension; realnvp cannot be told from it." in text


def test_batches_that_differ_make_steps_uneven() -> None:
    few, many = cell(10, 0.6, 0.5, images=1600), cell(12, 0.6, 0.5, images=12800)
    table = [row("ddpm", few), row("ppca", many)]
    told = "\n".join(in_words(WISH.model_copy(update={"budget": budget("100-steps")}), table))
    assert "100 steps are 1,600 to 12,800 pictures" in told
    assert "Batches differ" not in said(*table)  # of time


def test_a_family_that_is_level_is_named() -> None:
    text = said(row("ddpm", cell(10, 0.6, 0.5)), row("dcgan", cell(10.05, 0.3, 0.001)))
    assert "is ddpm; dcgan cannot be told from it" in text


def test_seeds_that_failed_and_samples_that_may_be_copies_are_told_of() -> None:
    broken = {"seed": 1, "failed": "the loss is none"}
    copied = cell(12, 0.3, 0.001, notes=[NEARER_NOTE])
    text = said(row("ddpm", cell(10, 0.6, 0.5), broken), row("dcgan", copied))
    assert "Seeds that came to nothing are in no figure: ddpm (1 of 2)." in text
    assert "nearest training pictures of dcgan" in text


def test_where_all_are_capped_nobody_is_ranked_and_no_table_is_called_empty() -> None:
    text = said(row("ddpm", cell(10, 0.6, 0.5, drawn=300)))
    assert "No family drew 500 samples within 300 seconds" in text and "No cell has been measured" not in text
    assert said(row("ddpm")) == "No cell has been measured yet."
