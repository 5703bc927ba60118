"""`ldm personalize PHOTOS --token "sks dog"`: what it will cost, how it goes, and what it brought."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import ValidationError

from app.data import line
from app.errors import printable
from app.progress import duration
from app.training_forecast import size
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from app.training_view import QuietView
    from ldm.data.survey import Finding
    from train.personal.cost import Cost
    from train.personal.earlier import Learned
    from train.personal.plan import Plan
    from train.personal.settings import Wish

SHOWN = 4  # cases of a finding
# What the trainer calls its keys, and what is said for them here.
OPTIONS = {
    "set data.path to the folder with the pictures": "give the folder that holds the photos", "data.path ": "",
    "with a lower optim.lr, with optim.clip or warmup, or with run.precision=fp32":
        "with --precision fp32; or begin anew with a lower --rate and another --out",
    "with a lower optim.lr or run.precision=fp32": "with --precision fp32; or begin anew with a lower --rate",
    "run.checkpointing=true, run.micro=1 or run.precision=bf16": "--batch 1 or --precision bf16",
    "lower run.keep, or move": "or move", "set run.out": "set --out", "run.out": "--out", "data.size": "--size",
}  # fmt: skip


def personalize(fields: Mapping[str, Any], *, dry_run: bool, as_json: bool, quiet: bool) -> int:
    """Trains, or goes on, or tells what an earlier command like this one has left; or only what it would cost."""
    wish = _wish(fields)
    from app.personal_json import PersonalJson, cost_told, plan_told
    from app.training_view import QuietView, View, heard
    from train.signals import Stop, Stopped, resume_command

    lines = PersonalJson()
    view: QuietView = lines if as_json else QuietView() if quiet else View(0)
    found: list[Finding] = []

    def is_planned(plan: Plan, findings: Sequence[Finding]) -> None:
        found.extend(findings)
        if as_json and not dry_run:
            lines.say({"plan": plan_told(plan, findings)})
        elif not as_json and not quiet:
            _tell_plan(view, plan, findings)

    def costs(plan: Plan, cost: Cost) -> None:
        if as_json and not dry_run:
            lines.say({"cost": cost_told(cost)})
        elif not as_json and not quiet:
            _tell_cost(view, plan, cost)

    with heard(view), Stop() as stop, view:
        try:
            from train.personal.learn import Hooks, foreseen
            from train.personal.learn import personalize as learn

            stop.check()
            speaks = not as_json and not quiet
            hooks = Hooks(
                planned=is_planned,
                costs=costs,
                begun=view.begin,
                stepped=view.step,
                measured=lambda told: _tell_measures(view, told, as_json, speaks),
                progress=view.progress,
                listeners=[view.line],
            )
            if dry_run:
                plan, cost = foreseen(wish, hooks)
                if as_json:
                    lines.say({"out": str(wish.out), **plan_told(plan, found), "cost": cost_told(cost)})
                return 0
            made = learn(wish, hooks, stop)
        except LdmError as error:
            raise LdmError(error.code, _here(error.what), _here(error.why), _here(error.fix)) from error
        except Stopped as stopped:
            view.stopped(resume_command(), 0)
            return int(stopped.code or 143)
    _tell_result(wish, made, as_json, quiet)
    return 0


def _here(text: str) -> str:
    for key, option in OPTIONS.items():
        text = text.replace(key, option)
    return text


def _wish(fields: Mapping[str, Any]) -> Wish:
    from app.generate import DEFAULT_MODEL
    from train.personal.settings import Wish

    photos = Path(fields["photos"]).expanduser()
    if not str(fields["token"]).strip():
        what, why = "--token is empty.", "It is what calls the subject in a prompt: a rare word, and what the thing is."
        raise LdmError(Code.USAGE, what, why, 'Write --token "sks dog".')
    given = {"model": DEFAULT_MODEL} | {key: value for key, value in fields.items() if value is not None}
    given["photos"], given["token"] = photos, " ".join(str(fields["token"]).split())
    try:
        wish = Wish(**{**given, "out": Path(given.get("out", "runs")).expanduser()})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + ".".join(map(str, first["loc"][:1])).replace("_", "-")
        said = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        what, why = f"{option} cannot be {str(first['input'])[:40]!r}.", f"It is to be {said}."
        if first["type"] == "value_error":
            what, why = f"{option} does not fit.", f"{said}."
        raise LdmError(Code.USAGE, what, why, "See ldm personalize --help.") from error
    if "out" not in given:
        wish = wish.model_copy(update={"out": Path("runs") / wish.name})
    if not photos.exists() and not (wish.out / "photos").is_dir():  # those that were prepared before are enough
        what, why = f"{photos} is not there.", "It is to be a folder with a few pictures of one subject."
        raise LdmError(Code.FILE, what, why, "Check the path for a spelling mistake.")
    return wish


def _tell_plan(view: QuietView, plan: Plan, findings: Sequence[Finding]) -> None:
    wish = plan.wish
    view.note(f"{wish.photos}: learning {wish.token!r} on {wish.model}, {plan.size} pixels, into {wish.out}")
    kept = f"; {plan.prior} pictures of the model itself keep it what it is" if plan.prior else ""
    view.note(f"{wish.method}, {plan.steps:,} steps, looked at every {plan.every:,}{kept}")
    for note in plan.notes:
        view.note(f"note: {note}")
    for finding in findings:
        cases = "; ".join(map(line, finding.cases[:SHOWN]))
        view.note(f"{finding.level}: {finding.what}{f' ({cases})' if cases else ''}; fix: {finding.fix}")


def _tell_cost(view: QuietView, plan: Plan, cost: Cost) -> None:
    memory = f"memory {size(cost.memory)} of {size(cost.free)} free, disk {size(cost.disk)}"
    if cost.total is None:
        view.note(f"cost: {memory}; how long it takes could not be measured")
    else:
        parts = {"training": cost.training, "looking": cost.looking, "pictures of the model itself": cost.prior}
        told = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
        view.note(f"cost: at most about {duration(cost.total)} at the speed of this moment ({told}); {memory}")
    if not cost.fits:
        view.note("it may not fit into memory: --batch 1, --precision bf16 and a smaller --size need less")


def _tell_measures(view: QuietView, told: dict[str, Any], as_json: bool, speaks: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"measured": told}))
    elif speaks:
        from train.personal.verdict import percent

        m = told["measures"]
        follows = "" if m["prompt"] is None else f", follows prompts {percent(m['prompt'])}"
        view.note(
            f"step {told['step']:,}: subject {percent(m['subject'])}{follows}, drift {percent(m['drift'])}, "
            f"near copies {percent(m['copies'])}, validation {told['validation']:.4g}"
        )


def _tell_result(wish: Wish, made: Learned, as_json: bool, quiet: bool) -> None:
    files = [str(path) for path in made.files]
    if as_json:
        told = {"out": str(made.folder), "files": files, "report": str(made.folder / "report.html")}
        typer.echo(json.dumps({"result": told | {k: made.report[k] for k in ("verdict", "flags", "step", "measures")}}))
        return
    from ldm.store.find import LORA_WEIGHTS
    from train.personal.report import file_of
    from train.tasks.subject_files import WORD

    adapter, word = (path if (path := file_of(wish, kind)) in made.files else None for kind in (LORA_WEIGHTS, WORD))
    if quiet:
        for needed in filter(None, (adapter, word)):
            typer.echo(printable(str(needed)))
        return
    colour = "yellow" if made.report["flags"] else "green"
    typer.echo(
        typer.style(printable(made.report["verdict"][:1].upper() + made.report["verdict"][1:]), fg=colour, bold=True)
    )
    typer.echo(f"report   {printable(str(made.folder / 'report.html'))}")
    for file in files:
        typer.echo(f"{'word   ' if word is not None and file == str(word) else 'adapter'}  {printable(file)}")
    uses = [("--lora", str(adapter))] * (adapter is not None) + [("--embedding", str(word))] * (word is not None)
    words = ("ldm", "generate", made.report["prompts"]["subject"][0], "--model", made.report["model"], *sum(uses, ()))
    typer.echo(printable(f"try      {shlex.join(words)}"))
