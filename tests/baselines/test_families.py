"""What every family promises, and what each kind of them can prove: inverses, determinants, sums of probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.baselines import shades
from ldm.baselines.adversaries import LOSSES, gradient_norms
from ldm.baselines.augment import augmented
from ldm.baselines.bijections import (
    ActNorm,
    Bijection,
    Chain,
    Coupling,
    Logit,
    Rotation,
    half_of_channels,
    normal_log_density,
)
from ldm.baselines.blocks import Stack
from ldm.baselines.ddpm import normal_mass
from ldm.baselines.family import Family, Form, facts_of, families, make, settings_of
from ldm.baselines.flowpp import MixtureCoupling, Within
from ldm.baselines.flows import FlowFamily
from ldm.baselines.odes import carried, carried_with_density
from ldm.baselines.pixelcnn import read_on
from ldm.baselines.ppca import leading, principal
from ldm.baselines.score import levels
from ldm.data.draws import Draws
from ldm.errors import LdmError
from tests.components import seeded
from tests.thin import thinned

SMALL: dict[str, dict[str, object]] = {
    "vae": {"latents": 8, "width": 8},
    "dcgan": {"latents": 8, "width": 8},
    "realnvp": {"width": 8, "blocks": 1, "scales": 2},
    "glow": {"width": 8, "depth": 2, "scales": 2},
    "pixelcnn": {"width": 8, "layers": 3, "kernel": 3, "mixture": 2},
    "ddpm": {"width": 32, "steps": 3},
    "flowpp": {"width": 8, "mixture": 2, "depth": 1, "scales": 2},
    "ffjord": {"width": 8, "layers": 2, "steps": 2, "steps_after": 3},
    "score": {"width": 32, "steps": 2},
    "flow_matching": {"width": 32, "steps": 2},
    "energy": {"width": 8, "steps": 3},
    "r3gan": {"latents": 8, "width": 8},
    "stylegan": {"latents": 8, "width": 8, "lazy": 2},
    "latent": {"coder": 8, "width": 32, "steps": 3},
    "ppca": {"components": 4},
    "mixture": {"components": 3},
    "autoencoder": {"latents": 4, "width": 8},
    "ladder": {"width": 8, "latents": 2, "blocks": 1, "mixture": 2},
    "vqvae": {"codes": 8, "numbers": 4, "width": 8, "grid": 4, "layers": 2},
    "vqvae2": {"codes": 8, "numbers": 4, "width": 8, "grid": 4, "layers": 2},
    "transformer": {"codes": 8, "numbers": 4, "width": 8, "grid": 4, "layers": 2, "heads": 2, "inner": 16},
    "absorbing": {
        "codes": 8,
        "numbers": 4,
        "width": 8,
        "grid": 4,
        "layers": 1,
        "heads": 2,
        "inner": 16,
        "steps": 4,
    },
}
FLOWS = ("realnvp", "glow", "flowpp")


def made(name: str, form: Form, seed: int = 0) -> Family:
    return make(name, SMALL.get(name, {}), form, seed)


def draws(count: int) -> Draws:
    return Draws(0, torch.arange(count), count)


def pictures(count: int, form: Form, seed: int = 1) -> Tensor:
    """Smooth ones, of whole shades."""
    coarse = torch.rand(count, form.channels, 2, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    fine = torch.nn.functional.interpolate(coarse, form.side, mode="bilinear") if form.side > 2 else coarse
    return shades.picture(shades.shades(fine[..., : form.side, : form.side]))


def stirred(model: Family) -> Family:
    """Weights that begin at zero are moved, or a test of what they do would show nothing."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model


VARIANTS = {
    "WGAN-GP": ("dcgan", {"loss": "wasserstein", "penalty": 10, "critic_turns": 2}),
    "WGAN": ("dcgan", {"loss": "wasserstein", "clip": 0.01}),
    "DCGAN": ("dcgan", {"spectral": True}),
    "Improved DDPM": ("ddpm", {"schedule": "cosine", "learned_variance": True, "solver": "ddpm"}),
}


@pytest.mark.parametrize("name", [*families(), *VARIANTS])
@pytest.mark.parametrize("classes", thinned([3, 0], 2))
def test_a_family_learns_and_draws_and_tells_its_likelihood(name: str, classes: int) -> None:
    form = Form(8, classes)
    family, options = VARIANTS.get(name, (name, {}))
    model, x = make(family, {**SMALL.get(family, {}), **options}, form, 0), pictures(6, form)
    assert facts_of(family, options).name == name or name not in VARIANTS
    label = torch.arange(6) % classes if classes else None
    model.begin(x, label)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for part in model.parts():
        optimiser = torch.optim.Adam(part.params, 1e-3)
        for _ in range(4):
            loss, told = model.loss(part.name, x, label, draws(6))
            assert loss.shape == (6,) and all(value.shape == (6,) for value in told.values())
            optimiser.zero_grad()
            loss.mean().backward()
            optimiser.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.split(".")[0] for key in moved} >= {
        key.split(".")[0] for key, p in model.named_parameters() if p.requires_grad
    }
    generator = torch.Generator().manual_seed(3)
    drawn = model.sample(4, label[:4] if label is not None else None, generator)
    assert drawn.shape == (4, *form.shape) and drawn.isfinite().all() and drawn.abs().max() <= 1
    again = model.sample(4, label[:4] if label is not None else None, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, again)
    if model.facts.likelihood == "none":
        with pytest.raises(LdmError, match="likelihood"):
            model.bits_per_dim(x, label, draws(6))
    else:
        told = model.bits_per_dim(x, label, draws(6))
        assert told.shape == (6,) and (told > 0).all() and (told < 100).all()


@pytest.mark.parametrize("name", families())
def test_the_same_seed_makes_the_same_model_and_leaves_chance_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    one, two, other = made(name, Form(8)), made(name, Form(8)), made(name, Form(8), 1)
    assert torch.equal(state, torch.random.get_rng_state())
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_inverts_and_its_determinant_is_autograds(name: str) -> None:
    form = Form(4, 2)
    model = stirred(made(name, form)).double()
    assert isinstance(model, FlowFamily)
    y = torch.rand(3, *form.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    label = torch.tensor([0, 1, -1])
    model.log_density(y, label)  # scales are taken from data
    h = model.told(label, 3)
    z, change = (each.detach() for each in model.layers(y, h))
    assert (model.layers.inverse(z, h) - y).abs().max() <= 1e-6
    for i in range(3):
        one = h[i : i + 1].detach()
        jacobian = torch.autograd.functional.jacobian(
            lambda flat, one=one: model.layers(flat.view(1, *form.shape), one)[0].flatten(), y[i].flatten()
        )
        assert torch.linalg.slogdet(jacobian).logabsdet == pytest.approx(float(change[i]), abs=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_of_small_pictures_comes_back_in_fp32(name: str) -> None:
    form = Form(8)
    model, x = stirred(made(name, form)), pictures(5, form)
    model.begin(x, None)
    back = model.decode(model.encode(x))
    assert (back - x).abs().max() <= 1.01 * 2 / 255  # the middle of a shade comes back within it


def test_a_rotation_has_the_determinant_that_it_tells() -> None:
    layer = Rotation(6)
    with torch.no_grad():
        layer.log_diagonal.add_(torch.randn(6) * 0.3)
        layer.lower.add_(torch.randn(6, 6) * 0.3)
    told = float(layer.log_diagonal.sum().detach())
    assert float(torch.linalg.slogdet(layer.weight.detach()).logabsdet) == pytest.approx(told, abs=1e-5)


def test_no_output_of_pixelcnn_depends_on_a_later_place() -> None:
    form = Form(6, 2)
    model = stirred(made("pixelcnn", form))
    x = pictures(1, form).requires_grad_()
    out = model.told_by(x, torch.tensor([1]))
    for place in (0, 5, 6, 20, 35):
        (slope,) = torch.autograd.grad(out.flatten(2)[0, :, place].sum(), x, retain_graph=True)
        seen = slope.abs().sum(1).flatten()
        assert (seen[place:] == 0).all()
        row, column = divmod(place, 6)
        assert column == 0 or seen[place - 1] > 0  # and it looks at the one before,
        assert row == 0 or seen[place - 6] > 0  # and at the one above


def test_a_later_channel_depends_on_the_earlier_ones_and_no_other_way() -> None:
    """p(x_2 | x_1) is another function for another x_1: the ratio of probabilities of two values of the last channel
    moves with the channel before it. What is told of the place does not, for it has seen no channel of it."""
    form = Form(4)
    model = stirred(made("pixelcnn", form))
    x = pictures(1, form)

    def at_the_end(second: float, last: float) -> Tensor:
        other = x.clone()
        other[:, 1, 3, 3], other[:, 2, 3, 3] = second, last
        return other

    assert torch.equal(model.told_by(x, None), model.told_by(at_the_end(-1.0, 1.0), None))
    with torch.no_grad():
        odds = [
            float(
                model.log_probability(at_the_end(second, 0.2), None)
                - model.log_probability(at_the_end(second, -0.2), None)
            )
            for second in (-0.6, 0.6)
        ]
    assert abs(odds[0] - odds[1]) > 0.05


def test_noise_within_a_shade_has_the_density_that_it_tells() -> None:
    """log q(u|x) = log N(noise) - log|det du/dnoise|, the latter by autograd."""
    form = Form(2, 0, 1)
    within = Within(form, 8)
    with torch.no_grad():
        for weight in within.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    x, noise = pictures(1, form), torch.randn(1, *form.shape, generator=torch.Generator().manual_seed(2))
    u, log_q = within(x, noise)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    slope = torch.autograd.functional.jacobian(lambda n: within(x, n)[0].flatten(), noise).view(4, 4)
    want = normal_log_density(noise.flatten(1)) - torch.linalg.slogdet(slope.double())[1]
    assert float(log_q) == pytest.approx(float(want), abs=1e-4)


@pytest.mark.parametrize("name", ["score", "flow_matching", "realnvp", "ffjord", "ppca"])
def test_samples_of_a_density_lie_on_shades(name: str) -> None:
    drawn = made(name, Form(8)).sample(2, None, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn, shades.picture(shades.shades(drawn)), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2])
def test_pixelcnns_probabilities_of_all_pictures_sum_to_one(channels: int) -> None:
    """One place with one or two channels has 256 or 65,536 pictures."""
    form = Form(1, 0, channels)
    model = stirred(made("pixelcnn", form))
    each = torch.arange(256)
    grid = torch.cartesian_prod(*[each] * channels).view(-1, channels, 1, 1)
    with torch.no_grad():
        total = torch.cat([model.log_probability(shades.picture(part), None) for part in grid.split(8192)])
    assert total.double().exp().sum() == pytest.approx(1, abs=2e-4)


def test_pixelcnn_samples_what_it_says() -> None:
    """One place, one channel: shares of many samples against the probabilities."""
    form = Form(1, 0, 1)
    model = stirred(made("pixelcnn", form))
    drawn = shades.shades(model.sample(20_000, None, torch.Generator().manual_seed(0))).flatten()
    with torch.no_grad():
        told = model.log_probability(shades.picture(torch.arange(256)).view(-1, 1, 1, 1), None).exp()
    shares = torch.bincount(drawn, minlength=256) / len(drawn)
    assert (shares - told).abs().sum() < 0.15  # for the true distribution about 0.09


def test_a_logistic_over_shades_sums_to_one_however_narrow() -> None:
    x = shades.picture(torch.arange(256))
    for mean, log_scale in ((0.0, -1.0), (0.3, -4.0), (-0.99, -6.5), (1.5, -3.0)):
        mass = shades.discrete_logistic(x, torch.tensor(mean), torch.tensor(log_scale)).double().exp()
        assert mass.sum() == pytest.approx(1, abs=1e-4)


def test_shades_are_whole_numbers_and_come_back() -> None:
    each = torch.arange(256)
    assert torch.equal(shades.shades(shades.picture(each)), each)
    y = shades.dequantised(shades.picture(each), torch.full((256,), 0.999))
    assert y.max() < 1 and torch.equal(shades.shades(shades.requantised(y)), each)
    assert float(shades.density_bits(torch.zeros(1), 10)) == 8  # a density of 1 everywhere: 256 equal shades


def test_the_bound_of_noise_alone_is_that_of_all_shades() -> None:
    """A network that says nothing of the noise still knows that a picture lies within [-1,1]; its bound is finite, and
    the terms agree with a sum over all times."""
    form = Form(4, 0, 1)
    model = make("ddpm", {"width": 32}, form, 0)
    x = pictures(64, form)
    told = model.bits_per_dim(x, None, draws(64)).mean()
    total, times = 0.0, [*range(20), *range(20, 1000, 10)]
    with torch.no_grad():
        for t in times:
            term = model._term(x, torch.full((64,), t), None, draws(64), f"all {t}")
            total += float(term.mean()) * (1 if t < 20 else 10)
    assert float(told) == pytest.approx(total / math.log(2), rel=0.1)


def test_what_is_unknown_is_said() -> None:
    with pytest.raises(LdmError, match="no family 'glwo'"):
        facts_of("glwo")
    with pytest.raises(LdmError, match=r"task.options.depht of the family glow"):
        settings_of("glow", {"depht": 3})


@pytest.mark.parametrize("name", ["ppca", "mixture"])
def test_a_simple_density_is_that_of_torchs_distributions(name: str) -> None:
    from torch import distributions as d

    form = Form(2, 2)
    model = stirred(make(name, {"components": 3}, form, 0)).double()
    label, y = torch.tensor([0, 1, -1, 1]), torch.rand(4, form.dims, dtype=torch.float64)
    if name == "ppca":
        cov = model.weight @ model.weight.T + model.log_variance.exp() * torch.eye(form.dims)
        want = torch.stack(
            [d.MultivariateNormal(model.mean[k + 1], cov).log_prob(one) for k, one in zip(label, y, strict=True)]
        )
    else:
        parts = d.Independent(d.Normal(model.mean, model.log_deviation.exp()), 1)
        each = [d.MixtureSameFamily(d.Categorical(logits=model.weights[k + 1]), parts) for k in label]
        want = torch.stack([mix.log_prob(one) for mix, one in zip(each, y, strict=True)])
    assert torch.allclose(model.log_density(y, label), want, atol=1e-8)


def test_ppca_begins_as_the_closed_solution() -> None:
    """Data of its own model: weights that give the same covariance are found at once."""
    form = Form(4, 0)
    true = torch.randn(form.dims, 3, generator=torch.Generator().manual_seed(0)) * 0.04
    noise = torch.Generator().manual_seed(1)
    y = 0.5 + torch.randn(4000, 3, generator=noise) @ true.T + 0.02 * torch.randn(4000, form.dims, generator=noise)
    model = make("ppca", {"components": 3}, form, 0)
    model.begin(y.view(-1, *form.shape).clamp(0, 1) * 2 - 1, None)
    cov = (model.weight @ model.weight.T).detach()
    assert (cov - true @ true.T).norm() < 0.1 * (true @ true.T).norm()
    assert float(model.log_variance.detach()) == pytest.approx(2 * math.log(0.02), abs=0.1)


def test_a_vae_begins_as_the_best_linear_one() -> None:
    """Its bound is then the likelihood of the principal components, but for tails that a logistic has."""
    form = Form(8, 0)
    true = torch.randn(form.dims, 6, generator=torch.Generator().manual_seed(0)) * 0.05
    chance = torch.Generator().manual_seed(1)
    y = 0.5 + torch.randn(2000, 6, generator=chance) @ true.T + 0.03 * torch.randn(2000, form.dims, generator=chance)
    x = shades.picture(shades.shades(y.clamp(0, 1).view(-1, *form.shape) * 2 - 1))
    bits = {}
    for name, options in (("ppca", {"components": 6}), ("vae", {"latents": 8, "width": 8})):
        model = make(name, options, form, 0)
        model.begin(x[:1800], None)
        bits[name] = float(model.bits_per_dim(x[1800:], None, draws(200)).mean())
    assert bits["vae"] == pytest.approx(bits["ppca"], abs=0.08)
    came_back = model.decode(model.encode(x[1800:]))
    assert float((came_back - x[1800:]).detach().std()) == pytest.approx(
        0.06, rel=0.1
    )  # what the components leave over


def test_ppca_begins_with_a_mean_for_each_class_that_few_pictures_do_not_set() -> None:
    form = Form(4, 3)
    label = torch.tensor([0, 1]).repeat(200)
    y = 0.3 + 0.4 * label[:, None] + 0.02 * torch.randn(400, form.dims, generator=torch.Generator().manual_seed(0))
    y[0], label[0] = 0.9, 2  # the one picture of its class
    model = make("ppca", {"components": 3}, form, 0)
    model.begin(y.view(-1, *form.shape) * 2 - 1, label)
    any_, low, high, lone = model.mean.mean(1).tolist()
    assert any_ == pytest.approx(0.5, abs=0.02)
    assert low < 0.36 and high > 0.64 and lone == pytest.approx(any_, abs=0.02)
    far = label != 2
    told = model.bits_per_dim(y[far].view(-1, *form.shape) * 2 - 1, label[far], draws(int(far.sum()))).mean()
    untold = model.bits_per_dim(y[far].view(-1, *form.shape) * 2 - 1, None, draws(int(far.sum()))).mean()
    assert told < untold - 0.1


def test_a_vae_draws_the_class_that_it_is_asked_for_from_the_beginning() -> None:
    form = Form(8, 2)
    label = torch.tensor([0, 1]).repeat(300)
    y = 0.3 + 0.4 * label[:, None] + 0.1 * torch.randn(600, form.dims, generator=torch.Generator().manual_seed(0))
    model = made("vae", form)
    model.begin(y.clamp(0, 1).view(-1, *form.shape) * 2 - 1, label)
    dark, light = (
        float(model.sample(200, torch.full((200,), one), torch.Generator().manual_seed(1)).mean()) for one in (0, 1)
    )
    assert dark == pytest.approx(-0.4, abs=0.1) and light == pytest.approx(0.4, abs=0.1)
    x = y[:50].clamp(0, 1).view(-1, *form.shape) * 2 - 1
    told = {name: model.bits_per_dim(x, one, draws(50)).mean() for name, one in (("so", label[:50]), ("not", None))}
    assert told["so"] < told["not"] - 0.1


def test_what_is_left_of_the_principal_components_is_no_rounding() -> None:
    """Bright pictures whose last directions are all but nothing beside their first."""
    scale = torch.cat([torch.full((40,), 0.5), torch.full((8,), 1e-3)])
    y = torch.randn(4000, 48, generator=torch.Generator().manual_seed(0)) * scale
    _, _, left = principal(y - y.mean(0), 43)
    assert float(left) == pytest.approx(1e-6, rel=0.2)


@pytest.mark.parametrize("name", ["ppca", "vae", "mixture"])
def test_a_beginning_of_one_picture_is_finite(name: str) -> None:
    model = made(name, Form(8))
    model.begin(pictures(1, Form(8)), None)
    assert model.bits_per_dim(pictures(2, Form(8)), None, draws(2)).isfinite().all()


def test_convolutions_of_a_vae_do_not_upset_what_the_line_knows() -> None:
    """A step of Adam moves each weight by its rate, however sharp a latent is."""
    form = Form(8, 0)
    mixed = torch.randn(form.dims, 40, generator=torch.Generator().manual_seed(0)) * 0.05
    y = 0.5 + torch.randn(600, 40, generator=torch.Generator().manual_seed(1)) @ mixed.T
    x = y.clamp(0, 1).view(-1, *form.shape) * 2 - 1
    model = make("vae", {"latents": 40, "width": 8}, form, 0)
    model.begin(x, None)
    before = float(model.bits_per_dim(x, None, draws(600)).mean())
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        model.loss("model", x, None, draws(600))[0].mean().backward()
        optimiser.step()
    assert float(model.bits_per_dim(x, None, draws(600)).mean()) < before + 0.05


def test_few_pictures_do_not_make_ppca_sure_of_what_they_lack() -> None:
    """Sixty pictures span sixty of 192 directions; new ones of the same kind must not be all but impossible."""
    form = Form(8, 0)
    mixed = torch.randn(form.dims, form.dims, generator=torch.Generator().manual_seed(0)) * 0.01
    made = 0.5 + torch.randn(260, form.dims, generator=torch.Generator().manual_seed(1)) @ mixed
    x = made.clamp(0, 1).view(-1, *form.shape) * 2 - 1
    bits = {}
    for components in (5, 190):
        model = make("ppca", {"components": components}, form, 0)
        model.begin(x[:60], None)
        bits[components] = float(model.bits_per_dim(x[60:], None, draws(200)).mean())
    assert bits[190] < bits[5] + 0.2


@pytest.mark.parametrize("shape", [(300, 60), (40, 60), (200, 90)])
def test_leading_directions_are_those_of_the_covariance(shape: tuple[int, int]) -> None:
    """Of many rows, of few, and of so many directions that not all are looked for."""
    scale = 0.8 ** torch.arange(shape[1])
    y = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale
    y = y - y.mean(0)
    values, directions = leading(y, 8)
    want = torch.linalg.eigvalsh(y.T @ y / (len(y) - 1)).flip(0)[:8]
    assert torch.allclose(values, want, rtol=1e-3)
    assert torch.allclose(directions.T @ directions, torch.eye(8), atol=1e-4)
    assert torch.allclose((y @ directions).var(0), want, rtol=1e-3)


def test_a_mixture_finds_clusters() -> None:
    form = Form(2, 0)
    centres = torch.tensor([0.2, 0.5, 0.8])
    y = centres.repeat(40)[:, None] + 0.02 * torch.randn(120, form.dims, generator=torch.Generator().manual_seed(0))
    model = make("mixture", {"components": 3}, form, 0)
    model.begin(y.view(-1, *form.shape) * 2 - 1, None)
    assert torch.allclose(model.mean.mean(1).sort().values.detach(), centres, atol=0.02)


@pytest.mark.parametrize(("side", "places"), [(8, 4), (16, 8), (32, 8), (64, 8)])
def test_codes_are_as_many_whatever_the_size_of_pictures(side: int, places: int) -> None:
    model = make("vqvae", {**SMALL["vqvae"], "grid": 8}, Form(side), 0)
    assert model.encode(torch.zeros(2, 3, side, side), None).shape == (2, places, places)
    assert model.decode(torch.zeros(2, places, places, dtype=torch.long)).shape == (2, 3, side, side)


def test_samples_of_a_path_take_as_many_passes_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("flow_matching", {**SMALL["flow_matching"], "steps": 5, "drawn": 2}, Form(8), 0)
    passes, own = [], model.said
    monkeypatch.setattr(model, "said", lambda *given: passes.append(1) or own(*given))
    model.sample(1, None, torch.Generator().manual_seed(0))
    assert len(passes) == 2 * 4
    model.decode(torch.zeros(1, 3, 8, 8))
    assert len(passes) == 2 * 4 + 5 * 4


@pytest.mark.parametrize("name", ["vqvae", "transformer"])
def test_a_prior_over_codes_looks_back_only_and_sums_to_one(name: str) -> None:
    form = Form(4, 2)
    options = {**SMALL[name], "codes": 3}
    model = stirred(make(name, options, form, 0))  # 2x2 codes of 3: 81 sequences
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    for label in (None, torch.ones(81, dtype=torch.long)):
        with torch.no_grad():
            nats = model.prior_nats(every, label, draws(81))
        assert (-nats).double().exp().sum() == pytest.approx(1, abs=1e-5)


def test_a_cached_code_is_that_of_the_whole_sequence() -> None:
    """Drawn one position at a time with kept keys and values, or by the whole sequence again: the same logits."""
    model = stirred(make("transformer", SMALL["transformer"], Form(8), 0))
    index = torch.randint(8, (3, 16), generator=torch.Generator().manual_seed(0))
    whole = model.prior(index, None)
    cache, x = [], model.prior.first(None, 3)
    for place in range(16):
        assert torch.allclose(model.prior.step(x, cache), whole[:, place], atol=1e-5)
        x = (model.prior.table(index[:, place]) + model.prior.places[place + 1])[:, None]


def test_the_bound_of_absorbing_diffusion_holds_on_average() -> None:
    """Its expectation is a mean over orders of exact log probabilities, each of which sums to one."""
    model = stirred(make("absorbing", {**SMALL["absorbing"], "codes": 3, "grid": 2}, Form(8), 0))
    assert model.length == 4
    index = torch.tensor([[[0, 2], [1, 1]]]).expand(20_000, -1, -1)
    with torch.no_grad():
        found = model.prior_nats(index, None, draws(20_000))
        exact = _over_orders(model, index[0].flatten())
    assert float(found.mean()) == pytest.approx(exact, abs=4 * float(found.std()) / 20_000**0.5)


def _over_orders(model: Family, codes: Tensor) -> float:
    from itertools import permutations

    nats, orders = 0.0, list(permutations(range(4)))
    for order in orders:
        seen = torch.full((1, 4), model.prior.codes)
        for place in order:
            nats -= float(model.prior(seen, None).log_softmax(2)[0, place, codes[place]])
            seen[0, place] = codes[place]
    return nats / len(orders)


def test_the_noise_of_a_ladder_without_a_picture_costs_nothing() -> None:
    model = stirred(made("ladder", Form(8)))
    noise = [torch.randn(2, *shape) for shape in model._shapes()]
    _, divergence = model._down(model.told(None, 2), noise, None)
    assert torch.equal(divergence, torch.zeros(2))
    _, divergence = model._down(model.told(None, 2), noise, model._seen(pictures(2, Form(8)), model.told(None, 2)))
    assert (divergence > 0).all()


@pytest.mark.torture
def test_flow_densities_of_two_numbers_integrate_to_one() -> None:
    form = Form(1, 0, 2)
    layers: list[Bijection] = [Logit()]
    with torch.no_grad(), seeded(3):
        for first in (True, False):
            keep = half_of_channels(2, first)
            layers += [ActNorm(2), Rotation(2), Coupling(keep, Stack(2, 8, 4, 1))]
            layers += [ActNorm(2), MixtureCoupling(keep, Stack(2, 8, 2 * (2 + 3 * 3), 1), 3)]
        chain = Chain(layers)
        for weight in chain.parameters():
            weight.add_(torch.randn(weight.shape) * 0.1)
    chain.double()
    side, edge = 600, 0.05 / 0.9  # some of the mass lies beyond the ends, from where the logit comes
    axis = (torch.arange(side, dtype=torch.float64) + 0.5) / side * (1 + 2 * edge) - edge
    grid = torch.cartesian_prod(axis, axis).view(-1, *form.shape)
    with torch.no_grad():
        chain(grid[::97])  # scales from data
        z, change = chain(grid)
    assert (normal_log_density(z) + change).exp().mean() * (1 + 2 * edge) ** 2 == pytest.approx(1, abs=5e-3)


def test_a_coupling_is_that_of_zuko() -> None:
    import zuko

    layer = Coupling(half_of_channels(2, True), Stack(2, 8, 4, 1))
    with torch.no_grad(), seeded(0):
        for weight in layer.parameters():
            weight.add_(torch.randn(weight.shape) * 0.3)
    x = torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(0))

    def told(kept: Tensor):  # type: ignore[no-untyped-def]
        s, t = layer._told(torch.cat([kept, torch.zeros_like(kept)], 1)[:, :, None, None], None)
        s, t = s[:, 1:, 0, 0], t[:, 1:, 0, 0]
        move = torch.distributions.AffineTransform(t * s.exp(), s.exp())
        return torch.distributions.IndependentTransform(move, 1)

    theirs = zuko.transforms.CouplingTransform(told, torch.tensor([True, False]))
    z, change = layer(x)
    assert torch.allclose(z.flatten(1), theirs(x.flatten(1)), atol=1e-6)
    assert torch.allclose(change, theirs.log_abs_det_jacobian(x.flatten(1), z.flatten(1)), atol=1e-6)


def _moving(form: Form, far: float) -> tuple[Family, Tensor]:
    """An FFJORD whose velocity is not small, and points on its line."""
    model = make("ffjord", {**SMALL["ffjord"], "width": 8}, form, 0)
    with torch.no_grad(), seeded(2):
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * far)
    return model.double(), torch.randn(3, *form.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_divergence_of_a_free_flow_is_autograds_and_zukos() -> None:
    """Averaged over all sixteen vectors of signs the estimate is the trace itself."""
    import zuko

    form = Form(2, 0, 1)
    model, x = _moving(form, 0.2)
    h = model.told(None, 1)

    def velocity(at: Tensor, t: Tensor) -> Tensor:
        return model.velocity(at, t, h.expand(len(at), -1))

    every = (torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)).double().view(-1, *form.shape)
    for one in x:
        start = one.expand(16, *form.shape)
        end, gained = carried_with_density(velocity, start, 0.0, 1.0, 40, every)
        jacobian = torch.autograd.functional.jacobian(
            lambda flat: carried(velocity, flat.view(1, *form.shape), 0.0, 1.0, 40).flatten(), one.flatten()
        )
        assert float(torch.linalg.slogdet(jacobian).logabsdet) == pytest.approx(float(gained.mean()), abs=1e-4)

        def field(t: Tensor, flat: Tensor) -> Tensor:
            return velocity(flat.view(1, *form.shape), t.view(1)).flatten()

        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        theirs = zuko.transforms.FreeFormJacobianTransform(field, *ends, phi=tuple(model.parameters()), exact=True)
        z, change = theirs.call_and_ladj(one.flatten())
        assert torch.allclose(z, end[0].flatten(), atol=1e-4)
        assert float(change) == pytest.approx(float(gained.mean()), abs=1e-3)


def test_a_free_flow_comes_back() -> None:
    form = Form(4, 0)
    model, x = _moving(form, 0.1)
    h = model.told(None, 3)
    there = carried(lambda at, t: model.velocity(at, t, h), x, 0.0, 1.0, 12)
    back = carried(lambda at, t: model.velocity(at, t, h), there, 1.0, 0.0, 12)
    assert (there - x).abs().max() > 0.05
    assert (back - x).abs().max() <= 1e-3


def test_a_style_scales_the_weights() -> None:
    """Scaled inputs and outputs against a kernel of its own for each picture, as the paper writes it."""
    from ldm.baselines.stylegan import Styled

    with seeded(0):
        layer, x, w = Styled(4, 6, 5), torch.randn(3, 4, 8, 8), torch.randn(3, 5)
    s = layer.style(w)
    for i in range(3):
        kernel = layer.weight * layer.scale * s[i][None, :, None, None]
        kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        want = torch.nn.functional.conv2d(x[i : i + 1], kernel, layer.bias, padding=1)
        assert torch.allclose(layer(x, w)[i : i + 1], want, atol=1e-5)


def test_augmentation_follows_how_sure_the_critic_is() -> None:
    model = make("stylegan", {**SMALL["stylegan"], "rise": 4000}, Form(8), 0)
    model._adapt(torch.ones(8))
    assert float(model.chance) == pytest.approx(8 / 4000)
    model._adapt(-torch.ones(8))
    model._adapt(-torch.ones(8))
    assert float(model.chance) == 0
    x = pictures(64, Form(8))
    assert torch.equal(augmented(x, draws(64), "real", 0.0), x)
    changed = (augmented(x, draws(64), "real", 0.5) != x).flatten(1).any(1).float().mean()
    assert 0.9 < float(changed) <= 1  # eight of them, each with a half
    few = (augmented(x, draws(64), "real", 0.02) != x).flatten(1).any(1).float().mean()
    assert float(few) < 0.4


@pytest.mark.parametrize("loss", ["original", "least_squares", "wasserstein", "hinge"])
def test_an_adversarial_loss_pulls_scores_apart_and_pictures_along(loss: str) -> None:
    cost = LOSSES[loss]
    real, fake = torch.zeros(1, requires_grad=True), torch.full((1,), 0.5, requires_grad=True)
    up, down = torch.autograd.grad(cost.critic(real, fake).sum(), (real, fake))
    assert float(up) < 0 < float(down)
    (pull,) = torch.autograd.grad(cost.maker(fake).sum(), fake)
    assert float(pull) < 0


def test_gradient_norms_have_a_way_back() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    norms = gradient_norms(lambda y: y.flatten(1) @ weight, torch.zeros(2, 2, 1, 1))
    assert torch.allclose(norms, torch.tensor([5.0, 5.0]))
    (slope,) = torch.autograd.grad(norms.sum(), weight)
    assert torch.allclose(slope, torch.tensor([1.2, 1.6]))


def test_places_drawn_one_by_one_are_told_the_same_as_the_whole_picture() -> None:
    """What each place was told while it was drawn, against the network's word on the finished picture."""
    form = Form(7, 2)
    model = stirred(make("pixelcnn", {**SMALL["pixelcnn"], "kernel": 5}, form, 0))
    x, h = pictures(2, form), model.told(torch.tensor([0, 1]), 2)
    given, said, filled = iter(x.flatten(2).unbind(2)), [], torch.zeros_like(x)

    def draw(y: Tensor) -> Tensor:
        said.append(model.leave(y)[..., 0, 0])
        return next(given)

    with torch.no_grad():
        read_on(list(model.layers), filled, h, draw)
        whole = model.told_by(x, torch.tensor([0, 1]))
    assert torch.equal(filled, x)
    assert torch.allclose(torch.stack(said, 2), whole.flatten(2), atol=1e-5)


def test_the_mass_of_a_normal_over_shades_is_one_and_tails_keep_their_size() -> None:
    x = shades.picture(torch.arange(256))
    for mean, deviation in ((0.0, 0.2), (0.9, 0.01), (-1.2, 0.05)):
        log = normal_mass(x, torch.tensor(mean), 2 * torch.tensor(deviation).log())
        assert log.double().exp().sum() == pytest.approx(1, abs=1e-5)
    far = normal_mass(torch.tensor([0.5]), torch.tensor(-0.5), 2 * torch.tensor(0.02).log())
    assert float(far) == pytest.approx(-0.5 * (1.0 / 0.02) ** 2, rel=0.2)  # fifty deviations away: no floor


@pytest.mark.parametrize("name", ["score", "flow_matching"])
@pytest.mark.parametrize("deviation", [0.6, 2.6, 40.0])
def test_the_bits_of_a_path_are_those_of_the_distribution_it_follows(
    name: str, deviation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of a normal distribution so many shades wide, and the velocity that is right for them."""
    form = Form(8, 0)
    model = make(name, {"width": 32, "steps": 12}, form, 0)
    variance = (deviation * 2 / 256) ** 2

    def said(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """What tells E[e | x_t], or E[e - x | x_t], of x ~ N(0, variance)."""
        if name == "score":
            alpha, sigma = levels(t**2)
            return (sigma / (alpha**2 * variance + sigma**2) - sigma) / alpha * x
        wide = t[:, None, None, None]
        return (wide - (1 - wide) * variance) * x / ((1 - wide) ** 2 * variance + wide**2)

    monkeypatch.setattr(model, "said", said)
    draws_ = Draws(0, torch.arange(16), 16)
    x = draws_.normal("x", form.shape) * variance**0.5
    monkeypatch.setattr(model, "shaken", lambda shown, _: shown)
    told = model.bits_per_dim(x, None, draws_)
    want = (0.5 * x**2 / variance + 0.5 * math.log(2 * math.pi * variance)).flatten(1).mean(1) / math.log(2) + 7
    assert torch.allclose(told, want, atol=0.1)


def test_what_a_score_network_says_wrong_at_the_noise_hardly_moves_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """At t = 1 there is one part of the picture in 150 of noise."""
    model = make("score", {"width": 32}, Form(8, 0), 0)
    monkeypatch.setattr(model, "said", lambda x, t, label: torch.ones_like(x))
    x = torch.zeros(1, 3, 8, 8)
    assert float(model.velocity(x, torch.ones(1), None).max()) < 0.1
    assert float(model.velocity(x, torch.full((1,), 0.05), None).max()) > 1


def test_a_critic_of_bounded_weights_is_told_the_class() -> None:
    """Its answer differs between classes as it does between pictures, within an order of magnitude."""
    form = Form(8, 4)
    x = pictures(4, form)
    model = make("dcgan", {"spectral": True, "width": 8}, form, 0)
    with torch.no_grad():
        each = torch.stack([model.judge(x, torch.full((4,), k)) for k in range(4)])
    assert float(each.std(0).mean()) > 0.1 * float(each.std(1).mean())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ddpm", {"width": 20}, "multiple of 8"),
        ("transformer", {"inner": 190}, "multiple of heads"),
        ("dcgan", {"spectral": True, "clip": 0.01}, "give one of them"),
        ("latent", {"solver": "none"}, "solver"),
    ],
)
def test_settings_that_cannot_be_are_told_before_anything_is_trained(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(LdmError) as caught:
        make(name, options, Form(8, 2), 0)
    assert said in str(caught.value)


@pytest.mark.parametrize(("name", "width"), [("r3gan", 28), ("latent", 16)])
def test_narrow_and_odd_networks_work(name: str, width: int) -> None:
    model = make(name, {**SMALL[name], "width": width}, Form(8, 2), 0)
    assert model.sample(2, torch.tensor([0, 1]), torch.Generator().manual_seed(0)).isfinite().all()


def test_the_slope_at_real_pictures_counts_now_and_then_and_by_its_weight() -> None:
    form, x = Form(8), pictures(4, Form(8))
    losses = {}
    for gamma in (0.0, 10.0):
        model = make("stylegan", {**SMALL["stylegan"], "gamma": gamma, "lazy": 4}, form, 0)
        for step in (0, 1):
            at = Draws(0, torch.arange(step * 4, step * 4 + 4), 4)
            losses[gamma, step] = float(model.loss("critic", x, None, at)[0].mean())
    assert losses[10.0, 0] > losses[0.0, 0] and losses[10.0, 1] == losses[0.0, 1]


def test_looking_at_a_model_leaves_it_as_it_is() -> None:
    model = made("stylegan", Form(8))
    x = pictures(4, Form(8))
    model.loss("critic", x, None, draws(4))
    before = float(model.chance)
    model.eval().loss("critic", x, None, draws(4))
    assert float(model.chance) == before


def test_the_fine_codes_of_two_levels_are_told_of_the_coarse_ones_and_sum_to_one() -> None:
    """2x2 fine codes of three, given one coarse code: 81 sequences, for each coarse code."""
    model = stirred(make("vqvae2", {**SMALL["vqvae2"], "codes": 3}, Form(4, 2), 0))
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    found = []
    for coarse in range(3):
        beside = model.beside(torch.full((81, 1, 1), coarse), torch.ones(81, dtype=torch.long))
        with torch.no_grad():
            nats = model.prior_bottom.nats(every, beside)
        assert (-nats).double().exp().sum() == pytest.approx(1, abs=1e-5)
        found.append(nats)
    assert not torch.allclose(found[0], found[1])


def test_pictures_that_are_all_the_same_have_no_spread() -> None:
    from ldm.baselines.stylegan import spread

    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    alike, different = spread(x[:1].expand(8, -1, -1, -1)), spread(x)
    assert alike.shape == (8, 4, 4, 4) and float(alike[:, 3].max()) < 1e-3
    rows = x.view(4, 2, 3, 4, 4)
    assert torch.allclose(different[0, 3, 0, 0], rows[:, 0].std(0, unbiased=False).mean(), atol=1e-4)
