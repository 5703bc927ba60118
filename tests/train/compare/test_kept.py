"""Cells that are kept with the project: brought back elsewhere, gone on with, and kept again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.families import bring_back, keep
from ldm.errors import LdmError
from ldm.store.weights import load_weights
from ldm.store.write import write_weights
from train.compare.cells import RESULT, SAMPLES
from train.compare.gallery import SHEET
from train.compare.lab import WISH
from train.compare.page import DATA, PAGE, TABLE
from train.compare.wish import Wish, budget


def comparison(folder: Path, minutes: int = 5) -> Path:
    folder.mkdir()
    wish = Wish(data={"path": "scenes"}, out=folder, families=("ppca", "vae"), budget=budget(f"{minutes}min"), seeds=2)
    (folder / WISH).write_text(wish.model_dump_json())
    return folder


def measured(out: Path, *cells: str) -> None:
    for name in cells:
        (out / "cells" / name).mkdir(parents=True)
        write_weights(out / "cells" / name / SAMPLES, {"samples": torch.zeros(50, 3, 8, 8, dtype=torch.uint8)}, {})
        (out / "cells" / name / RESULT).write_text(json.dumps({"family": name}))
    for page in (PAGE, DATA, TABLE):
        (out / page).write_text(f"{len(list(out.glob('cells/*')))} cells")
    (out / "classifier" / "model").mkdir(parents=True, exist_ok=True)
    (out / "classifier" / "model" / "config.json").write_text("{}")


def test_another_machine_goes_on_where_one_was_left(tmp_path: Path) -> None:
    first, kept = comparison(tmp_path / "first"), tmp_path / "kept"
    assert bring_back(kept, first) == 0
    measured(first, "ppca-0", "ppca-1")
    (first / "cells" / "vae-0").mkdir()  # begun, not done
    assert keep(first, kept) == 2
    second = tmp_path / "second"
    assert bring_back(kept, second) == 2 and bring_back(kept, second) == 0
    assert (second / "classifier" / "model" / "config.json").is_file()
    assert not (second / "cells" / "ppca-1" / SAMPLES).exists()  # the page shows those of the first seed
    measured(second, "vae-0")
    assert keep(second, kept) == 3 and (kept / PAGE).read_text() == "3 cells"
    assert len(load_weights(kept / "cells" / "vae-0" / SAMPLES)["samples"]) == SHEET


def test_cells_of_another_comparison_are_not_mixed_in(tmp_path: Path) -> None:
    first, other, kept = comparison(tmp_path / "first"), comparison(tmp_path / "other", 10), tmp_path / "kept"
    measured(first, "ppca-0")
    keep(first, kept)
    with pytest.raises(LdmError, match="another comparison"):
        bring_back(kept, other)
    assert not (other / "cells").exists()


def test_cells_of_another_judge_are_not_mixed_in(tmp_path: Path) -> None:
    first, other, kept = comparison(tmp_path / "first"), comparison(tmp_path / "other"), tmp_path / "kept"
    for folder, weight in ((first, 1.0), (other, 2.0)):
        measured(folder, "ppca-0")
        write_weights(folder / "classifier" / "model" / "model.safetensors", {"w": torch.tensor(weight)}, {})
    keep(first, kept)
    with pytest.raises(LdmError, match="is not the judge"):
        bring_back(kept, other)
