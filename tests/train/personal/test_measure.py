"""What is measured of a checkpoint, and what is said of it, on features whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from train.personal.copies import Shown
from train.personal.following import followed
from train.personal.measure import Drawn, Measures, Yardstick
from train.personal.page import badges
from train.personal.verdict import RULE, Checkpoint, best, excess, flags, in_words, is_done, unknowable

SUBJECT, KIND, OTHER = 0, 1, 2  # directions


def around(direction: int, count: int, spread: float = 0.3, seed: int = 0) -> Tensor:
    rows = torch.zeros(count, 16)
    rows[:, direction] = 1
    return normalize(rows + spread / 4 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def drawn_as(subject: Tensor, kind: Tensor, unrelated: Tensor, seen: Tensor | None = None) -> Drawn:
    """By one kind of features, for likeness and for copies."""
    return Drawn(subject, kind, unrelated, subject, seen)


def of_photos(photos: Tensor, mirrored: Tensor | None = None) -> Yardstick:
    base = drawn_as(around(KIND, 12, seed=1), around(KIND, 12, seed=1), around(OTHER, 8, seed=2))
    shown = Shown(photos[None] if mirrored is None else torch.stack([photos, mirrored]))
    return Yardstick(photos, base, around(OTHER, 8, spread=1.5, seed=3), shown)


def yardstick(photos: int = 5) -> Yardstick:
    return of_photos(around(SUBJECT, photos))


def test_pictures_like_the_base_are_at_0_and_like_the_photos_at_100_percent() -> None:
    scale = yardstick()
    before = scale.measure(scale.base)
    assert (before.subject, before.drift, before.leak, before.copies) == pytest.approx((0, 0, 0, 0), abs=1e-6)
    after = scale.measure(drawn_as(around(SUBJECT, 12, seed=7), scale.base.kind, scale.base.unrelated))
    assert after.subject == pytest.approx(1, abs=0.1) and after.leak == pytest.approx(0)
    leaked = scale.measure(drawn_as(around(SUBJECT, 12, seed=7), around(SUBJECT, 12, seed=8), scale.again))
    assert leaked.leak == pytest.approx(1, abs=0.1) and leaked.drift == pytest.approx(1)


def test_a_copy_is_nearer_to_a_photo_than_photos_are_to_each_other() -> None:
    scale = yardstick()
    fresh = around(SUBJECT, 4, spread=0.9, seed=9)
    copies = torch.cat([fresh, scale.photos[[3, 3]], scale.photos[[1]]])
    found = scale.measure(drawn_as(copies, scale.base.kind, scale.base.unrelated))
    assert found.copied == ((4, 3), (5, 3), (6, 1)) and found.copies == pytest.approx(3 / 7)
    same = scale.measure(drawn_as(scale.photos[[0] * 6], scale.base.kind, scale.base.unrelated))
    assert same.copies == 1 and same.likeness > scale.floor


def asked_thrice(seen: Tensor, prompts: Tensor) -> Yardstick:
    """Three seeds of each prompt; what the base made of them."""
    scale = yardstick()
    return replace(scale, prompts=prompts, base=replace(scale.base, seen=seen))


def test_following_prompts_is_being_like_the_own_prompt_more_than_like_others() -> None:
    prompts = torch.eye(16)[:4]
    told = normalize(prompts.repeat(3, 1) + around(OTHER, 12, seed=40), dim=1)
    scale = asked_thrice(told, prompts)
    drawn = drawn_as(around(SUBJECT, 12), scale.base.kind, scale.base.unrelated, told)
    found = scale.measure(drawn)
    assert found.prompt == pytest.approx(1) and found.prompt_range == pytest.approx((1, 1))
    assert [round((ours or 0) - (before or 0), 6) for _, ours, before in found.each] == [0, 0, 0, 0]
    deaf = replace(drawn, seen=told.mean(0, keepdim=True).expand(12, -1))
    found = scale.measure(deaf)
    assert found.prompt == pytest.approx(0, abs=1e-6) and found.prompt_range[1] < 0.2
    turned = scale.measure(replace(drawn, seen=told.roll(1, 0)))
    assert turned.prompt == 0 == turned.prompt_range[1] and "ignores prompts" in flags(turned)
    assert deaf.seen is not None
    blind = replace(scale, base=replace(scale.base, seen=deaf.seen))  # what the base cannot do is not asked for
    assert blind.measure(drawn).prompt is None
    assert yardstick().measure(drawn).prompt is None


def test_words_that_are_drawn_without_the_subject_are_no_merit() -> None:
    prompts = torch.eye(16)[:5]
    scale = asked_thrice(normalize(prompts.repeat(3, 1) + around(OTHER, 15, seed=40), dim=1), prompts)
    assert scale.base.seen is not None
    seen = scale.base.seen.mean(0, keepdim=True).repeat(15, 1)
    seen[::5] = prompts[0]
    subject = around(SUBJECT, 15)
    with_it = scale.measure(drawn_as(subject, scale.base.kind, scale.base.unrelated, seen))
    subject[::5] = scale.base.subject[0]
    without = scale.measure(drawn_as(subject, scale.base.kind, scale.base.unrelated, seen))
    assert with_it.prompt is not None and without.prompt is not None and with_it.prompt > 0.2 > 0.05 > without.prompt
    subject[1::5] = scale.base.subject[0]  # of three prompts there is no telling
    assert scale.measure(drawn_as(subject, scale.base.kind, scale.base.unrelated, seen)).prompt is None


def pictures_of(wanted: Tensor, noise: float, seeds: int, generator: torch.Generator) -> Tensor:
    """[seeds p,p] features that are like their prompt as much as is wanted [p], with noise; prompts are the axes."""
    shape = (seeds, len(wanted), len(wanted))
    return (torch.diag(wanted) + noise * torch.randn(shape, generator=generator)).flatten(0, 1)


def test_what_is_not_sure_of_prompts_is_neither_sound_nor_wrong() -> None:
    doubtful = replace(SOUND, prompt=0.5, prompt_range=(0.2, 0.9))
    assert flags(doubtful) == {"prompts unknown"}
    assert "perhaps follows prompts less than the model did" in in_words(doubtful, ["a"], 12)
    assert any("from 20 % to 90 % possible" in text for text in unknowable(5, 12, doubtful, True))
    likely = replace(doubtful, prompt=0.8)
    assert "as it seems, keeps following prompts" in in_words(likely, ["a"], 12)
    assert flags(replace(doubtful, prompt_range=(0.2, 0.6))) == {"ignores prompts"}
    assert "keeps following prompts" in in_words(SOUND, ["a"], 12)


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_the_interval_holds_how_other_prompts_would_be_followed(seeds: int, spread: float) -> None:
    """Of 300 adapters that follow prompts half as well on average, some prompts more and some less, the interval holds
    the half in about 95 of 100."""
    generator = torch.Generator().manual_seed(1)
    held = []
    for _ in range(300):
        wanted = 0.1 + 0.1 * torch.rand(6, generator=generator)
        share = 0.5 + spread * torch.randn(6, generator=generator)
        before, ours = (pictures_of(s * wanted, 0.03, seeds, generator) for s in (torch.ones(6), share))
        found = followed(ours, before, torch.eye(6), [True] * 6)
        held.append(found is not None and found.low <= 0.5 <= found.high)
    assert sum(held) / len(held) >= 0.92


def test_a_model_that_tells_nothing_apart_is_seldom_taken_for_one_that_does() -> None:
    generator = torch.Generator().manual_seed(2)
    for prompts in (4, 6):
        deaf = [pictures_of(torch.zeros(prompts), 0.06, 1, generator) for _ in range(300)]
        told = [followed(each, each, torch.eye(prompts), [True] * prompts) is not None for each in deaf]
        assert sum(told) / len(told) <= 0.05


def test_one_photo_has_no_ceiling_of_its_own() -> None:
    scale = yardstick(1)
    assert scale.ceiling == 1 and scale.shown.nearest == 0.02
    found = scale.measure(drawn_as(around(KIND, 12, seed=5), scale.base.kind, scale.base.unrelated))
    assert found.alone and "unknown" in flags(found) and "not learned" not in flags(found)
    assert "whether it learned the subject cannot be told from one photo" in in_words(found, ["a.jpg"], 12)
    assert any("no telling" in text for text in unknowable(1, 12, SOUND, True))


def test_photos_no_more_alike_than_others_are_like_them_tell_nothing() -> None:
    scale = yardstick()
    varied = of_photos(torch.eye(16)[8:13])  # each its own direction
    found = varied.measure(drawn_as(around(SUBJECT, 12), scale.base.kind, scale.base.unrelated))
    assert found.subject is None and found.leak is None
    found = replace(found, copies=0.0, copied=())
    assert flags(found) == {"unknown", "prompts unknown"} and excess(found) == 0
    said = "; ".join(in_words(found, ["a"] * 5, 12))
    assert "cannot be told" in said
    assert any("validation loss" in text for text in unknowable(5, 12, found, True))
    losses = [Checkpoint(10 * i, found, loss) for i, loss in enumerate((0.4, 0.2, 0.3), start=1)]
    assert best(losses).step == 20 and not is_done(losses * 2)
    few = [replace(c, validation=1 / c.step, unseen=False) for c in losses]  # of photos that it has learned
    assert best(few).step == 10
    assert any("earliest checkpoint" in text for text in unknowable(3, 12, found, True))


def test_two_shots_of_one_moment_do_not_hide_copies_and_mirrored_ones_are_found() -> None:
    scale = yardstick()
    twice = of_photos(torch.cat([scale.photos, scale.photos[:1]]))
    assert twice.shown.nearest == pytest.approx(scale.shown.nearest)
    turned = around(SUBJECT, 5, spread=0.9, seed=21)
    drawn = drawn_as(turned[[1, 1]], scale.base.kind, scale.base.unrelated)
    assert not scale.measure(drawn).copied
    assert of_photos(scale.photos, turned).measure(drawn).copied == ((0, 1), (1, 1))


SOUND = Measures(0.8, 0.7, 0.9, 0.1, 0.1, 0.0, (), prompt_range=(0.75, 1.0))
PLANTED = {
    "overfit": (
        replace(SOUND, subject=1.3, copies=0.5, copied=((0, 2), (1, 2)), prompt=0.2, prompt_range=(0.0, 0.4)),
        {"copies", "ignores prompts"},
    ),
    "nothing": (replace(SOUND, subject=0.05), {"not learned"}),
    "healthy": (SOUND, set()),
    "leaking": (replace(SOUND, leak=0.9, drift=0.6), {"leak", "drift"}),
    "no text tower": (replace(SOUND, prompt=None, prompt_range=(0.0, 1.0)), {"prompts unknown"}),
    "few prompts": (replace(SOUND, prompt_range=(0.5, 1.0)), {"prompts unknown"}),
    "one photo": (replace(SOUND, subject=0.2, alone=True), {"unknown"}),
    "unknown": (replace(SOUND, subject=None), {"unknown"}),
    "perhaps": (
        replace(SOUND, chance=1 / 3, copies=0.5, copied=((0, 2), (1, 2)), nearest=((2, 0.1),) * 4),
        {"perhaps copies"},
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_is_wrong_is_flagged_and_told(case: str) -> None:
    measures, wanted = PLANTED[case]
    assert flags(measures) == wanted
    said = "; ".join(in_words(measures, ["a.jpg", "b.jpg", "c.jpg"], 12))
    assert ("near copies of photos, most of c.jpg" in said) == (case in ("overfit", "perhaps"))
    assert ("did not learn" in said) == (case == "nothing")
    assert ("copying, not success" in said) == (case == "overfit")
    assert ("without its token" in said) == (case == "leaking")
    assert ("is not known" in said) == (case == "no text tower")
    assert said.startswith("copies the photos: ") == (case == "overfit")
    assert ("learned the subject" in said.split("; ")) == (
        case in ("healthy", "leaking", "no text tower", "perhaps", "few prompts")
    )


def test_only_what_is_known_to_be_sound_is_green() -> None:
    shown = {case: badges({"flags": sorted(flags(measures)), "done": True}) for case, (measures, _) in PLANTED.items()}
    assert {case for case, told in shown.items() if "badge done" in told} == {"healthy"}
    assert shown["unknown"] == "<span class='badge'>cannot be told</span>"
    assert "badge bad" in shown["overfit"] and "under way" in badges({"flags": [], "done": False})


def test_a_set_of_copies_is_never_called_learned_and_a_single_one_is_told() -> None:
    all_copies = replace(SOUND, subject=0.95, copies=1.0, copied=tuple((i, 0) for i in range(12)))
    first, *_ = in_words(all_copies, ["a.jpg"], 12)
    assert first == "copies the photos: 12 of 12 samples are near copies of photos, most of a.jpg"
    one = replace(SOUND, copies=1 / 40, copied=((3, 0),))
    said = list(in_words(one, ["a.jpg"], 40))
    assert said[0] == "learned the subject" and "1 of 40 samples are near copies of photos, most of a.jpg" in said


def test_leak_counts_among_the_bounds() -> None:
    leaking = replace(SOUND, subject=0.9, leak=0.75)
    assert excess(leaking) == pytest.approx(0.5) and "leak" in RULE
    assert best([Checkpoint(10, SOUND), Checkpoint(20, leaking)]).step == 10


def test_what_is_unknowable_of_copies_is_an_exact_interval() -> None:
    said = "; ".join(unknowable(5, 12, replace(SOUND, copies=2 / 12, copied=((0, 1), (4, 1))), True))
    assert "near copies: 2 of 12 samples mean a share between 2" in said and "48 %" in said
    assert "between 0 % and 26 %" in "; ".join(unknowable(5, 12, SOUND, True))


def test_the_best_is_most_like_the_subject_within_the_bounds() -> None:
    run = [
        Checkpoint(10, replace(SOUND, subject=0.3)),
        Checkpoint(20, replace(SOUND, subject=0.7)),
        Checkpoint(30, replace(SOUND, subject=0.7)),
        Checkpoint(40, replace(SOUND, subject=0.9, drift=0.5)),
    ]
    assert best(run).step == 20 and excess(run[3].measures) == pytest.approx(1)
    wild = [Checkpoint(c.step, replace(c.measures, drift=0.3 + c.step / 100)) for c in run]
    assert best(wild).step == 20  # nothing is within: learned, and missed by least
    assert best([Checkpoint(10, replace(SOUND, subject=0.0))]).step == 10
    alike = [Checkpoint(10, replace(SOUND, subject=0.83, drift=0.17)), Checkpoint(20, replace(SOUND, subject=0.82))]
    assert best(alike).step == 20  # a percent of likeness is chance, and less drift is not
    assert best([alike[0], Checkpoint(20, replace(SOUND, subject=0.79))]).step == 10
    told = [replace(c, validation=loss) for c, loss in zip(alike, (0.3, 0.4), strict=True)]
    assert best(told).step == 10  # the photo that was kept aside knows details that likeness does not see
    assert best([replace(c, unseen=False) for c in told]).step == 20  # photos that it has learned know nothing
    deaf = [Checkpoint(c.step, replace(c.measures, prompt=0.6 - c.step / 100)) for c in run[:3]]
    assert best(deaf).step == 20 == best([*deaf, Checkpoint(5, replace(SOUND, subject=0.1))]).step
    heard = [Checkpoint(20, replace(SOUND, subject=0.7)), Checkpoint(30, replace(SOUND, subject=0.9, prompt=0.2))]
    assert best(heard).step == 20  # but where one follows prompts, that counts
    early = [Checkpoint(66, replace(SOUND, subject=0.05)), Checkpoint(400, replace(SOUND, subject=0.85, drift=0.27))]
    assert best(early).step == 400  # to be within the bounds by doing nothing is no merit


def test_it_stops_when_more_has_stopped_paying_and_not_before() -> None:
    rising = [Checkpoint(i, replace(SOUND, subject=0.1 * i)) for i in range(1, 8)]
    assert not any(is_done(rising[:n]) for n in range(len(rising) + 1))
    flat = [Checkpoint(i, replace(SOUND, subject=min(0.8, 0.4 * i))) for i in range(1, 7)]
    assert [is_done(flat[:n]) for n in range(7)] == [False] * 5 + [True] * 2
    falling = [replace(c, validation=0.4 - 0.02 * c.step) for c in flat]
    assert not any(is_done(falling[:n]) for n in range(7))
    assert is_done([replace(c, unseen=False) for c in falling])
    slow = [Checkpoint(i, replace(SOUND, subject=0.1)) for i in range(1, 9)]
    assert not is_done(slow)  # it has not learned yet
    broken = [Checkpoint(i, replace(SOUND, subject=0.5, drift=0.9)) for i in range(1, 5)]
    assert is_done(broken)


def test_prompts_that_none_follows_stop_nothing() -> None:
    deaf = replace(SOUND, prompt=0.0, prompt_range=(0.0, 0.5), drift=0.26)
    rising = [Checkpoint(i, replace(deaf, subject=0.3 + 0.1 * i)) for i in range(1, 5)]
    assert not is_done(rising)
    wild = replace(deaf, subject=None)
    assert any("no checkpoint keeps" in text for text in unknowable(5, 12, wild, True, deaf=True))


def test_leak_without_a_kind_is_what_comes_into_unrelated_prompts() -> None:
    scale = yardstick()
    nothing = scale.base.kind[:0]
    scale = replace(scale, base=replace(scale.base, kind=nothing))
    kept = scale.measure(drawn_as(around(SUBJECT, 12, seed=7), nothing, scale.base.unrelated))
    leaked = scale.measure(drawn_as(around(SUBJECT, 12, seed=7), nothing, around(SUBJECT, 8, seed=8)))
    assert kept.leak == pytest.approx(0) and leaked.leak == pytest.approx(1, abs=0.1)


def _mirrored(features: Tensor) -> Tensor:
    return torch.cat([features[:, :8], features[:, 8:].flip(1)], 1)


@pytest.mark.parametrize("photos", [2, 3, 5, 10])
@pytest.mark.parametrize(("samples", "copies"), [(6, 6), (6, 4), (12, 12), (12, 7), (2, 2)])
@pytest.mark.parametrize("flip", [False, True])
def test_the_photos_themselves_are_copies_however_few_they_are(
    photos: int, samples: int, copies: int, flip: bool
) -> None:
    scale = yardstick(photos)
    scale = of_photos(scale.photos, _mirrored(scale.photos) if flip else None)
    fresh = around(SUBJECT, samples - copies, spread=2.0, seed=9)
    drawn = torch.cat([fresh, scale.photos[torch.arange(copies) % photos]])
    found = scale.measure(drawn_as(drawn, scale.base.kind, scale.base.unrelated))
    assert found.close == copies and "copies" in flags(found) and excess(found) > 0
    assert next(iter(in_words(found, ["a.jpg"] * photos, samples))).startswith("copies the photos: ")


def test_of_few_photos_new_ones_come_as_near_as_copies_and_are_not_called_that() -> None:
    assert yardstick(5).shown.chance == pytest.approx(1 / 3) and yardstick(1).shown.chance == 0
    new = around(SUBJECT, 4000, seed=31).view(800, 5, 16)  # each time five photos, and one more
    more = around(SUBJECT, 800, seed=32)
    for flip in (False, True):  # left to right: the last eight features change places with each other
        scale = [of_photos(p, _mirrored(p) if flip else None) for p in new]
        near = [
            bool(s.measure(replace(s.base, subject=m[None], copies=m[None])).copied)
            for s, m in zip(scale, more, strict=True)
        ]
        assert sum(near) / len(near) == pytest.approx(1 / 3, abs=0.05)
    far = tuple((0, 0.1) for _ in range(12))
    some = replace(SOUND, chance=1 / 3, nearest=far, copies=4 / 12, copied=tuple((i, 0) for i in range(4)))
    assert not flags(some)
    assert any("so few would not prove it" in text for text in unknowable(2, 6, replace(some, chance=2 / 3), True))
    many = replace(some, copies=7 / 12, copied=tuple((i, 0) for i in range(7)))
    assert flags(many) == {"perhaps copies"} and excess(many) > 0
    assert any("too few samples to be sure" in text for text in in_words(many, ["a.jpg"], 12))
    most = replace(some, copies=10 / 12, copied=tuple((i, 0) for i in range(10)))
    assert flags(most) == {"copies"} and excess(most) > 0 == excess(replace(some, copies=1 / 3))
    said = list(in_words(some, ["a.jpg"], 12))
    assert said[0] == "learned the subject" and "4 of 12 samples are near copies of photos, most of a.jpg" in said
    assert any("33 % would count" in text for text in unknowable(5, 12, some, True))


def test_prompts_in_which_the_subject_is_missing_are_named() -> None:
    found = replace(SOUND, each=((0.9, 0.2, 0.2), (0.1, 0.2, 0.2), (0.8, 0.0, 0.0)))
    said = list(in_words(found, ["a.jpg"], 6, ("zwx", "happy zwx", "zwx with a hat")))
    assert "the subject is not to be seen in 'happy zwx'" in said
    assert not any("seen in" in text for text in in_words(replace(found, subject=0.1), ["a.jpg"], 6, ("zwx", "b", "c")))
    scale = replace(yardstick(), prompts=torch.eye(16)[:2], base=replace(yardstick().base, seen=torch.eye(16)[:2]))
    half = torch.stack([scale.photos[0], scale.base.subject[0]])
    each = scale.measure(drawn_as(half, scale.base.kind, scale.base.unrelated, torch.eye(16)[:2])).each
    assert (each[0][0] or 0) > 0.8 and (each[1][0] or 0) < 0.2
