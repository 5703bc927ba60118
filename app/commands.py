"""The commands as typer sees them: signatures and help. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from app.options import OPTIONS, Option

Json = Annotated[bool, typer.Option("--json", help="Results and errors as JSON on stdout.")]


def _parameter(option: Option) -> inspect.Parameter:
    kinds: dict[str, Any] = {"value": str | None, "switch": bool | None, "list": list[str] | None}
    info = typer.Option(option.flag, help=option.help, metavar=option.metavar or None, rich_help_panel=option.panel)
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kinds[option.kind], info]
    )


def generate() -> Callable[..., int]:
    """The function behind `ldm generate`, with one parameter per row of the table of options."""

    def command(words: list[str] | None = None, **given: Any) -> int:
        from app.generate import generate as run

        return run(list(words or []), given)

    argument = Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What the picture shows.", show_default=False)]
    words = inspect.Parameter("words", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=argument)
    command.__signature__ = inspect.Signature([words, *(_parameter(option) for option in OPTIONS)])  # type: ignore[attr-defined]
    command.__annotations__ = {}
    command.__doc__ = 'Make pictures from a prompt: ldm generate "a red circle" --size 32x32 --seed 1'
    return command


def verify(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Pictures made here.", show_default=False)],
    inputs: Annotated[list[str] | None, typer.Option("--inputs", metavar="DIR", help="Where input pictures may be.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="The model, if it moved.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="The prompt of a private picture.")] = None,
    negative: Annotated[str | None, typer.Option("--negative", metavar="TEXT", help="Its negative prompt.")] = None,
    as_json: Json = False,
) -> int:
    """Repeat the recipe in a picture and compare: ldm verify outputs/0001-1.png"""
    from app.verify import run

    return run(files, inputs or [], model=model, prompt=prompt, negative=negative, as_json=as_json)


def doctor(as_json: Json = False) -> int:
    """Check the installation and make a self-test picture: ldm doctor"""
    from app.doctor import run

    return run(json=as_json)
