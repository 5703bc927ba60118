"""Models by name: what is meant is suggested, and a path is not taken for a hub id."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.errors import Code, LdmError
from ldm.store.find import find_model, shipped


def test_a_shipped_name_is_found() -> None:
    assert [find_model(name).name for name in shipped()] == shipped()


def test_a_folder_of_a_shipped_name_hides_it_only_if_it_may_be_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes").mkdir()
    assert find_model("scenes").parent.name == "pretrained"
    (tmp_path / "scenes/model_index.json").touch()
    assert find_model("scenes") == Path("scenes")


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_an_empty_name_is_no_path(name: str) -> None:
    with pytest.raises(LdmError, match="is empty") as caught:
        find_model(name)
    assert caught.value.code is Code.USAGE


def test_a_name_like_it_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.store.find.shipped", lambda: ["scenes"])
    (tmp_path / "dreams.safetensors").touch()
    (tmp_path / "dream.txt").touch()
    cases = {
        "scnes": "Use scenes ",
        str(tmp_path / "dream.safetensors"): f"Use {tmp_path / 'dreams.safetensors'} ",
        "owner/model": "Run `ldm models pull owner/model`",
        "owner/model.safetensors": "Check the path",
        "a" * 5000: "Check the path",
        "\0": "Check the path",
    }
    for name, fix in cases.items():
        with pytest.raises(LdmError) as caught:
            find_model(name)
        assert caught.value.code is Code.FILE
        assert caught.value.fix.startswith(fix), name


def test_a_path_in_a_folder_that_is_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(LdmError) as caught:
        find_model("models/dream")
    assert "pull" not in caught.value.fix


def test_a_models_path_that_a_shipped_run_makes_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LdmError) as caught:
        find_model("runs/scenes/autoencoder/model")
    assert caught.value.fix == "Run `ldm train autoencoder/scenes` first, which makes it."


def test_the_folder_of_a_run_is_no_model_and_names_where_its_model_is(tmp_path: Path) -> None:
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("run: {}\n")
    with pytest.raises(LdmError) as caught:
        find_model(str(tmp_path / "run"))
    assert caught.value.fix == f"Write {tmp_path / 'run' / 'model'}."
