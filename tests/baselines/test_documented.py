"""The family that docs/compare.md writes out, as written there: one file and one configuration, and it is compared."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from ldm import baselines
from ldm.baselines.family import families
from tests.train.compare.test_wish import wish
from train.compare.cell import run_cell
from train.compare.cells import cells
from train.compare.lab import Progress, prepare, remember
from train.compare.page import write_pages
from train.signals import Stop

DOCS = Path(__file__).parents[2] / "docs" / "compare.md"


def block(begins: str, ends: str) -> str:
    text = DOCS.read_text("utf-8")
    return textwrap.dedent("    " + begins + text.partition(begins)[2].partition(ends)[0])


def test_a_family_is_one_file_and_one_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = block("# ldm/baselines/mean_picture.py", "\n\nand its run file")
    assert len(code.strip().splitlines()) <= 60
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mean_picture.py").write_text(code, "utf-8")
    run_file = block("# configs/family/mean_picture.yaml", "\n\n    ldm train")
    (tmp_path / "mean_picture.yaml").write_text(run_file, "utf-8")
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path / "code")])
    assert "mean_picture" in families()
    asked = wish(tmp_path / "out", families=(str(tmp_path / "mean_picture.yaml"),), seeds=1, budget="40-steps")
    remember(asked, Stop())
    prepare(asked, Progress(), Stop())
    told = run_cell(asked, next(iter(cells(asked))), Stop())
    assert told["bits_per_dim"]["value"] < 9 and told["figures"]["fid"]["value"] > 0
    page = write_pages(asked).read_text("utf-8")
    assert "mean_picture" in page
    assert "It knows nothing of how pixels vary together." in page
