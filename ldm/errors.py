"""One error type for everything that a user can mend.

The command line prints it in three lines and exits with the number of its code; the server turns it into problem+json.
A traceback never reaches a user: what is not an `LdmError` is a bug, and is reported as one.
"""

from __future__ import annotations

import copyreg
from enum import IntEnum
from typing import Any


class Code(IntEnum):
    """What went wrong, as the exit status of the command line."""

    BUG = 1  # an error of ours: the message asks for a report
    USAGE = 2  # the request itself is wrong: an option, a size, a number, a prompt
    NUMERIC = 3  # non-finite numbers appeared while computing
    BUSY = 4  # somebody else holds the file or folder
    FILE = 5  # a file is missing, damaged or of the wrong kind
    MODEL = 6  # weights do not fit the architecture, or the adapter does not fit the base
    REFUSED = 7  # unsafe input: pickles, bombs, paths that lead outside
    RESOURCE = 8  # memory, disk, or a device that is not there
    DIFFERENT = 9  # `ldm verify`: the picture could not be repeated, or came out different


class LdmError(Exception):
    """`what` happened, `why`, and the `fix`; each one sentence that names the file, field or value."""

    def __init__(self, code: Code, what: str, why: str, fix: str) -> None:
        super().__init__(what, why, fix)
        self.code, self.what, self.why, self.fix = code, what, why, fix

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes: whole, as `__init__` of none, not even of a subclass, takes `args`."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return f"{self.what}\n  why: {self.why}\n  fix: {self.fix}"

    def as_dict(self) -> dict[str, str | int]:
        code: dict[str, str | int] = {"code": self.code.name.lower(), "exit": int(self.code)}
        return {**code, "what": self.what, "why": self.why, "fix": self.fix}
