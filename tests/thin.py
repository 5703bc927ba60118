"""Cases of which the quick suite runs some, and `make torture` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], every: int) -> list[Any]:
    """All of them; one in `every`, the first among them, is in the quick suite."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=[pytest.mark.torture] if n % every else []) for n, row in enumerate(rows)]
