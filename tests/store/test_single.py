"""Single files: their names are the original ones, stock diffusers reads what we write, and we read it back."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders import single_file_utils as peer
from safetensors.torch import load_file, save_file

from ldm.errors import Code, LdmError
from ldm.models.tokenizer import clip_tokenizer
from ldm.store.names import clip_plan, open_clip_plan, unet_plan, vae_plan
from ldm.store.parts import Parts, load_controlnet, load_parts, load_vae
from ldm.store.save import save_single, single_state
from ldm.store.single import layout_of
from ldm.store.weights import load_weights
from tests import components
from tests.conftest import ROOT
from tests.store import models

# sha256 over the sorted "name shape" lines of the original networks (../shared/layouts), so that the test never rests.
KNOWN = {
    "sd1": (1131, "b100dc86a879163b03221c396445e7c3ab8fb6c2827389eff3c0187115e75e42"),
    "sd1-inpaint": (1131, "407a931612b8814a5ffb735d340c66376c31fd61489ddbb2ccaef5485776cb5c"),
    "sd2": (1228, "a19d44c2a6b8032e9a0873b9fbb204cda2c8f3675ae37eb8a945639bedf9251e"),
    "xl-base": (2515, "f05e4e6d44ded536e1bff42c1a9b797f57bfc426e9ca6769785b96660133fd14"),
    "xl-refiner": (1858, "1ef10e1d7baa133790f342292af61d50d5956163514c6c177172242e57b7db26"),
}


def digest(shapes: dict[str, list[int]]) -> str:
    lines = [f"{name} {','.join(map(str, shape))}" for name, shape in sorted(shapes.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", models.LAYOUTS)
def test_full_size_names_and_shapes_are_the_original_ones(name: str) -> None:
    found = {n: list(t.shape) for n, t in single_state(models.full_size(*models.LAYOUTS[name])).items()}
    assert (len(found), digest(found)) == KNOWN[name]
    layout = ROOT.parent / "shared" / "layouts" / f"{name}.json"
    if layout.exists():
        assert found == json.loads(layout.read_text())


CASES: dict[str, tuple[Any, Any]] = {
    "sd1": (models.sd1, StableDiffusionPipeline),
    "sd2": (models.sd2, StableDiffusionPipeline),
    "xl": (models.xl, StableDiffusionXLPipeline),
    "xl-refiner": (models.refiner, StableDiffusionXLImg2ImgPipeline),
}


def written(tmp_path: Path, name: str) -> tuple[Any, Parts, Path]:
    """A stock pipeline, ours from its folder, and the single file that we write of it."""
    stock = CASES[name][0]()
    stock.save_pretrained(tmp_path / "stock")
    parts = load_parts(tmp_path / "stock")
    if name == "sd2":  # too small to be known by its sizes
        parts = dataclasses.replace(parts, family="sd2")
    return stock, parts, save_single(parts, tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_stock_reads_what_we_write_and_we_read_it_back(tmp_path: Path, name: str) -> None:
    stock, parts, path = written(tmp_path, name)
    theirs = CASES[name][1].from_single_file(str(path), config=str(tmp_path / "stock"), local_files_only=True)
    ours = load_parts(path)
    assert ours.notes == parts.notes == []
    assert ours.prediction == parts.prediction
    assert ours.fingerprint == parts.fingerprint
    assert models.difference(theirs.unet, stock.unet) == models.difference(ours.unet, stock.unet) == 0
    assert models.difference(theirs.vae, stock.vae) == models.difference(ours.vae, stock.vae) == 0
    towers = [getattr(stock, role, None) for role in ("text_encoder", "text_encoder_2")]
    towers2 = [getattr(theirs, role, None) for role in ("text_encoder", "text_encoder_2")]
    assert len(ours.towers) == len([t for t in towers if t is not None])
    for mine, a, b in zip([t for _, t in ours.towers], filter(None, towers), filter(None, towers2), strict=True):
        assert models.difference(mine, a) == models.difference(b, a) == 0
        ids = torch.tensor([[49406, 320, 1125, 49407, 49407]])
        assert torch.equal(mine(ids).states[-2], a(ids, output_hidden_states=True).hidden_states[-2])


def test_same_picture_through_stock(tmp_path: Path) -> None:
    stock, _, path = written(tmp_path, "sd1")
    theirs = StableDiffusionPipeline.from_single_file(str(path), config=str(tmp_path / "stock"), local_files_only=True)
    pictures = []
    for pipeline in (stock, theirs):
        pipeline.set_progress_bar_config(disable=True)
        draw = torch.Generator().manual_seed(0)
        pictures.append(pipeline("a red square", num_inference_steps=2, generator=draw, output_type="pt").images)
    assert torch.equal(*pictures)


def test_names_agree_with_the_converters_of_diffusers() -> None:
    """An original state made by our plan, turned back by theirs, tensor for tensor (values, not only names)."""
    unet = components.unet_xl(layers_per_block=2)
    original = {
        p.source: unet.state_dict()[n] for n, p in unet_plan(unet.state_dict(), 2, "model.diffusion_model.").items()
    }
    back = peer.convert_ldm_unet_checkpoint(dict(original), unet.config)
    assert _equal(back, unet.state_dict())
    vae = components.vae(layers_per_block=2)
    plan = vae_plan(vae.state_dict(), "first_stage_model.")
    original = {p.source: _conv(p.source, vae.state_dict()[n]) for n, p in plan.items()}
    assert _equal(peer.convert_ldm_vae_checkpoint(original, vae.config), vae.state_dict())


def _conv(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :, None, None] if ".attn_1." in name and tensor.dim() == 2 else tensor


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[n].reshape(b[n].shape), b[n]) for n in b)


def test_open_clip_itself_has_these_names() -> None:
    """A real open_clip text tower: every tensor of it is used, and the hidden states are the same."""
    import open_clip
    from open_clip.transformer import TextTransformer

    torch.manual_seed(0)
    native = TextTransformer(width=32, heads=4, layers=2, output_dim=16, pool_type="argmax").eval()
    tower = components.projected_tower(32, projection_dim=16, num_hidden_layers=2, num_attention_heads=4,
                                       **(models.FULL | {"intermediate_size": 128}))  # fmt: skip
    plan = open_clip_plan({n: tuple(t.shape) for n, t in tower.state_dict().items()}, "")
    state = native.state_dict()
    unused = {"logit_scale", "attn_mask"}
    assert {p.source for p in plan.values()} == {n for n in state if n not in unused}
    tower.load_state_dict({n: p.cut(state[p.source]) for n, p in plan.items()})
    ids = torch.zeros(1, 77, dtype=torch.long)
    ids[0, :4] = torch.tensor([49406, 320, 1125, 49407])
    with torch.no_grad():
        assert float((tower(ids).text_embeds - native(ids)).abs().max()) < 1e-5
    assert open_clip.__version__


def _as_original(net: torch.nn.Module, layers: int, prefix: str) -> dict[str, torch.Tensor]:
    state = net.state_dict()
    return {p.source: state[n].contiguous() for n, p in unet_plan(state, layers, prefix).items()}


@pytest.mark.parametrize("layout", ["diffusers", "original", "bare"])
@pytest.mark.parametrize("family", ["sd1", "xl"])
def test_controlnet_files(tmp_path: Path, layout: str, family: str) -> None:
    of = components.unet(norm_num_groups=32)
    if family == "xl":
        added = {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2000}
        of = components.unet_xl(norm_num_groups=32, attention_head_dim=(1, 1), **added)
    net = components.controlnet(of)
    path = tmp_path / "c.safetensors"
    state = net.state_dict()
    if layout != "diffusers":
        state = _as_original(net, 1, "control_model." if layout == "original" else "")
    save_file({n: t.contiguous() for n, t in state.items()}, path)
    ours = load_controlnet(path)
    assert models.difference(ours, net) == 0
    ours = copy.deepcopy(ours)  # mapped weights lie at any address, and another address may be served by another kernel
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, of.config.cross_attention_dim)
    told = {"text_embeds": torch.randn(1, 2000 - 6 * 256), "time_ids": torch.ones(1, 6)} if family == "xl" else None
    hint = torch.rand(1, 3, 16, 16)
    more = {} if told is None else {"pooled": told["text_embeds"], "sizes": told["time_ids"]}
    wanted = net(x, t, text, hint, added_cond_kwargs=told)
    down, middle = ours(x, t, text, hint, **more)
    assert torch.equal(middle, wanted.mid_block_res_sample)
    assert all(torch.equal(a, b) for a, b in zip(down, wanted.down_block_res_samples, strict=True))


def test_controlnet_names_are_those_the_converter_of_diffusers_expects() -> None:
    """`control_model.*` with the usual hint embedding, values and all; and the names at the full size of SD 1."""
    tiny = ControlNetModel.from_unet(components.unet(layers_per_block=2))
    original = _as_original(tiny, 2, "control_model.")
    assert _equal(peer.convert_controlnet_checkpoint(original, tiny.config), tiny.state_dict())
    with torch.device("meta"):
        full = ControlNetModel(cross_attention_dim=768)
    original = _as_original(full, 2, "control_model.")
    assert {"control_model.zero_convs.11.0.weight", "control_model.input_hint_block.14.bias"} <= set(original)
    assert set(peer.convert_controlnet_checkpoint(original, full.config)) == set(full.state_dict())


@pytest.mark.parametrize("layout", ["diffusers", "old diffusers", "original", "inside"])
def test_another_autoencoder(tmp_path: Path, tiny_sd1: Path, layout: str) -> None:
    vae = components.vae(seed=9)
    state = vae.state_dict()
    if layout == "old diffusers":  # the published autoencoders still have these names
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, was in old.items():
            state = {n.replace(f"attentions.0.{new}.", f"attentions.0.{was}."): t for n, t in state.items()}
    elif layout in ("original", "inside"):
        prefix = "first_stage_model." if layout == "inside" else ""
        state = {p.source: _conv(p.source, state[n]) for n, p in vae_plan(state, prefix).items()}
    path = tmp_path / "vae.safetensors"
    save_file({n: t.contiguous() for n, t in state.items()}, path)
    parts = load_parts(tiny_sd1, vae=path)
    assert models.difference(parts.vae, vae) == 0
    assert parts.vae.config.scaling_factor == vae.config.scaling_factor
    assert any("autoencoder is" in note for note in parts.notes)


def test_autoencoder_of_another_size_is_refused(tmp_path: Path, tiny_sd1: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(components.vae(block_out_channels=(16, 16)).state_dict(), path)
    with pytest.raises(LdmError, match=r"file \[16,16.*config \[") as caught:
        load_parts(tiny_sd1, vae=path)
    assert caught.value.code is Code.MODEL
    with pytest.raises(LdmError):
        load_vae(tmp_path)


def test_tolerates_what_published_files_hold_and_names_the_rest(tmp_path: Path) -> None:
    stock, _, path = written(tmp_path, "sd1")
    state, told = load_file(path), load_weights(path).metadata
    extra = {
        "alphas_cumprod": torch.ones(4),
        "betas": torch.ones(4),
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(4),
        "cond_stage_model.logit_scale": torch.tensor(4.6),
        "cond_stage_model.transformer.text_projection": torch.ones(2),
    }
    save_file(state | extra, tmp_path / "extra.safetensors", told)
    del state["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    save_file(state, tmp_path / "lacking.safetensors", told)
    for name in ("extra", "lacking"):
        assert models.difference(load_parts(tmp_path / f"{name}.safetensors").unet, stock.unet) == 0
    for odd in ("lora_unet_x.lora_up.weight", "model.diffusion_model.odd", "cond_stage_model.transformer.odd", "odd"):
        save_file(state | {odd: torch.ones(2)}, tmp_path / "odd.safetensors", told)
        with pytest.raises(LdmError) as caught:
            load_parts(tmp_path / "odd.safetensors")
        assert odd in caught.value.why


def test_text_tower_without_its_inner_prefix(tmp_path: Path) -> None:
    stock, _, path = written(tmp_path, "sd1")
    state = {n.replace(".transformer.text_model.", ".transformer."): t for n, t in load_file(path).items()}
    save_file(state, tmp_path / "new.safetensors", load_weights(path).metadata)
    assert models.difference(load_parts(tmp_path / "new.safetensors").towers[0][1], stock.text_encoder) == 0


def test_known_families_need_no_configuration_of_ours(tmp_path: Path) -> None:
    """Real sizes, no metadata: family, channels, prediction and configuration come from the header alone."""
    for name, (family, channels) in models.LAYOUTS.items():
        path = tmp_path / f"{name}.safetensors"
        _hollow(path, {n: t.shape for n, t in single_state(models.full_size(family, channels)).items()})
        layout = layout_of(load_weights(path))
        assert layout.family == family
        assert layout.configs["unet"]["in_channels"] == channels
        assert layout.prediction == ("v_prediction" if family == "sd2" else "epsilon")


@pytest.mark.parametrize("family", ["sd1", "xl"])
def test_a_consistency_model_is_told_the_guidance_scale(tmp_path: Path, family: Any) -> None:
    """Published LCM files carry no configuration of ours: the width of the guidance embedding is in their header."""
    shapes = {n: t.shape for n, t in single_state(models.full_size(family, 4)).items()}
    shapes["model.diffusion_model.time_embedding.cond_proj.weight"] = torch.Size((320, 256))
    _hollow(tmp_path / "lcm.safetensors", shapes)
    layout = layout_of(load_weights(tmp_path / "lcm.safetensors"))
    assert layout.configs["unet"]["time_cond_proj_dim"] == 256
    if family == "sd1":
        unet = load_parts(tmp_path / "lcm.safetensors", dtype=torch.float16, components={"unet"}).unet
        assert unet.time_embedding.cond_proj.weight.shape == (320, 256)


def _hollow(path: Path, shapes: dict[str, Any], told: dict[str, str] | None = None) -> None:
    """A file of the right header and size whose data is a hole: half precision, no disk."""
    header: dict[str, Any] = {"__metadata__": told or {}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.torture
def test_real_size_file_loads_mapped(tmp_path: Path) -> None:
    """SD 1 at full size: mapped, so that it takes neither memory nor time; the tokenizer and configs are ours."""
    path = tmp_path / "v1-5.safetensors"
    shapes = {n: t.shape for n, t in single_state(models.full_size("sd1", 4)).items()}
    _hollow(path, shapes)
    parts = load_parts(path, dtype=torch.float16)
    assert parts.family == "sd1"
    assert sum(p.numel() for p in parts.unet.parameters()) == 859_520_964
    assert len(parts.towers[0][0]) == 49408
    with pytest.raises(LdmError, match="differ"):  # a configuration of another family
        _hollow(tmp_path / "odd.safetensors", shapes | {"model.diffusion_model.out.2.bias": (5,)})
        load_parts(tmp_path / "odd.safetensors", dtype=torch.float16)


def test_incomplete_and_foreign_files(tmp_path: Path) -> None:
    _, _, path = written(tmp_path, "sd1")
    state, told = load_file(path), load_weights(path).metadata
    cases = {
        "no vae": {n: t for n, t in state.items() if not n.startswith("first_stage_model.")},
        "no text": {n: t for n, t in state.items() if not n.startswith("cond_stage_model.")},
        "a vae": {n: t for n, t in state.items() if n.startswith("first_stage_model.")},
        "a lora": {"lora_unet_x.lora_up.weight": torch.ones(2, 2)},
    }
    for name, tensors in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors", told)
        with pytest.raises(LdmError) as caught:
            load_parts(tmp_path / f"{name}.safetensors")
        assert caught.value.code is Code.MODEL
    folder = tmp_path / "no vae.safetensors"
    assert load_parts(folder, vae=path).vae is not None
    assert load_parts(folder, components={"unet"}).vae is None
    save_file(state, tmp_path / "unknown.safetensors")
    with pytest.raises(LdmError, match="no known family: first level 32 wide, text 32 wide, 4 input channels, no"):
        load_parts(tmp_path / "unknown.safetensors")
    save_file(
        state, tmp_path / "hostile.safetensors", {"ldm.config": '{"unet": {"auto_map": 1}, "vae": {}, "scheduler": {}}'}
    )
    with pytest.raises(LdmError) as caught:
        load_parts(tmp_path / "hostile.safetensors")
    assert caught.value.code is Code.REFUSED


def test_a_model_with_its_own_vocabulary_stays_a_folder(tiny_sd1: Path, tmp_path: Path) -> None:
    with pytest.raises(LdmError, match="tokenizer"):
        save_single(load_parts(tiny_sd1), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_clip_names_keep_their_prefix() -> None:
    assert len(clip_tokenizer()) == 49408
    plan = clip_plan(["embeddings.token_embedding.weight", "text_model.final_layer_norm.bias"], "p.")
    assert [p.source for p in plan.values()] == [
        "p.text_model.embeddings.token_embedding.weight",
        "p.text_model.final_layer_norm.bias",
    ]
