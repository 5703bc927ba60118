"""All statistics of a set of samples against a data set, each with its interval and its protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from ldm.errors import Code, LdmError
from ldm.metrics.classes import Balance, balance, inception_score
from ldm.metrics.extractors import AT_ONCE, Extractor
from ldm.metrics.frechet import Moments, frechet_distance, frechet_infinity
from ldm.metrics.kernel import kernel_distance
from ldm.metrics.manifold import manifold
from ldm.metrics.memorisation import NEARER, Copies, copies
from ldm.metrics.pictures import unit
from ldm.metrics.protocol import Figure, Protocol
from ldm.metrics.spectrum import power, spectrum_distance

FEWEST = 100  # pictures on either side of a statistic
NEARER_NOTE = "samples lie nearer to the training pictures than held-out pictures do"
PAIRS = frozenset({"kid", "precision", "recall", "density", "coverage"})
SAME = 2 / 255  # from the first picture: what comes of another way of storing it
_ROWS = 5000  # of those, which look at pairs


@dataclass(frozen=True)
class Reference:
    """The data set as an extractor sees it: `training` pictures that models learned from, `held_out` that none did.

    `classes` [k] are how many of the training pictures each class has, where the data set has some."""

    extractor: Extractor
    training: Tensor  # features [m,d]
    held_out: Tensor
    power: Tensor  # [m,rings]
    moments: Moments
    digest: str
    classes: Tensor | None = None  # shares [k]

    @classmethod
    def of(cls, extractor: Extractor, training: Tensor, held_out: Tensor, classes: Tensor | None = None) -> Reference:
        """From pictures [n,3,H,W], in [0,1] or bytes."""
        for what, some in (("training", training), ("held out", held_out)):
            check_enough(len(some), what)
        check_varied(training)
        seen = extractor.seen(training)
        return cls(
            extractor, seen, extractor.seen(held_out), power(training), Moments.of(seen), digest(training), classes
        )

    def tensors(self) -> dict[str, Tensor]:
        """All that an extractor was needed for, to be kept."""
        told = {"training": self.training, "held_out": self.held_out, "power": self.power}
        return told if self.classes is None else told | {"classes": self.classes}

    @classmethod
    def kept(cls, extractor: Extractor, tensors: Mapping[str, Tensor], digest: str) -> Reference:
        """From what was kept."""
        t = tensors
        return cls(
            extractor, t["training"], t["held_out"], t["power"], Moments.of(t["training"]), digest, t.get("classes")
        )


@dataclass(frozen=True)
class Measured:
    """Figures by name, and what is more than a number."""

    figures: dict[str, Figure]
    copies: Copies
    balance: Balance | None = None
    notes: tuple[str, ...] = field(default=())


def measure(pictures: Tensor, reference: Reference, seed: int = 0) -> Measured:
    """Of samples [n,3,H,W], in [0,1] or bytes."""
    check_enough(len(pictures), "made")
    generator = torch.Generator().manual_seed(seed)
    seen = reference.extractor.seen(pictures)
    protocol = Protocol(
        reference.extractor.name, reference.extractor.resize, len(pictures), len(reference.training), reference.digest
    )
    fid = frechet_distance(seen, reference.moments, generator)
    few, real = _some(seen, generator), _some(reference.training, generator)
    around = manifold(few, real)
    found = copies(seen, reference.training, reference.held_out)
    estimates = {
        "fid": fid,
        "fid_infinity": frechet_infinity(seen, reference.moments, generator, fid),
        "kid": kernel_distance(few, real),
        "precision": around.precision,
        "recall": around.recall,
        "density": around.density,
        "coverage": around.coverage,
        "spectrum_db": spectrum_distance(power(pictures), reference.power, generator),
        "copies": found.rate,
        "authentic": found.authentic,
    }
    classes, notes = None, list[str]()
    if (told := reference.extractor.classified(pictures)) is not None:
        estimates["inception_score"] = inception_score(told, generator)
        real_classes = reference.classes
        if real_classes is not None and len(real_classes) == told.shape[1]:  # Inception names a thousand of its own
            classes = balance(told, real_classes, generator)
            estimates["class_distance"] = classes.distance
            if classes.lost:
                notes.append(f"{len(classes.lost)} of {len(classes.shares)} classes are all but missing")
    # z alone is small, too, where a model draws nothing but the plain pictures of its data: all of those lie close
    if found.z < -3 and found.rate.low > NEARER and found.authentic.high < 0.5:
        notes.append(NEARER_NOTE)
    if float(seen.std(0).mean()) < 0.1 * float(reference.training.std(0).mean()):
        notes.append("samples hardly differ from each other")
    of_pairs = replace(protocol, made=len(few), real=len(real))
    figures = {
        name: Figure(name, estimate, of_pairs if name in PAIRS else protocol) for name, estimate in estimates.items()
    }
    return Measured(figures, found, classes, tuple(notes))


def check_enough(count: int, what: str) -> None:
    if count < FEWEST:
        raise LdmError(
            Code.USAGE,
            f"{count} pictures ({what}) are too few to be measured.",
            f"Distances of distributions say nothing below {FEWEST}; from 2,000 on they begin to be steady.",
            f"Give at least {FEWEST} pictures.",
        )


def check_varied(pictures: Tensor) -> None:
    first = unit(pictures[:1])
    if all(float((unit(part) - first).abs().max()) < SAME for part in torch.split(pictures, AT_ONCE)):
        raise LdmError(
            Code.USAGE,
            "The pictures of the data set are all the same.",
            "Nothing can be measured against one picture.",
            "Give a data set whose pictures differ.",
        )


def _some(x: Tensor, generator: Generator) -> Tensor:
    """At most so many rows, by chance."""
    return x if len(x) <= _ROWS else x[torch.randperm(len(x), generator=generator)[:_ROWS]]


def digest(pictures: Tensor) -> str:
    """Twelve digits of the hash of pictures in [0,1] or bytes, as bytes."""
    whole = pictures if pictures.dtype == torch.uint8 else (pictures * 255).round().to(torch.uint8)
    return hashlib.sha256(whole.contiguous().numpy().data).hexdigest()[:12]
