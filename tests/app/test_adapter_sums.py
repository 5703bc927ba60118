"""`ldm adapter merge | extract | compare` on the model that ships."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ldm.errors import Code
from tests.app.conftest import Ldm

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    generator = torch.Generator().manual_seed(0)
    paths = []
    for name, ends in (("one", "qk"), ("two", "qv")):
        tensors = {}
        for end in ends:
            tensors |= {
                f"{LAYER}{end}.lora_down.weight": torch.randn(2, 32, generator=generator),
                f"{LAYER}{end}.lora_up.weight": 0.3 * torch.randn(32, 2, generator=generator),
                f"{LAYER}{end}.alpha": torch.tensor(2.0),
            }
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(tensors, paths[-1])
    return paths[0], paths[1]


def pixels(ldm: Ldm, *more: object) -> str:
    done = ldm("generate", "a red circle", "--model", "scenes", "--seed", 1, "--steps", 2, "--json", *more)
    assert done.status == 0, done
    told: str = done.json["pictures"][0]["pixels"]
    return told


def test_a_merged_adapter_a_merged_model_and_both_adapters_draw_alike(
    ldm: Ldm, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    merged = ldm("adapter", "merge", "one.safetensors:0.7", pair[1], "--out", "both.safetensors", "--to", "kohya")
    assert merged.status == 0 and "both.safetensors: 9 tensors" in merged.out  # three layers
    assert ldm("adapter", "merge", "one.safetensors:0.7", pair[1], "--into", "scenes", "--out", "mine").status == 0
    stacked = pixels(ldm, "--lora", "one.safetensors:0.7", "--lora", pair[1])
    alone = pixels(ldm)
    assert stacked != alone
    told = ldm("adapter", "extract", "scenes", "mine", "found.safetensors", "--json").json
    assert told["elsewhere"] == 0 and told["left_out"] < 0.02 and sum(told["ranks"].values()) == 3
    alike = ldm("adapter", "compare", "both.safetensors", "found.safetensors", "--json").json
    assert alike["cosine"] > 0.98 and alike["shared"] == 3
    shown = ldm("adapter", "compare", "both.safetensors", "both.safetensors").out
    assert "equal to the bit" in shown and "unet.mid_block" in shown
    assert pixels(ldm, "--model", "mine") != alone  # stored in half precision, as the base is


def test_a_lower_rank_says_what_it_leaves_out(ldm: Ldm, pair: tuple[Path, Path]) -> None:
    short = ldm("adapter", "merge", *pair, "--rank", 1, "--out", "short.safetensors")
    assert short.status == 0 and "leaves out" in short.out
    assert ldm("adapter", "merge", *pair, "--rank", 1, "--base", "scenes", "--out", "s.safetensors").status == 0
    told = ldm("adapter", "inspect", "s.safetensors", "--json").json
    assert told["ranks"] == {"1": 3} and told["fingerprint"]


def test_layers_without_any_change_are_left_away_and_told(ldm: Ldm, pair: tuple[Path, Path]) -> None:
    done = ldm("adapter", "merge", pair[0], "one.safetensors:-1", pair[1], "--out", "left.safetensors")
    assert done.status == 0 and "left.safetensors: 4 tensors; 1 layer without any change left away" in done.out


def test_a_sum_keeps_the_licence_that_all_agree_on_and_the_words_of_each(ldm: Ldm, tmp_path: Path) -> None:
    tensors = {f"{LAYER}q.lora_down.weight": torch.ones(2, 32), f"{LAYER}q.lora_up.weight": torch.ones(32, 2)}
    for name, licence in (("cat", "CC0-1.0"), ("dog", "CC0-1.0"), ("owl", "MIT")):
        told = {"modelspec.trigger_phrase": f"zwx {name}", "modelspec.license": licence, "ldm.base_name": "nowhere"}
        save_file(tensors, tmp_path / f"{name}.safetensors", told)
    for others, licence in (("dog", "CC0-1.0"), ("owl", None)):
        out = f"cat-{others}.safetensors"
        words = ("cat.safetensors", f"{others}.safetensors", "--base", "scenes", "--out", out)
        assert ldm("adapter", "merge", *words).status == 0
        with safe_open(tmp_path / out, "pt") as file:
            told = file.metadata()
        assert told["modelspec.trigger_phrase"] == f"zwx cat, zwx {others}"
        assert told.get("modelspec.license") == licence and told["ldm.base_name"] == "scenes"


def test_adapters_of_one_name_are_told_apart_by_their_paths(ldm: Ldm, pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "one.safetensors").write_bytes(pair[1].read_bytes())
    shown = ldm("adapter", "compare", "one.safetensors", "other/one.safetensors").out
    assert shown.split("\n")[0].split(" | ")[1] == "other/one.safetensors"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("one.safetensors", "--out", "x.ckpt"), Code.USAGE, ".safetensors"),
        (("one.safetensors:0.5:0.2", "--out", "x.safetensors"), Code.USAGE, "--into"),
        (("one.safetensors:nan", "--out", "x.safetensors"), Code.USAGE, "finite"),
        (("none.safetensors", "--out", "x.safetensors"), Code.FILE, "none.safetensors"),
        (("one.safetensors", "--out", "one.safetensors"), Code.FILE, "exists already"),
        (("one.safetensors", "--into", "scenes", "--rank", "2", "--out", "x"), Code.USAGE, "--rank"),
        (("one.safetensors", "--into", "scenes", "--to", "kohya", "--out", "x"), Code.USAGE, "--to"),
        (("one.safetensors", "--into", "nothing", "--out", "x"), Code.FILE, "nothing"),
        (("one.safetensors", "--into", "scenes", "--out", "x.ckpt"), Code.USAGE, "x.ckpt"),
        (("one.safetensors",), Code.USAGE, "--out"),
        (("one.safetensors", "--out", "x.safetensors", "--to", "koyha"), Code.USAGE, "kohya"),
    ],
)
def test_what_cannot_be_merged_is_said_and_nothing_is_written(
    ldm: Ldm, pair: tuple[Path, Path], tmp_path: Path, words: tuple[str, ...], status: Code, said: str
) -> None:
    before = {path: path.read_bytes() for path in pair}
    done = ldm("adapter", "merge", *words)
    assert (done.status, said in done.err) == (status, True), done
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
