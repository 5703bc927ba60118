"""Pictures to latents and back: a KL or VQ autoencoder, with a perceptual measure and a critic where asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.perceptual import Perceptual
from train.draws import Draws
from train.task import Figures, Phase, Setting, Turn
from train.tasks import errors
from train.tasks.adversary import EXCEPTION, Adversary
from train.tasks.coders import open_coder
from train.tasks.folding import folded, measured
from train.tasks.latents import picture
from train.tasks.parts import save_network
from train.tasks.perceptual import open_perceptual
from train.tasks.settings import AutoencoderSettings

SHOWN = 8  # pictures of a preview
_FEWEST, _MOST, _PLACES = 256, 4096, 1 << 18  # pictures to measure latents on, and places in all of them


class AutoencoderTask:
    """Phases: the autoencoder (averaged), and the critic."""

    def __init__(self, settings: AutoencoderSettings, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        self.coder = open_coder(settings, setting)
        self.perceptual = _perceptual(settings)
        self.adversary = None
        if settings.critic is not None:
            last = self.coder.vae.decoder.conv_out
            self.adversary = Adversary(settings.critic, last, setting.size, setting.steps, setting.seed + 1)
        self.exact = self.adversary is None
        self.exception = "" if self.exact else EXCEPTION

    def networks(self) -> dict[str, nn.Module]:
        return self.coder.networks() | ({} if self.adversary is None else self.adversary.networks())

    def frozen(self) -> dict[str, nn.Module]:
        return {} if self.perceptual is None else {"perceptual": self.perceptual}

    def phases(self) -> list[Phase]:
        own = Phase("autoencoder", list(self.coder.vae.parameters()), average=True)
        return [own] if self.adversary is None else [own, self.adversary.phase()]

    def context(self, turn: Turn, micros: Sequence[Batch]) -> None:
        """Now and then a look at the whole batch: which codes are used, whether the critic may start."""
        if turn.phase == "critic":
            return
        self.coder.observe(turn, micros)
        if self.adversary is not None:
            self.adversary.observe(turn, micros, self._l1)

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Figures]:
        x = recoloured(turn.draws, picture(batch), self.settings.recolour)
        if turn.phase == "critic":
            assert self.adversary is not None
            return self.adversary.teach(turn, x, lambda: self.coder.trip(x, turn.draws).made)
        trip = self.coder.trip(x, turn.draws)
        figures = {"l1": turn.mean(errors.l1(trip.made, x).detach())}
        figures |= {name: turn.mean(each.detach()) for name, each in trip.figures.items()}
        error = self._error(x)
        if self.adversary is None:
            return turn.mean(error(trip.made) + trip.cost), figures
        loss, more = self.adversary.balanced(turn, trip.made, error)
        return loss + turn.mean(trip.cost), figures | dict(more)

    @torch.no_grad()
    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        x = picture(batch)
        trip = self.coder.trip(x, draws)
        figures = {"loss": self._error(x)(trip.made) + trip.cost}
        figures |= {"l1": errors.l1(trip.made, x), "psnr": errors.psnr(trip.made, x), **trip.figures}
        if self.perceptual is not None:
            figures["perceptual"] = self.perceptual(trip.made, x)
        return figures

    @torch.no_grad()
    def preview(self, seed: int) -> dict[str, Tensor]:
        """Original | reconstruction, for some training pictures."""
        x = next(self._pictures(SHOWN))[:SHOWN]
        return {"reconstruction": side_by_side(x, self.coder.trip(x, None).made)}

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """The layout of diffusers, with latents of mean 0 and variance 1 over the training pictures."""
        moments = measured(self.coder.moments, self._pictures(pictures_to_measure(self.coder.vae, self.setting.size)))
        told = {"mean": moments.mean.tolist(), "std": moments.std.tolist()}
        metadata = {"ldm.run": self.setting.name, "ldm.folded": json.dumps(told)}
        save_network(folded(self.coder.vae, moments), folder, metadata)

    def _error(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """[n] of pictures that were made of x."""
        s = self.settings

        def error(made: Tensor) -> Tensor:
            each = s.l1 * errors.l1(made, x)
            if s.l2:
                each = each + s.l2 * errors.l2(made, x)
            if s.gradients:
                each = each + s.gradients * errors.gradients(made, x)
            if self.perceptual is not None:
                each = each + s.perceptual * self.perceptual(made, x)
            return each

        return error

    def _l1(self, turn: Turn, micro: Batch) -> Tensor:
        x = picture(micro)
        return errors.l1(self.coder.trip(x, replace(turn.draws, places=micro.places)).made, x)

    def _pictures(self, count: int) -> Iterator[Tensor]:
        device = next(self.coder.vae.parameters()).device
        return (picture(batch).to(device) for batch in self.setting.look(count))


def side_by_side(*pictures: Tensor) -> Tensor:
    """[n,3,H,k W] of k times [n,3,H,W]."""
    return torch.cat([x.float().clamp(-1, 1) for x in pictures], dim=3)


def pictures_to_measure(vae: Any, size: int) -> int:
    """How many pictures tell the statistics of latents: 4096, fewer if each has many places, 256 at least."""
    places = (size // Autoencoder(vae).factor) ** 2
    return max(_FEWEST, min(_MOST, _PLACES // places))


def recoloured(draws: Draws, x: Tensor, share: float) -> Tensor:
    """A share of the pictures in random colours, so that a set of few colours teaches the others too."""
    if not share:
        return x
    gain, shift = (draws.uniform(name, (3,)).view(-1, 3, 1, 1) for name in ("recolour.gain", "recolour.shift"))
    chosen = draws.uniform("recolour").view(-1, 1, 1, 1) < share
    return torch.where(chosen, (x * (gain * 1.2 - 0.2) + shift - 0.5).clamp(-1.0, 1.0), x)


def _perceptual(settings: AutoencoderSettings) -> Perceptual | None:
    if not settings.perceptual:
        return None
    if settings.perceptual_net is None:
        raise LdmError(
            Code.USAGE,
            f"task.perceptual={settings.perceptual:g} has nothing to look with.",
            "A perceptual loss compares features of a trained network, and none is named.",
            "Set task.perceptual_net to a result of task clip or classifier, or to LPIPS weights.",
        )
    return open_perceptual(settings.perceptual_net)
