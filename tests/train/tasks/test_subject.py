"""The tasks lora and inversion: ours, stock diffusers and kohya's names agree on what was learned."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

from ldm.data.batch import Batch
from ldm.diffusion.training import scheduler_config
from ldm.errors import LdmError
from ldm.models.adapters import convert
from ldm.models.nets.base import Part
from ldm.store.parts import load_parts
from pipelines.adapting import read_adapter
from pipelines.pipeline import Pipeline
from pipelines.request import Request
from tests.thin import thinned
from tests.train.tasks.making import WORDS, batch, descend, gradients, setting, turn
from train.config import OptimSettings, RunSettings
from train.draws import Draws
from train.tasks.denoising import answer, noise_for
from train.tasks.lora import switched_off
from train.tasks.settings import InversionSettings, LoraSettings, Noise
from train.tasks.subject import SubjectTask
from train.trainer import Trainer

CLOSE = 1e-5
MODELS = ("tiny_sd1", "tiny_xl", "tiny_inpaint9")
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "dora, attention alone": {"rank": 4, "dora": True, "convolutions": False},
    "rslora, another alpha": {"rank": 4, "rslora": True, "alpha": 2.0, "up_rate": 16.0},
    "with the text tower": {"rank": 4, "text": True},
    "loha": {"kind": "loha", "rank": 2},
    "lokr": {"kind": "lokr", "rank": 2, "alpha": 4.0},
}
WORD: dict[str, Any] = {"token": "zwx", "begin": "dog", "vectors": 2}


def lora(model: Path, **changes: Any) -> SubjectTask:
    return SubjectTask(LoraSettings(type="lora", model=model, **changes), setting())


def inversion(model: Path, **changes: Any) -> SubjectTask:
    told = WORD | {"token": "cat"} | changes
    return SubjectTask(InversionSettings(type="inversion", model=model, **told), setting())


def said(task: SubjectTask, whole: Batch) -> Tensor:
    """What the network answers to a batch at fixed noise."""
    with torch.no_grad():
        return answer(task.network, task.denoising.rows(Draws(0, whole.places, len(whole)), whole))


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("kind", thinned(KINDS, 2))
def test_it_changes_nothing_at_first_and_then_learns_and_leaves_the_model_as_it_is(kind: str, tiny_sd1: Path) -> None:
    task, plain = lora(tiny_sd1, **KINDS[kind]), load_parts(tiny_sd1)
    before, whole = inversion(tiny_sd1), batch()
    before.captions.learned = None
    assert (said(task, whole) - said(before, whole)).abs().max() < CLOSE
    losses = descend(task, whole, steps=20, lr=1e-2)
    assert losses[-1] < 0.97 * losses[0]
    ours = {name.replace(".base_layer", ""): p for name, p in task.unet.named_parameters()}
    assert all(torch.equal(ours[name], p) for name, p in plain.unet.named_parameters())


@pytest.mark.parametrize(("model", "kind"), thinned(product(MODELS, KINDS), 4), indirect=["model"])
def test_what_is_saved_draws_as_what_was_trained(kind: str, model: Path, tmp_path: Path) -> None:
    task, whole = lora(model, token="cat", licence="CC0-1.0", **KINDS[kind]), batch()
    descend(task, whole, steps=3, lr=1e-2)
    task.save(tmp_path / "made")
    wanted = said(task, whole)
    files = [tmp_path / "made" / "kohya.safetensors"]
    files += list((tmp_path / "made").glob("pytorch_lora_weights.safetensors"))
    assert len(files) == (2 if task.lora is not None and task.lora.kind == "lora" else 1)
    for file in files:
        again = inversion(model)
        again.captions.learned = None
        pipeline = Pipeline.load(model)
        pipeline.adapting.use(Request(prompt="a dog", loras=[{"path": file}]), [])
        again.network, again.captions.towers = pipeline.model.network, pipeline.model.text.towers
        again.captions.model = torch.nn.ModuleList(tower.model for tower in again.captions.towers)
        again.captions._empty = None
        assert (said(again, whole) - wanted).abs().max() < CLOSE
        with safe_open(file, "pt") as opened:
            told = opened.metadata()
        assert told["modelspec.trigger_phrase"] == "cat" and told["modelspec.license"] == "CC0-1.0"
        assert told["ldm.base_fingerprint"] == task.parts.fingerprint and told["ss_network_dim"]
        assert told["modelspec.architecture"] and told["modelspec.hash_sha256"].startswith("0x")


@pytest.mark.parametrize("model", ["tiny_sd1", "tiny_xl"], indirect=True)
@pytest.mark.parametrize("kind", ["lora", "with the text tower"])
def test_stock_diffusers_reads_it_to_the_same_picture(kind: str, model: Path, tmp_path: Path) -> None:
    task = lora(model, **KINDS[kind])
    descend(task, batch(), steps=3, lr=1e-2)
    task.save(tmp_path / "made")
    file = tmp_path / "made" / "pytorch_lora_weights.safetensors"
    stock_class = StableDiffusionXLPipeline if len(task.captions.towers) > 1 else StableDiffusionPipeline
    stock = stock_class.from_pretrained(model, local_files_only=True)
    stock.load_lora_weights(tmp_path / "made", weight_name=file.name)
    stock.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np"}
    theirs = stock("a dog", generator=torch.Generator().manual_seed(3), height=16, width=16, **common).images[0]
    request = Request(prompt="a dog", steps=3, seed=3, guidance={"scale": 4.0}, loras=[{"path": file}])
    ours = Pipeline.load(model).results(request)[0].picture.pixels
    assert abs(theirs * 255 - ours).max() <= 1.0
    kohya, back = read_adapter(tmp_path / "made" / "kohya.safetensors"), read_adapter(file)
    there, again = convert(back, "kohya")[0], convert(kohya, "kohya")[0]
    assert there.keys() == again.keys() and all(torch.equal(there[key], again[key]) for key in there)


@pytest.mark.parametrize("model", ["tiny_sd1", "tiny_xl"], indirect=True)
def test_a_new_word_is_learned_saved_and_read(model: Path, tmp_path: Path) -> None:
    task, whole = inversion(model), batch()
    learned = task.captions.learned
    assert learned is not None and len(learned.vectors) == len(task.captions.towers)
    losses = descend(task, whole, steps=20, lr=3e-2)
    assert losses[-1] < losses[0]
    task.save(tmp_path / "made")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["learned_embeds.safetensors"]
    pipeline = Pipeline.load(model)
    request = Request(prompt="a photo of a cat", embeddings=[tmp_path / "made" / "learned_embeds.safetensors"])
    pipeline.adapting.use(request, [])
    told = pipeline.model.text.encode("a photo of a cat")
    read = task.captions.read(["a photo of a cat"])
    assert read.text is not None and (told.text - read.text).abs().max() < CLOSE
    if read.pooled is not None and told.pooled is not None:
        assert (told.pooled - read.pooled).abs().max() < CLOSE
    same = task.captions.read(["a dog"]).text
    assert same is not None and (pipeline.model.text.encode("a dog").text - same).abs().max() < CLOSE


def test_stock_reads_a_learned_word(tiny_sd1: Path, tmp_path: Path) -> None:
    task = inversion(tiny_sd1, token="cat", vectors=1)
    descend(task, batch(), steps=3, lr=1e-2)
    task.save(tmp_path / "made")
    stock = StableDiffusionPipeline.from_pretrained(tiny_sd1, local_files_only=True)
    stock.load_textual_inversion(tmp_path / "made" / "learned_embeds.safetensors", token="<cat>")
    theirs = stock.encode_prompt("a photo of a <cat>", "cpu", 1, False)[0]
    ours = task.captions.read(["a photo of a cat"]).text
    assert ours is not None and (theirs - ours).abs().max() < CLOSE


def test_pivotal_tuning_learns_the_word_first_and_then_the_adapter(tiny_sd1: Path, tmp_path: Path) -> None:
    task = lora(tiny_sd1, rank=4, token="cat", begin="dog", vectors=2, words_first=0.5, up_rate=4.0)
    word, adapter = task.phases()
    assert [(p.name, p.start, p.end) for p in (word, adapter)] == [("word", 0, 5), ("adapter", 5, None)]
    assert [word.due(step) for step in (0, 4, 5)] == [True, True, False]
    assert adapter.rates is not None
    shares = {adapter.rates(f"unet_adapter.{name}") for name, _ in task.weights["unet"].named_parameters()}
    assert shares == {1.0, 4.0}
    task.save(tmp_path / "early")  # while the word alone was learned, the adapter changes nothing, and nobody takes it
    assert [path.name for path in (tmp_path / "early").iterdir()] == ["learned_embeds.safetensors"]
    moved: list[tuple[bool, bool]] = []
    first = [p.detach().clone() for p in word.params], [p.detach().clone() for p in adapter.params]
    trainer = Trainer(
        task,
        lambda step: (batch(first=4 * s) for s in range(step, 10)),
        RunSettings(out=tmp_path / "run", steps=10, batch=4, save=1000, preview=0, evaluate=0, device="cpu"),
        OptimSettings(lr=1e-2),
        tmp_path / "run",
    )
    for _ in trainer.steps():
        now = ([p.detach().clone() for p in part.params] for part in (word, adapter))
        moved.append(
            tuple(
                any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in zip(first, now, strict=True)
            )
        )  # type: ignore[arg-type]
        first = [p.detach().clone() for p in word.params], [p.detach().clone() for p in adapter.params]
    assert moved == [(True, False)] * 5 + [(False, True)] * 5
    names = {path.name for path in (tmp_path / "run" / "model").iterdir()}
    assert names == {"learned_embeds.safetensors", "kohya.safetensors", "pytorch_lora_weights.safetensors"}


def test_what_the_adapter_was_trained_with_is_the_word_that_is_saved(tiny_sd1: Path) -> None:
    word, adapter = lora(tiny_sd1, rank=4, token="cat", begin="dog", vectors=2).phases()
    assert (word.average, adapter.average) == (False, True) and inversion(tiny_sd1).phases()[0].average


def test_a_word_alone_can_recompute_activations(tiny_sd1: Path, tmp_path: Path) -> None:
    task = inversion(tiny_sd1)
    run = RunSettings(out=tmp_path / "run", steps=1, batch=4, preview=0, evaluate=0, device="cpu", checkpointing=True)
    Trainer(task, lambda step: iter([batch()]), run, OptimSettings(), tmp_path / "run")
    assert any(isinstance(m, Part) and m.recomputed for m in task.unet.modules())


@pytest.mark.parametrize("kind", thinned(KINDS, 2))
def test_where_the_token_is_not_said_the_aim_is_what_the_model_says(kind: str, tiny_sd1: Path) -> None:
    """At first the two are the same, whatever the pictures; when the adapter has learned, the aim has not moved."""
    task, whole = lora(tiny_sd1, token="cat", preserve=True, **KINDS[kind]), batch(3)  # the third says cat
    plain, asked = lora(tiny_sd1, token="cat", **KINDS[kind]), turn(1, whole.places[2:])
    with torch.no_grad():
        others = float(task.loss(turn(2, whole.places[:2]), whole[:2])[0])
        subject = (float(t.loss(asked, whole[2:])[0]) for t in (task, plain))
    assert others < 1e-10
    assert len({round(value, 6) for value in subject}) == 1
    descend(plain, whole, steps=8, lr=1e-2)
    descend(task, whole, steps=8, lr=1e-2)
    rows = task.denoising.rows(turn(2, whole.places[:2]).draws, whole[:2])
    with torch.no_grad(), switched_off(task.unet, task.captions.model):
        base = answer(task.network, task.denoising.rows(turn(2, whole.places[:2]).draws, whole[:2]))
    with torch.no_grad():
        kept = (answer(task.network, rows) - base).square().mean()
        gone = (
            (answer(plain.network, plain.denoising.rows(turn(2, whole.places[:2]).draws, whole[:2])) - base)
            .square()
            .mean()
        )
    assert kept < 0.5 * gone


def test_a_dropped_caption_does_not_name_the_token(tiny_sd1: Path) -> None:
    task, whole = lora(tiny_sd1, token="cat", preserve=True, drop_caption=1.0), batch(3)
    with torch.no_grad():
        assert float(task.loss(turn(1, whole.places[2:]), whole[2:])[0]) < 1e-10  # the third says cat


@pytest.mark.parametrize("kind", ["lora", "with the text tower"])
def test_micro_batches_are_one_batch(kind: str, tiny_sd1: Path) -> None:
    task, whole = lora(tiny_sd1, drop_caption=0.3, **KINDS[kind]), batch(6)
    descend(task, whole, steps=2, lr=1e-2)
    loss, wanted, _ = gradients(task, whole, 6)
    again, found, _ = gradients(task, whole, 2)
    assert loss == pytest.approx(again, rel=1e-5) and wanted.keys() == found.keys()
    assert all((wanted[n] - found[n]).abs().max() < 1e-5 for n in wanted)


@pytest.mark.parametrize("model", thinned(MODELS, 2), indirect=True)
def test_previews_and_validation_and_caches(model: Path) -> None:
    task, whole = lora(model, rank=4, drop_caption=0.5), batch()
    assert task.preview(0)["pictures"].shape == (6, 3, 16, 16)
    assert torch.equal(task.preview(0)["pictures"], task.preview(0)["pictures"])
    figures = task.validate(Draws(0, whole.places, 4), whole)
    assert figures["loss"].shape == (4,)
    if task.network.inpaints:
        return
    assert whole.image is not None
    cached = {**task.cached_latents(whole.image), **task.cached_text(whole.text)}
    kept = Batch(whole.places, whole.examples, None, whole.text, None, cached)
    assert float(task.loss(turn(4, whole.places), kept)[0]) == pytest.approx(
        float(task.loss(turn(4, whole.places), whole)[0]), rel=1e-5
    )


def test_a_mask_says_what_of_a_picture_counts(tiny_sd1: Path) -> None:
    task, whole = lora(tiny_sd1, rank=4), batch()
    mask = torch.zeros(4, 1, 16, 16)
    mask[..., :8] = 1
    masked = Batch(whole.places, whole.examples, whole.image, whole.text, None, {"mask": mask})
    with torch.no_grad():
        rows = task.denoising.rows(turn(4, whole.places).draws, masked)
        wrong = (answer(task.network, rows) - rows.noise).square()[..., :4].mean()  # its left half, of eps
        assert float(task.loss(turn(4, whole.places), masked)[0]) == pytest.approx(float(wrong), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "loha", "dora": True}, "dora belongs to kind lora"),
        ({"kind": "lokr", "up_rate": 16.0}, "up_rate belongs to kind lora"),
        ({"vectors": 2}, "name it with token"),
        ({"begin": "dog"}, "set vectors"),
    ],
)
def test_settings_that_act_on_nothing_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LoraSettings(type="lora", model=Path("x"), **changes)


def test_pictures_without_the_word_teach_it_nothing() -> None:
    with pytest.raises(ValidationError, match="preserve does nothing with inversion"):
        InversionSettings(type="inversion", model=Path("x"), preserve=True, **WORD)


def test_what_cannot_be_learned_is_said(tiny_sd1: Path, tiny_refiner: Path) -> None:
    with pytest.raises(LdmError, match="No caption of the data set says 'zwx'"):
        inversion(tiny_sd1, token="zwx")
    with pytest.raises(LdmError, match="No caption of the data set says 'as'"):
        lora(tiny_sd1, token="as")  # part of a word is no word
    for wrong, words in (("to_x", "none of"), ("attn2", "other layers than"), ("norm1", "other layers than")):
        with pytest.raises(LdmError, match=words):
            lora(tiny_sd1, layers=("to_q", wrong))
    with pytest.raises(LdmError, match="XL family"):
        lora(tiny_refiner)
    with pytest.raises(LdmError, match="says nothing to the text tower"):
        inversion(tiny_sd1, begin="  ")
    assert "cat" in " ".join(WORDS)


ZERO = scheduler_config("v_prediction", "cosine", zero_snr=True)
FLOW = scheduler_config("flow", "flow", shift=3.0)
SD1 = scheduler_config("epsilon", "scaled_linear")


def test_the_noise_of_a_frozen_model_is_its_own_however_it_is_weighed() -> None:
    offset = noise_for(ZERO, Noise(offset=0.05), "v_prediction")
    assert (offset.offset, offset.zero_snr, offset.kind) == (0.05, True, "v_prediction")
    assert noise_for(FLOW, Noise(times="logit_normal"), "flow").shift == 3.0
    snr = noise_for(SD1, Noise(weighting="min_snr"), "epsilon")
    assert (snr.weighting, snr.kind, snr.bound) == ("min_snr", "epsilon", 0.0)
    assert noise_for(ZERO, Noise(schedule="cosine"), "v_prediction").schedule == "cosine"
    assert noise_for(SD1, None, "epsilon") == Noise(kind="epsilon")


@pytest.mark.parametrize(
    ("own", "kind", "asked", "said"),
    [
        (SD1, "epsilon", {"kind": "v_prediction"}, "task.noise.kind=v_prediction"),
        (SD1, "epsilon", {"schedule": "cosine"}, "task.noise.schedule=cosine"),
        (ZERO, "v_prediction", {"zero_snr": False}, "task.noise.zero_snr=False"),
        (FLOW, "flow", {"shift": 1.0}, "task.noise.shift=1.0"),
        (ZERO, "v_prediction", {"weighting": "min_snr"}, "zero_snr"),
        (SD1, "epsilon", {"weighting": "min_snr", "floor": 0.1}, "epsilon"),
    ],
)
def test_noise_that_a_frozen_model_was_not_made_for_is_refused(
    own: dict[str, Any], kind: Any, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(LdmError) as refused:
        noise_for(own, Noise(**asked), kind)
    assert said in f"{refused.value.what} {refused.value.why}"


def test_noise_that_is_weighed_otherwise_leaves_the_schedule_of_the_model(tiny_sd1: Path) -> None:
    plain, told = lora(tiny_sd1), lora(tiny_sd1, noise=Noise(weighting="min_snr", offset=0.1))
    assert told.scheduler == plain.scheduler and told.denoising.noise.offset == 0.1
