"""The check of one subject's pictures with the eyes of a CLIP, where one is at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ldm.data.source import Source
from ldm.data.subject import LACKING, subject_findings
from ldm.data.survey import Finding, Survey
from ldm.metrics.features import Extractor, extracted, squares


def subject_check(
    source: Source, size: int, token: str, see: Extractor | None = None, lacking: str = LACKING
) -> Callable[[Survey], Sequence[Finding]]:
    """What `check` is to say besides: pictures unlike the others and sets of two subjects are found by what `see` makes
    of them. `lacking`: what is to be done about captions without the token."""

    def more(survey: Survey) -> Sequence[Finding]:
        places = [s.place for s, _ in survey.good]
        if see is None or not places:
            return subject_findings(survey, token, lacking=lacking)
        features = extracted(see, squares((source.picture(place) for place in places), size))
        return subject_findings(survey, token, features.numpy(), lacking)

    return more
