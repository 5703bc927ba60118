"""The house stays readable: small files and functions, a sentence at the top, nothing left over, no machine's path."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = ("app", "train", "pipelines", "ldm")
MAX_LINES = 400
LEFT_OVER = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:ho" + r"me|ro" + r"ot|wo" + r"rk|Us" + r"ers)/\w")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".cfg", ""}


def sources() -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for tree in TREES for p in (ROOT / tree).rglob("*.py"))


def written_files() -> list[Path]:
    """What git tracks or would track; without git: everything but hidden folders and outputs."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0 and listed.stdout:
        found = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        found = [p for p in ROOT.rglob("*") if not {".venv", ".git", "outputs", "runs"} & set(p.parts)]
    return [p for p in found if p.is_file() and p.suffix in TEXT and p.stat().st_size < 1_000_000]


@pytest.mark.parametrize("path", sources())
def test_a_file_is_small_and_says_what_it_is(path: str) -> None:
    source = (ROOT / path).read_text()
    assert len(source.splitlines()) <= MAX_LINES, f"{path}: split it; one idea per file"
    if len(source.splitlines()) > 3:
        assert ast.get_docstring(ast.parse(source)), f"{path}: begin with a sentence that says what the file is for"


def test_nine_functions_in_ten_are_under_forty_lines() -> None:
    lengths = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in sources()
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert sum(n < 40 for n in lengths) >= 0.9 * len(lengths)
    assert max(lengths) <= 120


def test_nothing_is_left_over_and_no_path_of_a_machine_is_written_down() -> None:
    found = []
    for path in written_files():
        text = path.read_text(encoding="utf-8", errors="ignore")
        for number, line in enumerate(text.splitlines(), 1):
            if LEFT_OVER.search(line) or MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []
