"""The machine that a run is on: its name beside every figure, and how much of its memory nobody holds."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

LIMITS = (  # memory of a container: its limit, and what it holds
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)

STATUS = Path("/proc/self/status")  # of Linux
LISTENED = 0.3  # seconds in which this program does nothing, and the others are looked at
CROWDED = 0.4  # of all cores


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, device, threads and versions."""
    told: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count() or 1, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        told["device"] = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        told["device"] = device.type
    return told | {"python": platform.python_version(), "torch": torch.__version__, "ldm": _version()}


def processor() -> str:
    """Its maker's name for it, where the system tells."""
    told = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return told
    lines = info.read_text("utf-8", "replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), told)


def free_memory(device: torch.device) -> int:
    """Bytes of the device's memory that nobody holds; on the CPU within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, usage in LIMITS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(usage).read_text()))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return max(free, 0)


def peak_memory(device: torch.device) -> int:
    """Bytes of the device's memory that this process has held at most, on a CPU of the whole process; 0: not known.

    Not by getrusage on Linux: that begins with what the process held that started this one.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if not STATUS.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    lines = STATUS.read_text("utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def crowded(device: torch.device) -> str:
    """What to say where other programs keep the processor busy; empty where they do not, or it does not matter.

    Threads of one operation wait for each other by turning, at the price of a core each. Where one of them is not
    running because another program is, all wait for it: a step takes ten or a hundred times as long.
    """
    if device.type != "cpu" or torch.get_num_threads() == 1 or os.environ.get("OMP_WAIT_POLICY"):
        return ""
    import psutil

    share = psutil.cpu_percent(interval=LISTENED) / 100
    if share < CROWDED:
        return ""
    return (
        f"other programs keep {share:.0%} of the processor busy, and steps may take many times as long as else;"
        " OMP_WAIT_POLICY=passive before the command bears that far better (on a free machine it is slower)"
    )


def _version() -> str:
    try:
        return version("ldm")
    except PackageNotFoundError:
        return "unknown"
