"""What other programs do to a machine is told: where they keep it busy, and only there. Memory is a process's own."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
import torch

from train.machine import crowded, peak_memory

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


@pytest.mark.torture
def test_the_peak_of_memory_is_not_that_of_whoever_started_the_process() -> None:
    held = torch.ones(1_000_000_000, dtype=torch.uint8)
    ours, size = peak_memory(CPU), held.nbytes
    assert ours > size
    del held
    look = "import torch; from train.machine import peak_memory; print(peak_memory(torch.device('cpu')))"
    child = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert 50_000_000 < int(child.stdout) < size
