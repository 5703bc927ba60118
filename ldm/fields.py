"""What a JSON file says of a part: a dictionary whose entries can be read as attributes."""

from __future__ import annotations

from typing import Any


class Fields(dict[str, Any]):
    """They are read and never set as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error
