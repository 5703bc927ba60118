"""Adapters inside frozen networks: LoRA (Hu 2021) and its relatives, their weights as networks of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.func import functional_call

from ldm.models.adapters import convert, parse_adapter
from ldm.models.nets.base import Net
from ldm.store.find import LORA_WEIGHTS
from ldm.store.parts import Parts
from ldm.store.write import staged, write_weights
from train.tasks.parts import seeded
from train.tasks.settings import LoraSettings

# The layers of attention, its feed-forward part and the residual blocks, as LCM's own LoRAs change them.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
RESIDUAL = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"]
LAYERS = [*ATTENTION, *RESIDUAL]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
_ROLE = re.compile(r"\.(lora_|hada_|lokr_)")


class Weights(nn.ParameterDict):
    """The factors of all layers, `down_blocks/0/.../lora_A/default/weight`; they also lie in the network itself."""

    def __init__(self, network: Any) -> None:
        super().__init__({name.replace(".", "/"): p for name, p in network.named_parameters() if _ROLE.search(name)})
        if isinstance(network, Net):
            self.recompute = network.recompute


def inject(network: nn.Module, config: PeftConfig, seed: int) -> Weights:
    """Puts an adapter into a network, changing nothing at first; the error names what the layers could be."""
    with seeded(seed):
        inject_adapter_in_model(config, network)
    return Weights(network)


@contextmanager
def switched_off(*networks: nn.Module) -> Iterator[None]:
    """Inside, networks answer as if there were no adapter in them.

    peft's own switch turns `requires_grad` as well, which belongs to the trainer; this turns its flag alone.
    """
    layers: list[Any] = [m for network in networks for m in network.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def config_of(settings: LoraSettings, layers: Sequence[str]) -> PeftConfig:
    """What peft calls these settings."""
    rank, alpha, targets = settings.rank, settings.alpha or settings.rank, list(layers)
    if settings.kind == "loha":
        return LoHaConfig(r=rank, alpha=alpha, target_modules=targets)
    if settings.kind == "lokr":
        return LoKrConfig(r=rank, alpha=alpha, target_modules=targets)
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets,
                      use_dora=settings.dora, use_rslora=settings.rslora)  # fmt: skip


def told(config: PeftConfig) -> dict[str, Any]:
    """What of a configuration a file must say, for the factors alone do not."""
    keys = ("r", "lora_alpha", "alpha", "use_rslora", "use_dora")
    return {key: getattr(config, key) for key in keys if hasattr(config, key)}


def factors(component: str, weights: Weights) -> dict[str, Tensor]:
    """The tensors of a file: `unet.down_blocks.0. ... .lora_A.weight`."""
    return {
        f"{component}.{name.replace('/', '.').replace('.default', '')}": p.detach().cpu().clone()
        for name, p in weights.named_parameters()
    }


class Lora:
    """Puts a LoRA of a rank into a frozen U-Net: W x + up (down x). At first it changes nothing: `up` is zero.

    Calls with the weights of a slow copy go through `functional_call`.
    """

    def __init__(self, unet: Any, rank: int, seed: int) -> None:
        self.unet, self.rank = unet, rank
        self.weights = inject(unet, LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS), seed)

    def call(self, args: tuple[Tensor, ...], weights: nn.Module | None = None) -> Tensor:
        """The U-Net's output, with the weights of a copy of `self.weights` where one is given."""
        if weights is None:
            said: Tensor = self.unet(*args)
            return said
        others: dict[str, Tensor] = {name.replace("/", "."): p for name, p in weights.named_parameters()}
        with_others: Tensor = functional_call(self.unet, others, args)
        return with_others

    def base(self, args: tuple[Tensor, ...]) -> Tensor:
        """The output of the U-Net alone."""
        with switched_off(self.unet):
            return self.call(args)

    def save(self, folder: Path, parts: Parts, scheduler: Mapping[str, Any]) -> None:
        """The file that stock `load_lora_weights` and `ldm generate --lora` read, and the scheduler it is meant for."""
        metadata = {"lora_adapter_metadata": json.dumps({"unet.r": self.rank, "unet.lora_alpha": self.rank})}
        adapter = parse_adapter(factors("unet", self.weights), metadata, f"{parts.name}-lora")
        tensors, metadata = convert(adapter, "diffusers", fingerprint=parts.fingerprint, family=parts.family)
        with staged(folder) as stage:
            (stage / "scheduler").mkdir(parents=True)
            write_weights(stage / LORA_WEIGHTS, tensors, metadata)
            text = json.dumps(dict(scheduler), indent=2, sort_keys=True) + "\n"
            (stage / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")
