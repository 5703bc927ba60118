"""CLIP: open_clip's loss and numbers, exact in parts and over processes, and read by everybody afterwards."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from ldm.data.batch import Batch
from ldm.errors import LdmError
from ldm.models.clip import prepare
from ldm.models.open_clip_config import misfits
from ldm.store.clip import load_clip
from tests.train.tasks.clips import SIDE, batch, captions, differs, gradients, make, open_ids, turn
from train.config import OptimSettings, RunSettings
from train.contrastive import Features, sigmoid_loss, softmax_loss
from train.draws import Draws
from train.task import Setting, Turn
from train.tasks.clip import ClipTask
from train.trainer import Step, Trainer


def by_open_clip(task: ClipTask, whole: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one batch in plain open_clip."""
    model = task.model
    model.zero_grad(set_to_none=True)
    ids = open_ids(task, list(whole.text))
    assert whole.image is not None
    out = model(prepare(whole.image, SIDE, task.about.mean, task.about.std), ids)
    if task.settings.loss == "clip":
        loss = ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])
    else:
        loss = SigLipLoss()(out["image_features"], out["text_features"], out["logit_scale"], out["logit_bias"])
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize("size", [None, 4, 2, 3, 1])
def test_any_split_gives_open_clips_loss_and_gradients(tmp_path: Path, loss: str, size: int | None) -> None:
    task, whole = make(tmp_path, loss=loss), batch(8)
    value, wanted = by_open_clip(task, whole)
    found_value, found, figures = gradients(task, whole, size)
    assert abs(found_value - value) <= 1e-5 * abs(value)
    assert abs(figures["loss"] - value) <= 1e-5 * abs(value)
    assert abs(figures["scale"] - float(task.model.logit_scale.detach().exp())) <= 1e-4
    assert differs(found, wanted) <= 1e-5
    assert found["logit_scale"].abs() > 1e-4
    assert ("logit_bias" in found) == (loss == "siglip")


def test_without_the_context_the_parts_are_other_losses(tmp_path: Path) -> None:
    """What the test above would find if features were not shared."""
    task, whole = make(tmp_path), batch(8)
    _, wanted, _ = gradients(task, whole, None)
    task.model.zero_grad(set_to_none=True)
    for micro in whole.split(4):
        (task.loss(Turn("clip", 0, 8, Draws(0, micro.places, 8)), micro)[0] / 2).backward()
    alone = {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}
    assert differs(alone, wanted) > 0.1


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_equal_captions_are_right_answers_of_each_other(tmp_path: Path, loss: str) -> None:
    """CLIP's gradient does not change by it, as equal captions have equal features; its loss falls by their entropy.
    SigLIP's changes: it would push a caption from the picture that it pulls it to."""
    whole = batch(6, names=["red", "red", "blue", "red", "green", "blue"])
    merged, plain = make(tmp_path, loss=loss), make(tmp_path, loss=loss, merge_equal=False)
    value, wanted = by_open_clip(plain, whole)
    found, same, _ = gradients(plain, whole, 2)
    assert abs(found - value) <= 1e-5 * value
    assert differs(same, wanted) <= 1e-5
    found, in_parts, _ = gradients(merged, whole, 2)
    assert differs(in_parts, gradients(merged, whole, None)[1]) <= 1e-5
    if loss == "clip":
        assert differs(in_parts, wanted) <= 1e-5
        assert found == pytest.approx(value - (3 * math.log(3) + 2 * math.log(2)) / 6, rel=1e-5)
    else:
        assert differs(in_parts, wanted) > 0.1


@pytest.mark.parametrize("loss", [softmax_loss, sigmoid_loss])
def test_a_perfect_model_of_equal_captions_has_no_loss(loss: Any) -> None:
    """Three things, the first twice: with merged targets the loss can vanish, with open_clip's it cannot."""
    corners = torch.eye(3)[[0, 0, 1, 2]]
    logits = Features(corners, corners, torch.tensor(200.0), torch.tensor(-100.0)).logits()
    equal = (corners @ corners.T).bool()
    assert float(loss(logits, equal).abs().max()) < 1e-5
    assert float(loss(logits, torch.eye(4).bool()).mean()) > 0.3


def test_the_scale_stays_within_the_papers_bounds(tmp_path: Path) -> None:
    task, whole = make(tmp_path), batch(4)
    for before, after in ((6.0, math.log(100)), (-1.0, 0.0), (3.0, 3.0)):
        with torch.no_grad():
            task.model.logit_scale.fill_(before)
        gradients(task, whole, 2)
        assert float(task.model.logit_scale.detach()) == pytest.approx(after, abs=1e-6)


def test_features_are_computed_once_for_a_batch_in_one_piece(tmp_path: Path) -> None:
    """The price of exactness: none in one piece, one more forward pass for each further micro-batch."""
    task, whole, seen = make(tmp_path), batch(8), []
    task.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    for size, calls in ((8, 1), (4, 3), (2, 7)):
        seen.clear()
        gradients(task, whole, size)
        assert len(seen) == calls


def two_processes(rank: int, folder: str, whole: Batch, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    task = make(Path(folder) / str(rank))
    mine = [whole[0:3], whole[3:4]] if rank == 0 else [whole[6:8], whole[4:6]]  # shares of 4, in any order
    at = turn(task, whole, mine)
    value = 0.0
    for micro in mine:
        part = task.loss(at, micro)[0]
        part.backward()
        value += float(part.detach())
    for p in task.model.parameters():
        dist.all_reduce(p.grad)
    results.put((value, {n: p.grad.numpy() for n, p in task.model.named_parameters()}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.loopback
def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    whole = batch(8, names=["red", "red", "blue", "red", "green", "blue", "white", "black"])
    value, wanted, _ = gradients(make(tmp_path), whole, None)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    workers = [context.Process(target=two_processes, args=(r, str(tmp_path), whole, results)) for r in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert abs(sum(part for part, _ in found) - value) <= 1e-5 * value
    for _, grads in found:
        assert differs({n: torch.from_numpy(g) for n, g in grads.items()}, wanted) <= 1e-5


def run(place: Path, name: str, steps: int, optim: OptimSettings, **settings: Any) -> tuple[Trainer, list[Step]]:
    """The real trainer, for so many steps of 8 examples."""
    place.mkdir(exist_ok=True)
    told = RunSettings(out=place / name, steps=steps, batch=8, device="cpu", threads=1, save=2, **settings)

    def batches(first: int) -> Iterator[Batch]:
        return (batch(8, step) for step in count(first))

    trainer = Trainer(make(place), batches, told, optim, place / name, [batch(8, 500)])
    return trainer, list(trainer.steps())


def test_ten_steps_in_parts_equal_ten_in_one_piece(tmp_path: Path) -> None:
    optim = OptimSettings(kind="sgd", lr=0.05, decay="constant", ema=0)
    whole, parts = (run(tmp_path, str(micro), 10, optim, micro=micro) for micro in (8, 3))
    before = make(tmp_path).model.state_dict()
    for name, p in whole[0].task.model.state_dict().items():
        difference = (parts[0].task.model.state_dict()[name] - p).abs().max()
        assert difference <= 1e-5 * max(1.0, float(p.abs().max())), name
    assert any(float((before[n] - p.detach()).abs().max()) > 1e-2 for n, p in whole[0].task.model.named_parameters())
    for one, other in zip(whole[1], parts[1], strict=True):
        assert one.figures["loss"] == pytest.approx(other.figures["loss"], rel=1e-4)
        assert one.figures["scale"] == pytest.approx(other.figures["scale"], rel=1e-4)


def test_a_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    optim = OptimSettings(lr=1e-3, decay="constant", warmup=2)
    straight, _ = run(tmp_path, "straight", 5, optim, micro=4)
    run(tmp_path, "halted", 2, optim, micro=4)
    shutil.rmtree(tmp_path / "halted" / "model")
    halted, steps = run(tmp_path, "halted", 5, optim, micro=4)
    assert [step.step for step in steps] == [3, 4, 5]
    for name, tensor in straight.task.model.state_dict().items():
        assert torch.equal(halted.task.model.state_dict()[name], tensor), name
    a, b = (load_clip(tmp_path / name / "model") for name in ("straight", "halted"))
    assert torch.equal(a.encode_text(["a red wall"]), b.encode_text(["a red wall"]))
    assert straight.validate().keys() == {"loss", "image_to_text", "text_to_image"}


@pytest.mark.parametrize(
    "settings", [{"precision": "bf16"}, {"checkpointing": True}, {"precision": "bf16", "checkpointing": True}]
)
def test_other_ways_to_compute_come_near(tmp_path: Path, settings: dict[str, Any]) -> None:
    optim = OptimSettings(lr=1e-3, decay="constant", clip=0)
    _, plain = run(tmp_path, "plain", 6, optim, micro=4)
    _, other = run(tmp_path, "other", 6, optim, micro=4, **settings)
    assert not any(step.skipped for step in other)
    exact = "precision" not in settings
    for one, two in zip(plain, other, strict=True):
        assert one.figures["loss"] == pytest.approx(two.figures["loss"], rel=1e-5 if exact else 0.1)
        assert one.figures["norm"] == pytest.approx(two.figures["norm"], rel=1e-4 if exact else 0.3)


def test_half_precision_writes_attention_out_and_recomputed_activations_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    @contextmanager
    def noted(tokens: int, device: torch.device) -> Iterator[None]:
        used.append(tokens)
        yield

    monkeypatch.setattr("train.tasks.clip.quick_attention", noted)
    optim = OptimSettings(lr=1e-3, decay="constant", clip=0)
    task = run(tmp_path, "plain", 1, optim, precision="bf16")[0].task
    assert used and set(used) == {task.tokens}
    used.clear()
    run(tmp_path, "again", 1, optim, precision="bf16", checkpointing=True)
    assert used == []


def test_names_of_open_clip(tmp_path: Path) -> None:
    """All plain vision transformers of open_clip can be trained; one is built, with CLIP's own tokenizer."""
    names = [n for n in open_clip.list_models() if not misfits(open_clip.get_model_config(n))]
    assert {"ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14", "ViT-H-14", "ViT-bigG-14", "ViT-S-16"} <= set(names)
    assert not any("SigLIP" in n or n.startswith(("RN", "convnext", "coca", "EVA")) for n in names)
    task = make(tmp_path, model="ViT-S-32-alt", tokenizer="clip")
    assert task.about.config["text_cfg"]["vocab_size"] == len(task.about.tokenizer) == 49_408
    assert task.side == 224
    assert task.model.visual.class_embedding.shape == (384,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "RN50"}, "its image tower is a ResNet"),
        ({"model": "ViT-B-16-SigLIP"}, "its image tower is one of timm"),
        ({"model": "roberta-ViT-B-32"}, "its text tower is a language model"),
        ({"model": "coca_ViT-B-32"}, "third, generating tower"),
        ({"model": "ViT-L-14-CLIPA"}, "no norm before the first layer"),
        ({"model": "ViT-B-23"}, "Did you mean ViT-B-32"),
        ({"vocabulary": 515, "vision_cfg": {"layer": 2}}, r"Did you mean vision_cfg\.layers"),
        ({"vision_cfg": {"pool_type": "avg"}}, "not by a class token"),
        ({"vision_cfg": {"patch_dropout": 0.5}}, "drops patches at random"),
        ({"text_cfg": {"width": 42, "heads": 5}}, "that can be built"),
        ({"text_cfg": {"no_causal_mask": True}}, "reads in both directions"),
        ({"text_cfg": []}, "it has no text_cfg"),
    ],
)
def test_what_cannot_be_written_is_refused_at_the_start(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    parts = {k: v for k, v in changes.items() if k.endswith("_cfg")}
    with pytest.raises(LdmError, match=words):
        make(tmp_path, parts, **{k: v for k, v in changes.items() if k not in parts})


def test_a_tokenizer_that_names_no_length_takes_that_of_the_architecture(tmp_path: Path) -> None:
    task = make(tmp_path)
    task.about.tokenizer.save(tmp_path / "words")
    told = json.loads((tmp_path / "words" / "tokenizer_config.json").read_text())
    for length, wanted in ((None, 12), (9, 9)):
        told["model_max_length"] = length
        kept = {k: v for k, v in told.items() if v is not None}
        (tmp_path / "words" / "tokenizer_config.json").write_text(json.dumps(kept))
        assert make(tmp_path, tokenizer=tmp_path / "words").model.context_length == wanted


def test_a_checkpoint_of_other_captions_is_refused(tmp_path: Path) -> None:
    task = make(tmp_path)
    state = task.model.state_dict()
    same = make(tmp_path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in same.model.state_dict().items())
    other = ClipTask(
        task.settings, Setting(3, SIDE, 10, task.setting.look, lambda: (c.replace("wall", "lawn") for c in captions()))
    )
    other.model.load_state_dict(state)
    with pytest.raises(LdmError, match="another tokenizer"):
        turn(other, batch(4), [batch(4)])


def test_pictures_of_another_size_are_made_to_fit(tmp_path: Path) -> None:
    task, whole = make(tmp_path), batch(4)
    assert whole.image is not None
    large = replace(whole, image=whole.image.repeat_interleave(3, 2).repeat_interleave(2, 3))
    assert math.isfinite(gradients(task, large, 2)[0])
    with pytest.raises(LdmError, match="without a picture or a caption"):
        gradients(task, replace(whole, text=()), 2)
