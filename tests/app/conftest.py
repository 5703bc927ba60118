"""The command line in this process, in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.cli import run


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ldm = Callable[..., Done]


@pytest.fixture
def ldm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ldm:
    """`ldm("generate", "a cat")`: exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> Done:
        capfd.readouterr()
        status = run([str(part) for part in argv])
        said = capfd.readouterr()
        return Done(status, said.out, said.err)

    return call
