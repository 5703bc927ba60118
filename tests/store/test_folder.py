"""Model folders: what stock code saved we load, what we save stock code loads, and what does not fit is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file, save_file

from ldm.errors import Code, LdmError
from ldm.store.parts import load_controlnet, load_parts, load_vae
from ldm.store.save import save_folder
from ldm.store.weights import load_weights
from tests import components
from tests.store.models import difference, edit

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_sd1: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd1, tmp_path / "model"))


def refused(folder: Path, code: Code, **options: Any) -> LdmError:
    with pytest.raises(LdmError) as caught:
        load_parts(folder, **options)
    assert caught.value.code is code, caught.value
    return caught.value


def test_loads_what_stock_saved(tiny_sd1: Path) -> None:
    parts, stock = load_parts(tiny_sd1), components.sd1()
    assert difference(parts.unet, stock.unet) == 0
    assert difference(parts.vae, stock.vae) == 0
    tokenizer, tower = parts.towers[0]
    assert difference(tower, stock.text_encoder) == 0
    words = "a red square on the café, 红"
    assert tokenizer.backend_tokenizer.encode(words).ids == stock.tokenizer(words)["input_ids"]
    assert tokenizer.model_max_length == 77
    assert parts.scheduler["beta_start"] == 0.00085
    assert (parts.family, parts.prediction) == ("own", "epsilon")
    assert "prediction_type" in parts.reason
    assert not any(p.requires_grad for p in parts.unet.parameters())
    assert not parts.unet.training


@pytest.mark.parametrize("name", ["tiny_sd1", "tiny_inpaint9", "tiny_xl", "tiny_refiner"])
def test_round_trip_through_stock(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    parts = load_parts(request.getfixturevalue(name))
    folder = save_folder(parts, tmp_path / "saved")
    again = load_parts(folder)
    assert again.fingerprint == parts.fingerprint
    assert (again.family, len(again.towers)) == (parts.family, len(parts.towers))
    kinds: dict[str, Any] = {"tiny_xl": StableDiffusionXLPipeline, "tiny_inpaint9": StableDiffusionInpaintPipeline}
    if name == "tiny_refiner":
        assert parts.family == "xl-refiner"
        return
    stock = kinds.get(name, StableDiffusionPipeline).from_pretrained(folder, local_files_only=True)
    assert difference(stock.unet, parts.unet) == 0
    assert difference(stock.vae, parts.vae) == 0
    assert difference(stock.text_encoder, parts.towers[0][1]) == 0
    words, tower = parts.towers[0]
    assert stock.tokenizer("a red cat")["input_ids"] == words.backend_tokenizer.encode("a red cat").ids
    ids = torch.tensor([[1, 2, 3, words.eos_token_id]])
    told = stock.text_encoder(ids, output_hidden_states=True)
    assert all(torch.equal(a, b) for a, b in zip(told.hidden_states, tower(ids).states, strict=True))


def test_saving_is_whole_or_not_at_all(tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = load_parts(tiny_sd1)
    save_folder(parts, tmp_path / "a")
    with pytest.raises(LdmError, match="exists already"):
        save_folder(parts, tmp_path / "a")
    with torch.no_grad():
        parts.vae.quant_conv.weight[0] = float("inf")
    with pytest.raises(LdmError, match="not finite"):
        save_folder(parts, tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        with pytest.raises(LdmError, match="No space"):
            save_folder(load_parts(tiny_sd1), tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_weights_are_mapped_and_not_copied(tiny_sd1: Path) -> None:
    unet = load_parts(tiny_sd1).unet
    places = [p.data_ptr() for p in unet.parameters()]
    assert max(places) - min(places) < (tiny_sd1 / UNET).stat().st_size  # all lie in one map of the file
    before = (tiny_sd1 / UNET).read_bytes()
    with torch.no_grad():
        unet.conv_in.weight.zero_()  # a private map: an adapter merged into it leaves the file alone
    assert (tiny_sd1 / UNET).read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(tiny_sd1: Path, dtype: torch.dtype) -> None:
    parts = load_parts(tiny_sd1, dtype=dtype)
    wanted = components.sd1().unet.to(dtype)
    assert {p.dtype for p in parts.unet.parameters()} == {dtype}
    assert difference(parts.unet, wanted) == 0
    assert parts.fingerprint == load_parts(tiny_sd1, components=()).fingerprint


def test_variants(copy: Path) -> None:
    plain = load_file(copy / UNET)
    half = copy / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({n: (t + 1).half() for n, t in plain.items()}, half)
    assert load_parts(copy).unet.conv_in.bias.equal(plain["conv_in.bias"])
    assert load_parts(copy, dtype=torch.float16).unet.conv_in.bias.equal((plain["conv_in.bias"] + 1).half())
    (copy / UNET).unlink()
    assert load_parts(copy).unet.conv_in.bias.equal((plain["conv_in.bias"] + 1).half().float())
    half.rename(half.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    assert load_parts(copy).unet.dtype == torch.float32


def test_shards_written_by_stock(copy: Path) -> None:
    whole = load_parts(copy)
    shutil.rmtree(copy / "unet")
    components.unet().save_pretrained(copy / "unet", max_shard_size="300KB")
    assert len(list((copy / "unet").glob("*-of-*.safetensors"))) > 2
    sharded = load_parts(copy)
    assert difference(sharded.unet, whole.unet) == 0
    assert sharded.fingerprint == whole.fingerprint
    index = copy / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={n: f for n, f in table.items() if n != "conv_in.bias"})
    assert "conv_in.bias" in refused(copy, Code.FILE).why
    edit(index, weight_map=table)
    next(iter((copy / "unet").glob("*-00002-*"))).unlink()
    refused(copy, Code.FILE)


PAYLOADS = [
    "../secret.safetensors", "..", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "..\\secret.safetensors",
    "%2e%2e%2fsecret.safetensors", "C:\\x.safetensors", "secret.safetensors\0", "\n.safetensors", "", ".",
    "./secret.safetensors", "sub/../../secret.safetensors", "/", "~/x.safetensors", "file:///x.safetensors",
    "secret.bin", "link.safetensors", "\u202e.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_shard_names_never_lead_outside(copy: Path, payload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = copy.parent / "secret.safetensors"
    shutil.copy(copy / UNET, secret)
    (copy / UNET).unlink()
    (copy / "unet" / "link.safetensors").symlink_to(secret)
    (copy / "unet" / "sub").mkdir()
    names = list(load_weights(secret))
    index = {"weight_map": dict.fromkeys(names, payload)}
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    opened: list[Path] = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self), original(self, *a, **k))[1])
    refused(copy, Code.REFUSED)
    assert not [p for p in opened if not p.resolve().is_relative_to(copy.resolve())]


def test_links_of_the_hub_cache_are_inside(tiny_sd1: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs = tmp_path / "models--a--b" / "blobs"
    shutil.copytree(tiny_sd1, snapshot)
    blobs.mkdir()
    shutil.rmtree(snapshot / "unet")
    components.unet().save_pretrained(snapshot / "unet", max_shard_size="300KB")
    for i, shard in enumerate((snapshot / "unet").glob("*.safetensors")):
        shard.rename(blobs / str(i))
        shard.symlink_to(blobs / str(i))
    assert difference(load_parts(snapshot).unet, components.unet()) == 0


def _swap(part: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / part / "config.json", **changes)


def _replace(part: str, make: Callable[[], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = next((folder / part).glob("*.safetensors"))
        save_file({n: t.contiguous() for n, t in make().state_dict().items()}, path)

    return change


def _tensors(part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = next((folder / part).glob("*.safetensors"))
        state = load_file(path)
        change(state)
        save_file(state, path)

    return apply


SWAPS = {
    "width of the text": _swap("unet", cross_attention_dim=48),
    "input channels": _swap("unet", in_channels=9),
    "widths": _swap("unet", block_out_channels=[32, 32]),
    "depth": _swap("unet", layers_per_block=2),
    "added embedding": _swap(
        "unet", addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=50
    ),
    "unet of XL": _replace("unet", components.unet_xl),
    "9-channel unet": _replace("unet", lambda: components.unet(9)),
    "latent channels": _swap("vae", latent_channels=8),
    "widths of the autoencoder": _replace("vae", lambda: components.vae(block_out_channels=(16, 16))),
    "text tower of XL": _replace("text_encoder", components.projected_tower),
    "a tensor is missing": _tensors("unet", lambda s: s.pop("conv_out.bias")),
    "a tensor too many": _tensors("unet", lambda s: s.__setitem__("lora.weight", torch.ones(1))),
}


@pytest.mark.parametrize("name", SWAPS)
def test_wrong_architecture_names_the_first_differing_tensors(copy: Path, name: str) -> None:
    SWAPS[name](copy)
    error = refused(copy, Code.MODEL)
    assert "tensors differ" in error.what
    assert 1 <= error.why.count("; ") + 1 <= 5
    assert "file " in error.why
    assert "config " in error.why


def test_both_values_are_told(copy: Path) -> None:
    edit(copy / "unet" / "config.json", cross_attention_dim=48)
    why = refused(copy, Code.MODEL).why
    assert "text 48 wide" in why
    assert "file looks like: first level 32 wide, text 32 wide" in why


HOSTILE: dict[str, tuple[str, dict[str, Any], Code]] = {
    "class": ("unet/config.json", {"_class_name": "os.system"}, Code.REFUSED),
    "index": ("model_index.json", {"unet": ["os", "system"]}, Code.REFUSED),
    "custom pipeline": ("model_index.json", {"unet": ["my_code", "MyUNet"]}, Code.REFUSED),
    "auto_map": ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Model"}}, Code.REFUSED),
    "attention": ("text_encoder/config.json", {"_attn_implementation_internal": "evil/kernel"}, Code.REFUSED),
    "attention 2": ("text_encoder/config.json", {"_attn_implementation": "evil/kernel"}, Code.REFUSED),
    "quantization": ("text_encoder/config.json", {"quantization_config": {"quant_method": "evil"}}, Code.REFUSED),
    "remote code": ("unet/config.json", {"trust_remote_code": True}, Code.REFUSED),
    "target": ("unet/config.json", {"target": "os.system"}, Code.REFUSED),
    "tokenizer": ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tok", None]}}, Code.REFUSED),
    "text class": ("text_encoder/config.json", {"architectures": ["LightGlue"]}, Code.REFUSED),
    "act": ("unet/config.json", {"act_fn": "os.system"}, Code.MODEL),
    "block": ("unet/config.json", {"down_block_types": ["os.system", "DownBlock2D"]}, Code.MODEL),
    "activation": ("text_encoder/config.json", {"hidden_act": "${oc.env:PATH}"}, Code.MODEL),
    "huge depth": ("unet/config.json", {"layers_per_block": 10**9}, Code.MODEL),
    "huge width": ("unet/config.json", {"block_out_channels": [10**9, 10**9]}, Code.MODEL),
    "huge list": ("unet/config.json", {"block_out_channels": [32] * 10_000}, Code.MODEL),
    "huge tower": ("text_encoder/config.json", {"num_hidden_layers": 10**7}, Code.MODEL),
    "not a number": ("unet/config.json", {"norm_eps": float("nan")}, Code.MODEL),
    "text for number": ("unet/config.json", {"block_out_channels": "wide"}, Code.MODEL),
    "prediction": ("scheduler/scheduler_config.json", {"prediction_type": "os.system"}, Code.MODEL),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configs_are_refused(copy: Path, name: str) -> None:
    file, changes, code = HOSTILE[name]
    if "architectures" in changes:
        edit(copy / "model_index.json", text_encoder=None)
    edit(copy / file, **changes)
    error = refused(copy, code)
    assert os.environ["PATH"] not in str(error)


def test_unknown_harmless_keys_are_noted(copy: Path) -> None:
    edit(copy / "unet" / "config.json", colour="red")
    assert any("colour" in note for note in load_parts(copy).notes)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": ' * 5000, "\xff"])
def test_broken_json(copy: Path, text: str) -> None:
    (copy / "unet" / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refused(copy, Code.FILE).what


def test_incomplete_folders(copy: Path) -> None:
    (copy / UNET).rename(copy / "unet" / "diffusion_pytorch_model.bin")
    assert "convert" in refused(copy, Code.REFUSED).fix
    (copy / "unet" / "diffusion_pytorch_model.bin").unlink()
    refused(copy, Code.FILE)
    shutil.rmtree(copy / "unet")
    assert "unet/config.json" in refused(copy, Code.FILE).why


def test_prediction_types(copy: Path) -> None:
    scheduler = copy / "scheduler" / "scheduler_config.json"
    for kind in ("v_prediction", "sample"):
        edit(scheduler, prediction_type=kind)
        assert load_parts(copy, components=()).prediction == kind
    assert load_parts(copy, components=(), prediction="epsilon").reason == "set by hand"
    edit(scheduler, _class_name="FlowMatchEulerDiscreteScheduler")
    assert load_parts(copy, components=()).prediction == "flow"


def test_tokenizer_is_ours_where_there_is_none(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    tokenizer = load_parts(copy, components={"text"}).towers[0][0]
    assert len(tokenizer) == 49408
    (copy / "tokenizer").mkdir()
    (copy / "tokenizer" / "vocab.json").write_text("{")
    refused(copy, Code.FILE, components={"text"})


def test_controlnet_folder(tiny_controlnet: Path) -> None:
    stock = ControlNetModel.from_pretrained(tiny_controlnet)
    assert difference(load_controlnet(tiny_controlnet), stock) == 0
    with pytest.raises(LdmError):
        load_controlnet(tiny_controlnet.parent)


def test_another_part_in_the_place_of_one_is_named(tiny_sd1: Path, tmp_path: Path) -> None:
    """--vae and --control with a folder of something else: what it is, and what is wanted."""
    control = tmp_path / "control"
    components.controlnet(components.unet()).save_pretrained(control)
    cases: list[tuple[Callable[[Path], Any], Path, str]] = [
        (load_vae, control, "is a ControlNet, not an autoencoder"),
        (load_vae, tiny_sd1 / "unet", "is a U-Net, not an autoencoder"),
        (load_vae, tiny_sd1 / "text_encoder", "is a text tower, not an autoencoder"),
        (load_vae, control / "diffusion_pytorch_model.safetensors", "is a controlnet, not an autoencoder"),
        (load_vae, tiny_sd1 / UNET, "is a unet, not an autoencoder"),
        (load_controlnet, tiny_sd1 / "unet", "is a U-Net, not a ControlNet"),
        (load_controlnet, tiny_sd1 / "vae", "is an autoencoder, not a ControlNet"),
        (load_controlnet, tiny_sd1, "is a whole model, not a ControlNet"),
        (load_controlnet, tiny_sd1 / UNET, "is not a ControlNet: it looks like a unet"),
    ]
    for load, where, said in cases:
        with pytest.raises(LdmError, match=said) as caught:
            load(where)
        assert caught.value.code is Code.MODEL


def test_what_is_saved_loads_without_a_note(tiny_sd1: Path, tmp_path: Path) -> None:
    parts = load_parts(save_folder(load_parts(tiny_sd1), tmp_path / "again"))
    assert parts.notes == []
    edit(tmp_path / "again" / "text_encoder" / "config.json", output_attentions=False)
    assert load_parts(tmp_path / "again").notes == []
    edit(tmp_path / "again" / "text_encoder" / "config.json", output_attentions=True)
    assert "output_attentions" in load_parts(tmp_path / "again").notes[0]
