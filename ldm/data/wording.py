"""What a caption becomes each time it is shown: parts shuffled, dropped, kept, as kohya's options of these names do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldm.data.draws import Draws
from ldm.data.settings import DataSettings


def worded(captions: Sequence[Sequence[str]], epochs: Sequence[int], settings: DataSettings, draws: Draws) -> list[str]:
    """One text for each of n examples that have these captions and are shown for the `epochs`-th time (from 0)."""
    which = draws.uniform("caption").tolist() if any(len(c) > 1 for c in captions) else [0.0] * len(captions)
    chosen = [texts[int(u * len(texts))] if texts else "" for texts, u in zip(captions, which, strict=True)]
    if settings.caption_prefix or settings.caption_suffix:
        chosen = [decorated(text, settings) for text in chosen]
    if settings.shuffle_caption or settings.caption_tag_dropout_rate or settings.keep_tokens_separator:
        chosen = _mixed(chosen, settings, draws)
    rate, every = settings.caption_dropout_rate, settings.caption_dropout_every_n_epochs
    if rate:
        gone = (draws.uniform("drop caption") < rate).tolist()
        chosen = ["" if away else text for text, away in zip(chosen, gone, strict=True)]
    if every:
        chosen = ["" if epoch and epoch % every == 0 else text for text, epoch in zip(chosen, epochs, strict=True)]
    return chosen


def decorated(text: str, settings: DataSettings) -> str:
    """A caption with its prefix and suffix; nothing becomes of nothing."""
    parts = (settings.caption_prefix, text, settings.caption_suffix)
    return " ".join(part for part in parts if part) if text else ""


def plain(text: str, settings: DataSettings) -> str:
    """A caption as it is looked at: decorated, in its own order."""
    text, mark = decorated(text, settings), settings.keep_tokens_separator
    return (
        _joined([part for section in text.split(mark) for part in _parts(section, settings)], settings)
        if mark
        else text
    )


def _mixed(texts: Sequence[str], settings: DataSettings, draws: Draws) -> list[str]:
    split = [_split(text, settings) for text in texts]
    longest = max(len(free) for _, free, _ in split)
    order = torch.zeros(len(texts), longest)
    if settings.shuffle_caption:
        order = draws.uniform("shuffle caption", (longest,))
    keep = torch.ones(len(texts), longest, dtype=torch.bool)
    if settings.caption_tag_dropout_rate:
        keep = draws.uniform("drop parts", (longest,)) >= settings.caption_tag_dropout_rate
    result = []
    for (first, free, last), keys, kept in zip(split, order.tolist(), keep.tolist(), strict=True):
        turned = [free[i] for i in sorted(range(len(free)), key=lambda i, keys=keys: keys[i]) if kept[i]]  # type: ignore[misc]
        result.append(_joined([*first, *turned, *last], settings))
    return result


def _split(text: str, settings: DataSettings) -> tuple[list[str], list[str], list[str]]:
    """Parts that stay in front, parts that may move, parts that stay at the end (behind a second separator)."""
    mark = settings.keep_tokens_separator
    if mark and mark in text:
        first, _, rest = text.partition(mark)
        middle, _, last = rest.partition(mark)
        return _parts(first, settings), _parts(middle, settings), _parts(last, settings)
    parts = _parts(text, settings)
    return parts[: settings.keep_tokens], parts[settings.keep_tokens :], []


def _parts(text: str, settings: DataSettings) -> list[str]:
    return [part.strip() for part in text.split(settings.caption_separator) if part.strip()]


def _joined(parts: Sequence[str], settings: DataSettings) -> str:
    return f"{settings.caption_separator} ".join(parts)
