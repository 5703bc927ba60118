"""Samples measured against a data set: figures with protocols, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.errors import LdmError
from ldm.metrics.extractors import Extractor, by_classifier, pixels
from ldm.metrics.inception import by_inception
from ldm.metrics.measured import Reference, measure
from ldm.models.perceptual import SmallClassifier
from tests.components import seeded


def pictures(count: int, seed: int, shift: float = 0.0) -> Tensor:
    """Smooth ones in [0,1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, 8, mode="bilinear") + shift).clamp(0, 1)


def classifier() -> Extractor:
    with seeded(1):
        return by_classifier(SmallClassifier(4, [8, 16]).eval(), [0, 1, 2])


def test_like_pictures_are_better_than_unlike_ones_by_every_measure() -> None:
    reference = Reference.of(pixels(8), pictures(400, 1), pictures(200, 2))
    good, bad = measure(pictures(300, 3), reference), measure(pictures(300, 4, shift=0.3), reference)
    for name, lower in (("fid", True), ("kid", True), ("precision", False), ("coverage", False), ("spectrum_db", True)):
        assert good.figures[name].better_than(bad.figures[name], lower) is not False, name
    assert good.figures["fid"].better_than(bad.figures["fid"], lower=True) is True
    assert not good.notes
    told = good.figures["fid"].protocol
    assert (told.extractor, told.made, told.real) == ("pixels", 300, 400)


def test_copies_are_noted() -> None:
    training = pictures(400, 1)
    told = measure(training[:200], Reference.of(pixels(8), training, pictures(200, 2)))
    assert told.figures["copies"].estimate.value == 1
    assert any("nearer to the training" in note for note in told.notes)


def test_new_pictures_of_the_plain_kind_alone_are_no_copies() -> None:
    """A third of the data hardly varies. A model that draws nothing else is nearer to data than data is to itself."""

    def data(count: int, seed: int, plain: int) -> Tensor:
        made = pictures(count, seed)
        made[:plain] = 0.5 + 0.1 * (made[:plain] - 0.5)
        return made

    reference = Reference.of(pixels(8), data(400, 1, 133), data(200, 2, 67))
    told = measure(data(200, 3, 200), reference)
    assert told.copies.z < -3 and not any("nearer" in note for note in told.notes)
    told = measure(data(400, 1, 133)[:133], reference)
    assert told.copies.z < -3 and any("nearer" in note for note in told.notes)


def test_classes_are_counted_where_the_extractor_knows_them() -> None:
    reference = Reference.of(classifier(), pictures(400, 1), pictures(200, 2), torch.ones(3))
    told = measure(pictures(300, 3), reference)
    assert 1 <= told.figures["inception_score"].estimate.value <= 3
    assert told.balance is not None and len(told.balance.shares) == 3
    assert reference.extractor.name.startswith("classifier ") and len(reference.extractor.name) == 23


def test_classes_of_another_kind_are_not_held_against_the_datas() -> None:
    """Inception names a thousand things, whatever the classes of the data set are."""
    told = measure(pictures(200, 3), Reference.of(classifier(), pictures(400, 1), pictures(200, 2), torch.ones(7)))
    assert "inception_score" in told.figures and "class_distance" not in told.figures and told.balance is None


def test_the_same_seed_gives_the_same_figures() -> None:
    reference = Reference.of(pixels(8), pictures(200, 1), pictures(150, 2))
    assert measure(pictures(150, 3), reference, 5).figures == measure(pictures(150, 3), reference, 5).figures


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(LdmError, match=r"20 pictures \(held out\) are too few"):
        Reference.of(pixels(8), pictures(200, 1), pictures(20, 2))
    with pytest.raises(LdmError, match="all the same"):
        Reference.of(pixels(8), pictures(1, 1).expand(200, -1, -1, -1), pictures(200, 2))
    broken = Extractor("broken", "none", lambda x: x.flatten(1) / 0.0)
    with pytest.raises(LdmError, match="not finite"):
        Reference.of(broken, pictures(200, 1), pictures(200, 2))
    reference = Reference.of(pixels(8), pictures(200, 1), pictures(150, 2))
    with pytest.raises(LdmError, match=r"\(made\) are too few"):
        measure(pictures(50, 3), reference)


@pytest.mark.torture
def test_inception_takes_safetensors_alone_and_gives_features_and_classes(tmp_path: Path) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as module

    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(LdmError, match=r"no \.safetensors file"):
        by_inception(tmp_path / "weights.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(LdmError, match="no Inception"):
        by_inception(tmp_path / "wrong.safetensors")
    network = _random(module)
    save_file({name: t.contiguous() for name, t in network.state_dict().items()}, tmp_path / "i.safetensors")
    extractor = by_inception(tmp_path / "i.safetensors")
    x = pictures(3, 1)
    assert extractor.seen(x).shape == (3, 2048)
    told = extractor.classified(x)
    assert told is not None and told.shape == (3, 1008) and torch.allclose(told.sum(1), torch.ones(3), atol=1e-5)
    want = network((x * 255).round().to(torch.uint8))[0]
    assert torch.allclose(extractor.seen(x), want, atol=1e-5)


def _random(module):  # type: ignore[no-untyped-def]
    """Its network in true shapes with random weights: what its class would read is handed to it."""
    real = torch.load
    torch.load = lambda *_, **__: {}
    original = module.FeatureExtractorInceptionV3.load_state_dict
    module.FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    try:
        with seeded(0):
            return module.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], "nowhere")
    finally:
        torch.load = real
        module.FeatureExtractorInceptionV3.load_state_dict = original
