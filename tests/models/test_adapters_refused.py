"""Every file is applied in full or refused with its reason: never "loaded, and nothing changed"."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.adapters import AdapterStack, parse_adapter
from ldm.models.adapters.base import hint
from tests.models.adapter_bases import (
    UNET_TARGETS,
    add_peft,
    bits,
    make_stack,
    make_towers,
    make_unet,
    read,
    towers_of,
    unet_of,
    write_stock,
)

Tensors = dict[str, Tensor]


def _peft(kind: str = "sd1", targets: list[str] = UNET_TARGETS, width: int = 16) -> Tensors:
    return dict(get_peft_model_state_dict(add_peft(make_unet(kind, width), targets, lora_alpha=4)))


def _kohya(kind: str = "sd1") -> Tensors:
    tensors: Tensors = {}
    for key, value in _peft(kind).items():
        layer, role = key.split(".lora_")
        stem = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{stem}.lora_{'down' if role[0] == 'A' else 'up'}.weight"] = value
        tensors[f"{stem}.alpha"] = torch.tensor(4.0)
    return tensors


def _partial() -> Tensors:
    tensors = _kohya()
    for key in [key for key in tensors if "mid_block_attentions_0_proj_in" in key]:
        tensors[key.replace("mid_block_attentions_0", "mid_block_attentions_7")] = tensors.pop(key)
    return tensors


def _text_only(folder: Path) -> Tensors:
    return load_file(write_stock("sd1", folder, unet=False))


TEN: dict[str, tuple[Callable[[Path], Tensors], dict[str, str], str | None]] = {
    "kohya": (lambda _: _kohya(), {"ss_base_model_version": "sd_v1"}, None),
    "peft": (lambda _: {f"base_model.model.{k}": v for k, v in _peft().items()}, {}, None),
    "diffusers": (lambda _: {f"unet.{k}": v for k, v in _peft().items()}, {"format": "pt"}, None),
    "first and last layers, which stock dropped": (
        lambda _: {f"unet.{k}": v for k, v in _peft(targets=["conv_in", "conv_out", "linear_1", "linear_2"]).items()},
        {},
        None,
    ),
    "text encoder only": (_text_only, {}, None),
    "partial": (lambda _: _partial(), {}, "only 342 of 345"),
    "wrong width": (lambda _: {f"unet.{k}": v for k, v in _peft(width=24).items()}, {}, "other widths"),
    "another family by kohya's metadata": (
        lambda _: _kohya("xl"),
        {"ss_base_model_version": "sdxl_base_v1-0"},
        "made for the family xl",
    ),
    "another family by its keys": (
        lambda _: {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 8),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(8, 2),
        },
        {},
        "made for the family flux",
    ),
    "no effect": (
        lambda _: {key: torch.zeros_like(value) if "lora_up" in key else value for key, value in _kohya().items()},
        {},
        "no effect",
    ),
}


@pytest.mark.parametrize("name", list(TEN))
def test_ten_files_are_applied_in_full_or_refused(name: str, tmp_path: Path) -> None:
    make, metadata, refusal = TEN[name]
    tensors = make(tmp_path)
    stack = make_stack("sd1", fingerprint="base-a")
    networks = [unet_of(stack), *towers_of(stack)]
    base = bits(*networks)
    if refusal is None:
        report = stack.use([(parse_adapter(tensors, metadata, name), 1.0, None)])
        assert f"{len(tensors)} of {len(tensors)} tensors applied" in str(report)
        after = bits(*networks)
        assert sum(not torch.equal(a, b) for a, b in zip(base, after, strict=True)) == report.applied[0].layers > 0
    else:
        with pytest.raises(LdmError, match=refusal) as caught:
            stack.use([(parse_adapter(tensors, metadata, name), 1.0, None)])
        assert caught.value.code == Code.MODEL and caught.value.what.startswith(name)
    if refusal:
        assert all(torch.equal(a, b) for a, b in zip(base, bits(*networks), strict=True))


@pytest.mark.parametrize("name", ["partial", "no effect"])
def test_after_an_error_no_earlier_adapter_is_left_either(name: str, tmp_path: Path) -> None:
    stack = make_stack("sd1")
    base = bits(unet_of(stack))
    stack.use([(parse_adapter(_kohya()), 1.0, None)])
    with pytest.raises(LdmError):
        stack.use([(parse_adapter(TEN[name][0](tmp_path)), 1.0, None)])
    assert all(torch.equal(a, b) for a, b in zip(base, bits(unet_of(stack)), strict=True))


def test_a_partial_load_names_the_keys_and_the_nearest_layers() -> None:
    tensors = _partial()
    with pytest.raises(LdmError) as caught:
        make_stack("sd1").use([(parse_adapter(tensors, name="style"), 1.0, None)])
    assert caught.value.what == f"style: only {len(tensors) - 3} of {len(tensors)} tensors fit the base model."
    assert "'lora_unet_mid_block_attentions_7_proj_in.lora_down.weight'" in caught.value.why
    assert "unet.mid_block.attentions.0.proj_in" in caught.value.why


def test_keys_of_an_unknown_kind_make_the_load_partial() -> None:
    tensors = _kohya() | {"lora_unet_conv_in.oft_blocks": torch.ones(2, 2)}
    with pytest.raises(LdmError, match="OFT are not supported") as caught:
        make_stack("sd1").use([(parse_adapter(tensors), 1.0, None)])
    assert "oft_blocks" in caught.value.why


def test_wrong_width_names_both_widths_and_guesses_the_family() -> None:
    tensors = {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(2, 2048),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(16, 2),
    }
    with pytest.raises(LdmError) as caught:
        make_stack("sd1").use([(parse_adapter(tensors), 1.0, None)])
    assert "16 x 2048, the base has 16 x 16" in caught.value.why and "family xl" in caught.value.why


def test_another_model_of_the_same_family_by_fingerprint() -> None:
    metadata = {"ldm.base_fingerprint": "base-a", "ss_base_model_version": "sd_v1", "ldm.base_name": "mine"}
    adapter = parse_adapter(_kohya(), metadata, "style")
    make_stack("sd1", fingerprint="base-a").use([(adapter, 1.0, None)])
    with pytest.raises(LdmError, match="another base model") as caught:
        make_stack("sd1", fingerprint="base-b").use([(adapter, 1.0, None)])
    assert "base-a" in caught.value.why and "base-b" in caught.value.why and "'mine'" in caught.value.what
    told = replace(adapter, any_base=True)
    make_stack("sd1", fingerprint="base-b").use([(told, 1.0, None)])
    with pytest.raises(LdmError, match="another base model"):  # what is said of one is not said of the other
        make_stack("sd1", fingerprint="base-b").use([(told, 1.0, None), (adapter, 1.0, None)])
    with pytest.raises(LdmError, match="family sd1"):
        make_stack("xl", fingerprint="base-b").use([(told, 1.0, None)])


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sd_v1"}, "sd1"),
        ({"ss_base_model_version": "sd_v2_v"}, "sd2"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "xl"),
        ({"ss_base_model_version": "sd_1.5"}, "sd1"),
        ({"ss_base_model_version": "flux1"}, "flux"),
        ({"ss_base_model_version": "sd3"}, "sd3"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "sd2"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "xl"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-refiner"}, "xl-refiner"),
        ({"modelspec.architecture": "stable-diffusion-v3-medium/lora"}, "sd3"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "flux"),
        ({"ss_v2": "True"}, "sd2"),
        ({"ldm.base_family": "own"}, "own"),
        ({}, None),
    ],
)
def test_families_are_read_from_metadata(metadata: dict[str, str], family: str | None) -> None:
    assert hint(metadata, ()).family == family


def test_our_own_family_is_told_by_shapes_alone() -> None:
    stack = AdapterStack(make_unet(), list(make_towers("sd1").values()), "own")
    assert stack.use([(parse_adapter(_kohya(), {"ss_base_model_version": "sd_v1"}), 1.0, None)]).applied


def test_peft_keys_without_a_network_find_the_text_encoder(tmp_path: Path) -> None:
    tensors = {key.removeprefix("text_encoder."): value for key, value in _text_only(tmp_path).items()}
    stack = make_stack("sd1")
    words = bits(*towers_of(stack))
    stack.use([(parse_adapter(tensors), 1.0, None)])
    assert any(not torch.equal(a, b) for a, b in zip(words, bits(*towers_of(stack)), strict=True))


def test_weight_zero_is_no_error_and_no_change(tmp_path: Path) -> None:
    stack = make_stack("sd1")
    base = bits(unet_of(stack))
    report = stack.use([(read(write_stock("sd1", tmp_path, text=False)), 0.0, None)])
    assert report.applied[0].norm == 0
    assert all(torch.equal(a, b) for a, b in zip(base, bits(unet_of(stack)), strict=True))


def test_a_change_below_the_rounding_of_the_weights_is_no_effect() -> None:
    stack = make_stack("sd1")
    unet_of(stack).to(torch.bfloat16)
    with pytest.raises(LdmError, match="no effect") as caught:
        stack.use([(parse_adapter(_kohya()), 1e-9, None)])
    assert "rounding" in caught.value.why


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_leave_the_base_as_it_was(value: float) -> None:
    tensors = _kohya()
    tensors["lora_unet_conv_out.lora_up.weight"] = torch.full_like(tensors["lora_unet_conv_out.lora_up.weight"], value)
    stack = make_stack("sd1")
    base = bits(unet_of(stack))
    with pytest.raises(LdmError, match=r"style: .*conv_out.weight is not finite") as caught:
        stack.use([(parse_adapter(tensors, name="style"), 1.0, None)])
    assert caught.value.code == Code.NUMERIC
    assert all(torch.equal(a, b) for a, b in zip(base, bits(unet_of(stack)), strict=True))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(weight: float) -> None:
    with pytest.raises(LdmError, match="not a finite number") as caught:
        make_stack("sd1").use([(parse_adapter(_kohya()), weight, None)])
    assert caught.value.code == Code.USAGE


DOWN, UP = "lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in.lora_up.weight"
DAMAGED: dict[str, tuple[Tensors, dict[str, str], str]] = {
    "a factor is missing": ({DOWN: torch.ones(2, 4, 3, 3)}, {}, "no factor 'up'"),
    "a core is missing its side": ({"a.hada_w1_a": torch.ones(2, 2), "a.hada_w1_b": torch.ones(2, 2)}, {}, "hada_w2_a"),
    "half a product": ({"a.lokr_w1": torch.ones(2, 2), "a.lokr_w2_a": torch.ones(2, 2)}, {}, "lokr_w2_b"),
    "ranks differ": ({DOWN: torch.ones(2, 4, 3, 3), UP: torch.ones(8, 3, 1, 1)}, {}, "do not fit each other"),
    "integers": ({DOWN: torch.ones(2, 4, 3, 3), UP: torch.ones(8, 2, 1, 1, dtype=torch.int32)}, {}, "int32"),
    "alpha is a vector": (
        {DOWN: torch.ones(2, 36), UP: torch.ones(8, 2), "lora_unet_conv_in.alpha": torch.ones(3)},
        {},
        "not a number",
    ),
    "alpha is infinite": (
        {DOWN: torch.ones(2, 36), UP: torch.ones(8, 2), "lora_unet_conv_in.alpha": torch.tensor(float("inf"))},
        {},
        "alpha is inf",
    ),
    "lengths of another layer": (
        {DOWN: torch.ones(2, 36), UP: torch.ones(8, 2), "lora_unet_conv_in.dora_scale": torch.ones(5)},
        {},
        "5 lengths",
    ),
    "lengths without a change": (
        {"lora_unet_conv_in.dora_scale": torch.ones(8, 1), "lora_unet_conv_in.diff_b": torch.ones(8)},
        {},
        "no other change",
    ),
    "configuration is no JSON": (
        {DOWN: torch.ones(2, 36), UP: torch.ones(8, 2)},
        {"lora_adapter_metadata": "{"},
        "JSON",
    ),
    "configuration is a list": (
        {DOWN: torch.ones(2, 36), UP: torch.ones(8, 2)},
        {"lora_adapter_metadata": "[]"},
        "JSON",
    ),
    "rank is a word": (
        {DOWN: torch.ones(2, 36), UP: torch.ones(8, 2)},
        {"lora_adapter_metadata": json.dumps({"unet.r": "many", "unet.lora_alpha": 1})},
        "not a number",
    ),
    "a whole model": ({"model.diffusion_model.out.2.weight": torch.ones(4, 8, 3, 3)}, {}, "out.2.weight"),
    "an embedding": ({"emb_params": torch.ones(1, 768)}, {}, "emb_params"),
    "another kind": ({"a.oft_blocks": torch.ones(2, 2)}, {}, "oft_blocks"),
    "nothing": ({}, {}, "none at all"),
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_damaged_files_name_the_key_and_the_cause(name: str) -> None:
    tensors, metadata, cause = DAMAGED[name]
    with pytest.raises(LdmError) as caught:
        parse_adapter(tensors, metadata, "style")
    assert caught.value.code == Code.FILE and caught.value.what.startswith("style: ")
    assert cause in caught.value.why


def test_patterns_of_a_file_are_never_run_as_expressions() -> None:
    slow = {"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": {"(a+)+$": 9, "(": 9}}
    tensors = {f"unet.{'a' * 60}.lora_A.weight": torch.ones(2, 4), f"unet.{'a' * 60}.lora_B.weight": torch.ones(4, 2)}
    adapter = parse_adapter(tensors, {"lora_adapter_metadata": json.dumps(slow)})
    assert adapter.parts[0].delta is not None and adapter.parts[0].delta.scale == 1.0
