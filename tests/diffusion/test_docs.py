"""docs/solvers.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from ldm.diffusion.schedule import SPACINGS
from ldm.diffusion.solver import SOLVERS, spacing_table
from pipelines.a1111 import SOLVERS as NAMES

PAGE = Path(__file__).parents[2] / "docs" / "solvers.md"


def solver_rows() -> list[str]:
    head = f"| solver | scheduler of diffusers | {' | '.join(SPACINGS)} | zero SNR |"
    rows = [head, "|" + "---|" * (len(SPACINGS) + 3)]
    for name, takes in spacing_table().items():
        spec = SOLVERS[name]
        marks = " | ".join("yes" if takes[s] else "" for s in SPACINGS)
        rows.append(f"| {name} | {spec.scheduler} | {marks} | {'yes' if spec.zero_snr else ''} |")
    return rows


def name_rows() -> list[str]:
    rows = ["| here | A1111 | ComfyUI |", "|---|---|---|"]
    return rows + [f"| {name} | {', '.join(a)} | {', '.join(c)} |" for name, (a, c) in NAMES.items()]


def test_the_published_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert "\n".join(solver_rows()) in page
    assert "\n".join(name_rows()) in page
