"""`ldm`: the table of commands. What a command needs is imported when it is called; `--help` needs nothing heavy."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from app import commands, commands_adapter, commands_batch, commands_compare, commands_personal, commands_serve, errors
from app.validation import did_you_mean
from ldm.errors import Code, LdmError
from ldm.version import __version__


class Entry(NamedTuple):
    """`build` makes the Typer app of the command; it imports nothing heavy."""

    name: str
    build: Callable[[], typer.Typer]
    help: str


COMMANDS: tuple[Entry, ...] = (
    Entry("generate", commands.generate, "Make pictures from a prompt, a picture, or both."),
    Entry("verify", commands.verify, "Repeat the recipe in a picture and compare."),
    Entry("models", commands.models, "List, show, pull and convert models."),
    Entry("adapter", commands_adapter.adapter, "Inspect, convert, merge, extract and compare LoRAs."),
    Entry("train", commands.train, "Train what a run file says, and go on where it was left."),
    Entry("personalize", commands_personal.personalize, "Teach a model your own subject from a few photos."),
    Entry("compare", commands_compare.compare, "Compare families of generative models on your pictures."),
    Entry("evaluate", commands_compare.evaluate, "Measure a model or a folder of pictures against a data set."),
    Entry("batch", commands_batch.batch, "Make many pictures from a file, on one machine or many."),
    Entry("serve", commands_serve.serve, "Make pictures for other programs, over HTTP."),
    Entry("data", commands.data, "Look at a set of pictures before training on it."),
    Entry("doctor", commands.doctor, "Check this installation."),
    Entry("config", commands.config, "Check and show configuration files."),
)


class StoppedError(Exception):
    """A Ctrl-C inside a command; typer would turn a KeyboardInterrupt into an exit status without a word."""


class TerminatedError(KeyboardInterrupt):
    """A SIGTERM: it ends a command as Ctrl-C does, with a status of its own."""


@contextmanager
def stops_told() -> Iterator[None]:
    """What typer would turn into an exit status without a word is said, wherever in the command line it comes."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoppedError from error


class CommandTable(TyperGroup):
    """Names and help come from the table; a command is built when its name is called."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with stops_told():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with stops_told():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        return [entry.name for entry in COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = next((entry for entry in COMMANDS if entry.name == cmd_name), None)
        return None if entry is None else TyperCommand(entry.name, help=entry.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        entry = next((entry for entry in COMMANDS if entry.name == args[0]), None)
        if entry is None:
            names = self.list_commands(ctx)
            raise LdmError(
                Code.USAGE,
                f"{args[0][:40]!r} is no command.",
                f"{did_you_mean(args[0], names)}The commands are {', '.join(names)}.",
                "Run `ldm --help` for what each does.",
            )
        command = load(entry)
        check_values(command, args[1:])
        return entry.name, command, args[1:]


def check_values(command: Any, args: Sequence[str]) -> None:
    """No option takes the name of the next one for its value: `--negative --steps 3` lacks a value."""
    options = {name: param for param in command.params for name in param.opts if name.startswith("-")}
    names = {"--help", *options, *(name for param in options.values() for name in param.secondary_opts)}
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            break
        if arg in getattr(command, "commands", {}):
            check_values(command.commands[arg], list(rest))
            break
        value = next(rest, "") if arg in options and not options[arg].is_flag else ""
        if value.partition("=")[0] in names:
            raise LdmError(
                Code.USAGE,
                f"{arg} needs a value.",
                f"The word after it, {value.partition('=')[0]}, is an option itself.",
                f"Write {arg} {options[arg].metavar or 'VALUE'}, or {arg}={value} if that is the value.",
            )


def load(entry: Entry) -> Any:
    """The command behind an entry."""
    command = typer.main.get_command(entry.build())
    command.name = entry.name
    return command


def version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ldm {__version__}")
        raise typer.Exit


root = typer.Typer(
    name="ldm",
    cls=CommandTable,
    pretty_exceptions_enable=False,
    help="Text to picture on your own machine. A picture is a function of its recipe.",
    epilog="Exit status: 0 done, 1 an error of ours, 2 usage, 3 numbers, 4 busy, 5 file, 6 model, 7 refused, "
    "8 resources, 9 different, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.",
)


@root.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


class Asked:
    """Whether a signal has asked for the end, and with which exit status. What a signal interrupts may swallow its
    exception (an import inside a compiled library does) and fail in its own way later: that is no error of ours."""

    def __init__(self) -> None:
        self.status: int | None = None


def run(argv: Sequence[str], asked: Asked | None = None) -> int:
    """The exit status of a command line; errors are shown, never raised."""
    argv = list(argv) or ["--help"]
    as_json = "--json" in argv
    try:
        status = typer.main.get_command(root)(args=argv, prog_name="ldm", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, StoppedError, typer.Abort) as error:
        return errors.stopped(argv, status_of(error))
    except BrokenPipeError:  # the reader of our output has gone, and there is nobody to tell
        sys.stdout = None
        return 0
    except Exception as error:  # the last door: shown with a fix, or logged as a bug of ours
        if asked is not None and asked.status is not None and not isinstance(error, LdmError):
            return errors.stopped(argv, asked.status)
        return errors.show(errors.as_ldm_error(error, argv), as_json)


def status_of(error: BaseException | None) -> int:
    """The exit status of what stopped a command, or of what was behind it."""
    while error is not None and not isinstance(error, TerminatedError):
        error = error.__cause__
    return errors.INTERRUPTED if error is None else errors.TERMINATED


def end_on_signals(asked: Asked) -> None:
    """SIGTERM stops this process as Ctrl-C does; processes forked from it end at once, as without us."""
    ours = os.getpid()

    def terminated(number: int, frame: FrameType | None) -> None:
        if os.getpid() != ours:
            os._exit(errors.TERMINATED)
        asked.status = errors.TERMINATED
        raise TerminatedError

    def interrupted(number: int, frame: FrameType | None) -> None:
        asked.status = errors.INTERRUPTED
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # else somebody means that it is ignored
        signal.signal(signal.SIGTERM, terminated)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


def main() -> None:
    """The entry point `ldm`. A signal after the first, or while Python ends, changes nothing any more."""
    asked = Asked()
    end_on_signals(asked)
    try:
        status = run(sys.argv[1:], asked)
    except KeyboardInterrupt as error:
        status = status_of(error)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # said already, where it happened
        sys.stdout = None
    sys.exit(status)
