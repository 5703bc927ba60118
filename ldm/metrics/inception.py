"""The Inception network that published FIDs were measured with, by torch-fidelity's code and the user's own weights."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.extras import install
from ldm.metrics.extractors import Extractor, digest
from ldm.store.weights import load_weights

RESIZE = "bilinear to 299 as TensorFlow 1 did it"
_FEATURES = ["2048", "logits_unbiased"]


def by_inception(weights: Path) -> Extractor:
    """`weights` are the tensors of torch-fidelity's file, as safetensors."""
    network = _network(weights)

    def seen(x: Tensor) -> list[Tensor]:
        made: list[Tensor] = network((x * 255).round().clamp(0, 255).to(torch.uint8))
        return made

    return Extractor(f"inception {digest(network)}", RESIZE, lambda x: seen(x)[0], lambda x: seen(x)[1].softmax(1))


def check_inception(weights: Path) -> None:
    """What can be told without reading the file."""
    if not weights.is_file():
        what, why = f"--inception {weights} is not there.", "No file of that name can be read."
        raise LdmError(Code.FILE, what, why, "Give the file of Inception's weights that you have.")
    if weights.suffix != ".safetensors":
        raise LdmError(
            Code.MODEL,
            f"{weights} is no .safetensors file.",
            "Other formats are programs that run when they are opened, and are not opened here.",
            "Convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT).",
        )
    if find_spec("torch_fidelity") is None:
        why = "Inception is built by torch-fidelity, which is not installed."
        raise LdmError(Code.USAGE, "--inception cannot be used.", why, f"Run {install('eval')}.")


def _network(weights: Path) -> Any:
    check_inception(weights)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    tensors = {name: t.clone() for name, t in load_weights(weights).items()}
    with tempfile.TemporaryDirectory() as folder:  # its class reads nothing but a file of torch's, so it gets ours
        file = Path(folder) / "inception.pth"
        torch.save(tensors, file)
        try:
            return FeatureExtractorInceptionV3("inception", _FEATURES, str(file))
        except (RuntimeError, KeyError) as error:
            why = f"Its tensors are not those of the network: {str(error).splitlines()[0][:160]}."
            fix = "Use the weights that torch-fidelity publishes (weights-inception-2015-12-05)."
            raise LdmError(Code.MODEL, f"{weights} is no Inception of FID.", why, fix) from error
