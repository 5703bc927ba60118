"""Merged adapters against stock diffusers, and the promise that they leave no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from ldm.models.adapters import Adapter, parse_adapter
from ldm.models.adapters.stack import Applied
from tests.models.adapter_bases import (
    TEXT_TARGETS,
    UNET_TARGETS,
    add_peft,
    bits,
    embed,
    make_stack,
    make_stock,
    make_towers,
    make_unet,
    predict,
    read,
    towers_of,
    unet_of,
    write_stock,
)

CLOSE = 1e-5


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize(("kind", "weight"), [("sd1", 1.0), ("sd1", -0.5), ("xl", 1.0), ("xl", 0.7)])
def test_equals_stock_load_lora_weights(kind: str, weight: float, tmp_path: Path) -> None:
    path = write_stock(kind, tmp_path)
    stock = make_stock(kind)
    stock.load_lora_weights(path, adapter_name="a")
    stock.set_adapters(["a"], [weight])
    stack = make_stack(kind)
    before = predict(unet_of(stack))
    report = stack.use([(read(path), weight, None)])
    assert far(predict(unet_of(stack)), predict(stock.unet)) <= CLOSE
    assert far(predict(unet_of(stack)), before) > 100 * CLOSE
    names = ["text_encoder", "text_encoder_2"]
    for tower, name in zip(towers_of(stack), names, strict=False):
        assert far(embed(tower), embed(getattr(stock, name))) <= CLOSE
    total = len(load_file(path))
    assert f"{total} of {total} tensors applied" in str(report)
    assert 0 < report.applied[0].relative < 1 and report.applied[0].norm > 0


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_dora_equals_stock(kind: str, tmp_path: Path) -> None:
    path = write_stock(kind, tmp_path, use_dora=True)
    stock = make_stock(kind)
    stock.load_lora_weights(path)
    stack = make_stack(kind)
    stack.use([(read(path), 1.0, None)])
    assert far(predict(unet_of(stack)), predict(stock.unet)) <= CLOSE
    for tower, name in zip(towers_of(stack), make_towers(kind), strict=True):  # stock loses the lengths of text layers
        writer = add_peft(make_towers(kind)[name], TEXT_TARGETS, 4, use_dora=True)
        assert far(embed(tower), embed(writer)) <= CLOSE


def test_mixed_spelling_is_read_in_full_where_stock_loses_attention(tmp_path: Path) -> None:
    path = write_stock("sd1", tmp_path, text=False, spelling=convert_state_dict_to_diffusers)
    keys = load_file(path)
    assert any(".lora.down." in key for key in keys) and any(".lora_A." in key for key in keys)
    stack = make_stack("sd1")
    stack.use([(read(path), 1.0, None)])
    writer = add_peft(make_unet(), UNET_TARGETS, 3)
    assert far(predict(unet_of(stack)), predict(writer)) <= CLOSE


def test_dora_at_weight_zero_is_the_base_although_peft_still_rescales(tmp_path: Path) -> None:
    stack = make_stack("sd1")
    base = predict(unet_of(stack))
    stack.use([(read(write_stock("sd1", tmp_path, use_dora=True)), 0.0, None)])
    assert torch.equal(predict(unet_of(stack)), base)


def test_two_adapters_equal_stock(tmp_path: Path) -> None:
    first = write_stock("sd1", tmp_path / "a")
    second = write_stock("sd1", tmp_path / "b", r=2, lora_alpha=1, text=False)
    stock = make_stock("sd1")
    stock.load_lora_weights(first, adapter_name="a")
    stock.load_lora_weights(second, adapter_name="b")
    stock.set_adapters(["a", "b"], [0.8, 0.3])
    stack = make_stack("sd1")
    stack.use([(read(first), 0.8, None), (read(second), 0.3, None)])
    assert far(predict(unet_of(stack)), predict(stock.unet)) <= CLOSE


@pytest.mark.parametrize("fields", [{"use_rslora": True}, {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"conv1": 9}}])
def test_peft_configuration_is_obeyed(fields: dict[str, object], tmp_path: Path) -> None:
    path = write_stock("sd1", tmp_path, **fields)
    stock = make_stock("sd1")
    stock.load_lora_weights(path)
    stack = make_stack("sd1")
    stack.use([(read(path), 1.0, None)])
    assert far(predict(unet_of(stack)), predict(stock.unet)) <= CLOSE


def test_without_metadata_the_scale_is_one_as_in_stock(tmp_path: Path) -> None:
    path = write_stock("sd1", tmp_path, metadata=False)
    stock = make_stock("sd1")
    stock.load_lora_weights(path)
    stack = make_stack("sd1")
    stack.use([(read(path), 1.0, None)])
    assert far(predict(unet_of(stack)), predict(stock.unet)) <= CLOSE


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_kohya_keys_written_by_diffusers(kind: str, tmp_path: Path) -> None:
    layers = {}
    networks = {"unet": add_peft(make_unet(kind), UNET_TARGETS, lora_alpha=4)}
    networks |= {name: add_peft(tower, TEXT_TARGETS, lora_alpha=4) for name, tower in make_towers(kind).items()}
    for name, network in networks.items():
        layers |= {f"{name}.{key}": value for key, value in get_peft_model_state_dict(network).items()}
    kohya = convert_state_dict_to_kohya(layers)
    assert all(key.startswith(("lora_unet_", "lora_te1_", "lora_te2_")) for key in kohya)
    stack = make_stack(kind)
    stack.use([(parse_adapter(kohya), 1.0, None)])
    assert far(predict(unet_of(stack)), predict(networks["unet"])) <= CLOSE
    for tower, name in zip(towers_of(stack), make_towers(kind), strict=True):
        assert far(embed(tower), embed(networks[name])) <= CLOSE


def test_broken_kohya_dora_keys_of_diffusers_are_understood() -> None:
    network = add_peft(make_unet(), UNET_TARGETS, use_dora=True, lora_alpha=4)
    kohya = convert_state_dict_to_kohya({f"unet.{k}": v for k, v in get_peft_model_state_dict(network).items()})
    assert "lora_unet.conv_in.lora_magnitude_vector" in kohya  # the converter flattens these only in part
    stack = make_stack("sd1")
    stack.use([(parse_adapter(kohya), 1.0, None)])
    assert far(predict(unet_of(stack)), predict(network)) <= CLOSE


def test_attention_processor_keys_of_early_diffusers(tmp_path: Path) -> None:
    network = add_peft(make_unet(), ["to_q", "to_k", "to_v", "to_out.0"], lora_alpha=4)
    old = {}
    for key, value in get_peft_model_state_dict(network).items():
        key = key.replace(".to_out.0.", ".to_out.")
        for layer in ("to_q", "to_k", "to_v", "to_out"):
            key = key.replace(f".{layer}.lora_A", f".processor.{layer}_lora.down")
            key = key.replace(f".{layer}.lora_B", f".processor.{layer}_lora.up")
        old[key] = value
    save_file({f"unet.{key}": value.contiguous() for key, value in old.items()}, tmp_path / "old.safetensors")
    stock = make_stock("sd1")
    stock.load_lora_weights(tmp_path / "old.safetensors")
    for tensors in (old, load_file(tmp_path / "old.safetensors")):
        stack = make_stack("sd1")
        stack.use([(parse_adapter(tensors), 1.0, None)])
        assert far(predict(unet_of(stack)), predict(stock.unet)) <= CLOSE


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        read(write_stock("sd1", folder / "a"), "a"),
        read(write_stock("sd1", folder / "b", r=2, lora_alpha=1, text=False), "b"),
        read(write_stock("sd1", folder / "c", use_dora=True), "c"),
    ]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    uses=st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.floats(-2, 2, width=16)), max_size=3), min_size=1, max_size=3
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_put_in_and_taken_out_restores_every_bit(
    adapters: list[Adapter], uses: list[list[tuple[int, float]]], dtype: torch.dtype
) -> None:
    stack = make_stack("sd1")
    networks = [unet_of(stack).to(dtype), *(tower.to(dtype) for tower in towers_of(stack))]
    base = bits(*networks)
    for chosen in uses:
        items = [(adapters[index], weight, None) for index, weight in chosen if weight == 0 or abs(weight) > 0.1]
        stack.use(items)
        merged = bits(*networks)
        fresh = make_stack("sd1")
        others = [unet_of(fresh).to(dtype), *(tower.to(dtype) for tower in towers_of(fresh))]
        fresh.use(items[::-1])
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        assert max(far(a.float(), b.float()) for a, b in zip(merged, bits(*others), strict=True)) <= tolerance
    stack.clear()
    assert all(torch.equal(a, b) for a, b in zip(base, bits(*networks), strict=True))


def test_only_layers_whose_recipe_changed_are_merged_again(adapters: list[Adapter]) -> None:
    stack = make_stack("sd1")
    both, unet_only = adapters[0], adapters[1]
    first = stack.use([(both, 1.0, None)])
    assert first.recomputed == len(both.parts)
    assert stack.use([(both, 1.0, None)]).recomputed == 0
    in_text = sum(part.component != "unet" for part in both.parts)
    assert stack.use([(both, 1.0, 0.5)]).recomputed == in_text
    assert stack.use([(both, 1.0, 0.5), (unet_only, 1.0, None)]).recomputed == len(unet_only.parts)
    assert stack.use([]).recomputed == 0
    assert not stack._touched


def test_only_touched_weights_are_kept_and_the_base_tensor_itself_comes_back(tmp_path: Path) -> None:
    stack = make_stack("sd1")
    unet = unet_of(stack)
    where = {name: parameter.data_ptr() for name, parameter in unet.named_parameters()}
    stack.use([(read(write_stock("sd1", tmp_path, text=False)), 1.0, None)])
    touched = {name for name, parameter in unet.named_parameters() if parameter.data_ptr() != where[name]}
    assert {key[1] for key in stack._touched} == touched and 0 < len(touched) < len(where)
    stack.clear()
    assert {name: parameter.data_ptr() for name, parameter in unet.named_parameters()} == where


def test_a_model_that_changes_its_type_between_gets_its_own_weights_back(adapters: list[Adapter]) -> None:
    stack = make_stack("sd1")
    unet = unet_of(stack)
    expected = [parameter.to(torch.bfloat16) for parameter in bits(unet)]
    stack.use([(adapters[0], 1.0, None)])
    unet.to(torch.bfloat16)
    stack.clear()
    assert all(torch.equal(a, b) for a, b in zip(expected, bits(unet), strict=True))


def test_text_weight_alone(adapters: list[Adapter]) -> None:
    stack = make_stack("sd1")
    base, words = predict(unet_of(stack)), embed(towers_of(stack)[0])
    stack.use([(adapters[0], 0.0, 1.0)])
    assert torch.equal(predict(unet_of(stack)), base)
    assert far(embed(towers_of(stack)[0]), words) > CLOSE


def test_one_is_no_plural_and_large_shares_have_no_exponent() -> None:
    told = [str(Applied("a", 3, 3, layers, 1.0, 1.0, 2.0, share)) for layers, share in ((1, 5.6), (2, 0.0126))]
    assert "to 1 layer at" in told[0] and "(560 %" in told[0]
    assert "to 2 layers at" in told[1] and "(1.3 %" in told[1]
