"""Perceptual distances: LPIPS against its formula over torchvision's trunks, our CLIP tower, the small classifier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import alexnet
from torchvision.models.vgg import cfgs, make_layers
from transformers import CLIPVisionConfig, CLIPVisionModel

from ldm.errors import Code, LdmError
from ldm.models.lpips import lpips
from ldm.models.perceptual import ClipFeatures, Perceptual, SmallClassifier
from tests.components import seeded

TAPS = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}  # the activations whose values LPIPS compares
SHIFT, SCALE = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])


def trunk_of(kind: str) -> nn.Sequential:
    with seeded(3):
        features: nn.Sequential = make_layers(cfgs["D"]) if kind == "vgg" else alexnet(num_classes=2).features
    return features.eval()


def heads_of(trunk: nn.Sequential, taps: tuple[int, ...]) -> list[Tensor]:
    x, widths = torch.zeros(1, 3, 64, 64), []
    for i, layer in enumerate(trunk):
        x = layer(x)
        widths += [x.shape[1]] if i in taps else []
    with seeded(4):
        return [torch.rand(1, width, 1, 1) for width in widths]


def reference(trunk: nn.Sequential, heads: list[Tensor], taps: tuple[int, ...], a: Tensor, b: Tensor) -> Tensor:
    """Zhang et al. 2018, eq. 1, written out."""
    x, y = ((p - SHIFT.view(1, 3, 1, 1)) / SCALE.view(1, 3, 1, 1) for p in (a, b))
    total = torch.zeros(len(a))
    for i, layer in enumerate(trunk):
        x, y = layer(x.clone()), layer(y.clone())
        if i in taps:
            u, v = (f / f.square().sum(1, keepdim=True).sqrt().clamp(min=1e-10) for f in (x, y))
            total += nn.functional.conv2d((u - v) ** 2, heads[taps.index(i)]).mean((1, 2, 3))
    return total


def lpips_names(trunk: nn.Sequential, heads: list[Tensor], taps: tuple[int, ...]) -> dict[str, Tensor]:
    """As the state_dict of the lpips package calls them."""
    state = {}
    for name, tensor in trunk.state_dict().items():
        index = int(name.split(".")[0])
        state[f"net.slice{1 + sum(tap < index for tap in taps)}.{name}"] = tensor
    for depth, head in enumerate(heads):
        state[f"lin{depth}.model.1.weight"] = state[f"lins.{depth}.model.1.weight"] = head
    return state | {"scaling_layer.shift": SHIFT, "scaling_layer.scale": SCALE}


def torchvision_names(trunk: nn.Sequential, heads: list[Tensor], taps: tuple[int, ...]) -> dict[str, Tensor]:
    state = {f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}
    return state | {f"lin{depth}.weight": h for depth, h in enumerate(heads)} | {"classifier.0.weight": torch.zeros(2)}


@pytest.mark.parametrize("names", [lpips_names, torchvision_names])
@pytest.mark.parametrize("kind", ["vgg", "alex"])
def test_lpips_is_its_formula(kind: str, names: Callable[..., dict[str, Tensor]]) -> None:
    trunk, taps = trunk_of(kind), TAPS[kind]
    heads = heads_of(trunk, taps)
    measure = lpips(names(trunk, heads, taps), "here")
    with seeded(5):
        a, b = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        found, wanted = measure(a, b), reference(trunk, heads, taps, a, b)
    assert float(wanted.min()) > 0
    assert float((found - wanted).abs().max() / wanted.max()) < 1e-5
    assert float(measure(a, a).detach().max()) == 0


def test_lpips_says_what_a_file_lacks() -> None:
    trunk = trunk_of("alex")
    tensors = torchvision_names(trunk, heads_of(trunk, TAPS["alex"]), TAPS["alex"])
    del tensors["lin3.weight"], tensors["features.6.bias"]
    with pytest.raises(LdmError) as caught:
        lpips(tensors, "weights.safetensors")
    assert caught.value.code == Code.MODEL
    assert "features.6.bias" in caught.value.why and "lin3.model.1.weight" in caught.value.why
    with pytest.raises(LdmError, match="weights"):
        lpips({"conv_in.weight": torch.zeros(1)}, "weights.safetensors")


def test_clip_features_are_the_towers_hidden_states() -> None:
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )
    with seeded(6):
        vision, x = CLIPVisionModel(config).eval(), torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    tower = ClipFeatures(vision, mean, std)
    pixels = ((x + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    states = vision(pixel_values=pixels, output_hidden_states=True).hidden_states
    found = tower(x)
    assert [f.shape for f in found] == [(2, 16, 4, 4)] * 3
    for layer, features in zip((1, 2, 3), found, strict=True):
        assert float((features - states[layer][:, 1:].reshape(2, 4, 4, 16).permute(0, 3, 1, 2)).abs().max()) < 1e-6
    assert tower(torch.zeros(1, 3, 24, 40))[0].shape == (1, 16, 4, 4)  # any size, and nothing is cut off


def test_distance_grows_with_damage_and_its_gradient_is_finite_everywhere() -> None:
    with seeded(7):
        measure, x = Perceptual(SmallClassifier(5, (8, 16))), torch.rand(2, 3, 16, 16) * 2 - 1
        noise = torch.randn_like(x)
    levels = [float(measure(x + size * noise, x).sum()) for size in (0.0, 0.02, 0.1, 0.5)]
    assert levels[0] == 0 and levels == sorted(levels)
    same = x.clone().requires_grad_()
    measure(same, x).sum().backward()
    assert same.grad is not None and bool(torch.isfinite(same.grad).all())


def test_classifier_features_have_a_stage_each_and_logits_a_word_each() -> None:
    net = SmallClassifier(7, (8, 8, 16))
    assert [f.shape for f in net(torch.zeros(2, 3, 20, 16))] == [(2, 8, 20, 16), (2, 8, 10, 8), (2, 16, 5, 4)]
    assert net.logits(torch.zeros(2, 3, 20, 16)).shape == (2, 7)
