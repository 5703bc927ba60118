"""The diffusion task: it learns, what it writes is what stock code and our pipeline load, micro-batches are exact."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.prompt import vocabulary
from ldm.models.text import TextEncoder
from ldm.store.parts import load_parts
from pipelines.pipeline import Pipeline
from pipelines.request import Request
from tests import components
from tests.train.tasks.making import WORDS, apart, batch, descend, gradients, setting, turn
from train.draws import Draws
from train.task import Task
from train.tasks.diffusion import DiffusionTask
from train.tasks.parts import refuse_told
from train.tasks.settings import DiffusionSettings, Noise
from train.tasks.shapes import holes

KINDS = {
    "epsilon": Noise(kind="epsilon", schedule="linear"),
    "v": Noise(kind="v_prediction", zero_snr=True, weighting="min_snr", floor=0.1, offset=0.1),
    "flow": Noise(kind="flow", schedule="flow", times="logit_normal", shift=2.0),
    "bound": Noise(kind="epsilon", schedule="cosine", bound=1e-3),
}


def settings(model: Path, **changes: Any) -> DiffusionSettings:
    fields: dict[str, Any] = {"unet": model, "vae": model, "text": model, "noise": Noise(kind="v_prediction")}
    return DiffusionSettings(type="diffusion", **(fields | changes))


def made(model: Path, **changes: Any) -> DiffusionTask:
    return DiffusionTask(settings(model, **changes), setting())


@pytest.fixture(scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A U-Net and a text tower as `.json`."""
    folder = tmp_path_factory.mktemp("architectures")
    tower = {k: v for k, v in components.text_config().to_dict().items() if k in TOWER}
    files = {"unet": dict(components.unet().config), "text": tower}
    for name, config in files.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return {name: folder / f"{name}.json" for name in files}


TOWER = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
         "hidden_act", "projection_dim")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_learns_one_batch_saves_and_gives_the_same_output(kind: str, tiny_sd1: Path, tmp_path: Path) -> None:
    task = made(tiny_sd1, noise=KINDS[kind], drop_caption=0.0)
    losses = descend(task, batch(), steps=12)
    assert losses[-1] < 0.9 * losses[0], losses
    task.save(tmp_path / "model")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    ours = Pipeline.load(tmp_path / "model")
    task.unet.eval()
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([7, 900]), task.captions.states(["a red circle", "a cat"])
    with torch.no_grad():
        wanted = task.unet(x, t, text)
        for said in (stock.unet(x, t, text).sample, ours.model.network.model(x, t, text)):
            assert (said - wanted).abs().max() < 1e-5
        told = ours.model.text.encode("a red circle").text
    assert (told - text[:1]).abs().max() < 1e-5
    assert ours.model.network.kind == KINDS[kind].kind
    assert stock.scheduler.config.num_train_timesteps == 1000
    if kind == "v":
        assert stock.scheduler.config.rescale_betas_zero_snr
        assert stock.scheduler.config.timestep_spacing == "trailing"
    if kind == "flow":
        assert stock.scheduler.config.shift == 2.0
    pictures = ours.results(Request(prompt="a red circle", steps=3, seed=1))
    assert pictures[0].picture.pixels.shape == (16, 16, 3)
    assert list((tmp_path / "model").iterdir()) and not list(tmp_path.glob(".*"))


def test_a_tower_that_was_trained_here_tells_the_words_that_it_read(
    architectures: dict[str, Path], tiny_sd1: Path, tmp_path: Path
) -> None:
    """What a tower knew it goes on knowing, and the network learns to answer new words, be the tower frozen or not."""
    fields: dict[str, Any] = {"unet": tiny_sd1, "vae": tiny_sd1, "text": architectures["text"], "vocabulary": 700}
    fields["noise"] = Noise(kind="v_prediction")
    task = DiffusionTask(DiffusionSettings(type="diffusion", **fields), setting())
    task.save(tmp_path / "first")
    own = set(vocabulary(setting().captions()))
    assert own and load_parts(tmp_path / "first").words == own
    kept = DiffusionTask(settings(tmp_path / "first"), setting())
    assert kept.words() == own
    (tmp_path / "first/tokenizer/words.txt").write_text("zebra")
    assert kept.words() == own | {"zebra"}
    assert made(tiny_sd1).words() == frozenset()
    learning = DiffusionTask(settings(tmp_path / "first", train_text=True), setting())
    assert learning.words() == own | {"zebra"}


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_stock_and_our_pictures_of_a_saved_model_are_equal(kind: str, tiny_sd1: Path, tmp_path: Path) -> None:
    task = made(tiny_sd1, noise=KINDS[kind])
    task.save(tmp_path / "model")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    theirs = stock(
        "a red circle", num_inference_steps=4, generator=generator, output_type="np", guidance_scale=3
    ).images
    request = Request(prompt="a red circle", steps=4, seed=3, guidance={"scale": 3})
    ours = Pipeline.load(tmp_path / "model").results(request)[0].picture.pixels
    assert abs(theirs[0] * 255 - ours).max() <= 1.0


def test_learned_variances_are_sampled_by_stock(tiny_sd1: Path, tmp_path: Path) -> None:
    task = made(tiny_sd1, noise=KINDS["bound"])
    assert task.unet.config.out_channels == 8
    before = components.unet().eval()
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([7]), task.captions.states(["a dog"])
    with torch.no_grad():
        said = task.unet(x, t, text)
        assert (said[:, :4] - before(x, t, text).sample).abs().max() < 1e-5, "widened with zeros: says what it said"
        assert said[:, 4:].abs().max() == 0
    losses = descend(task, batch(), steps=8)
    told = task.loss(turn(4, torch.arange(4)), batch())[1]
    assert set(told) == {"error", "bound"}
    assert losses[-1] < losses[0]
    task.save(tmp_path / "model")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    assert stock.scheduler.config.variance_type == "learned_range"
    assert stock("a dog", num_inference_steps=3, output_type="np").images.shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": KINDS["v"], "levels": 3, "train_text": True},
        {"noise": KINDS["flow"]},
        {"noise": KINDS["bound"], "levels": 2},
        {"inpaint": True, "noise": KINDS["epsilon"]},
    ],
    ids=["v, levels, text", "flow", "bound", "inpaint"],
)
def test_micro_batches_are_one_batch(changes: dict[str, Any], tiny_sd1: Path) -> None:
    task = made(tiny_sd1, drop_caption=0.3, **changes)
    whole = batch(6, first=12)
    one, three, single = (gradients(task, whole, size) for size in (6, 2, 1))
    for other in (three, single):
        assert other[0] == pytest.approx(one[0], rel=1e-5)
        assert apart(other[1], one[1]) < 1e-5
        assert other[2] == pytest.approx(one[2], rel=1e-5)


def test_only_what_is_trained_has_gradients(tiny_sd1: Path) -> None:
    task: Task = made(tiny_sd1)
    loss, _ = task.loss(turn(4, torch.arange(4)), batch())
    loss.backward()
    assert set(task.networks()) == {"unet"}
    assert set(made(tiny_sd1, train_text=True).networks()) == {"unet", "text", "words"}
    assert set(task.frozen()) == {"vae", "text"}
    assert all(p.grad is None for network in task.frozen().values() for p in network.parameters())
    (phase,) = task.phases()
    assert phase.average
    assert {id(p) for p in phase.params} == {id(p) for p in task.networks()["unet"].parameters()}


def test_new_parts_come_from_the_seed_and_a_tokenizer_from_the_captions(
    architectures: dict[str, Path], tiny_sd1: Path, tmp_path: Path
) -> None:
    fields = {**architectures, "vae": tiny_sd1 / "vae", "noise": KINDS["v"], "vocabulary": 600}
    torch.manual_seed(0)
    first = DiffusionTask(DiffusionSettings(type="diffusion", **fields), setting())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = DiffusionTask(DiffusionSettings(type="diffusion", **fields), setting())
    assert torch.equal(state, torch.get_rng_state()), "the global generator is nobody's"
    for name in ("unet", "text"):
        a, b = first.networks()[name].state_dict(), second.networks()[name].state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    losses = descend(first, batch(), steps=12)
    assert losses[-1] < 0.9 * losses[0]
    assert len(first.captions.tokenizer) <= 600
    ids = first.captions.ids(["a red circle", ""])
    assert ids.shape == (2, 77)
    assert ids[1].tolist() == [first.captions.tokenizer.bos_token_id] + [first.captions.tokenizer.eos_token_id] * 76
    first.save(tmp_path / "model")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert (
        stock.tokenizer("a red circle").input_ids == ids[0, : len(stock.tokenizer("a red circle").input_ids)].tolist()
    )
    with torch.no_grad():
        theirs = stock.text_encoder(ids).last_hidden_state
        assert (theirs - first.captions.states(["a red circle", ""])).abs().max() < 1e-5


def test_nine_channels_see_stock_s_order_and_learn(tiny_sd1: Path, tmp_path: Path) -> None:
    task = made(tiny_sd1, inpaint=True, noise=KINDS["epsilon"], drop_caption=0.0)
    whole = batch()
    rows = task.denoising.rows(Draws(0, whole.places, 4), whole)
    mask = holes(Draws(0, whole.places, 4), 16, 16)
    assert rows.inputs.shape == (4, 9, 8, 8)
    assert torch.equal(rows.inputs[:, :4], rows.x)
    assert torch.equal(rows.inputs[:, 4:5], torch.nn.functional.interpolate(mask, size=(8, 8)))
    assert whole.image is not None
    posterior = task.vae.model.encode(whole.image * (mask < 0.5))
    noise = Draws(0, whole.places, 4).normal("posterior of the masked picture", (4, 8, 8))
    assert (rows.inputs[:, 5:] - (posterior.mean + posterior.std * noise) * 0.18215).abs().max() < 1e-5
    with torch.no_grad():
        said = task.unet(rows.inputs, rows.level.t, rows.states)
        plain = components.unet().eval()(rows.x, rows.level.t, rows.states).sample
    assert (said - plain).abs().max() < 1e-5, "widened with zeros: it does not look at them yet"
    losses = descend(task, whole, steps=12)
    assert losses[-1] < 0.9 * losses[0]
    task.save(tmp_path / "model")
    stock = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert stock.unet.config.in_channels == 9
    shown = task.preview(0)
    assert set(shown) == {"holes", "pictures"}
    assert all(p.shape == (4, 3, 16, 16) for p in shown.values())


def test_holes_are_of_all_kinds_and_by_place() -> None:
    places = torch.arange(400)
    mask = holes(Draws(0, places, 400), 24, 32)
    assert mask.shape == (400, 1, 24, 32)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    share = mask.mean((1, 2, 3))
    assert 0.05 < float((share == 1).float().mean()) < 0.3
    assert float((share > 0).float().mean()) > 0.95
    assert torch.equal(holes(Draws(0, places[7:9], 400), 24, 32), mask[7:9])


def test_caches_give_the_loss_of_pictures_and_words(tiny_sd1: Path) -> None:
    task, whole = made(tiny_sd1, drop_caption=0.5), batch(6)
    assert whole.image is not None
    extra = {**task.cached_latents(whole.image), **task.cached_text(whole.text)}
    cached = replace(whole, image=None, text=(), extra=extra)
    with torch.no_grad():
        plain, same, other = (
            float(task.loss(turn(6, places), shown)[0])
            for places, shown in ((whole.places, whole), (whole.places, cached), (whole.places + 6, whole))
        )
    assert same == pytest.approx(plain, rel=1e-5)
    assert other != pytest.approx(plain, rel=1e-3)


def test_captions_are_dropped_by_place_and_read_once_for_all_levels(tiny_sd1: Path) -> None:
    task, whole = made(tiny_sd1, drop_caption=0.5, levels=3), batch(6)
    read: list[int] = []
    task.captions.model.register_forward_pre_hook(lambda module, args: read.append(len(args[0])))
    rows = task.denoising.rows(Draws(0, whole.places, 6), whole)
    dropped = Draws(0, whole.places, 6).uniform("drop caption") < 0.5
    assert 0 < int(dropped.sum()) < 6
    assert sum(read) == len({*(t for t, d in zip(whole.text, dropped, strict=True) if not d), ""})
    empty = task.captions.empty(1)
    for row, state in enumerate(rows.states):
        assert bool((state - empty[0]).abs().max() < 1e-6) == bool(dropped[row % 6])
    assert rows.x.shape == (18, 4, 8, 8)
    for part, t in enumerate(sorted(rows.level.t.tolist())):  # one level in each eighteenth, rounded down to a step
        assert part * 1000 / 18 - 1 < t < (part + 1) * 1000 / 18


def test_offset_noise_is_part_of_what_is_asked_for(tiny_sd1: Path) -> None:
    plain, moved = (made(tiny_sd1, noise=Noise(kind="epsilon", offset=o)) for o in (0.0, 0.5))
    whole = batch()
    a, b = (t.denoising.rows(Draws(0, whole.places, 4), whole) for t in (plain, moved))
    added = b.noise - a.noise
    assert (added.flatten(2).std(2)).max() < 1e-6, "one value for a channel"
    assert float(added[:, :, 0, 0].abs().min()) > 0
    steady = [t.denoising.rows(Draws(0, whole.places, 4), whole, steady=True) for t in (plain, moved)]
    assert torch.equal(steady[0].noise, steady[1].noise), "validation is the same for all"


def test_validation_is_steady_and_previews_begin_alike(tiny_sd1: Path) -> None:
    few = replace(setting(), captions=lambda: iter(WORDS[:2]))
    task, whole = DiffusionTask(settings(tiny_sd1), few), batch()
    a, b = (task.validate(Draws(0, whole.places, 4, "validation"), whole) for _ in range(2))
    assert set(a) == {"loss", "loss.low_noise", "loss.high_noise"}
    assert all(torch.equal(a[k], b[k]) and a[k].shape == (4,) for k in a)
    first, second, other = (task.preview(seed)["pictures"] for seed in (0, 0, 1))
    assert first.shape[1:] == (3, 16, 16)
    assert float(first.abs().max()) <= 1
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert task.unet.training


def test_a_broken_network_still_previews(tiny_sd1: Path) -> None:
    task = DiffusionTask(settings(tiny_sd1), replace(setting(), captions=lambda: iter(WORDS[:1])))
    with torch.no_grad():
        task.unet.conv_out.weight.mul_(1e6)
    assert bool(torch.isfinite(task.preview(0)["pictures"]).all())


@pytest.mark.parametrize(
    ("changes", "size", "word"),
    [
        ({}, 18, "data.size=18"),
        ({"vae": Path("configs/models/scenes-vae.json")}, 16, "task.vae"),
        ({"unet": Path("scenes")}, 16, "cross_attention_dim"),
    ],
)
def test_what_does_not_fit_is_said_first(changes: dict[str, Any], size: int, word: str, tiny_sd1: Path) -> None:
    with pytest.raises(LdmError, match=word):
        DiffusionTask(settings(tiny_sd1, **changes), setting(size))


def test_xl_and_an_unasked_inpainting_network_are_refused(tiny_xl: Path, tiny_inpaint9: Path, tiny_sd1: Path) -> None:
    with pytest.raises(LdmError, match="XL"):
        made(tiny_sd1, unet=tiny_xl)
    with pytest.raises(LdmError, match=r"task\.inpaint"):
        made(tiny_sd1, unet=tiny_inpaint9)


@pytest.mark.parametrize(
    ("kind", "words"), [("text_time", "XL family"), ("image", "told more than text"), ("text", "")]
)
def test_what_a_network_is_told_beside_text_is_refused(kind: str, words: str) -> None:
    if words:
        with pytest.raises(LdmError, match=words):
            refuse_told({"addition_embed_type": kind}, "unet.json")
    else:
        refuse_told({"addition_embed_type": kind}, "unet.json")


def test_a_sample_s_loss_does_not_know_its_neighbours(tiny_sd1: Path) -> None:
    task, whole = made(tiny_sd1), batch(6)
    with torch.no_grad():
        each = [float(task.loss(turn(6, whole.places[i : i + 1]), whole[i : i + 1])[0]) for i in range(6)]
        assert sum(each) == pytest.approx(float(task.loss(turn(6, whole.places), whole)[0]), rel=1e-5)
    assert len({round(v, 6) for v in each}) == 6


@pytest.mark.parametrize("text", ["", "a dog &amp; a cat", "caf\u00c3\u00a9 <|endoftext|> the dog"])
def test_a_caption_is_read_as_the_prompt_of_a_picture(text: str, tiny_sd1: Path) -> None:
    """Also the dropped one: what guidance subtracts is what training has shown."""
    captions = made(tiny_sd1).captions
    told = TextEncoder(captions.towers).encode(text).text
    assert (captions.states([text]) - told).abs().max() < 1e-5
    if not text:
        assert (captions.empty(1) - told).abs().max() < 1e-5


def test_weights_of_another_kind_are_warned_of(tiny_sd1: Path, caplog: pytest.LogCaptureFixture) -> None:
    for unet in (tiny_sd1, tiny_sd1 / "unet"):
        caplog.clear()
        made(tiny_sd1, unet=unet, noise=Noise(kind="epsilon"))
        assert not caplog.messages
        made(tiny_sd1, unet=unet, noise=Noise(kind="v_prediction"))
        assert [m for m in caplog.messages if "predicts epsilon" in m and str(unet) in m]


@pytest.mark.parametrize("noise", [Noise(), Noise(weighting="min_snr")])
def test_who_does_not_say_what_another_model_is_to_predict_is_asked(tiny_sd1: Path, noise: Noise) -> None:
    with pytest.raises(LdmError, match="predicts epsilon, and the run does not say") as error:
        made(tiny_sd1, noise=noise)
    assert error.value.code is Code.USAGE and "task.noise.kind=epsilon" in error.value.fix


def test_words_beyond_the_window_are_cut(tiny_sd1: Path) -> None:
    task = made(tiny_sd1)
    states: Tensor = task.captions.states(["a red circle " * 60])
    assert states.shape == (1, 77, 32)


def test_a_mask_of_the_data_set_says_what_counts(tiny_sd1: Path) -> None:
    task, whole = made(tiny_sd1, noise=Noise(kind="epsilon", bound=1e-3)), batch()
    mask = torch.zeros(4, 1, 16, 16)
    mask[..., :8] = 1.0
    rows = task.denoising.rows(Draws(0, whole.places, 4), replace(whole, extra={"mask": mask}))
    right = torch.cat([rows.noise[..., :4], rows.noise[..., 4:] + 9.0], dim=3)
    assert task.denoising.losses(right, rows)[0].abs().max() < 1e-9
    assert task.denoising.losses(right, replace(rows, mask=None))[0].min() > 1
    plain = torch.zeros_like(rows.noise)
    wide = torch.cat([plain[..., :4], plain[..., 4:] + 1.0], dim=3)  # variances differ where nothing counts
    a, b = (task.denoising.losses(torch.cat([right, v], dim=1), rows)[1]["bound"] for v in (plain, wide))
    assert float(a.abs().max()) > 0
    assert (a - b).abs().max() < 1e-6 * float(a.abs().max())


def test_a_checkpoint_of_another_tokenizer_is_refused(architectures: dict[str, Path], tiny_sd1: Path) -> None:
    fields = {**architectures, "vae": tiny_sd1, "vocabulary": 600, "noise": KINDS["v"]}
    task = DiffusionTask(DiffusionSettings(type="diffusion", **fields), setting())
    other = replace(setting(), captions=lambda: iter(["quite other words", "quite other words"]))
    with pytest.raises(LdmError, match="another tokenizer"):
        strange = DiffusionTask(DiffusionSettings(type="diffusion", **fields), other)
        strange.networks()["words"].load_state_dict(task.networks()["words"].state_dict())
        strange.loss(turn(4, torch.arange(4)), batch())


def test_xl_is_trained_with_both_towers_and_read_by_stock(tiny_xl: Path, tmp_path: Path) -> None:
    plain = made(tiny_xl, noise=Noise(kind="epsilon"), drop_caption=0.4)
    assert set(plain.networks()) == {"unet"}
    task = made(tiny_xl, noise=Noise(kind="epsilon"), drop_caption=0.4, train_text=True)
    whole = batch(6)
    before = [p.detach().clone() for p in task.captions.model.parameters()]
    losses = descend(task, whole, steps=12)
    assert losses[-1] < 0.9 * losses[0]
    assert sum(not torch.equal(a, b) for a, b in zip(before, task.captions.model.parameters(), strict=True)) > 20
    assert task.preview(0)["pictures"].shape == (6, 3, 16, 16)
    task.save(tmp_path / "model")
    assert task.parts().family == "xl"
    stock = StableDiffusionXLPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    theirs = stock("a dog", height=16, width=16, num_inference_steps=3, generator=generator, output_type="np").images[0]
    request = Request(prompt="a dog", steps=3, seed=3, guidance={"scale": 5.0})
    ours = Pipeline.load(tmp_path / "model").results(request)[0].picture.pixels
    assert abs(theirs * 255 - ours).max() <= 1.0
    assert whole.image is not None
    extra = {**plain.cached_latents(whole.image), **plain.cached_text(whole.text)}
    cached = replace(whole, image=None, text=(), extra=extra)
    with torch.no_grad():
        loss, same = (float(plain.loss(turn(6, whole.places), shown)[0]) for shown in (whole, cached))
    assert loss == pytest.approx(same, rel=1e-5)
