"""Tiny real models, loaded once for the tests of a file; who changes one puts it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.pipeline import Pipeline


@pytest.fixture(scope="module")
def four(tiny_sd1: Path) -> Pipeline:
    """Four channels."""
    return Pipeline.load(tiny_sd1, device="cpu")


@pytest.fixture(scope="module")
def nine(tiny_inpaint9: Path) -> Pipeline:
    """Nine: latent, mask, masked picture."""
    return Pipeline.load(tiny_inpaint9, device="cpu")
