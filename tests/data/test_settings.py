"""The data section refuses what would do nothing, and survives being written out."""

from __future__ import annotations

import pytest

from ldm.config import dump, loads
from ldm.data.settings import DataSettings
from ldm.errors import LdmError

MIX = "{mix: [{path: scenes, weight: 2, count: 9}, {path: a, where: {split: x, label: [1, 2]}}], size: 32}"
FULL = "{path: a, size: 64, buckets: {sizes: [[64, 64], [48, 80]]}, hint: [canny, beside], caption: a, validation: 9}"


@pytest.mark.parametrize("text", [MIX, FULL, "{path: scenes, size: 32, memory: 0}"])
def test_written_out_and_read_again(text: str) -> None:
    settings = loads(text, DataSettings)
    assert loads(dump(settings), DataSettings) == settings


def test_one_or_several() -> None:
    settings = loads(FULL, DataSettings)
    assert (settings.hints, settings.templates, settings.under) == (("canny", "beside"), ("a",), (255, 255, 255))
    assert settings.parts == [settings]
    assert [part.path for part in loads(MIX, DataSettings).parts] == ["scenes", "a"]


@pytest.mark.parametrize(
    ("text", "override", "words"),
    [
        (FULL, "paht=x", "did you mean path"),
        (FULL, "size=7", "greater than or equal to 8"),
        (FULL, "zoom=2", "zoom needs crop: random"),
        (FULL, "validation=1.5", "a share below 1 or a whole number"),
        (FULL, "background=white", "background"),
        (FULL, "kind=foldr", "did you mean folder"),
        (MIX, "path=a", "either path: or mix:"),
        (MIX, "mix=[]", "either path: or mix:"),
        (MIX, "mix=[{weight: 2}]", "each part of mix: needs a path"),
        (MIX, "caption=a cat", "caption would do nothing beside mix"),
    ],
)
def test_mistakes(text: str, override: str, words: str) -> None:
    with pytest.raises(LdmError, match=words):
        loads(text, DataSettings, [override])
