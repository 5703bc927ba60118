"""Random numbers of training: those of the data (`ldm.data.draws`), so that one rule serves order, crops and noise."""

from __future__ import annotations

from ldm.data.draws import Draws, philox

__all__ = ["Draws", "philox"]
