"""What an earlier command has left: it is gone on with, or refused; nothing that was trained is ever removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.errors import Code, LdmError
from tests.data.test_doctor import encoded, scene
from train.checkpoint import MANIFEST
from train.lock import NAME, Lock
from train.personal import earlier as module
from train.personal.earlier import PAGE, REPORT, WISH, Earlier, earlier, held
from train.personal.photos import digest_of, looked_at, prepared
from train.personal.plan import base_of, planned
from train.personal.settings import Wish


@pytest.fixture
def wish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wish:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "others"):
        (tmp_path / name).mkdir()
        for number in range(5):
            data = encoded(scene(number + 10 * (name == "others")))
            (tmp_path / name / f"{number}.png").write_bytes(data)
    return Wish(photos=Path("photos"), token="zwx", model="scenes", out=Path("out"))


def begin(wish: Wish) -> None:
    """As far as the line that says what it will cost."""
    before = earlier(wish)
    with held(wish, before):
        if before.photos is None:
            source, findings = looked_at(wish.photos, 32, wish.token)
            prepared(source, wish.out / "photos", 32, ("zwx",), wish.token, findings)


def train(wish: Wish, step: int = 240) -> Path:
    """What the trainer has saved when it is stopped."""
    state = wish.out / "run" / wish.name / "state" / f"{step:09}"
    state.mkdir(parents=True)
    (state / MANIFEST).write_text("{}")
    return state


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != NAME}


def test_another_option_never_costs_what_was_trained(wish: Wish) -> None:
    begin(wish)
    train(wish)
    before = everything(wish.out)
    with pytest.raises(LdmError, match="begun with other options: batch") as error:
        earlier(wish.model_copy(update={"batch": 2}))
    assert error.value.code is Code.USAGE and everything(wish.out) == before
    with pytest.raises(LdmError, match="other options: batch, seed") as error:
        earlier(wish.model_copy(update={"batch": 2, "seed": 5}))
    assert "seed was 0, and is 5 now" in error.value.why
    begin(wish)
    assert everything(wish.out) == before


def test_where_nothing_was_learned_it_begins_as_it_is_asked_now(wish: Wish) -> None:
    begin(wish)
    other = wish.model_copy(update={"batch": 2})
    assert earlier(other) == Earlier()
    begin(other)
    assert earlier(other).photos is not None and earlier(wish) == Earlier()


def test_the_folder_may_be_named_in_another_way(wish: Wish, tmp_path: Path) -> None:
    begin(wish)
    train(wish)
    other = wish.model_copy(update={"out": tmp_path / "out", "photos": tmp_path / "photos"})
    photos, again = earlier(wish).photos, earlier(other).photos
    assert photos is not None and again is not None and photos.names == again.names
    base = base_of("scenes")
    mine, same = (planned(each, base, 5).run_file(own, None) for each, own in ((wish, photos), (other, again)))
    assert mine.data == same.data


def test_a_live_run_keeps_its_folder_from_a_second_command(wish: Wish) -> None:
    begin(wish)
    (wish.out / "run" / wish.name).mkdir(parents=True)
    before = everything(wish.out)
    for locked in (wish.out, wish.out / "run" / wish.name):  # the command's own, and that of `ldm train`
        with Lock(locked), pytest.raises(LdmError, match="in use") as error:
            begin(wish.model_copy(update={"batch": 2}))
        assert error.value.code is Code.BUSY and "--out" in error.value.fix
        assert everything(wish.out) == before and (locked / NAME).exists()


@pytest.mark.parametrize("removals", range(8))
def test_a_kill_while_it_begins_anew_leaves_nothing_in_the_way(
    wish: Wish, removals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(wish)
    other = wish.model_copy(update={"batch": 2})
    real, done = module.remove, []

    def killed(path: Path) -> None:
        if len(done) == removals:
            raise KeyboardInterrupt
        done.append(path)
        real(path)

    monkeypatch.setattr(module, "remove", killed)
    if removals < len(module.BEGUN):
        with pytest.raises(KeyboardInterrupt):
            begin(other)
    monkeypatch.setattr(module, "remove", real)
    begin(other)
    assert earlier(other).photos is not None


def test_what_a_kill_before_the_wish_leaves_is_no_stranger_s(wish: Wish) -> None:
    wish.out.mkdir()
    (wish.out / NAME).touch()
    (wish.out / f".{WISH}.tmp-77").touch()
    assert earlier(wish) == Earlier()
    (wish.out / "mine.txt").touch()
    with pytest.raises(LdmError, match="not empty"):
        earlier(wish)


def test_other_photos_are_taken_or_refused_and_never_passed_over(wish: Wish) -> None:
    begin(wish)
    other = wish.model_copy(update={"photos": Path("others")})
    assert earlier(other) == Earlier()
    (wish.photos / "2.png").write_bytes(encoded(scene(77)))  # a better one in the place of a blurred one
    assert earlier(wish) == Earlier()
    begin(wish)
    photos = earlier(wish).photos
    assert photos is not None and photos.digest == digest_of(wish.photos)
    train(wish)
    with pytest.raises(LdmError, match="other photos than others holds") as error:
        earlier(other)
    assert error.value.code is Code.USAGE and "--out" in error.value.fix
    (wish.out / REPORT).write_text('{"files": []}')
    with pytest.raises(LdmError, match=r"report\.html is not there"):  # nor what it would be made of
        earlier(wish)
    (wish.out / PAGE).touch()
    assert earlier(wish).learned is not None
    with pytest.raises(LdmError, match="other photos"):
        earlier(other)


def test_captions_and_masks_are_a_part_of_the_photos_and_their_place_is_not(wish: Wish, tmp_path: Path) -> None:
    seen = [digest_of(wish.photos)]
    (wish.photos / "0.txt").write_text("zwx at night")
    seen.append(digest_of(wish.photos))
    (wish.photos / "masks").mkdir()
    (wish.photos / "masks" / "1.png").write_bytes(encoded(scene(1).convert("L")))
    seen.append(digest_of(wish.photos))
    assert len({*seen}) == 3
    wish.photos.rename(tmp_path / "moved")
    assert digest_of(tmp_path / "moved") == seen[-1]


def test_photos_that_are_gone_or_a_folder_without_any(wish: Wish, tmp_path: Path) -> None:
    begin(wish)
    train(wish)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LdmError, match="other photos"):
        earlier(wish.model_copy(update={"photos": tmp_path / "empty"}))
    wish.photos.rename(tmp_path / "gone")
    assert earlier(wish).photos is not None


def test_prepared_photos_that_were_lost_are_made_again_and_training_stays(wish: Wish) -> None:
    begin(wish)
    state = train(wish)
    module.remove(wish.out / "photos")
    begin(wish)
    assert state.is_dir() and earlier(wish).photos is not None
