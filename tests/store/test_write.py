"""Writing fails in words: the goal is named, never the staged file beside it, and the remedy is that of the cause."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from ldm.errors import Code, LdmError
from ldm.store.write import staged, write_weights


def fails(goal: Path) -> LdmError:
    with pytest.raises(LdmError) as caught, staged(goal) as stage:
        write_weights(stage, {"a": torch.ones(1)})
    assert f"{goal}" in caught.value.what
    assert ".tmp-" not in str(caught.value)
    return caught.value


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for goal in (tmp_path / "file" / "x.safetensors", tmp_path / "file" / "deep" / "x.safetensors"):
        assert fails(goal).why == f"{tmp_path / 'file'} is a file, not a folder."


@pytest.mark.parametrize("name", ["n" * 300, "nul\0"])
def test_names_that_the_system_refuses(tmp_path: Path, name: str) -> None:
    assert "name" in fails(tmp_path / name).fix
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "exists already" in fails(tmp_path / "link").what


@pytest.mark.parametrize(
    ("number", "code", "fix"),
    [
        (errno.ENOSPC, Code.RESOURCE, "Free some space"),
        (errno.EACCES, Code.FILE, "Choose a folder that you may write into"),
        (errno.EROFS, Code.FILE, "Choose a folder on a disk that can be written"),
        (errno.EIO, Code.FILE, "Choose another folder"),
    ],
)
def test_each_cause_has_its_remedy(tmp_path: Path, number: int, code: Code, fix: str) -> None:
    with pytest.raises(LdmError) as caught, staged(tmp_path / "x") as stage:
        stage.touch()
        raise OSError(number, os.strerror(number), str(stage))
    assert caught.value.code is code
    assert caught.value.fix.startswith(fix)
    assert list(tmp_path.iterdir()) == []
