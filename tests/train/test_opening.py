"""What a run begins with: a mask that lies beside the pictures of a subject is used, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ldm.data.settings import DataSettings
from ldm.errors import Code, LdmError
from tests.data.test_doctor import encoded, put, scene
from train.config import OptimSettings, RunFile, RunSettings
from train.opening import data_of, processes_of
from train.tasks.settings import InversionSettings, LoraSettings


@pytest.mark.parametrize("kind", ["lora", "inversion"])
def test_a_mask_that_would_do_nothing_is_refused(kind: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        put(photos, f"{number}.png", encoded(scene(number)), "zwx")
    task: LoraSettings | InversionSettings = LoraSettings(type="lora", model=Path("scenes"))
    if kind == "inversion":
        task = InversionSettings(type="inversion", model=Path("scenes"), token="zwx", begin="circle")
    run = RunSettings(out=tmp_path / "run", steps=2, batch=2, device="cpu")

    def file(mask: str) -> RunFile:
        data = DataSettings(path=str(photos), size=32, mask=mask)  # type: ignore[arg-type]
        return RunFile(task=task, data=data, optim=OptimSettings(lr=1e-3), run=run)

    processes = processes_of(file("none"))
    assert len(data_of(file("none"), processes)[0]) == 4
    (photos / "masks").mkdir()
    (photos / "masks" / "2.png").write_bytes(encoded(Image.new("L", (64, 64), 255)))
    for mask in ("beside", "alpha"):
        assert len(data_of(file(mask), processes)[0]) == 4
    for content in (None, b"no picture"):
        if content is not None:
            (photos / "masks" / "2.png").write_bytes(content)
        with pytest.raises(LdmError, match=r"2\.png has a mask beside it, and data\.mask is none") as error:
            data_of(file("none"), processes)
        assert error.value.code is Code.USAGE and "data.mask=beside" in error.value.fix
