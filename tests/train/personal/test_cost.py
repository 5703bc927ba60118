"""What is said before the first step: no less time and room than it takes, and nothing that is not written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.data.test_doctor import encoded, scene
from train.personal import cost
from train.personal.cost import cost_of
from train.personal.photos import Photos, looked_at, prepared
from train.personal.plan import Plan, base_of, planned
from train.personal.settings import Wish
from train.personal.strengths import OTHERS, WEIGHTS


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        (tmp_path / "photos" / f"{number}.png").write_bytes(encoded(scene(number)))
    source, _ = looked_at(tmp_path / "photos", 32, "zwx")
    return prepared(source, tmp_path / "out" / "photos", 32, ("zwx",), "zwx")


def plan(photos: Photos, **changes: Any) -> Plan:
    told: dict[str, Any] = {"steps": 100, "prior": 0, "prompts": ("{}", "{} red"), "unrelated": ("a star",)} | changes
    wish = Wish(photos=photos.folder, token="zwx", kind="circle", model="scenes", out=photos.folder.parent, **told)
    return planned(wish, base_of("scenes"), 5)


def test_pictures_at_several_weights_and_whole_ones_of_the_class_count(
    photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(step_seconds=12.0, memory=SimpleNamespace(total=5), free=9, fits=True, disk=1000, saved=50)
    monkeypatch.setattr(cost, "forecasted", lambda file: made)
    drawn, word = cost_of(plan(photos), photos), cost_of(plan(photos, method="inversion"), photos)
    at = len(WEIGHTS) + 5 * len(OTHERS)  # the chosen checkpoint, and each other one; of two prompts
    each = 12.0 / 4 / (1 + cost.BACKWARD)  # one picture, once through the network: 4 photos a step
    assert drawn.looking is not None and word.looking is not None
    assert drawn.looking - word.looking == pytest.approx(each * (2 * 25 + 2) * at * 2)
    pixels = 3 * 32 * 32
    assert drawn.disk - word.disk == pytest.approx(2 * at * pixels * (1 + 4 / 3), abs=3)
    with_prior = cost_of(plan(photos, prior=10), photos)
    assert with_prior.disk - drawn.disk == pixels * 10
    more = cost_of(plan(photos, checkpoints=7), photos)
    shown = 2 * 4 + (2 + 1) * 2  # prompts of the subject, of its kind, unrelated; times seeds
    shown += 2 * len(OTHERS)
    assert more.disk - drawn.disk == pytest.approx(50 + pixels * shown + pixels * shown * 4 / 3, abs=2)


def test_the_base_that_stays_as_it_is_is_not_written(photos: Photos) -> None:
    file = plan(photos, rank=2).run_file(photos, None)
    made = cost.forecasted(file)
    adapter = sum(count for name, (count, trained) in made.networks.items() if trained)
    assert made.saved == 2 * 4 * adapter < made.memory.weights / 2
    assert made.disk == made.checkpoint * (file.run.keep + 1) + made.saved


def test_a_third_of_each_batch_are_pictures_of_the_model_itself(photos: Photos, tmp_path: Path) -> None:
    alone, kept = plan(photos).run_file(photos, None), plan(photos, prior=10).run_file(photos, tmp_path)
    assert [part.weight for part in kept.data.mix] == pytest.approx([2 / 3, 1 / 3]) and len(alone.data.mix) == 1
    assert (alone.run.batch, kept.run.batch) == (4, 6)
    assert [part.repeats for part in kept.data.mix] == [2, 1]  # enough of each for a batch of it alone
