"""The two kinds of autoencoder as a task trains them: a Gaussian posterior (KL) or a codebook (VQ)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.nets.coder import KLCoder, VQCoder
from ldm.store.parts import load_vae
from train.draws import Draws
from train.task import Setting, Turn
from train.tasks.codebook import Watch, flat, nearest
from train.tasks.folding import with_outer
from train.tasks.latents import check_sides, moments
from train.tasks.parts import is_new, new_network, owned, read_architecture
from train.tasks.settings import AutoencoderSettings


@dataclass(frozen=True, eq=False)
class Trip:
    """Pictures that went through: `made` [n,3,H,W], what the latents cost [n], and figures [n] of them."""

    made: Tensor
    cost: Tensor
    figures: Mapping[str, Tensor]


class Coder(Protocol):
    vae: Any

    def networks(self) -> dict[str, nn.Module]: ...

    def observe(self, turn: Turn, micros: Sequence[Batch]) -> None:
        """Looks at the whole batch before a turn."""

    def trip(self, picture: Tensor, draws: Draws | None) -> Trip:
        """There and back; without draws by the mean of the posterior."""

    def moments(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [n,C,h,w] of the latents that a diffusion model would learn."""


class GaussianCoder:
    """AutoencoderKL: z = mean + std * noise; its cost is KL(q(z|x) || N(0,1)) in nats, divided by the 3 H W numbers of
    the picture, so that the weights of published recipes (1e-6) mean the same (Rombach et al. 2022, app. G)."""

    def __init__(self, vae: KLCoder, weight: float) -> None:
        self.vae: Any = with_outer(vae)
        self.weight = weight

    def networks(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def observe(self, turn: Turn, micros: Sequence[Batch]) -> None:
        """Nothing that is known of a whole batch matters."""

    def trip(self, picture: Tensor, draws: Draws | None) -> Trip:
        mean, log_variance = self.vae.moments(picture).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        nats = 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance).flatten(1).sum(1)
        z = mean
        if draws is not None:
            z = mean + (0.5 * log_variance).exp() * draws.normal("posterior", tuple(mean.shape[1:]))
        kl = nats / picture[0].numel()
        return Trip(self.vae.decode(z), self.weight * kl, {"kl": kl})

    def moments(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        return moments(Autoencoder(self.vae), picture)


class CodeCoder:
    """VQModel: |sg[h] - e|^2 + beta |h - sg[e]|^2 for the latents h and their codes e, means over all numbers (van den
    Oord et al. 2017, eq. 3); the decoder's gradient is passed to h as it is."""

    def __init__(self, vae: VQCoder, settings: AutoencoderSettings, fresh: bool, steps: int) -> None:
        self.vae: Any = vae
        self.weight = settings.commit
        self.watch = Watch(self.codes.detach(), fresh, settings.revive, steps)

    @property
    def codes(self) -> nn.Parameter:
        codes: nn.Parameter = self.vae.quantize.embedding.weight
        return codes

    def networks(self) -> dict[str, nn.Module]:
        return {"vae": self.vae, "watch": self.watch}

    def observe(self, turn: Turn, micros: Sequence[Batch]) -> None:
        self.watch.observe(turn, micros, self.codes, self.vae.encode)

    def trip(self, picture: Tensor, draws: Draws | None) -> Trip:
        h = self.vae.encode(picture).float()
        chosen = self.codes[nearest(flat(h), self.codes)]
        e = chosen.view(len(h), *h.shape[2:], -1).permute(0, 3, 1, 2)
        cost = _mean((h.detach() - e) ** 2) + self.weight * _mean((h - e.detach()) ** 2)
        made = self.vae.decode(h + (e - h).detach(), rounded=False)
        ones = torch.ones_like(cost)
        return Trip(made, cost, {"codes used": self.watch.used * ones, "perplexity": self.watch.perplexity * ones})

    def moments(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        return moments(Autoencoder(self.vae), picture)


def _mean(each: Tensor) -> Tensor:
    return each.flatten(1).mean(1)


def open_coder(settings: AutoencoderSettings, setting: Setting) -> Coder:
    """The autoencoder of a run file: a `.json` with new weights, or a folder to go on from."""
    where = str(settings.vae)
    if is_new(settings.vae):
        config = read_architecture(settings.vae)
        name = "VQModel" if config.get("_class_name") == "VQModel" else "AutoencoderKL"
        vae = new_network(name, config, where, setting.seed)
    else:
        vae = owned(load_vae(settings.vae)[0])
    check_sides(setting, Autoencoder(vae).factor, f"task.vae={where}")
    if isinstance(vae, KLCoder):
        return GaussianCoder(vae, settings.kl)
    if not isinstance(vae, VQCoder):
        raise LdmError(
            Code.MODEL,
            f"task.vae={where} is a {vae.STOCK}.",
            "Task autoencoder trains AutoencoderKL and VQModel.",
            "Use task decoder for a tiny autoencoder.",
        )
    return CodeCoder(vae, settings, is_new(settings.vae), setting.steps)
