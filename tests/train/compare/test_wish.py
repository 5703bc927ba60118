"""What a comparison is asked for: budgets, families, and what must not change in its folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.compare import data_section
from ldm.baselines.family import settings_of
from ldm.errors import Code, LdmError
from ldm.store.configs import config_path
from train.compare.cells import base_file, cells, file_of, shipped_families
from train.compare.lab import check_same, merged, read_wish, remember, remember_yardsticks
from train.compare.reference import PICTURES
from train.compare.wish import Wish, Yardsticks, budget
from train.signals import Stop


def wish(out: Path, **changes: Any) -> Wish:
    told = {"data": {"path": "scenes", "count": 400}, "families": ("ppca", "vae"), "budget": "3-steps", "out": out,
            "seeds": 2, "size": 8, "samples": 100, "held_out": 100,
            "reference": 200, "classifier_steps": 0}  # fmt: skip
    return Wish(**{**told, **changes})


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [("10min", "seconds", 600), ("90s", "seconds", 90), ("1.5h", "seconds", 5400), ("2000-steps", "steps", 2000),
     ("1e6-images", "images", 1e6), ("1 step", "steps", 1), ("10 minutes", "seconds", 600), ("10m", "seconds", 600),
     ("1 hour", "seconds", 3600)],
)  # fmt: skip
def test_a_budget_is_time_steps_or_pictures(text: str, kind: str, count: float) -> None:
    assert (budget(text).kind, budget(text).count) == (kind, count)


@pytest.mark.parametrize("text", ["", "ten minutes", "-3min", "0-steps", "5 apples", "10", "1e400-steps", "1e400s"])
def test_what_is_no_budget_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is no budget: write 90s, 10min"):
        budget(text)


@pytest.mark.parametrize("text", ["90s", "10min", "1.5h", "2000-steps", "1e6-images"])
def test_the_command_on_the_page_is_that_of_the_comparison(text: str, tmp_path: Path) -> None:
    asked = wish(tmp_path, budget=text, data={"path": "my pictures", "where": {"split": "train"}})
    command, path, *words = shlex.split(asked.command)[1:]
    told = dict(zip(words[:-1:2], words[1::2], strict=True))
    fields: dict[str, Any] = {key.removeprefix("--").replace("-", "_"): value for key, value in told.items()}
    fields |= {"families": tuple(fields["families"].split(",")), "data": data_section(path, words[-1:])}
    assert command == "compare"
    for key in ("seeds", "size", "samples", "held_out", "classifier_steps"):
        fields[key] = int(fields[key])
    assert Wish(**fields, out=tmp_path, reference=200) == asked


@pytest.mark.parametrize("judge", [{"clip": "CLIP"}, {"inception": "nowhere.safetensors"}])
def test_a_judge_that_cannot_look_is_told_of_before_anything_is_written(judge: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "CLIP").mkdir()
    told = {key: str(tmp_path / value) for key, value in judge.items()}
    out = tmp_path / "out"
    with pytest.raises(LdmError, match=r"is not a CLIP folder|is not there"):
        merged(wish(out, **told))
    with pytest.raises(LdmError, match=r"is not a CLIP folder|is not there"):
        remember_yardsticks(Yardsticks(data={"path": "scenes"}, out=out, **told), Stop())
    assert not out.exists()


def test_every_shipped_family_has_a_run_file_on_any_data(tmp_path: Path) -> None:
    names = shipped_families()
    assert len(names) >= 20 and {"ppca", "vae", "dcgan", "glow", "pixelcnn", "energy", "ddpm", "latent"} <= set(names)
    assert names.index("ppca") < names.index("vae") < names.index("dcgan") < names.index("ddpm")
    large = sorted(f"family-gpu/{p.stem}" for p in config_path("family-gpu").glob("*.yaml"))
    assert len(large) == 6
    for name in [*names, *large]:
        task = base_file(name).task
        assert task.type == "family"
        settings_of(task.family, task.options)
    (first, *_) = cells(wish(tmp_path))
    file = file_of(wish(tmp_path), first, 50)
    assert (file.run.steps, file.run.seed, file.data.size, file.data.validation) == (50, 0, 8, 100)
    assert file.run.out == tmp_path / "cells/ppca-0/run"


def test_seeds_go_round_before_families(tmp_path: Path) -> None:
    assert [(c.family, c.seed) for c in cells(wish(tmp_path))] == [("ppca", 0), ("vae", 0), ("ppca", 1), ("vae", 1)]


def test_a_wish_that_came_to_nothing_binds_nobody(tmp_path: Path) -> None:
    """Refused for want of pictures, one tries again with other options; once there are pictures, they would not fit."""
    remember(wish(tmp_path), Stop())
    assert remember(wish(tmp_path, size=16), Stop()).size == 16 and read_wish(tmp_path).size == 16
    (tmp_path / PICTURES).touch()
    with pytest.raises(LdmError, match=r"There --size is 16, and now it is 8") as caught:
        remember(wish(tmp_path), Stop())
    assert caught.value.code == Code.USAGE


def test_families_and_seeds_may_be_added_and_nothing_else_changed(tmp_path: Path) -> None:
    remember(wish(tmp_path), Stop())
    (tmp_path / PICTURES).touch()
    more = remember(wish(tmp_path, families=("glow", "ppca"), seeds=3), Stop())
    assert (more.families, more.seeds) == (("ppca", "vae", "glow"), 3)
    with pytest.raises(LdmError, match="holds another comparison"):
        remember(wish(tmp_path, size=16), Stop())
    before = read_wish(tmp_path)
    assert before.out == tmp_path and before.budget == budget("3-steps") and before.families == more.families
    with pytest.raises(LdmError, match="There --budget is 3 steps, and now it is 4 steps"):
        check_same(wish(tmp_path, budget="4-steps"), before)


def test_what_is_measured_beside_a_comparison_is_measured_as_it_was(tmp_path: Path) -> None:
    asked = remember(wish(tmp_path), Stop())
    yard = {key: getattr(asked, key) for key in Yardsticks.model_fields}
    remember_yardsticks(Yardsticks(**yard), Stop())
    with pytest.raises(LdmError, match="There --held-out is 100, and now it is 120"):
        remember_yardsticks(Yardsticks(**{**yard, "held_out": 120}), Stop())


def test_a_row_has_one_name(tmp_path: Path) -> None:
    remember(wish(tmp_path, families=("ddpm",)), Stop())
    with pytest.raises(LdmError, match="is called ddpm already"):
        remember(wish(tmp_path, families=("family-gpu/ddpm",)), Stop())
    assert read_wish(tmp_path).families == ("ddpm",)


def test_what_is_asked_for_is_joined_with_what_is_there_and_nothing_is_written(tmp_path: Path) -> None:
    remember(wish(tmp_path), Stop())
    assert merged(wish(tmp_path, families=("glow",), seeds=1)).families == ("ppca", "vae", "glow")
    assert read_wish(tmp_path).families == ("ppca", "vae")


def test_a_side_that_families_cannot_halve_is_refused_with_those_next_to_it(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="use 16 or 32"):
        wish(tmp_path, size=24)


def test_families_are_named_once_and_are_families(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="each of them once"):
        wish(tmp_path, families=("vae", "vae"))
    with pytest.raises(LdmError, match="run file of no family"):
        base_file(str(Path("configs/autoencoder/scenes.yaml").resolve()))
