"""What other programs do to a machine is told: where they keep it busy, and only there."""

from __future__ import annotations

import psutil
import pytest
import torch

from train.machine import crowded

CPU = torch.device("cpu")


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 73.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_a_busy_processor_is_told_with_a_remedy(busy: None) -> None:
    assert "73% of the processor" in crowded(CPU) and "OMP_WAIT_POLICY=passive" in crowded(CPU)


def test_nothing_is_told_where_it_does_not_matter(busy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert crowded(torch.device("cuda")) == ""
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 12.0)
    assert crowded(CPU) == ""
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 73.0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert crowded(CPU) == ""
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert crowded(CPU) == ""
