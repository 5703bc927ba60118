"""Adapters added up, brought to a lower rank, taken from two models, and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.models.adapters import Adapter, compare, convert, extracted, mixed, parse_adapter
from ldm.models.adapters.factors import nearest, shortened
from tests.models.adapter_bases import embed, make_stack, make_unet, predict, read, towers_of, unet_of, write_stock

CLOSE = 2e-5


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def two(tmp_path: Path, **fields: object) -> tuple[Adapter, Adapter]:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = read(write_stock("sd1", tmp_path / "a", **fields), "one")
    other = read(write_stock("sd1", tmp_path / "b", r=2, text=False), "other")
    return one, other


def test_a_sum_does_what_both_do_together(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    together, summed = make_stack("sd1"), make_stack("sd1")
    together.use([(one, 0.7, None), (other, -0.4, None)])
    made = mixed([(one, 0.7), (other, -0.4)], "sum")
    assert made.left_out == 0.0
    summed.use([(parse_adapter(*convert(made.adapter, "diffusers")), 1.0, None)])
    assert far(predict(unet_of(together)), predict(unet_of(summed))) <= CLOSE
    assert far(embed(towers_of(together)[0]), embed(towers_of(summed)[0])) <= CLOSE
    ranks = {part.delta.rank for part in made.adapter.parts if part.delta and part.component == "unet"}
    assert ranks == {6}  # 4 + 2


def test_a_rank_that_is_large_enough_loses_nothing_and_a_smaller_one_says_what_it_loses(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    items = [(one, 1.0), (other, 1.0)]
    exact, whole, short = mixed(items, "sum"), mixed(items, "whole", 6), mixed(items, "short", 2)
    assert whole.left_out < 1e-12 < short.left_out < 1
    assert max(part.delta.rank or 0 for part in short.adapter.parts if part.delta) == 2
    alike = compare(exact.adapter, whole.adapter)
    assert alike.cosine == pytest.approx(1, abs=1e-6) and not alike.same
    kept = compare(exact.adapter, short.adapter)  # a projection: |short|^2 = (1 - left out) |exact|^2
    assert kept.cosine**2 == pytest.approx(1 - short.left_out, abs=1e-6)


def test_dora_is_summed_with_its_base_alone(tmp_path: Path) -> None:
    one, other = two(tmp_path, use_dora=True)
    items = [(one, 1.0), (other, 0.5)]
    with pytest.raises(LdmError, match="--rank"):
        mixed(items, "sum")
    with pytest.raises(LdmError, match="--base"):
        mixed(items, "sum", 32)
    stack = make_stack("sd1")
    made = mixed(items, "sum", 144, stack)  # no layer here has more
    together = make_stack("sd1")
    together.use([(one, 1.0, None), (other, 0.5, None)])
    stack.use([(made.adapter, 1.0, None)])
    assert far(predict(unet_of(together)), predict(unet_of(stack))) <= CLOSE


def test_loha_becomes_a_lora_of_its_own_rank_squared(tmp_path: Path) -> None:
    config = LoHaConfig(r=2, alpha=2, target_modules=["to_q"], init_weights=False)
    source = get_peft_model_state_dict(get_peft_model(make_unet(), config))
    loha = parse_adapter(source, {"lora_adapter_metadata": '{"r": 2, "alpha": 2, "peft_type": "LOHA"}'}, "loha")
    made = mixed([(loha, 1.0)], "lora", 4)  # a product of two matrices of rank 2, element by element, has rank 4
    assert made.left_out < 1e-10 and made.adapter.kinds == ("lora",)
    before, after = make_stack("sd1"), make_stack("sd1")
    before.use([(loha, 1.0, None)])
    after.use([(made.adapter, 1.0, None)])
    assert far(predict(unet_of(before)), predict(unet_of(after))) <= CLOSE


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    one, _ = two(tmp_path)
    half = parse_adapter({k: t.half() for k, t in convert(one, "kohya")[0].items()})
    made = mixed([(half, 0.5), (half, 0.5)], "sum", 4)
    kinds = {t.dtype for part in made.adapter.parts if part.delta for t in part.delta.factors.values()}
    assert kinds == {torch.float16}


def test_adapters_of_two_families_or_bases_are_not_summed(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    sd1 = parse_adapter(*_told(one, {"ss_base_model_version": "sd_v1"}), "first")
    xl = parse_adapter(*_told(other, {"ss_base_model_version": "sdxl_base_v1-0"}), "second")
    with pytest.raises(LdmError, match="another family") as refused:
        mixed([(sd1, 1.0), (xl, 1.0)], "sum")
    assert refused.value.code == Code.MODEL and "first and second" in str(refused.value)
    ours = [
        parse_adapter(*_told(adapter, {"ldm.base_family": "own", "ldm.base_fingerprint": name}), name)
        for adapter, name in ((one, "aa"), (other, "bb"))
    ]
    with pytest.raises(LdmError, match="another base model"):
        mixed([(each, 1.0) for each in ours], "sum")
    told = [replace(each, any_base=True) for each in ours]
    assert mixed([(each, 1.0) for each in told], "sum").adapter.base.fingerprint is None
    with pytest.raises(LdmError, match="would be empty"):
        mixed([(one, 1.0), (one, -1.0)], "nothing", 4)


def _told(adapter: Adapter, metadata: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, own = convert(adapter, "kohya")
    return tensors, {k: v for k, v in own.items() if not k.startswith(("ss_base", "modelspec"))} | metadata


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_the_nearest_product_is_the_cut_svd(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    made = nearest(matrix, 5)
    assert far((made.up @ made.down).double(), (u[:, :5] * s[:5]) @ v[:5]) < 1e-5
    assert made.left_out == pytest.approx(float((s[5:] ** 2).sum()), rel=1e-6)
    half = nearest(matrix, keep=0.5)
    assert half.left_out <= 0.5 * half.square < nearest(matrix, half.rank - 1).left_out
    up, down = torch.randn(30, 6, dtype=torch.float64), torch.randn(6, 50, dtype=torch.float64)
    short = shortened(up, down, 3)
    assert far(short.up @ short.down, nearest(up @ down, 3).up @ nearest(up @ down, 3).down) < 1e-4
    assert nearest(torch.zeros(4, 6), 2).rank == 0
    with pytest.raises(LdmError, match="not finite"):
        nearest(torch.full((4, 6), float("nan")), 2)


def test_what_was_put_into_a_model_is_found_again(tmp_path: Path) -> None:
    one, _ = two(tmp_path)
    base, tuned = make_stack("sd1"), make_stack("sd1")
    tuned.use([(one, 1.0, None)])
    norm = next(m for m in unet_of(tuned).modules() if isinstance(m, nn.GroupNorm))
    nn.init.constant_(norm.bias, 0.01)
    made = extracted(base.networks, tuned.networks, "found", rank=4)
    assert made.left_out < 1e-6 and 0 < made.elsewhere < 0.01
    assert compare(one, made.adapter).cosine == pytest.approx(1, abs=1e-5)
    nn.init.zeros_(norm.bias)
    before = predict(unet_of(tuned))
    base.use([(made.adapter, 1.0, None)])
    assert far(predict(unet_of(base)), before) <= 1e-4
    free = extracted(make_stack("sd1").networks, tuned.networks, "free", keep=0.9)
    assert 0 < free.left_out <= 0.1
    linear = extracted(make_stack("sd1").networks, tuned.networks, "linear", rank=4, convolutions=False)
    assert linear.elsewhere > made.elsewhere


def test_models_without_a_difference_or_of_another_shape_are_refused() -> None:
    with pytest.raises(LdmError, match="nothing to extract"):
        extracted(make_stack("sd1").networks, make_stack("sd1").networks, "none")
    with pytest.raises(LdmError, match="different architectures"):
        extracted(make_stack("sd1").networks, make_stack("xl").networks, "none")


def test_adapters_are_compared_layer_by_layer(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    itself = compare(one, parse_adapter(*convert(one, "kohya"), "again"))
    assert itself.same and itself.cosine == pytest.approx(1) and itself.shared == itself.layers[0]
    against = compare(one, mixed([(one, -2.0)], "back").adapter)
    assert against.cosine == pytest.approx(-1, abs=1e-6) and against.norms[1] == pytest.approx(2 * against.norms[0])
    apart = compare(one, other)
    assert not apart.same and abs(apart.cosine) < 0.5 and apart.layers[0] > apart.layers[1] == apart.shared
    dense = compare(mixed([(one, 1.0)], "exact").adapter, one)
    assert dense.cosine == pytest.approx(1, abs=1e-6)
