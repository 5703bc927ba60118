"""What a figure was measured with. Figures of unlike protocols are not compared: an FID of 2,000 samples is larger than
one of 50,000 of the same model, and one by another extractor means another thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ldm.errors import Code, LdmError
from ldm.metrics.interval import Estimate


@dataclass(frozen=True)
class Protocol:
    """Travels with every figure, into every table and file."""

    extractor: str  # its name and the hash of its weights: "classifier 1f0c9a3e44b1"
    resize: str  # how a picture came to the size that the extractor sees
    made: int  # samples
    real: int  # pictures of the reference
    reference: str  # the hash of the reference's pictures

    def differences(self, other: Protocol) -> list[str]:
        """Where the two are unlike, in words; nothing where they are alike."""
        return [
            f"{field.name}: {getattr(self, field.name)} here, {getattr(other, field.name)} there"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


@dataclass(frozen=True)
class Figure:
    """A statistic of one model, with its interval and its protocol."""

    statistic: str
    estimate: Estimate
    protocol: Protocol

    def better_than(self, other: Figure, lower: bool) -> bool | None:
        """Whether this one is better; None where the intervals overlap and nothing can be said."""
        check_comparable([self, other])
        mine, theirs = (self.estimate, other.estimate) if lower else (other.estimate, self.estimate)
        if mine.high < theirs.low:
            return True
        return False if theirs.high < mine.low else None


def check_comparable(figures: Sequence[Figure]) -> None:
    """An error that names the first difference."""
    for figure in figures[1:]:
        first = figures[0]
        apart = first.protocol.differences(figure.protocol)
        if first.statistic != figure.statistic:
            apart.insert(0, f"statistic: {first.statistic} here, {figure.statistic} there")
        if apart:
            raise LdmError(
                Code.USAGE,
                f"These figures of {first.statistic} cannot be compared.",
                f"They were measured in different ways ({'; '.join(apart)}).",
                "Measure both again with the same extractor, reference and number of samples: ldm evaluate.",
            )
