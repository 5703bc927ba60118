"""A cached run of two processes is that of one: batches, losses, what is left out, and nothing is encoded twice."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ldm.config import loads
from ldm.data.cache import Cache
from tests.data import sets
from tests.train import toys
from tests.train.test_caching import cut, losses, settings
from train.config import RunFile
from train.processes import Processes
from train.run import opened

pytestmark = pytest.mark.loopback
EPOCH = 5  # steps: 20 pictures in batches of 4


def overheard(rank: int, world: int, folder: Path) -> None:
    processes = Processes.start("cpu")
    texts = ["", "näme " * 50, "\x00"]
    assert processes.hear(texts[rank]) == texts
    assert processes.hear("") == ["", "", ""]
    assert processes.hear(texts[rank], processes.patient()) == texts


def test_each_process_hears_all(tmp_path: Path) -> None:
    toys.together(3, overheard, tmp_path)
    assert Processes.start("cpu").hear("alone") == ["alone"]


def cached(rank: int, world: int, pictures: Path, out: Path, model: Path) -> None:
    """A run to its end; this process's rows of two epochs are written down."""
    with opened(settings(pictures, out, model, "run.batch=4", "data.flip=0.5")) as run:
        run.fit()
        feed = run.trainer.batches(0)
        rows = [next(feed) for _ in range(2 * EPOCH)]
    np.savez(
        out.parent / f"{out.name}-{rank}.npz",
        examples=np.stack([batch.examples.numpy() for batch in rows]),
        mean=np.stack([batch.extra["mean"].numpy() for batch in rows]),
        text_states=np.stack([batch.extra["text_states"].numpy() for batch in rows]),
    )


def rows_of(out: Path, world: int) -> dict[str, np.ndarray]:
    """What all processes of a run wrote down, as whole batches."""
    parts = [np.load(out.parent / f"{out.name}-{rank}.npz") for rank in range(world)]
    return {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0].files}


def shards(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*.safetensors"))


def test_a_picture_that_one_process_cannot_read_is_left_out_by_both(tmp_path: Path, tiny_sd1: Path) -> None:
    pictures = sets.folder(tmp_path / "set", 20, (16, 16))
    cut(pictures, 7)  # of the second process's share of what is encoded; of both's, of what is trained on
    one, two = tmp_path / "alone" / "run", tmp_path / "together" / "run"
    one.parent.mkdir()
    two.parent.mkdir()
    cached(0, 1, pictures, one, tiny_sd1)
    toys.together(2, cached, pictures, two, tiny_sd1)
    wanted, found = rows_of(one, 1), rows_of(two, 2)
    assert found["examples"].tolist() == wanted["examples"].tolist()
    assert set(found["examples"].flatten().tolist()) == set(range(20)) - {7}
    for name in ("mean", "text_states"):
        assert np.abs(found[name] - wanted[name]).max() <= 1e-5
    assert losses(two) == pytest.approx(losses(one), rel=1e-4) and len(losses(one)) == 4
    size = Cache(two.parent / "cache").size()
    assert dict(size.rows) == {"latents": 38, "texts": 20}
    before = shards(two.parent / "cache")
    toys.together(2, cached, pictures, two.parent / "again", tiny_sd1)
    assert shards(two.parent / "cache") == before  # nothing was encoded again
    assert rows_of(two.parent / "again", 2)["examples"].tolist() == wanted["examples"].tolist()
    assert losses(two.parent / "again") == losses(two)


def launch(root: Path, file: Path) -> None:
    """A run of two processes as a launcher starts them: interpreters of their own, each with other hashes of words."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        env = os.environ | {name: str(value) for name, value in told.items()}
        env |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONHASHSEED": str(rank + 1)}
        command = [sys.executable, "-m", "train", str(file)]
        started.append(subprocess.Popen(command, cwd=root, env=env, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said


@pytest.mark.torture
def test_scenes_are_encoded_once_by_whichever_process(root: Path, tmp_path: Path, tiny_sd1: Path) -> None:
    text = f"""
task: {{type: diffusion, unet: {tiny_sd1}, vae: {tiny_sd1}, text: {tiny_sd1}, noise: {{kind: epsilon}}}}
data: {{path: scenes, count: 12, size: 16}}
run: {{out: {tmp_path}/2, steps: 6, batch: 4, log: 1, preview: 0, device: cpu, threads: 1, cache: {tmp_path}/cache}}
"""
    file = tmp_path / "run.yaml"
    file.write_text(text)
    launch(root, file)
    size = Cache(tmp_path / "cache").size()
    assert size.rows["latents"] == 12  # as many as scenes: what one process encoded, the other found
    before = shards(tmp_path / "cache")
    with opened(loads(text, RunFile, [f"run.out={tmp_path}/1"])) as run:
        run.fit()
    assert shards(tmp_path / "cache") == before
    assert (
        losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-4) and len(losses(tmp_path / "1")) == 6
    )
