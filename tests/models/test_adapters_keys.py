"""Layer names of the dialects, against the tables of stock diffusers and the published names of real files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from ldm.models.adapters.keys import aliases, dotted, flat, split, to_diffusers, to_original

ATTENTION = "transformer_blocks.0.attn1."

XL = {
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": 8,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD1 = {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 768, "attention_head_dim": 8}


def layers(config: dict[str, object]) -> list[str]:
    with torch.device("meta"):
        network = UNet2DConditionModel(**config)
    return [name.removesuffix(".weight") for name, _ in network.named_parameters() if name.endswith(".weight")]


@pytest.mark.parametrize("config", [XL, SD1], ids=["xl", "sd1"])
def test_original_names_are_those_of_the_single_file_converter(config: dict[str, object]) -> None:
    names = layers(config)
    table = aliases(names)
    originals = {name: to_original(name) for name in names}
    assert None not in originals.values() and len(set(originals.values())) == len(names)
    # the converter counts blocks by their keys, so it gets a whole checkpoint whose tensors are numbers
    spelled = {name: _numbered(original, config) for name, original in originals.items()}
    checkpoint = {
        f"model.diffusion_model.{spelled[name]}.weight": torch.tensor(index) for index, name in enumerate(names)
    }
    checkpoint |= {f"model.diffusion_model.{spelled[name]}.bias": torch.tensor(-1) for name in names}
    fields = {"layers_per_block": 2, "addition_embed_type": None, "class_embed_type": None, **config}
    converted = convert_ldm_unet_checkpoint(checkpoint, fields)
    for index, name in enumerate(names):
        assert int(converted[f"{name}.weight"]) == index
        assert to_diffusers(spelled[name]) == name
        assert dotted(flat(spelled[name])) == name == dotted(flat(name))
        assert table[flat(spelled[name])] == name == table[flat(name)]


def _numbered(original: str | None, config: dict[str, object]) -> str:
    """Where a block has no attention, the original puts its upsampler in second place: only SD 1's first up block."""
    assert original is not None
    return original.replace("output_blocks.2.2.", "output_blocks.2.1.") if config is SD1 else original


def test_kohya_names_are_those_of_the_sgm_remapper() -> None:
    names = [name for name in layers(XL) if to_original(name) and name.startswith(("down_", "mid_", "up_"))]
    inner = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")  # the remapper renames blocks, not what is in a resnet
    names = [name for name in names if "norm" not in name and not name.endswith(inner)]
    keys = {f"lora_unet_{flat(to_original(name) or '')}.lora_down.weight": name for name in names}
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(keys), SimpleNamespace(layers_per_block=2))
    assert {name: key for key, name in mapped.items()}.keys() == set(names)
    for key, name in mapped.items():
        written = key.removeprefix("lora_unet_").split(".")[0]
        written = written.replace("input_blocks", "down_blocks").replace("middle_block", "mid_block")
        assert written.replace("output_blocks", "up_blocks") == flat(name).replace(
            "downsamplers_0_conv", "downsamplers_0_op"
        )


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", f"down_blocks.1.attentions.0.{ATTENTION}to_q"),
        ("lora_unet_middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("lora_unet_output_blocks_2_1_transformer_blocks_0_attn1_to_k", f"up_blocks.0.attentions.2.{ATTENTION}to_k"),
        ("lora_unet_input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("lora_unet_input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
        ("lora_unet_input_blocks_0_0", "conv_in"),
        ("lora_unet_time_embed_2", "time_embedding.linear_2"),
        ("lora_unet_label_emb_0_0", "add_embedding.linear_1"),
        ("lora_unet_out_2", "conv_out"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v", f"mid_block.attentions.0.{ATTENTION}to_v"),
        ("lora_te_text_model_encoder_layers_11_self_attn_out_proj", "encoder.layers.11.self_attn.out_proj"),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc1", "encoder.layers.31.mlp.fc1"),
    ],
)  # fmt: skip
def test_published_kohya_keys(key: str, path: str) -> None:
    parsed = split(f"{key}.lora_up.weight")
    assert parsed is not None and parsed.dialect == "kohya" and parsed.role == "up"
    assert dotted(parsed.path) == path


@pytest.mark.parametrize(
    ("key", "component", "role", "path"),
    [
        ("unet.mid_block.attentions.0.proj_in.lora.down.weight", "unet", "down", "mid_block.attentions.0.proj_in"),
        ("unet.a.attn1.processor.to_out_lora.up.weight", "unet", "up", "a.attn1.to_out.0"),
        ("text_encoder.text_model.x.self_attn.to_out_lora.up.weight", "text_encoder", "up", "x.self_attn.out_proj"),
        ("text_encoder_2.text_model.x.lora_linear_layer.down.weight", "text_encoder_2", "down", "x"),
        ("base_model.model.mid_block.x.lora_A.default.weight", "", "down", "mid_block.x"),
        ("unet.base_model.model.x.lora_B.weight", "unet", "up", "x"),
        ("x.to_out.lora_magnitude_vector", "", "magnitude", "x.to_out.0"),
        ("diffusion_model.middle_block.1.proj_in.lora_up.weight", "unet", "up", "middle_block.1.proj_in"),
        ("text_encoders.clip_l.transformer.text_model.x.diff_b", "text_encoder", "diff_b", "x"),
        ("lycoris_mid_block_x.lokr_w2_a", "", "lokr_w2_a", "mid_block_x"),
    ],
)  # fmt: skip
def test_keys_are_taken_apart(key: str, component: str, role: str, path: str) -> None:
    parsed = split(key)
    assert parsed is not None
    assert (parsed.component, parsed.role, parsed.path) == (component, role, path)


@pytest.mark.parametrize(
    "key", ["", ".", "lora_down.weight", "model.diffusion_model.out.2.weight", "emb_params", "x.lora_embedding_A"]
)
def test_other_keys_are_not_adapters(key: str) -> None:
    assert split(key) is None
