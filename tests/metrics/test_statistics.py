"""Statistics of features against closed forms and against other people's code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.errors import LdmError
from ldm.metrics.classes import balance, inception_score
from ldm.metrics.frechet import Moments, frechet, frechet_distance, frechet_infinity
from ldm.metrics.interval import Estimate, around, bootstrap, exact_share, share
from ldm.metrics.kernel import kernel_distance
from ldm.metrics.manifold import manifold
from ldm.metrics.memorisation import copies, rank_sum
from ldm.metrics.protocol import Figure, Protocol
from ldm.metrics.spectrum import power, spectrum_distance


def normal(n: int, d: int, seed: int = 0, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + mean


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed(n: int, d: int, seed: int) -> Tensor:
    """Features whose directions are correlated, as those of a network are."""
    return normal(n, d, seed) @ normal(d, d, 77) / d**0.5 + normal(1, d, seed + 1) * 0.3


def test_the_frechet_distance_of_normal_distributions_has_a_closed_form() -> None:
    """Of diagonal covariances: |mu_a - mu_b|^2 + sum (s_a - s_b)^2."""
    d = 6
    a = Moments(torch.zeros(d).double(), torch.diag(torch.arange(1, d + 1).double() ** 2), 100)
    b = Moments(torch.full((d,), 0.5).double(), torch.diag(torch.full((d,), 4.0).double()), 100)
    want = d * 0.25 + sum((s - 2) ** 2 for s in range(1, d + 1))
    assert frechet(a, b) == pytest.approx(want, abs=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("n", "d"), [(500, 16), (60, 128)])  # the second: fewer samples than features
def test_frechet_and_kernel_distances_agree_with_torch_fidelity(n: int, d: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    made, real = mixed(n, d, 1), mixed(n, d, 2)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(made), fid_features_to_statistics(real), verbose=False
    )["frechet_inception_distance"]
    assert frechet(Moments.of(made), Moments.of(real)) == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    kid = kid_features_to_metric(made, real, kid_subsets=1, kid_subset_size=n, verbose=False)
    assert kernel_distance(made, real).value == pytest.approx(kid["kernel_inception_distance_mean"], abs=1e-6)


def test_frechet_and_kernel_distances_agree_with_torchmetrics() -> None:
    from torchmetrics import image

    made, real = mixed(400, 24, 3), mixed(300, 24, 4)

    class Given(torch.nn.Module):
        """Its pictures are features already."""

        num_features = 24

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    fid = image.FrechetInceptionDistance(Given(), input_img_size=(3, 2, 4))
    kid = image.KernelInceptionDistance(Given(), subsets=1, subset_size=300)
    fid.update(made.view(-1, 3, 2, 4), real=False)
    fid.update(real.view(-1, 3, 2, 4), real=True)
    kid.update(made[:300].view(-1, 3, 2, 4), real=False)
    kid.update(real.view(-1, 3, 2, 4), real=True)
    assert frechet(Moments.of(made), Moments.of(real)) == pytest.approx(float(fid.compute()), rel=1e-3)
    assert kernel_distance(made[:300], real).value == pytest.approx(float(kid.compute()[0]), abs=1e-4)


def test_an_interval_of_the_frechet_distance_holds_what_other_samples_give() -> None:
    reference = Moments.of(normal(5000, 8, 100))
    told = frechet_distance(normal(400, 8, 1, mean=0.2), reference, draws())
    others = [frechet(Moments.of(normal(400, 8, 10 + i, mean=0.2)), reference) for i in range(40)]
    inside = sum(told.low <= other <= told.high for other in others)
    assert told.low < told.value < told.high
    assert inside >= 24  # the difference of two such figures varies more than one of them


def test_extrapolated_to_ever_more_samples_the_bias_is_gone() -> None:
    """Both are the same distribution: FID at n is far above zero, its limit is zero."""
    reference = Moments.of(normal(50_000, 32, 100))
    made = normal(600, 32, 5)
    at_n = frechet_distance(made, reference, draws(), rounds=10)
    limit = frechet_infinity(made, reference, draws(), at_n)
    assert at_n.value > 0.4
    assert abs(limit.value) < 0.1 * at_n.value
    assert limit.low <= 0 <= limit.high


def test_the_kernel_distance_is_zero_on_average_where_both_are_the_same() -> None:
    found = [kernel_distance(normal(100, 6, i), normal(120, 6, 1000 + i)) for i in range(40)]
    values = torch.tensor([f.value for f in found])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 40**0.5
    assert sum(f.low <= 0 <= f.high for f in found) >= 34  # 95 % are 38
    assert kernel_distance(normal(100, 6, 1, mean=1), normal(100, 6, 2)).low > 0


def test_precision_and_recall_agree_with_torch_fidelity() -> None:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    made, real = mixed(300, 8, 5) * 0.8, mixed(400, 8, 6)
    precision, recall = calculate_precision_recall_full(made.double(), real.double(), 3)
    told = manifold(made, real)
    assert told.precision.value == pytest.approx(precision, abs=1e-6)
    assert told.recall.value == pytest.approx(recall, abs=1e-6)


def test_quality_and_coverage_come_apart() -> None:
    """Real: two far clusters. Samples of one alone are good and cover half; noise covers and is not good."""
    real = torch.cat([normal(200, 4, 1), normal(200, 4, 2, mean=20)])
    one, wide = manifold(normal(200, 4, 3), real), manifold(normal(400, 4, 4, mean=10, scale=12), real)
    assert one.precision.value > 0.9 and one.coverage.value == pytest.approx(0.5, abs=0.06)
    assert one.recall.value == pytest.approx(0.5, abs=0.06) and one.density.value > 0.8
    assert wide.precision.value < 0.1 and wide.density.value < 0.1
    same = manifold(normal(400, 4, 5), normal(400, 4, 6))
    assert same.density.value == pytest.approx(1, abs=0.15)  # expected for equal distributions
    assert same.coverage.value == pytest.approx(1 - 0.5**5, abs=0.05)


def test_the_inception_score_agrees_with_torch_fidelity_and_knows_its_ends() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = normal(500, 10, 7, scale=3)
    theirs = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    assert inception_score(logits.softmax(1), draws()).value == pytest.approx(theirs, rel=1e-4)
    assert inception_score(torch.eye(10).repeat(50, 1), draws()).value == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.full((50, 10), 0.1), draws()).value == pytest.approx(1, rel=1e-6)


def test_lost_classes_are_counted() -> None:
    seen = torch.eye(10)[torch.tensor([0] * 139 + [1] * 57 + [2] * 3 + [3])]
    told = balance(seen, torch.ones(10), torch.Generator())
    assert told.lost == (3, 4, 5, 6, 7, 8, 9) and told.covered == 3
    assert told.distance.value == pytest.approx(0.695 + 0.285 - 0.2)
    assert told.distance.low < told.distance.value < told.distance.high
    same = torch.tensor([139, 57, 3, 1, 0, 0, 0, 0, 0, 0])
    assert balance(seen, same, torch.Generator()).covered == 10  # nothing is missing there
    by_chance = torch.eye(100)[torch.randint(100, (200,), generator=draws())]
    assert (by_chance.sum(0) == 0).any() and balance(by_chance, torch.ones(100), torch.Generator()).lost == ()


def test_copies_are_found_and_new_pictures_are_not() -> None:
    training, held_out = normal(500, 8, 1), normal(200, 8, 2)
    new = copies(normal(200, 8, 3), training, held_out)
    assert new.rate.value < 0.05 and abs(new.z) < 3 and 0.35 < new.authentic.value < 0.65
    stolen = torch.cat([training[:50] + 0.01 * normal(50, 8, 4), normal(150, 8, 5)])
    told = copies(stolen, training, held_out)
    assert told.rate.value == pytest.approx(0.25, abs=0.04)
    assert told.nearest[:50].tolist() == list(range(50))
    assert told.z < -2 and told.authentic.value < new.authentic.value


def test_the_rank_sum_counts_pairs() -> None:
    """All of x below all of y: U is 0; of equal ones it is the middle, and so is z."""
    assert rank_sum(torch.arange(10.0), torch.arange(10.0)) == 0
    u, n = 0.0, 10
    want = (u - n * n / 2) / math.sqrt(n * n * (2 * n + 1) / 12)
    assert rank_sum(torch.arange(10.0), torch.arange(10.0) + 20) == pytest.approx(want)


def test_power_of_a_wave_lies_on_its_ring_and_blur_is_seen() -> None:
    across = torch.cos(2 * math.pi * 5 * torch.arange(32) / 32).repeat(32, 1)
    found = power(across.repeat(1, 3, 1, 1) * 0.5 + 0.5)
    assert int(found.argmax()) == 4  # rings are counted from 1
    real = torch.rand(64, 3, 32, 32, generator=draws(1))
    blurred = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
    same = spectrum_distance(power(torch.rand(64, 3, 32, 32, generator=draws(2))), power(real), draws())
    off = spectrum_distance(power(blurred), power(real), draws())
    assert same.value < 0.5 < 5 < off.value


def test_intervals() -> None:
    rows = normal(400, 1, 3)
    told = bootstrap(lambda x: float(x.mean()), rows, draws(), 400)
    assert (told.high - told.low) / 2 == pytest.approx(1.96 / 20, rel=0.15)
    assert around(1.0, 0.5).high == pytest.approx(1 + 1.959964 * 0.5)
    assert share(0, 20).low == 0 and share(0, 20).high == pytest.approx(0.161, abs=1e-3)  # Wilson, known
    told = exact_share(2, 12)  # Clopper and Pearson, known
    assert (told.value, told.low, told.high) == pytest.approx((1 / 6, 0.02086, 0.48414), abs=1e-5)
    none, all_of_them = exact_share(0, 12), exact_share(12, 12)
    assert (none.low, none.high) == pytest.approx((0, 1 - 0.025 ** (1 / 12)))
    assert (all_of_them.low, all_of_them.high) == pytest.approx((0.025 ** (1 / 12), 1))
    assert share(20, 20).high == 1


def test_figures_of_unlike_protocols_are_not_compared() -> None:
    by = Protocol("classifier 12ab", "none", 2000, 10_000, "feed")
    a, b = Figure("fid", Estimate(10, 9, 11), by), Figure("fid", Estimate(14, 13, 15), by)
    assert a.better_than(b, lower=True) is True and b.better_than(a, lower=True) is False
    assert a.better_than(b, lower=False) is False
    assert a.better_than(Figure("fid", Estimate(11, 10, 12), by), lower=True) is None
    with pytest.raises(LdmError, match=r"made: 2000 here, 500 there"):
        a.better_than(
            Figure("fid", Estimate(14, 13, 15), Protocol("classifier 12ab", "none", 500, 10_000, "feed")), True
        )
    with pytest.raises(LdmError, match="kid there"):
        a.better_than(Figure("kid", Estimate(1, 1, 1), by), lower=True)


def test_nothing_depends_on_numpys_chance() -> None:
    np.random.seed(1)
    first = inception_score(normal(100, 5, 1).softmax(1), draws())
    np.random.seed(2)
    assert first == inception_score(normal(100, 5, 1).softmax(1), draws())


@pytest.mark.parametrize("made", [100, 400])
def test_coverage_of_the_same_distribution_grows_with_the_number_of_samples(made: int) -> None:
    from ldm.metrics.manifold import covered_by_chance

    draws = torch.Generator().manual_seed(0)
    real = torch.randn(800, 6, generator=draws)
    found = [manifold(torch.randn(made, 6, generator=draws), real).coverage.value for _ in range(8)]
    assert sum(found) / 8 == pytest.approx(covered_by_chance(made, 800), abs=0.02)
