"""Real tasks on two processes are those on one: gradients of the first step, and weights after ten steps of SGD.

The two processes cut their shares into micro-batches besides, so that what is gathered (the features of a CLIP) comes
from both. One pair of processes trains all tasks in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ldm.config import loads
from ldm.store.weights import load_weights
from ldm.store.write import write_weights
from tests import components
from tests.train import toys
from tests.train.tasks import clips
from train.config import RunFile
from train.run import opened

pytestmark = [pytest.mark.loopback, pytest.mark.torture]  # half a minute; toys do the same in the quick suite
# name -> task, what its data has besides, and a learning rate that moves it far in ten steps
TASKS = {
    "diffusion": ("{type: diffusion, unet: MODEL, vae: MODEL, text: MODEL, noise: {kind: epsilon}}", "", 0.05),
    "clip": ("{type: clip, model: ROOT/clip.json, vocabulary: 560}", "", 0.1),
    "autoencoder": ("{type: autoencoder, vae: ROOT/vae/config.json}", "", 0.05),
    "controlnet": ("{type: controlnet, model: MODEL, controlnet: CONTROL}", ", hint: canny", 0.1),
    "decoder": ("{type: decoder, vae: MODEL}", "", 0.05),
}
TEXT = """
task: TASK
data: {path: scenes, count: 32, size: 16, workers: 0MORE}
optim: {kind: sgd, lr: RATE, clip: 0.0, decay: constant, ema: 0.9}
run: {out: GOAL/NAME, steps: 10, batch: 8, preview: 0, evaluate: 0, device: cpu}
"""
Words = dict[str, object]


def trained(rank: int, world: int, goal: Path, words: Words) -> None:
    """Each task in a run folder of its own, with `first.safetensors`: where it began, and its first gradients."""
    for name, (task, more, rate) in TASKS.items():
        text = TEXT.replace("TASK", task)
        for word, value in {**words, "MORE": more, "RATE": rate, "GOAL": goal, "NAME": name}.items():
            text = text.replace(word, str(value))
        micro = ["run.micro=3"] if world > 1 else []  # of a share of 4: a whole one and a rest
        with toys.plain(), opened(loads(text, RunFile, micro)) as run:
            start = {f"start/{name}": p.detach().clone() for name, p in run.trainer.params.items()}
            with gradients(run.trainer.params) as found:
                run.fit()
        if rank == 0:
            write_weights(goal / name / "first.safetensors", start | found)


@contextmanager
def gradients(params: dict[str, nn.Parameter]) -> Iterator[dict[str, Tensor]]:
    """Of each parameter, what an optimiser was given at its first step, `gradient/name`."""
    names, found = {p: f"gradient/{name}" for name, p in params.items()}, dict[str, Tensor]()

    def look(optimiser: torch.optim.Optimizer, *given: Any) -> None:
        for p in (p for group in optimiser.param_groups for p in group["params"]):
            found.setdefault(names[p], p.grad.clone())

    hook = register_optimizer_step_pre_hook(look)
    try:
        yield found
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_sd1: Path, tiny_controlnet: Path) -> Path:
    """`one/<task>` and `two/<task>`: run folders."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("processes")
    (root / "clip.json").write_text(json.dumps(clips.ARCHITECTURE))
    components.vae().save_config(root / "vae")
    words: Words = {"MODEL": tiny_sd1, "CONTROL": tiny_controlnet, "ROOT": root}
    trained(0, 1, root / "one", words)
    toys.together(2, trained, root / "two", words)
    return root


def first(folder: Path, kind: str) -> dict[str, Tensor]:
    weights = load_weights(folder / "first.safetensors")
    return {name.partition("/")[2]: weights[name] for name in weights if name.startswith(f"{kind}/")}


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_end_where_one_ends(name: str, folder: Path) -> None:
    """Within 1e-5 of each tensor's largest number; half of the tensors have gone a thousand times as far."""
    one, two = folder / "one" / name, folder / "two" / name
    for part in ("model", "ema"):
        assert toys.furthest(toys.saved(two, part), toys.saved(one, part)) <= 1e-5
    start, end = first(one, "start"), toys.saved(one)
    assert median(toys.furthest({"": start[n]}, {"": end[n]}) for n in start) > 1e-2


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_have_the_gradients_of_one(name: str, folder: Path) -> None:
    """Within 1e-5 of each tensor's largest number. The bias of keys has none, since softmax does not see it: what is
    there is rounding."""
    one, two = (first(folder / world / name, "gradient") for world in ("one", "two"))
    largest = max(float(g.abs().max()) for g in one.values())
    alive = {n for n, g in one.items() if float(g.abs().max()) > 1e-6 * largest}
    assert all(n.endswith("attentions.0.to_k.bias") for n in one.keys() - alive)
    assert toys.furthest({n: two[n] for n in alive}, {n: one[n] for n in alive}) <= 1e-5
