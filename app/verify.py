"""`ldm verify`: one verdict per file; the exit status is 9 unless all hold."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from app.errors import printable
from app.options import existing
from ldm.errors import Code, LdmError


def run(
    files: list[str], inputs: list[str], *, model: str | None, prompt: str | None, negative: str | None, as_json: bool
) -> int:
    """Verifies each file; an error about one does not hide the verdicts about the others."""
    from pipelines.verify import verify

    folders = [Path(folder).expanduser() for folder in inputs]
    verdicts, failures = [], []
    for file in files:
        try:
            verdict = verify(existing(file, "FILE"), folders, model=model, prompt=prompt, negative=negative)
        except LdmError as error:
            if len(files) == 1:
                raise
            failures.append({"file": Path(file).name, "error": error.as_dict()})
            if not as_json:
                typer.echo(f"{Path(file).name}: {printable(str(error))}")
            continue
        verdicts.append(verdict)
        if not as_json:
            typer.echo(printable(str(verdict)))
    if as_json:
        typer.echo(json.dumps({"verdicts": [v.model_dump() | {"holds": v.holds} for v in verdicts] + failures}))
    return 0 if all(v.holds for v in verdicts) and not failures else int(Code.DIFFERENT)
