"""Cells on several cards and machines, and how a comparison ends whose cells did not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from app.compare import undone
from ldm.errors import Code, LdmError
from tests.train.compare.test_wish import wish
from train.compare.cells import cells
from train.compare.children import alone
from train.compare.cluster import check_room
from train.compare.lab import give_up


@pytest.mark.parametrize(
    ("rank", "seen", "cards", "then"),
    [("1", None, 2, "1"), ("1", "4,7", 2, "7"), ("3", "4,7", 2, "7"), ("1", None, 0, None), (None, "4,7", 2, "4,7")],
)
def test_each_process_of_a_launch_has_a_card_of_its_own(
    rank: str | None, seen: str | None, cards: int, then: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCAL_RANK", rank), ("WORLD_SIZE", "2"), ("CUDA_VISIBLE_DEVICES", seen)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    import os

    alone()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == then
    assert "WORLD_SIZE" not in os.environ and "LOCAL_RANK" not in os.environ


def node(alive: bool = True, **resources: float) -> dict[str, object]:
    return {"Alive": alive, "Resources": resources}


def test_more_processors_than_a_machine_has_are_refused() -> None:
    assert check_room([node(CPU=4), node(CPU=16)], 8) == 0
    assert check_room([node(CPU=32), node(CPU=8, GPU=2)], 8) == 2
    for nodes, most in (
        ([node(CPU=4), node(CPU=4)], 4),
        ([node(CPU=4), node(alive=False, CPU=64)], 4),
        ([node(CPU=32), node(CPU=2, GPU=1)], 2),  # where there are cards, each cell has one
    ):
        with pytest.raises(LdmError, match=f"--ray-cpus 8 cannot be had[^$]*has {most}"):
            check_room(nodes, 8)


def test_cells_that_came_to_nothing_are_told_at_the_end(tmp_path: Path) -> None:
    asked, said = wish(tmp_path / "out"), list[str]()
    one, two, *_ = cells(asked)
    assert undone(asked, said.append) == 0  # nothing has been begun
    one.folder.mkdir(parents=True)
    (one.folder / "cell.json").write_text(json.dumps({"failed": "The loss is none."}), "utf-8")
    assert undone(asked, said.append) == 0 and not said  # it is done, and says so itself
    give_up(two, "", -9)
    assert undone(asked, said.append) == Code.RESOURCE
    give_up(two, "The table is gone. Somebody moved it.", 5)
    assert undone(asked, said.append) == 5
    assert "1 cell came to nothing" in said[-2] and "The table is gone." in said[-1]
