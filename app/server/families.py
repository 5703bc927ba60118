"""What `ldm compare` found, where this machine has it: the main table of each comparison, as text."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.server.catalog import stamp_of
from ldm.errors import LdmError
from ldm.store.header import printable

if TYPE_CHECKING:
    from app.server.service import Service

log = logging.getLogger("ldm.server")
FOUND = "compare.json"  # a comparison writes it anew after each cell
SHOWN = 20  # the newest
UNREADABLE = (LdmError, OSError, ValueError, LookupError, TypeError, AttributeError)  # a folder may hold anything


def families(service: Service) -> list[dict[str, Any]]:
    """The comparisons in the folder, the newest first; what is none, or cannot be read, is left out."""
    if (folder := service.comparisons) is None or not folder.is_dir():
        return []
    there = [(stamp_of(path), path.parent) for path in folder.glob(f"*/{FOUND}")]
    if there:
        service.worker.bring_in()
    told = (_told(one, stamp) for stamp, one in sorted(there, reverse=True)[:SHOWN])
    return [dict(one) for one in told if one is not None]


@lru_cache(maxsize=2 * SHOWN)
def _told(folder: Path, stamp: int) -> dict[str, Any] | None:
    """One of them; None if it cannot be read, or nothing in it has been measured yet."""
    from train.compare.lab import read_wish  # late: they bring torch
    from train.compare.page_tables import extent, plain
    from train.compare.ranking import unranked
    from train.compare.scale import scale_of
    from train.compare.table import rows

    try:
        wish = read_wish(folder)
        scale, table = scale_of(folder), rows(wish)
        measured = [row for row in table if row.good]
        columns, lines = plain(measured, unranked(wish, measured, scale), scale)
        about = (
            f"{printable(Path(str(wish.data['path'])).name)}: {extent(wish, table)}."  # by its name: no path goes out
        )
    except UNREADABLE as error:
        log.warning("%s is not shown as a comparison: %s", folder, error)
        return None
    told = {"title": printable(folder.name), "about": about, "columns": columns, "rows": lines}
    return told if measured else None
