"""Devices by name: what is no device is a mistake in the request, what is not here is a matter of the machine."""

from __future__ import annotations

import pytest
import torch

from ldm.errors import Code, LdmError
from pipelines.device import pick_device


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("cdua", "Write cuda."),
        ("cup", "Write cpu."),
        ("atuo", "Write auto."),
        ("cuda:x", "Write cuda."),
        ("cpu:", "Write cpu."),
        ("", "Choose"),
    ],
)
def test_what_is_no_device_is_a_mistake_of_usage(name: str, fix: str) -> None:
    with pytest.raises(LdmError) as caught:
        pick_device(name)
    assert caught.value.code is Code.USAGE
    assert caught.value.fix.startswith(fix)


def test_a_device_that_is_not_here_is_a_matter_of_the_machine() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(LdmError) as caught:
        pick_device("cuda:99")
    assert caught.value.code is Code.RESOURCE
