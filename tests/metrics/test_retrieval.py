"""Retrieval: what counts as a hit, and features that tell pictures apart."""

from __future__ import annotations

import torch

from ldm.metrics.features import colour_and_edges, directions, extracted
from ldm.metrics.retrieval import Gallery, Wanted, hits, mean_over_groups


def gallery() -> Gallery:
    """Ten things in two styles; features are one axis each."""
    names = tuple(frozenset({f"thing {i % 10}"}) for i in range(20))
    return Gallery(torch.eye(20), names, tuple(frozenset({"noto" if i < 10 else "blob"}) for i in range(20)))


def test_a_hit_needs_the_thing_among_the_nearest_and_the_style_of_the_nearest() -> None:
    shown = torch.eye(20)
    wanted = [Wanted(frozenset({"thing 3"}), "noto", "0")]
    assert hits(shown[3:4], wanted, gallery()) == [True]
    assert hits(shown[13:14], wanted, gallery()) == [False]  # the thing in the other style
    mixed = torch.nn.functional.normalize(shown[5:6] + 0.5 * shown[3:4], dim=1)
    assert hits(mixed, wanted, gallery(), top=2) == [True]
    assert hits(mixed, wanted, gallery(), top=1) == [False]


def test_a_picture_with_several_names_answers_to_each() -> None:
    noto = frozenset({"noto"})
    one = Gallery(torch.eye(2), (frozenset({"man walking", "person walking"}), frozenset({"octopus"})), (noto, noto))
    assert hits(torch.eye(2)[:1], [Wanted(frozenset({"person walking"}), "noto", "1")], one, top=1) == [True]


def test_a_picture_that_two_styles_share_is_a_hit_for_both() -> None:
    shared = Gallery(torch.eye(2), (frozenset({"flag"}), frozenset({"octopus"})), (frozenset({"noto", "blob"}),) * 2)
    for style in ("noto", "blob"):
        assert hits(torch.eye(2)[:1], [Wanted(frozenset({"flag"}), style, "9")], shared, top=1) == [True]


def test_a_real_picture_is_not_looked_for_in_itself() -> None:
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]), dim=1)
    styles = (frozenset({"blob"}), frozenset({"noto"}), frozenset({"noto"}))
    some = Gallery(near, (frozenset({"cat"}), frozenset({"cat"}), frozenset({"dog"})), styles)
    wanted = [Wanted(frozenset({"cat"}), "noto", "1")]
    assert hits(near[:1], wanted, some, top=1) == [False]  # the nearest is itself, in its own style
    assert hits(near[:1], wanted, some, top=1, without=[0]) == [True]


def test_groups_count_alike_however_many_pictures_they_have() -> None:
    wanted = [Wanted(frozenset({"a"}), "noto", "0")] * 9 + [Wanted(frozenset({"a"}), "noto", "1")]
    assert mean_over_groups([True] * 9 + [False], wanted) == 0.5


def test_plain_features_know_colours_and_directions() -> None:
    red, blue = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    red[:, 0, :, :32], blue[:, 2, :, :32] = 1, 1
    turned = red.transpose(2, 3)
    features = extracted(colour_and_edges, torch.cat([red, 0.9 * red, blue, turned]))
    alike = features @ features.T
    assert torch.allclose(alike.diagonal(), torch.ones(4), atol=1e-5)
    assert alike[0, 1] > 0.99 and alike[0, 1] > max(alike[0, 2], alike[0, 3]) + 0.1


def test_edges_are_shared_between_neighbouring_directions() -> None:
    ramp = torch.arange(16.0).expand(1, 3, 16, 16) / 16
    found = directions(ramp)[0, :, 8, 8]
    assert found[0] > 0.1 and float(found[1:].abs().max()) < 1e-6  # brightness grows to the right: direction 0
    assert torch.allclose(directions(ramp).sum(1), directions(ramp.transpose(2, 3)).sum(1).transpose(1, 2), atol=1e-5)
