"""What a failed command shows: three lines or JSON, and an exit status. A traceback goes to a log file only."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from ldm.errors import Code, LdmError

INTERRUPTED, TERMINATED = 130, 143
NOTHING_YET = "stopped; nothing was made yet"
OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory")  # how torch says it, in a RuntimeError
UsageError: type[Exception] = typer.BadParameter.__bases__[
    0
]  # what the option parser raises; typer gives it no name of its own


def show(error: LdmError, as_json: bool) -> int:
    """Prints the error (JSON on stdout, text on stderr) and returns the exit status."""
    if as_json:
        typer.echo(json.dumps({"error": error.as_dict()}))
    else:
        typer.echo(typer.style("error: ", fg="red", bold=True) + printable(str(error)), err=True)
    return int(error.code)


def as_ldm_error(error: Exception, argv: Sequence[str]) -> LdmError:
    """Every failure as an error with a fix; one that nobody foresaw is a bug of ours, and its traceback is logged."""
    if isinstance(error, LdmError):
        return error
    if isinstance(error, UsageError):
        return _usage(error)
    if isinstance(error, UnicodeEncodeError) and any(_broken(word) for word in argv):
        return LdmError(
            Code.USAGE,
            f"{printable(next(word for word in argv if _broken(word)))[:80]!r} holds broken characters.",
            "A lone half of a character pair has no bytes, so no file can have that name.",
            "Type the word again.",
        )
    if isinstance(error, OSError) and (found := _system(error)):
        return found
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's, of ~name
        why = "The system knows no user of the name behind ~."
        return LdmError(Code.FILE, "A path begins with a home that is not there.", why, "Write the whole path.")
    if _out_of_memory(error):
        return LdmError(
            Code.RESOURCE,
            "The memory of the device is not enough.",
            f"{first_line(error).rstrip('.')}.",
            "Set run.micro, run.checkpointing=true or run.precision=bf16; --dry-run shows what is needed."
            if list(argv[:1]) == ["train"]
            else "Choose a smaller --size, --batch 1, --tile, --dtype float16 or --offload; --dry-run shows the need.",
        )
    log = write_log(error, argv)
    return LdmError(
        Code.BUG,
        f"Something failed that should not: {type(error).__name__}: {first_line(error)}",
        "This is an error of this program, not of yours.",
        f"Report it with the file {log.as_posix()}." if log else "Report it with the command that you gave.",
    )


def stopped(argv: Sequence[str], status: int = INTERRUPTED) -> int:
    """What an interrupted command says; returns its exit status."""
    making = argv[:1] == ["generate"]
    if "--json" in argv:
        typer.echo(json.dumps(({"pictures": []} if making else {}) | {"stopped": True}))
    else:
        typer.echo(NOTHING_YET if making else "stopped", err=True)
    return status


def _broken(word: str) -> bool:
    """Whether the system has no bytes for this text."""
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return True
    return False


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def write_log(error: Exception, argv: Sequence[str]) -> Path | None:
    """The traceback under outputs/; None where nothing can be written."""
    text = "".join(traceback.format_exception(error))
    try:
        folder = Path("outputs")
        folder.mkdir(exist_ok=True)
        for number in range(1, 10_000):
            path = folder / f"ldm-error-{number:04d}.log"
            if not path.exists():
                said = json.dumps(["ldm", *argv])
                path.write_text(f"{said}\n{sys.version}\n\n{text}", "utf-8", errors="backslashreplace")
                return path
    except OSError:
        return None
    return None


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def printable(text: str) -> str:
    """Without control characters (a file name must not drive the terminal) and lone surrogates."""
    return "".join(c if c == "\n" or (c.isprintable() and not 0xD800 <= ord(c) < 0xE000) else "\ufffd" for c in text)


def _usage(error: Exception) -> LdmError:
    message = str(getattr(error, "format_message", lambda: error)()).strip()
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "ldm")
    return LdmError(
        Code.USAGE,
        message if message.endswith((".", "?", ")")) else f"{message}.",
        "The command line was not understood.",
        f"Run `{command} --help` for the options it takes.",
    )


def _system(error: OSError) -> LdmError | None:
    name = Path(str(error.filename)).name if error.filename else "The output"
    said = error.strerror or first_line(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return LdmError(
            Code.RESOURCE, f"{name} could not be written.", f"{said}.", "Free some space, or write to another place."
        )
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return LdmError(Code.FILE, f"{name} could not be opened.", f"{said}.", "Check the path and its permissions.")
    if error.errno in {errno.ENAMETOOLONG, errno.EINVAL, errno.EROFS}:
        return LdmError(Code.FILE, f"{name[:80]} could not be opened.", f"{said}.", "Choose another name.")
    return None
