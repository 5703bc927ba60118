"""A tiny autoencoder taught by a large one: pictures for next to nothing from the same latents, for previews.

The decoder learns to make what the large one makes of a latent; the encoder learns the latents, so that the result is a
whole `AutoencoderTiny`. Latents are those that a diffusion model sees, of unit variance: its scaling factor is 1. The
encoder must see the pictures themselves, which are not what the large one makes of their latents: so this task takes no
cached latents (`run.cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.nets.tiny import TinyCoder
from ldm.store.build import build
from ldm.store.parts import load_vae
from train.draws import Draws
from train.task import Figures, Phase, Setting, Turn
from train.tasks import errors
from train.tasks.adversary import EXCEPTION, Adversary
from train.tasks.autoencoder import SHOWN, side_by_side
from train.tasks.latents import check_sides, drawn, moments, picture
from train.tasks.parts import frozen, is_new, open_vae, owned, read_architecture, save_network, seeded
from train.tasks.settings import DecoderSettings

_WIDEST, _NARROWEST = 64, 16


@dataclass(frozen=True, eq=False)
class Lesson:
    """A latent [n,C,h,w] of unit variance, its mean (what the encoder is to find), the large one's picture of it."""

    z: Tensor
    mean: Tensor
    picture: Tensor


class DecoderTask:
    """Phases: the tiny autoencoder (averaged), and a critic where the run file says so."""

    def __init__(self, settings: DecoderSettings, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        self.large = open_vae(settings.vae)
        frozen(self.large.model)
        check_sides(setting, self.large.factor, f"task.vae={settings.vae}")
        self.tiny = _tiny(settings, self.large, setting.seed)
        self.adversary = None
        if settings.critic is not None:
            last = self.tiny.decoder.layers[-1]
            self.adversary = Adversary(settings.critic, last, setting.size, setting.steps, setting.seed + 1)
        self.exact = self.adversary is None
        self.exception = "" if self.exact else EXCEPTION

    def networks(self) -> dict[str, nn.Module]:
        own: dict[str, nn.Module] = {"tiny": self.tiny}
        return own | ({} if self.adversary is None else self.adversary.networks())

    def frozen(self) -> dict[str, nn.Module]:
        return {"vae": self.large.model}

    def phases(self) -> list[Phase]:
        own = Phase("decoder", list(self.tiny.parameters()), average=True)
        return [own] if self.adversary is None else [own, self.adversary.phase()]

    def context(self, turn: Turn, micros: Sequence[Batch]) -> None:
        if self.adversary is not None and turn.phase != "critic":
            self.adversary.observe(turn, micros, self._l1)

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Figures]:
        lesson = self._lesson(turn.draws, batch)
        if turn.phase == "critic":
            assert self.adversary is not None
            return self.adversary.teach(turn, lesson.picture, lambda: self._decode(lesson.z))
        made = self._decode(lesson.z)
        found = errors.l2(self._encode(picture(batch)), lesson.mean)
        figures = {"l1": turn.mean(errors.l1(made, lesson.picture).detach()), "encoder": turn.mean(found.detach())}
        error = self._error(lesson.picture)
        encoder = self.settings.encoder * found
        if self.adversary is None:
            return turn.mean(error(made) + encoder), figures
        loss, more = self.adversary.balanced(turn, made, error)
        return loss + turn.mean(encoder), figures | dict(more)

    @torch.no_grad()
    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        """Against the large one's pictures; `psnr original` against the data."""
        x, lesson = picture(batch), self._lesson(draws, batch)
        made = self._decode(lesson.z)
        found = errors.l2(self._encode(x), lesson.mean)
        figures = {"loss": self._error(lesson.picture)(made) + self.settings.encoder * found}
        figures |= {"l1": errors.l1(made, lesson.picture), "psnr": errors.psnr(made, lesson.picture), "encoder": found}
        return figures | {"psnr original": errors.psnr(made, x)}

    @torch.no_grad()
    def preview(self, seed: int) -> dict[str, Tensor]:
        """Original | large autoencoder | tiny decoder | tiny encoder and decoder, for some training pictures."""
        x = next(self._pictures(SHOWN))[:SHOWN]
        z = _unit(self.large, moments(self.large, x)[0])
        return {"decoders": side_by_side(x, self._large(z), self._decode(z), self._decode(self._encode(x)))}

    def save(self, folder: Path) -> None:
        self.tiny.reconfigured(scaling_factor=1.0, shift_factor=0.0)
        save_network(self.tiny, folder, {"ldm.run": self.setting.name})

    @torch.no_grad()
    def _lesson(self, draws: Draws, batch: Batch) -> Lesson:
        mean, std = moments(self.large, picture(batch))
        z = drawn(self.large, mean, std, draws)
        return Lesson(z, _unit(self.large, mean), self._large(z))

    def _large(self, z: Tensor) -> Tensor:
        large = self.large
        return torch.as_tensor(large.model.decode(z / large.scale + large.shift)).float().clamp(-1, 1)

    def _decode(self, z: Tensor) -> Tensor:
        return torch.as_tensor(self.tiny.decode(z))

    def _encode(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.tiny.encode(x))

    def _error(self, goal: Tensor) -> Callable[[Tensor], Tensor]:
        s = self.settings
        return lambda made: s.l1 * errors.l1(made, goal) + s.gradients * errors.gradients(made, goal)

    def _l1(self, turn: Turn, micro: Batch) -> Tensor:
        lesson = self._lesson(replace(turn.draws, places=micro.places), micro)
        return errors.l1(self._decode(lesson.z), lesson.picture)

    def _pictures(self, count: int) -> Iterator[Tensor]:
        device = next(self.tiny.parameters()).device
        return (picture(batch).to(device) for batch in self.setting.look(count))


def _unit(vae: Autoencoder, mean: Tensor) -> Tensor:
    return (mean - vae.shift) * vae.scale


def _tiny(settings: DecoderSettings, large: Autoencoder, seed: int) -> Any:
    """The student: from a file, or as small as its teacher allows."""
    if settings.decoder is None:
        tiny = _new(small_config(large), "the default decoder", seed)
    elif is_new(settings.decoder):
        tiny = _new(read_architecture(settings.decoder), str(settings.decoder), seed)
    else:
        tiny = owned(load_vae(settings.decoder)[0])
    mine, its = (Autoencoder(tiny), large) if isinstance(tiny, TinyCoder) else (None, large)
    if mine is None or (mine.factor, mine.channels) != (its.factor, its.channels):
        found = tiny.STOCK if mine is None else f"made for {mine.channels} channels and factor {mine.factor}"
        raise LdmError(
            Code.MODEL,
            f"task.decoder={settings.decoder} does not fit task.vae={settings.vae}.",
            f"It is {found}; latents have {its.channels} channels and a {its.factor}th of the side.",
            "Leave task.decoder out, and one that fits is made.",
        )
    return tiny


def _new(config: dict[str, Any], where: str, seed: int) -> Any:
    """With new weights."""
    shaped, _ = build("AutoencoderTiny", config, where)
    with seeded(seed):
        return TinyCoder.from_config(shaped.config).train()


def small_config(large: Autoencoder) -> dict[str, Any]:
    """For the latents of another: half as wide as its widest layer, at most 64 (TAESD), three blocks a level."""
    levels = large.factor.bit_length()
    width = max(_NARROWEST, min(_WIDEST, max(large.config.block_out_channels) // 2))
    blocks = [1, *[3] * (levels - 1)]
    return {
        "_class_name": "AutoencoderTiny",
        "encoder_block_out_channels": [width] * levels,
        "decoder_block_out_channels": [width] * levels,
        "num_encoder_blocks": blocks,
        "num_decoder_blocks": blocks[::-1],
        "latent_channels": large.channels,
    }
