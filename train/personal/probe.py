"""What is drawn at each checkpoint: the subject in new words, its kind alone, and what has nothing to do with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.config import Strict
from ldm.models.prompt.words import says, words
from ldm.store.sampling import PROMPTS, read_beside

SUBJECT = (
    "a photo of {}", "a photo of {} on a beach", "a painting of {} in the style of van gogh",
    "{} in the snow", "a pencil drawing of {}", "{} at night, city lights",
)  # fmt: skip
UNRELATED = (
    "a photo of a mountain lake", "a bowl of fruit on a table", "a red car in a street",
    "a portrait of an old woman", "a ship at sea", "a bouquet of flowers",
)  # fmt: skip
PRIOR = (
    "a photo of a forest path", "a cup of coffee", "a blue bicycle", "a portrait of a young man", "a train station",
    "a watercolour of a village", "a cat on a sofa", "a plate of pasta", "a wooden chair", "a crowd in a square",
)  # fmt: skip
THINGS = ("cat", "dog", "person", "circle")  # of which the first that a model knows stands for a subject
PHOTO = ("a photo of {}",)
CAPTIONS = ("{}", "a {}")  # of small models, who have not read much


class Own(Strict):
    """`prompts.json` in the folder of a model: prompts for those who train on it, with {} where the token goes."""

    subject: tuple[str, ...] = ()
    unrelated: tuple[str, ...] = ()
    prior: tuple[str, ...] = ()  # other ones still: what is looked at is not what is trained on
    captions: tuple[str, ...] = ()  # of photos without words


@dataclass(frozen=True)
class Prompts:
    """`subject` has the token in it; `kind` the plain kind of thing in its place (none, where nobody says which);
    `before` that, or a thing that the model knows: what it makes of the rest of each prompt is what can be asked."""

    subject: tuple[str, ...]
    before: tuple[str, ...]
    kind: tuple[str, ...]
    unrelated: tuple[str, ...]
    prior: tuple[str, ...]


def prompts_for(
    token: str, kind: str, model: Path, known: Collection[str], asked: Sequence[str], unrelated: Sequence[str]
) -> Prompts:
    """Those that were asked for; else those that lie beside the model; else general ones, as far as the model can read
    them."""
    own = own_prompts(model)
    subject = tuple(asked) or own.subject or _read(SUBJECT, known)
    others = tuple(unrelated) or _without(token, own.unrelated or _read(UNRELATED, known))
    plain = tuple(filled(text, kind) for text in subject) if kind else ()
    prior = tuple(text for text in _without(token, own.prior or _read(PRIOR, known, 1)) if text not in others)
    before = plain or tuple(filled(text, _known_thing(known)) for text in subject)
    return Prompts(
        tuple(filled(text, token) for text in subject), before, plain, others, (*((kind,) if kind else ()), *prior)
    )


def _without(token: str, texts: Sequence[str]) -> tuple[str, ...]:
    """What says the token, where that is a common word, is of the subject from now on."""
    return tuple(text for text in texts if not says(text, token))


def _known_thing(known: Collection[str]) -> str:
    return next((word for word in THINGS if not known or word in known), min(known, default=""))


def _read(templates: Sequence[str], known: Collection[str], turn: int = 0) -> tuple[str, ...]:
    """Templates whose words a small model knows; where it knows too few, the token beside single words of its own, or
    such words alone. Another `turn` takes other words."""
    if not known:
        return tuple(templates)
    fit = tuple(text for text in templates if all(word in known for word in words(text.replace("{}", ""))))
    if len(fit) >= 3:
        return fit
    some = sorted(word for word in known if len(word) > 3)[turn::2] or sorted(known)
    picked = some[:: max(1, len(some) // 8)][:8]
    return ("{}", *(f"{{}} {word}" for word in picked[:5])) if "{}" in templates[0] else tuple(picked)


def own_prompts(model: Path) -> Own:
    return read_beside(model / PROMPTS, Own)


def filled(template: str, words: str) -> str:
    return template.replace("{}", words) if "{}" in template else f"{words}, {template}"
