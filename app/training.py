"""`ldm train FILE section.key=value ...`: trains what a run file says, and goes on where it was left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.errors import printable
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from train.config import RunFile
    from train.signals import Stop


def train(
    file: str,
    overrides: Sequence[str],
    *,
    dry_run: bool = False,
    report: bool = False,
    average: float | None = None,
    out: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """One run: what it will cost (`dry_run`), its report or another average alone, or all steps that are left."""
    shortcuts = [f"run.{key}={value}" for key, value in (("seed", seed), ("device", device)) if value is not None]
    settings = read(file, [*overrides, *shortcuts])
    if average is not None or out is not None:
        _check_alone(dry_run, report)
        return _average(settings, average, out, as_json)
    if report:
        return _report(settings, as_json)
    if dry_run:
        return _forecast(settings, file, as_json)
    return _train(settings, as_json, quiet)


def read(file: str, overrides: Sequence[str] = ()) -> RunFile:
    """The record of a run file that is given by its path, or that ships, by its name (`diffusion/scenes`)."""
    from ldm.config import find, load
    from train.config import RunFile

    if "=" in file and not Path(file).exists():
        raise LdmError(
            Code.USAGE,
            f"{file[:80]!r} stands where the run file belongs.",
            "The file comes first, and what is to differ from it after it.",
            f"Write ldm train FILE.yaml {file[:80]}",
        )
    return load(find(file), RunFile, overrides)


def _train(settings: RunFile, as_json: bool, quiet: bool) -> int:
    from app.training_view import JsonView, QuietView, View, heard
    from train.signals import Stop, Stopped, resume_command

    view: QuietView = JsonView() if as_json else QuietView() if quiet else View(settings.run.steps)
    with heard(view), Stop() as stop, view:
        try:
            _load(stop)
            from train.run import finished, opened

            if (step := finished(settings)) is not None:
                view.end(_result(settings, step, before=True))
                return 0
            with opened(settings, listeners=[view.line], stop=stop, progress=view.progress) as run:
                view.begin(run)
                for done in run.steps():
                    view.step(done)
                view.end(_result(settings, run.trainer.step))
        except Stopped as stopped:
            from train.run import steps_done

            view.stopped(resume_command(), steps_done(settings.run.out))
            return int(stopped.code or 143)
    return 0


def _load(stop: Stop) -> None:
    """The libraries, with signals as a wish: an interrupt inside their imports leaves them broken."""
    import train.run  # noqa: F401

    stop.check()


def _result(settings: RunFile, step: int, before: bool = False) -> dict[str, Any]:
    out = settings.run.out
    return {
        "out": str(out),
        "model": str(out / "model"),
        "report": str(out / "report.html"),
        "step": step,
        "finished_before": before,
    }


def _report(settings: RunFile, as_json: bool) -> int:
    from train.report import write_report

    path = write_report(settings.run.out)
    typer.echo(json.dumps({"report": str(path)}) if as_json else printable(str(path)))
    return 0


def _check_alone(dry_run: bool, report: bool) -> None:
    if dry_run or report:
        raise LdmError(
            Code.USAGE,
            f"--average and {'--dry-run' if dry_run else '--report'} do not go together.",
            "Each of them is a task of its own, done instead of training.",
            "Give one of them at a time.",
        )


def _average(settings: RunFile, width: float | None, out: str | None, as_json: bool) -> int:
    if width is None or out is None:
        raise LdmError(
            Code.USAGE,
            "--average and --out go together.",
            "One says how wide an average of the weights is wanted, the other where its model goes.",
            "Write ldm train FILE --average 0.05 --out FOLDER; the folder of the run itself is run.out=FOLDER.",
        )
    from app.training_view import QuietView, heard
    from train.choose import choose

    with heard(QuietView()):
        path = choose(settings, width, Path(out))
    typer.echo(json.dumps({"model": str(path)}) if as_json else printable(str(path)))
    return 0


def _forecast(settings: RunFile, file: str, as_json: bool) -> int:
    from app.training_forecast import in_words
    from app.training_view import QuietView, heard
    from train.signals import Stop, Stopped

    try:
        with Stop() as stop:
            _load(stop)
    except Stopped as stopped:
        return int(stopped.code or 143)
    from train.run import forecasted

    with heard(QuietView()):
        made = forecasted(settings)
    if as_json:
        typer.echo(json.dumps({"file": file, "out": str(settings.run.out), "forecast": made.as_dict()}))
    else:
        typer.echo("\n".join(in_words(made, settings)))
    return 0
