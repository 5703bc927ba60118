"""`ldm`: the table of commands. A command's module is imported when the command is called, and torch later still."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from app import errors
from ldm.version import __version__

APP_SETTINGS: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}


class Entry(NamedTuple):
    """`target` is "module:name" of a Typer app, or of a function (called first if its name is `generate`)."""

    name: str
    target: str
    help: str


COMMANDS: tuple[Entry, ...] = (
    Entry("generate", "app.commands:generate_app", "Make pictures from a prompt, a picture, or both."),
    Entry("verify", "app.commands:verify_app", "Repeat the recipe in a picture and compare."),
    Entry("models", "app.models:app", "List, show, pull and convert models."),
    Entry("adapter", "app.adapter:app", "Inspect and convert LoRAs and embeddings."),
    Entry("doctor", "app.commands:doctor_app", "Check this installation."),
    Entry("config", "app.commands:config_app", "Check and show configuration files."),
)


class CommandTable(TyperGroup):
    """Names and help come from the table; the module behind a name is imported when the name is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [entry.name for entry in COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = next((entry for entry in COMMANDS if entry.name == cmd_name), None)
        return None if entry is None else TyperCommand(entry.name, help=entry.help, rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, stub, rest = super().resolve_command(ctx, args)  # an unknown name is an error here
        entry = next((entry for entry in COMMANDS if stub is not None and entry.name == stub.name), None)
        return name, stub if entry is None else load(entry), rest


def load(entry: Entry) -> Any:
    """The command behind an entry."""
    module, _, name = entry.target.partition(":")
    command = typer.main.get_command(getattr(importlib.import_module(module), name))
    command.name = entry.name
    return command


def version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ldm {__version__}")
        raise typer.Exit


root = typer.Typer(
    name="ldm",
    cls=CommandTable,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Text to picture on your own machine. A picture is a function of its recipe.",
    epilog="Exit status: 0 done, 2 usage, 3 numbers, 4 busy, 5 file, 6 model, 7 refused, 8 memory or device, 9 different.",
)


@root.callback()
def _root(
    show_version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Options of the program itself."""


def run(argv: Sequence[str]) -> int:
    """The exit status of a command line; errors are shown, never raised."""
    as_json = "--json" in argv
    try:
        status = typer.main.get_command(root)(args=list(argv), prog_name="ldm", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return errors.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, and there is nobody to tell
        sys.stdout = None  # type: ignore[assignment]
        return 0
    except Exception as error:  # the last door: shown with a fix, or logged as a bug of ours
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(str(error))
            return 0
        return errors.show(errors.as_ldm_error(error, argv), as_json)


def main() -> None:
    """The entry point `ldm`."""
    sys.exit(run(sys.argv[1:]))
