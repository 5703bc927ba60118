"""A checkpoint comes back bit for bit, the newest that verifies is found, and another architecture is refused."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from ldm.errors import Code, LdmError
from tests.train.states import content, differences, names, state
from train.checkpoint import FILES, MANIFEST, State, check_fits, load_state, newest_state, save_state, verify


def test_it_comes_back_bit_for_bit(tmp_path: Path) -> None:
    wanted = state(3, rates=[1e-4, 0.1], note="é")
    path = save_state(tmp_path, wanted, 2, "hash")
    assert path == tmp_path / "state" / "3"
    assert sorted(p.name for p in path.iterdir()) == sorted([*FILES, MANIFEST])
    assert differences(load_state(path), wanted) == []
    assert verify(path).config == "hash"


def test_an_empty_part_is_fine(tmp_path: Path) -> None:
    plain = state(1)
    bare = type(plain)(1, plain.model, {}, {})
    assert differences(load_state(save_state(tmp_path, bare, 1, "")), bare) == []


def test_files_have_the_modes_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = save_state(tmp_path, state(1), 1, "")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in path.iterdir()} == {0o640}
    assert path.stat().st_mode & 0o777 == 0o750


def test_the_newest_stay_and_nothing_else_does(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):  # 20 after 100: by number, not by name or age
        save_state(tmp_path, state(step), 3, "")
    assert names(tmp_path) == ["10", "100", "20", "5"]  # what is newer than the step at hand is not touched
    save_state(tmp_path, state(110), 2, "")
    assert names(tmp_path) == ["100", "110"]
    assert newest_state(tmp_path) == tmp_path / "state" / "110"


def test_the_newest_is_told_by_manifests_and_not_by_names(tmp_path: Path) -> None:
    for step in (1, 2):
        save_state(tmp_path, state(step), 2, "")
    states = tmp_path / "state"
    (states / "1").rename(states / "999")
    (states / "checkpoint-old").mkdir()
    (states / "12-notes.txt").touch()
    (states / ".tmp-3000-1").mkdir()
    assert newest_state(tmp_path) == states / "2"


def test_a_new_run_has_none(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None
    (tmp_path / "state" / ".tmp-1-1").mkdir(parents=True)
    assert newest_state(tmp_path) is None


def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        save_state(tmp_path, state(step), 2, "")
    (tmp_path / "state" / "2" / "ema.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert newest_state(tmp_path) == tmp_path / "state" / "1"
    assert "ema.safetensors has 0 bytes" in caplog.text
    # It is done again, and takes the place of the damaged one.
    save_state(tmp_path, state(2), 2, "")
    assert differences(load_state(tmp_path / "state" / "2"), state(2)) == []
    assert names(tmp_path) == ["1", "2"]


def test_that_all_are_damaged_is_not_a_new_run(tmp_path: Path) -> None:
    (save_state(tmp_path, state(2), 2, "") / MANIFEST).unlink()
    with pytest.raises(LdmError, match="remove it to start again at step 0") as caught:
        newest_state(tmp_path)
    assert caught.value.code is Code.FILE


def test_a_state_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    path = save_state(tmp_path, state(2), 2, "")
    before = (path / MANIFEST).stat().st_ino
    assert save_state(tmp_path, state(2), 2, "") == path
    assert (path / MANIFEST).stat().st_ino == before


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_is_saved(tmp_path: Path, part: str, value: float) -> None:
    good = save_state(tmp_path, state(1), 2, "")
    before = content(good)
    bad = state(2)
    bad.part(part)["net.a" if part != "optimizer" else "net.a/exp_avg"][1, 2] = value
    with pytest.raises(LdmError, match="of step 1, is untouched") as caught:
        save_state(tmp_path, bad, 2, "")
    assert caught.value.code is Code.NUMERIC
    assert names(tmp_path) == ["1"]
    assert content(good) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_that_holds_for_every_kind_of_number(tmp_path: Path, dtype: torch.dtype) -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        tensor = torch.zeros(3, 7)
        tensor[1, 3] = value
        with pytest.raises(LdmError, match="not finite"):
            save_state(tmp_path, State(1, {"x": tensor.to(dtype)}, {}, {}), 2, "")
    save_state(tmp_path, State(1, {"x": torch.ones(3, 7).to(dtype)}, {}, {}), 2, "")


def test_meta_that_is_not_finite_is_not_saved_either(tmp_path: Path) -> None:
    with pytest.raises(LdmError, match=r"state\.json"):
        save_state(tmp_path, state(1, loss=float("nan")), 2, "")
    assert names(tmp_path) == []


def test_what_was_read_outlives_its_folder(tmp_path: Path) -> None:
    """Read into memory: a pruned file would keep its room on the disk, and a rewritten one would change the tensors."""
    path = save_state(tmp_path, state(1), 2, "")
    found = load_state(path)
    for name in FILES:
        (path / name).write_bytes(b"\0" * (path / name).stat().st_size)
    assert differences(found, state(1)) == []


def swaps() -> list[tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """(what differs, what is saved, what the run has): other widths, depths, kinds, and parts that are not there."""
    base = {f"down.{i}.weight": torch.zeros(4, 3) for i in range(8)}
    wide = {name: torch.zeros(8, 3) for name in base}
    deeper = base | {"down.8.weight": torch.zeros(4, 3)}
    conv = base | {"down.0.weight": torch.zeros(4, 3, 1, 1)}
    other = {f"encoder.{i}.weight": torch.zeros(4, 3) for i in range(8)}
    codes = base | {"quantize.embedding.weight": torch.zeros(16, 4)}
    return [
        ("width", base, wide),
        ("narrower", wide, base),
        ("deeper", base, deeper),
        ("shallower", deeper, base),
        ("kind of layer", base, conv),
        ("names", base, other),
        ("no average", {}, base),
        ("an average too many", base, {}),
        ("VQ for KL", base, codes),
        ("KL for VQ", codes, base),
        ("one tensor", base, base | {"down.7.weight": torch.zeros(4, 4)}),
        ("transposed", base, {name: value.T for name, value in base.items()}),
    ]


@pytest.mark.parametrize(("what", "saved", "wanted"), swaps(), ids=lambda v: v if isinstance(v, str) else "")
def test_another_architecture_is_refused(
    what: str, saved: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(LdmError) as caught:
        check_fits(Path("runs/a/state/5"), "model", saved, wanted, "task.unet=wide.json")
    error = caught.value
    assert error.code is Code.MODEL
    assert "task.unet=wide.json" in error.why
    named = error.why.partition(": ")[2].split("; ")
    differing = [n for n in {*saved, *wanted} if n not in saved or n not in wanted or saved[n].shape != wanted[n].shape]
    assert len(named) == min(5, len(differing))
    assert f"{len(differing)} of {len({*saved, *wanted})} tensors" in error.what
    assert all("checkpoint " in line and "run " in line for line in named)


def test_the_same_architecture_fits() -> None:
    check_fits(Path("x"), "model", state(1).model, state(2).model)


def test_the_manifest_says_what_each_file_holds(tmp_path: Path) -> None:
    path = save_state(tmp_path, state(7), 1, "abc")
    told = json.loads((path / MANIFEST).read_text())
    assert (told["step"], told["config"]) == (7, "abc")
    assert {name: entry["bytes"] for name, entry in told["files"].items()} == {
        name: (path / name).stat().st_size for name in FILES
    }
