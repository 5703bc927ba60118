"""`ldm data check`: what is wrong with a set of pictures, in words first, in numbers for those who want them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from app.errors import printable
from app.progress import Stop, duration
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from ldm.data.doctor import Report
    from ldm.data.settings import DataSettings
    from ldm.data.source import Source
    from ldm.data.survey import Case, Finding, Survey
    from train.config import RunFile

SHOWN = {"stop": 12, "warn": 8, "note": 2}  # cases of a finding that are printed
SAME_SHOWN, BUCKETS_SHOWN = 5, 12  # names of a case, and shapes
COLOURS = {"stop": "red", "warn": "yellow", "note": "blue"}


def check(
    path: str,
    size: int | None,
    buckets: bool,
    sheet: str | None,
    as_json: bool,
    subject: bool = False,
    token: str = "",
    clip: str | None = None,
) -> int:
    """Looks at every picture; the exit status is that of a bad file where training would stop."""
    from ldm.data.buckets import frame
    from ldm.data.doctor import check as examine
    from ldm.data.doctor import likely_size
    from ldm.data.examples import open_photos, open_source

    if sheet is not None:
        _check_sheet(Path(sheet))
    for option, given in (("--token", token), ("--clip", clip)):
        if given and not subject:
            what, why = f"{option} does nothing here.", "It belongs to the check of one subject's pictures."
            raise LdmError(Code.USAGE, what, why, "Add --subject, or leave it out.")
    start = time.perf_counter()
    file = _run_file(path)
    settings, sized = _settings(path, file, size, buckets)
    if subject and file is None:
        source = open_photos(Path(path), settings.size)  # as ldm personalize reads them
    else:
        source = open_source(settings)
    if not sized:
        settings = settings.model_copy(update={"size": likely_size(source)})
    with Stop() as stop, _progress() as show:
        report = examine(
            source,
            settings.size,
            cache(partial(frame, settings)),
            masks=settings.mask == "beside" or (subject and file is None),  # ldm personalize uses them by itself
            refuses_masks=file is not None and file.refuses_masks,
            least=settings.least_side,
            more=_of_a_subject(source, settings.size, token, clip) if subject else lambda survey: (),
            on_progress=show,
            stop=lambda: stop.status is not None,
        )
        if subject and file is None:
            from ldm.data.subject import for_photos

            report = replace(report, findings=for_photos(report.findings))
        if sheet is not None:
            from app.data_sheet import draw

            draw(source, report, Path(sheet))
        seconds = time.perf_counter() - start
        if as_json:
            told = {"path": path, "seconds": round(seconds, 1), "sheet": sheet, **report.as_dict()}
            typer.echo(json.dumps(told))
        else:
            typer.echo("\n".join(_in_words(report, printable(path), seconds, sized, sheet)))
    if stop.status is not None:
        return stop.status
    return 0 if report.ready else int(Code.FILE)


def _of_a_subject(source: Source, size: int, token: str, clip: str | None) -> Callable[[Survey], Sequence[Finding]]:
    """What is worth saying of the pictures of one subject; what a CLIP sees in them, where one is named."""
    from ldm.data.subject import subject_findings

    if clip is None:
        return lambda survey: subject_findings(survey, token)  # without torch
    from ldm.metrics.features import clips
    from ldm.metrics.subject import subject_check
    from ldm.store.clip import load_clip
    from ldm.store.find import find_model

    return subject_check(source, size, token, clips([load_clip(find_model(clip)).eval()]))


def _run_file(path: str) -> RunFile | None:
    """What it says, where it is one."""
    if not path.lower().endswith((".yaml", ".yml")):
        return None
    from ldm.config import find, load
    from train.config import RunFile

    return load(find(path), RunFile)


def _settings(path: str, file: RunFile | None, size: int | None, buckets: bool) -> tuple[DataSettings, bool]:
    """What a run would read: a run file's data section, or the path with every default. And whether a size was told."""
    from ldm.data.settings import Buckets, DataSettings

    told = DataSettings(path=path, size=size or 32) if file is None else file.data
    changed = {**({"size": size} if size else {}), **({"buckets": Buckets()} if buckets and not told.buckets else {})}
    return told.model_copy(update=changed), file is not None or size is not None


def _check_sheet(path: Path) -> None:
    """Refuses what could not be written before the work is done."""
    from ldm.images import picture_format
    from ldm.store.write import refuse_existing

    picture_format(path)
    refuse_existing(path)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(
        "looking",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("looking", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _in_words(report: Report, path: str, seconds: float, sized: bool, sheet: str | None) -> Iterator[str]:
    """The summary first, then what was found, the worst first, then the shapes."""
    from ldm.data.survey import many

    typical = f", typically {report.typical[0]}x{report.typical[1]}" if report.typical else ""
    yield f"{path}: {many(report.pictures, 'picture')}{typical}; {report.readable:,} can be read"
    how = "" if sized else " (what most of them reach; --size N for another)"
    yield f"judged for training at {report.size} pixels{how}"
    if report.stopped:
        yield "stopped before the end: what follows is about the pictures seen so far"
    yield ""
    colour = "red" if not report.ready else "yellow" if "below" in report.verdict else "green"
    yield typer.style(report.verdict, fg=colour, bold=True)
    for finding in report.findings:
        yield ""
        yield from _told(finding)
    if report.buckets:
        yield ""
        yield from _shapes(report)
    yield ""
    pace = f" ({1000 * seconds / report.pictures:.1f} s for 1,000 pictures)" if report.pictures >= 1000 else ""
    yield f"looked at in {duration(seconds)}{pace}"
    if sheet is not None:
        yield f"sheet: {sheet}"


def _told(finding: Finding) -> Iterator[str]:
    yield f"{typer.style(finding.level, fg=COLOURS[finding.level])}  {finding.what}"
    if finding.kind != "no caption" or finding.level != "note":
        most = SHOWN[finding.level]
        yield from (f"        {line(case)}" for case in finding.cases[:most])
        if len(finding.cases) > most:
            yield f"        and {len(finding.cases) - most:,} more (--json lists all)"
    yield f"      fix: {finding.fix}"


def line(case: Case) -> str:
    """Names come from files and captions from strangers: nothing of them drives the terminal."""
    shown = (
        case.names
        if len(case.names) <= SAME_SHOWN
        else (*case.names[:SAME_SHOWN], f"{len(case.names) - SAME_SHOWN} more")
    )
    return printable(" ".join(str(replace(case, names=shown)).split()))


def _shapes(report: Report) -> Iterator[str]:
    yield f"{'trained at':<14}{'pictures':>10}{'cut off':>10}{'at most':>10}"
    for row in report.buckets[:BUCKETS_SHOWN]:
        shape = f"{row.width}x{row.height}"
        yield f"{shape:<14}{row.pictures:>10,}{100 * row.mean_lost:>8.0f} %{100 * row.most_lost:>8.0f} %"
    if len(report.buckets) > BUCKETS_SHOWN:
        yield f"and {len(report.buckets) - BUCKETS_SHOWN} more shapes"
