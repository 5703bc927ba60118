"""Memory that did not suffice: how it is told, and how to have some again."""

from __future__ import annotations

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for its own allocators of graphics cards; drivers, libraries and the CPU say it in words."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def release() -> None:
    """Gives back what an allocator keeps, after an error has let go of what it held."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
