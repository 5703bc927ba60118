"""What `ldm compare` found, as the server tells it: the main table, by names and never by paths."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.app.server.conftest import Open, listened

HEAD = ["family", "KID", "FID", "precision", "recall", "coverage", "copies", "bits/dim"]


@pytest.fixture
def comparisons(root: Path, tmp_path: Path) -> Path:
    """A whole one, one that was stopped, and folders that are none."""
    folder = tmp_path / "compare"
    for name, made in (("photos", "cifar10-cpu"), ("begun", "scenes-compare")):
        shutil.copytree(
            root / "docs" / "results" / made, folder / name, ignore=shutil.ignore_patterns("*.safetensors", "*.html")
        )
    for cell in (folder / "begun" / "cells").iterdir():
        if cell.name not in ("ppca-0", "mixture-0"):
            shutil.rmtree(cell)
    os.utime(folder / "begun" / "compare.json", (1, 1))
    shutil.copytree(folder / "begun", folder / "nothing-measured")
    shutil.rmtree(folder / "nothing-measured" / "cells")
    for name, text in (("torn", '{"data": '), ("foreign", "[1]"), ("strange", '{"families": ["nobody"]}')):
        (folder / name).mkdir()
        (folder / name / "compare.json").write_text("{}")
        (folder / name / "wish.json").write_text(text)
    shutil.copytree(folder / "begun", folder / "spoilt")
    (folder / "spoilt" / "cells" / "ppca-0" / "cell.json").write_text("[1]")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.loopback
def test_comparisons_are_told_by_their_names(open_service: Open, comparisons: Path) -> None:
    wish = json.loads((comparisons / "photos" / "wish.json").read_text())
    with open_service(compare=comparisons) as service, listened(service) as http:
        answer = http.get("/v1/families")
        assert answer.status_code == 200 and str(comparisons) not in answer.text
        whole, begun = answer.json()["families"]
        assert http.get("/v1/families").json() == answer.json()
    assert whole["title"] == "photos" and begun["title"] == "begun"
    assert whole["about"].startswith(f"{Path(wish['data']['path']).name}: 48 of 48 cells (24 families, 2 seeds), 5 min")
    assert "/" not in whole["about"]
    assert whole["columns"] == HEAD and len(whole["rows"]) == 25
    assert all(len(row) == 8 and all(isinstance(cell, str) for cell in row) for row in whole["rows"])
    names = [row[0] for row in whole["rows"]]
    assert names[:3] == ["held-out pictures (1,000 real ones)", "stylegan", "improved-ddpm"]
    assert names[-1] == "score (only 1650 samples: not ranked)"
    assert whole["rows"][2][1] == "16.8 (13.8 – 19.7)" and whole["rows"][2][-1].startswith("≤ 3.92 (")
    assert whole["rows"][1][-1] == "–"
    assert begun["about"].startswith("scenes: 2 of 24 cells (") and len(begun["rows"]) == 3


@pytest.mark.loopback
def test_what_a_comparison_adds_is_shown(open_service: Open, comparisons: Path, root: Path) -> None:
    with open_service(compare=comparisons) as service, listened(service) as http:
        before = http.get("/v1/families").json()["families"][1]
        cell = Path("cells") / "vae-0" / "cell.json"
        (comparisons / "begun" / cell).parent.mkdir()
        shutil.copy(root / "docs" / "results" / "scenes-compare" / cell, comparisons / "begun" / cell)
        (comparisons / "begun" / "compare.json").write_text("{}")  # as `ldm compare` does after each cell
        after = http.get("/v1/families").json()["families"][0]
    assert len(after["rows"]) == len(before["rows"]) + 1 and "3 of 24 cells" in after["about"]


@pytest.mark.loopback
@pytest.mark.parametrize("folder", [None, "nowhere", "empty"])
def test_without_any_there_is_an_empty_list(open_service: Open, tmp_path: Path, folder: str | None) -> None:
    (tmp_path / "empty").mkdir()
    where = None if folder is None else tmp_path / folder
    with open_service(compare=where) as service, listened(service) as http:
        assert http.get("/v1/families").json() == {"families": []}
