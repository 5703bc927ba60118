"""A LoRA inside a U-Net (Hu 2021): its weights as a network of their own, and calls with others in their place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor, nn
from torch.func import functional_call

from ldm.models.adapters import convert, parse_adapter
from ldm.store.parts import Parts
from ldm.store.write import staged, write_weights
from train.tasks.parts import seeded

# The layers of attention, its feed-forward part and the residual blocks, as LCM's own LoRAs change them.
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
          "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"]  # fmt: skip
FILE = "pytorch_lora_weights.safetensors"


class Weights(nn.ParameterDict):
    """The factors of all layers, `down_blocks/0/.../lora_A/default/weight`; they also lie in the U-Net itself."""

    _supports_gradient_checkpointing = True

    def __init__(self, unet: Any) -> None:
        super().__init__({name.replace(".", "/"): p for name, p in unet.named_parameters() if ".lora_" in name})
        self.enable_gradient_checkpointing = unet.enable_gradient_checkpointing


class Lora:
    """Puts a LoRA of a rank into a frozen U-Net: W x + up (down x). At first it changes nothing: `up` is zero.

    Calls with the weights of a slow copy, or without any, go through `functional_call`: nothing is switched, so no flag
    of a layer can be left as another call needs it.
    """

    def __init__(self, unet: Any, rank: int, seed: int) -> None:
        self.unet, self.rank = unet, rank
        with seeded(seed):
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS))
        self.weights = Weights(unet)

    def call(self, args: tuple[Tensor, ...], weights: nn.Module | None = None) -> Tensor:
        """The U-Net's output, with the weights of a copy of `self.weights` where one is given."""
        if weights is None:
            said: Tensor = self.unet(*args, return_dict=False)[0]
            return said
        return self._with({name.replace("/", "."): p for name, p in weights.named_parameters()}, args)

    def base(self, args: tuple[Tensor, ...]) -> Tensor:
        """The output of the U-Net alone: `up` is zero."""
        ups = {n.replace("/", "."): p for n, p in self.weights.named_parameters() if "/lora_B/" in n}
        return self._with({name: p.new_zeros(()).expand_as(p) for name, p in ups.items()}, args)

    def save(self, folder: Path, parts: Parts, scheduler: Mapping[str, Any]) -> None:
        """The file that stock `load_lora_weights` and `ldm generate --lora` read, and the scheduler it is meant for."""
        factors = {
            f"unet.{name.replace('/', '.').replace('.default.', '.')}": p.detach().cpu()
            for name, p in self.weights.named_parameters()
        }
        told = {"lora_adapter_metadata": json.dumps({"unet.r": self.rank, "unet.lora_alpha": self.rank})}
        adapter = parse_adapter(factors, told, f"{parts.name}-lora")
        tensors, metadata = convert(adapter, "diffusers", fingerprint=parts.fingerprint, family=parts.family)
        with staged(folder) as stage:
            (stage / "scheduler").mkdir(parents=True)
            write_weights(stage / FILE, tensors, metadata)
            text = json.dumps(dict(scheduler), indent=2, sort_keys=True) + "\n"
            (stage / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")

    def _with(self, weights: Mapping[str, Tensor], args: tuple[Tensor, ...]) -> Tensor:
        said: Tensor = functional_call(self.unet, dict(weights), args, {"return_dict": False})[0]
        return said
