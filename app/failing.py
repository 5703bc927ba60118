"""Errors as callers may know them: what, why and fix, without the insides of the program or folders of its machine."""

from __future__ import annotations

import traceback
from pathlib import Path

from app.errors import as_ldm_error
from ldm.errors import Code, LdmError

HOME = Path(__file__).resolve().parents[1]  # of this program


def told_of(error: Exception, *homes: Path) -> LdmError:
    """Of a bug only that it is one: the rest is for a log, to which it goes as a note of the error."""
    told = as_ldm_error(error, ["serve"])
    if told.code is Code.BUG:
        why = "This is an error of this program, not of yours; whoever runs it finds more in its log or outputs/."
        told = LdmError(Code.BUG, "Something failed that should not.", why, "Report it with what you asked for.")
        told.add_note("".join(traceback.format_exception(error)))
        return told
    if told.code is Code.RESOURCE and "--" in told.fix:  # options of the command line are no words of a request
        fix = "Ask for a smaller picture, for fewer at a time, or for tiles."
        told = LdmError(told.code, told.what, told.why, fix)
    return without_folders(told, *homes)


def without_folders(error: LdmError, *homes: Path) -> LdmError:
    """Names of files, without where they lie: in this program, in folders that everybody has, or in these."""
    known = {str(path) for home in homes for path in (home, home.resolve())}
    roots = sorted(({str(HOME), str(Path.cwd()), str(Path.home())} | known) - {"/", "."}, key=len, reverse=True)
    texts = [error.what, error.why, error.fix]
    for root in roots:
        texts = [text.replace(f"{root}/", "") for text in texts]
    return LdmError(error.code, *texts)
