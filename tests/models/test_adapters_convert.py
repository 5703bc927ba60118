"""Adapters written in other dialects: read back by stock diffusers and peft, and bit-equal after a round trip."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from ldm.errors import LdmError
from ldm.models.adapters import Dialect, convert, inspect, parse_adapter
from tests.models.adapter_bases import (
    embed,
    make_stack,
    make_stock,
    make_unet,
    predict,
    read,
    towers_of,
    unet_of,
    write_stock,
)

CLOSE = 1e-5


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def written(tensors: dict[str, Tensor], metadata: dict[str, str], folder: Path) -> Path:
    save_file(tensors, folder / "converted.safetensors", metadata)
    return folder / "converted.safetensors"


# stock's reader of kohya keys forgets alphas that differ between layers, and the size embedding of XL unless it has its
# original name
MIXED = {"alpha_pattern": {"to_q": 2, "q_proj": 2}}


@pytest.mark.parametrize(
    ("kind", "dialect", "fields"),
    [("sd1", "diffusers", MIXED), ("sd1", "kohya", {}), ("xl", "diffusers", MIXED), ("xl", "kohya-xl", {})],
)
def test_what_we_write_is_read_by_stock_to_the_same_picture(
    kind: str, dialect: Dialect, fields: dict[str, object], tmp_path: Path
) -> None:
    adapter = read(write_stock(kind, tmp_path, **fields))
    stack, stock, again = make_stack(kind), make_stock(kind), make_stack(kind)
    stack.use([(adapter, 0.7, None)])
    path = written(*convert(adapter, dialect), tmp_path)
    stock.load_lora_weights(path, adapter_name="a")
    stock.set_adapters(["a"], [0.7])
    assert far(predict(unet_of(stack)), predict(stock.unet)) <= CLOSE
    for tower, name in zip(towers_of(stack), ["text_encoder", "text_encoder_2"], strict=False):
        assert far(embed(tower), embed(getattr(stock, name))) <= CLOSE
    again.use([(read(path), 0.7, None)])
    assert torch.equal(predict(unet_of(again)), predict(unet_of(stack)))


def test_dora_is_read_by_stock(tmp_path: Path) -> None:
    adapter = read(write_stock("sd1", tmp_path, use_dora=True, text=False))
    stack, stock = make_stack("sd1"), make_stock("sd1")
    stack.use([(adapter, 1.0, None)])
    through_kohya = parse_adapter(*convert(adapter, "kohya"))
    stock.load_lora_weights(written(*convert(through_kohya, "diffusers"), tmp_path))
    assert far(predict(unet_of(stack)), predict(stock.unet)) <= CLOSE


@pytest.mark.parametrize(
    ("kind", "dialect", "fields"),
    [
        ("sd1", "kohya", {"use_dora": True}),
        ("xl", "kohya", {}),
        ("xl", "kohya-xl", {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 0.1}}),
    ],
)
def test_kohya_and_diffusers_round_trip_bit_equal(
    kind: str, dialect: Dialect, fields: dict[str, object], tmp_path: Path
) -> None:
    kohya, metadata = convert(read(write_stock(kind, tmp_path, **fields)), dialect)
    there = convert(parse_adapter(kohya, metadata), "diffusers")
    back, _ = convert(parse_adapter(*there), dialect)
    assert equal(kohya, back)
    assert equal(there[0], convert(parse_adapter(back), "diffusers")[0])
    files = [written(tensors, {}, tmp_path).read_bytes() for tensors in (kohya, back)]
    assert files[0] == files[1]


@pytest.mark.parametrize("dora", [False, True])
def test_peft_reads_what_we_write(dora: bool, tmp_path: Path) -> None:
    adapter = read(write_stock("sd1", tmp_path, use_dora=dora, text=False, rank_pattern={"to_q": 2}))
    tensors, metadata = convert(adapter, "peft")
    config = json.loads(metadata["lora_adapter_metadata"])
    model = get_peft_model(make_unet(), LoraConfig(**{key: config[key] for key in config if key != "peft_type"}))
    outcome = set_peft_model_state_dict(model, tensors)
    assert not outcome.unexpected_keys and not [key for key in outcome.missing_keys if "lora" in key]
    stack = make_stack("sd1")
    stack.use([(adapter, 1.0, None)])
    assert far(predict(unet_of(stack)), predict(model.base_model.model)) <= CLOSE


def test_loha_goes_to_peft_and_kohya_and_not_to_diffusers() -> None:
    config = LoHaConfig(r=4, alpha=2, target_modules=["to_q", "conv1"], init_weights=False)
    source = get_peft_model_state_dict(get_peft_model(make_unet(), config))
    adapter = parse_adapter(source, {"lora_adapter_metadata": json.dumps(config.to_dict(), default=list)})
    kohya = parse_adapter(*convert(adapter, "kohya"))
    back, metadata = convert(kohya, "peft")
    assert equal(back, source)
    assert json.loads(metadata["lora_adapter_metadata"])["peft_type"] == "LOHA"
    with pytest.raises(LdmError, match="diffusers cannot hold"):
        convert(adapter, "diffusers")


def test_the_strength_of_a_lokr_without_a_product_is_in_its_factors() -> None:
    """kohya's readers find no rank there, and take the scale for 1."""
    config = LoKrConfig(r=64, alpha=16, target_modules=["to_q"], init_weights=False)
    source = get_peft_model_state_dict(get_peft_model(make_unet(), config))
    lokr = parse_adapter(source, {"lora_adapter_metadata": json.dumps(config.to_dict(), default=list)})
    assert all({"lokr_w1", "lokr_w2"} <= p.delta.factors.keys() for p in lokr.parts if p.delta)
    tensors, _ = convert(lokr, "kohya")
    kohya = parse_adapter(tensors, {})
    for before, after in zip(lokr.parts, kohya.parts, strict=True):
        assert before.delta is not None and after.delta is not None
        assert far(before.delta.matrix("cpu"), after.delta.matrix("cpu")) < CLOSE
    assert not [key for key in tensors if key.endswith(".alpha")]


def test_a_locon_core_is_folded_for_stock(tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_resnets_0_conv1"
    adapter = parse_adapter(
        {
            f"{stem}.lora_down.weight": torch.randn(3, 16, 1, 1),
            f"{stem}.lora_mid.weight": torch.randn(3, 3, 3, 3),
            f"{stem}.lora_up.weight": torch.randn(16, 3, 1, 1),
            f"{stem}.alpha": torch.tensor(1.0),
        }
    )
    stack, stock = make_stack("sd1"), make_stock("sd1")
    stack.use([(adapter, 1.0, None)])
    stock.load_lora_weights(written(*convert(adapter, "diffusers"), tmp_path))
    assert far(predict(unet_of(stack)), predict(stock.unet)) <= CLOSE


def test_half_precision_alpha_and_factors_stay_as_they_are() -> None:
    stem = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    other = stem.replace("te1", "te2")
    tensors = {}
    for name in (stem, other):
        tensors[f"{name}.lora_down.weight"] = torch.randn(3, 16).half()
        tensors[f"{name}.lora_up.weight"] = torch.randn(32, 3).half()
        tensors[f"{name}.alpha"] = torch.tensor(1 / 3).half()
    back, _ = convert(parse_adapter(*convert(parse_adapter(tensors), "diffusers")), "kohya")
    assert equal(tensors, back) and all(tensor.dtype == torch.float16 for tensor in back.values())


def test_metadata_holds_the_three_groups_and_the_base(tmp_path: Path) -> None:
    adapter = read(write_stock("xl", tmp_path, text=False))
    tensors, metadata = convert(adapter, "diffusers", fingerprint="base-a", family="xl")
    assert metadata["ldm.base_fingerprint"] == "base-a"
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0" and metadata["ss_network_dim"] == "4"
    assert metadata["ss_v2"] == "False"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1" and metadata["modelspec.resolution"] == "1024x1024"
    assert json.loads(metadata["lora_adapter_metadata"])["unet.lora_alpha"] == 6
    assert all(isinstance(value, str) for value in metadata.values())
    again = read(written(tensors, metadata, tmp_path))
    assert again.base.family == "xl" and again.base.fingerprint == "base-a"
    assert convert(again, "diffusers")[1]["sshs_model_hash"] == metadata["sshs_model_hash"]


def test_the_hash_is_that_of_the_file_after_its_header() -> None:
    tensors = {
        "lora_unet_b.lora_down.weight": torch.randn(2, 4),
        "lora_unet_b.lora_up.weight": torch.randn(8, 2),
        "lora_unet_a.lora_down.weight": torch.randn(2, 4).half(),
        "lora_unet_a.lora_up.weight": torch.randn(8, 2).bfloat16(),
        "lora_unet_a.alpha": torch.tensor(1.0),
    }
    again, metadata = convert(parse_adapter(tensors), "kohya")
    whole = save(again, metadata)
    body = whole[8 + int.from_bytes(whole[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest()


def test_conversion_never_loses_a_tensor_in_silence() -> None:
    tensors = {
        "unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3),
        "unet.conv_in.lora_B.weight": torch.ones(8, 2, 1, 1),
    }
    with pytest.raises(LdmError, match="1 of 3 tensors are not understood"):
        convert(parse_adapter(tensors | {"unet.conv_in.magic": torch.ones(1)}), "kohya")
    both = tensors | {key.replace("unet.conv_in", "text_encoder.x"): value for key, value in tensors.items()}
    with pytest.raises(LdmError, match="peft cannot hold"):
        convert(parse_adapter(both), "peft")
    with pytest.raises(LdmError, match="diffusers cannot hold"):
        convert(parse_adapter({"unet.conv_in.diff": torch.ones(8, 4, 3, 3)}), "diffusers")


def test_inspect_tells_what_a_file_holds_without_a_base(tmp_path: Path) -> None:
    adapter = read(write_stock("sd1", tmp_path, rank_pattern={"to_q": 2}))
    found = inspect(adapter)
    assert found.kinds == ("lora",) and found.dialect == "diffusers" and found.unknown == ()
    assert found.tensors == len(load_file(tmp_path / "pytorch_lora_weights.safetensors"))
    assert set(found.ranks) == {"4", "2"} and found.alphas == {"6": len(adapter.parts)}
    assert found.targets["unet: to_q"] == found.targets["unet: to_k"] > 0 and found.targets["text_encoder: fc1"] == 2
    assert (
        found.targets["unet: to_out"] > 0 and {"unet.mid_block", "text_encoder.encoder.layers.0"} <= found.norms.keys()
    )
    whole = torch.cat([part.delta.matrix("cpu").flatten() for part in adapter.parts if part.delta])
    assert found.norm == pytest.approx(float(whole.norm()), rel=1e-4)
    assert found.parameters == sum(t.numel() for t in load_file(tmp_path / "pytorch_lora_weights.safetensors").values())


def test_inspect_reads_base_and_trigger_words() -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 768), f"{stem}.lora_up.weight": torch.ones(16, 2)}
    tags = {"10_dog": {"sks dog": 12, "grass": 3}, "1_reg": {"grass": 10}}
    metadata = {"modelspec.trigger_phrase": "sks dog, photo", "ss_tag_frequency": json.dumps(tags)}
    found = inspect(parse_adapter(tensors, metadata))
    assert found.words == ("sks dog", "photo", "grass")
    assert found.family == "sd1" and "768" in found.base
    assert found.alphas == {"none": 1} and found.ranks == {"2": 1}
    assert inspect(parse_adapter(tensors, {"ss_tag_frequency": "["})).words == ()


def test_the_first_of_two_towers_is_named_so_where_it_changes_alone(tmp_path: Path) -> None:
    adapter = read(write_stock("xl", tmp_path))
    alone = replace(adapter, parts=tuple(part for part in adapter.parts if part.component == "text_encoder"))
    assert alone.parts
    for dialect in ("kohya", "kohya-xl"):
        tensors, _ = convert(alone, dialect, family="xl")  # type: ignore[arg-type]
        assert tensors and all(key.startswith("lora_te1_") for key in tensors)


@pytest.mark.parametrize("tower", ["text_encoder", "text_encoder_2"])
def test_a_text_tower_s_peft_file_stays_that_tower_s(tower: str, tmp_path: Path) -> None:
    adapter = read(write_stock("xl", tmp_path))
    one = replace(adapter, parts=tuple(part for part in adapter.parts if part.component == tower))
    tensors, metadata = convert(one, "peft")
    back = parse_adapter(tensors, metadata)
    assert {part.component for part in back.parts} == {tower}
    kohya, diffusers = (convert(back, dialect, family="xl")[0] for dialect in ("kohya", "diffusers"))
    start = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[tower]
    assert all(key.startswith(start) for key in kohya)
    assert all(key.startswith(f"{tower}.") for key in diffusers)
    foreign = parse_adapter(
        tensors, {"lora_adapter_metadata": metadata["lora_adapter_metadata"]}
    )  # by its layers alone
    assert all(key.startswith("lora_te") for key in convert(foreign, "kohya")[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("alpha", [257.0, 32 / 32**0.5, 4.0])
def test_no_alpha_is_rounded(alpha: float, dtype: torch.dtype) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    factors = {"down": torch.ones(4, 16, dtype=dtype), "up": torch.ones(16, 4, dtype=dtype)}
    tensors = {f"{name}.lora_{side}.weight": tensor for side, tensor in factors.items()}
    told = parse_adapter(tensors | {f"{name}.alpha": torch.tensor(alpha)})
    written = convert(told, "kohya")[0]
    assert float(written[f"{name}.alpha"]) == pytest.approx(alpha, rel=1e-7)
    assert written[f"{name}.lora_up.weight"].dtype == dtype
