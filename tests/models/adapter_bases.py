"""Tiny real base models in the shapes of SD 1 and XL, and adapter files for them written by peft and diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.models.adapters import Adapter, AdapterStack, parse_adapter

torch.set_num_threads(1)

UNET_TARGETS = [
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "conv1", "conv2", "conv"),
    *("conv_in", "conv_out", "conv_shortcut", "time_emb_proj", "linear_1", "linear_2"),
]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def make_unet(kind: str = "sd1", width: int = 16, **fields: Any) -> UNet2DConditionModel:
    xl = {
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 4 * 6 + 16,
        "transformer_layers_per_block": (1, 2),
    }
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=4,
        **(xl if kind == "xl" else {}) | fields,
    ).eval()


def make_tower(projection: bool = False, width: int = 16) -> CLIPTextModel | CLIPTextModelWithProjection:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=98,
        eos_token_id=99,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def make_towers(kind: str) -> dict[str, nn.Module]:
    towers: dict[str, nn.Module] = {"text_encoder": make_tower()}
    if kind == "xl":
        towers["text_encoder_2"] = make_tower(projection=True)
    return towers


def make_stock(kind: str) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A stock pipeline over the same weights as `make_unet` and `make_towers`."""
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    parts = {"vae": vae, "unet": make_unet(kind), "scheduler": DDIMScheduler(), "tokenizer": None, **make_towers(kind)}
    if kind == "xl":
        return StableDiffusionXLPipeline(tokenizer_2=None, **parts)
    return StableDiffusionPipeline(safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts)


def make_stack(kind: str, **fields: Any) -> AdapterStack:
    return AdapterStack(make_unet(kind), list(make_towers(kind).values()), kind, **fields)


def unet_of(stack: AdapterStack) -> nn.Module:
    return stack._networks["unet"]


def towers_of(stack: AdapterStack) -> list[nn.Module]:
    return [network for name, network in stack._networks.items() if name != "unet"]


def add_peft(network: Any, targets: list[str], seed: int = 0, **fields: Any) -> Any:
    """peft layers with a random change; conventional zero factors are filled."""
    network.add_adapter(LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": targets} | fields)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                size = 0.1 if "lora_B" in name else 0.3
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    return network


def write_stock(
    kind: str,
    folder: Path,
    *,
    unet: bool = True,
    text: bool = True,
    metadata: bool = True,
    spelling: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    **fields: Any,
) -> Path:
    """A LoRA file as diffusers' training scripts save it: peft layers, `save_lora_weights`.

    The U-Net keeps peft's spelling by default: stock converts all keys or none, by the first one, so that it loses the
    attention layers of a file that `convert_state_dict_to_diffusers` has spelled half and half.
    """
    networks = {"unet": add_peft(make_unet(kind), UNET_TARGETS, 3, **fields)} if unet else {}
    for name, tower in make_towers(kind).items() if text else ():
        networks[name] = add_peft(tower, TEXT_TARGETS, 4, **fields)
    layers = {
        f"{name}_lora_layers": (spelling if name == "unet" else convert_state_dict_to_diffusers)(
            get_peft_model_state_dict(network)
        )
        for name, network in networks.items()
    }
    pipeline = StableDiffusionXLPipeline if kind == "xl" else StableDiffusionPipeline
    config = _collate_lora_metadata(networks) if metadata else {}
    pipeline.save_lora_weights(folder, **layers, **config)
    return folder / "pytorch_lora_weights.safetensors"


def read(path: Path, name: str = "style") -> Adapter:
    with safe_open(path, "pt") as file:
        return parse_adapter({key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}, name)  # noqa: SIM118


def predict(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 7, 16, generator=generator)
    added = {"text_embeds": torch.randn(1, 16, generator=generator), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        return unet(x, torch.tensor([500]), text, added_cond_kwargs=added).sample


def embed(tower: nn.Module) -> Tensor:
    with torch.no_grad():
        return tower(torch.tensor([[98, 5, 6, 7, 99]])).last_hidden_state


def bits(*networks: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for network in networks for parameter in network.parameters()]
