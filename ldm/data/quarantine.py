"""Pictures that cannot be read: each is named once and left out, and too many of them stop the run.

The rate is judged as it is found out. Over n pictures tried, more than n/10 bad ones may be chance while n is small, so
the run stops when the excess is beyond four standard deviations of a set with exactly a tenth bad, or certain.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ldm.data.source import SHOWN
from ldm.errors import Code, LdmError

LIMIT = 0.1
Warn = Callable[[str], None]


def warn_once(text: str) -> None:
    """Where nobody gave another ear: Python's own warnings."""
    warnings.warn(text, stacklevel=3)


class Quarantine:
    """Which of `total` examples were tried, and which of them failed, with the reason."""

    def __init__(self, total: int, title: str, warn: Warn = warn_once) -> None:
        self.title = title
        self.failed: dict[int, str] = {}
        self._warn = warn
        self._tried = np.zeros(total, bool)

    def take(self, examples: Iterable[int], failed: Mapping[int, str]) -> None:
        """Notes what was tried, warns of what is new, and raises when it is too much."""
        tried = np.fromiter(examples, np.int64)
        self._tried[tried] = True
        new = {index: why for index, why in failed.items() if index not in self.failed}
        for index, why in new.items():
            self._tried[index] = True
            self.failed[index] = why
            self._warn(f"left out: {' '.join(why.split())}")  # one line, whatever the name holds
        if new:
            self._judge()

    def _judge(self) -> None:
        bad, tried, total = len(self.failed), int(self._tried.sum()), len(self._tried)
        chance = 4 * math.sqrt(tried * LIMIT * (1 - LIMIT)) if tried < total else 0.0
        if bad <= LIMIT * total and bad <= LIMIT * tried + chance:
            return
        first = "; ".join(list(self.failed.values())[:SHOWN])
        raise LdmError(
            Code.FILE,
            f"{self.title}: {bad} of {tried} pictures tried cannot be read, more than {LIMIT:.0%}",
            first,
            "mend or remove them; `ldm data check` lists all of them with the reason",
        )
