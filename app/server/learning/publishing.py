"""What was learned, among the adapters that the server offers."""

from __future__ import annotations

import filecmp
import itertools
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from ldm.images.save import new_file


def publish(sources: Mapping[str, Path], name: str, folder: Path, taken: Collection[str]) -> dict[str, str]:
    """Copies files whole under a name that nobody has: NAME with each ending, else NAME-2, NAME-3. The names by ending.
    What a server copied before it was killed is found again."""
    for number in itertools.count(1):
        names = {ending: f"{name if number == 1 else f'{name}-{number}'}{ending}" for ending in sources}
        goals = {ending: folder / f"{called}.safetensors" for ending, called in names.items()}
        ours = {ending: goal.is_file() and filecmp.cmp(sources[ending], goal, False) for ending, goal in goals.items()}
        if all(
            ours[ending] or (names[ending].casefold() not in taken and not goals[ending].exists()) for ending in sources
        ):
            break
    for ending, source in sources.items():
        if not ours[ending]:
            with source.open("rb") as data, new_file(goals[ending]) as file:
                shutil.copyfileobj(data, file)
    return names
