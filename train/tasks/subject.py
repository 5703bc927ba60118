"""A frozen model learns a subject from a few pictures: by an adapter of its weights (LoRA, Hu 2021), by a new word
(textual inversion, Gal 2022), or by the word first and then the adapter (pivotal tuning, Roich 2021).

DreamBooth's prior preservation (Ruiz 2023) needs nothing here: pictures of the class are a part of `data.mix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.diffusion.training import Schedule
from ldm.errors import Code, LdmError
from ldm.models.adapters.keys import TEXT, TEXT_2, UNET
from ldm.models.autoencoder import Autoencoder
from ldm.models.prompt import says
from ldm.models.unet import UNet
from ldm.store.parts import load_parts
from pipelines.pipeline import zeroes_null
from train.draws import Draws
from train.task import Figures, Phase, Setting, Turn
from train.tasks.captions import Captions, dropped_captions
from train.tasks.denoising import Denoising, answer, check_sizes, conditions, noise_for
from train.tasks.latents import moments, whole_hole
from train.tasks.learned import Learned
from train.tasks.lora import ATTENTION, RESIDUAL, Weights, config_of, inject, switched_off
from train.tasks.lora import TEXT as TEXT_LAYERS
from train.tasks.parts import refuse_told
from train.tasks.sampling import Look, evaluating, examples, pictures, prompts, start_noise
from train.tasks.settings import InversionSettings, LoraSettings
from train.tasks.subject_files import save_subject


class SubjectTask:
    """eps, v or flow; 4 or 9 channels; one text tower or XL's two."""

    exact = True
    exception = ""
    copies = 2  # of what is trained are written, under the names of diffusers (or peft) and of kohya; and no base

    def __init__(self, settings: LoraSettings | InversionSettings, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        self.parts = load_parts(settings.model)
        refuse_told(self.parts.unet.config, settings.model, len(self.parts.towers))
        self.vae = Autoencoder(self.parts.vae)
        self.network = UNet(self.parts.unet, self.parts.prediction)
        self.unet: Any = self.parts.unet
        self.lora = settings if isinstance(settings, LoraSettings) else None
        self.captions = Captions(
            self.parts.towers,
            trained=self.lora is not None and self.lora.text,
            xl=len(self.parts.towers) > 1,
            zero_null=zeroes_null(self.parts),
        )
        check_sizes(setting, self.vae, self.unet.config, self.captions.width, settings.model)
        if settings.vectors:
            self.captions.learned = Learned(settings.token, settings.vectors, self.captions.towers, settings.begin)
            self.captions.learned.recomputes(self.unet)
        if settings.token:
            self._check_token()
        self.weights = {} if self.lora is None else self._adapters(self.lora)
        self.scheduler = self.parts.scheduler
        self.denoising = Denoising(
            self.vae,
            self.captions,
            Schedule.of(self.scheduler),
            self.network.kind,
            noise_for(self.scheduler, settings.noise, self.network.kind),
            self.network.inpaints,
            settings.levels,
            settings.drop_caption,
        )

    def _adapters(self, settings: LoraSettings) -> dict[str, Weights]:
        """By component. Layers that a network does not have are an error of peft, which names none of its own."""
        layers = settings.layers or [*ATTENTION, *(RESIDUAL if settings.convolutions else [])]
        _check_layers(self.unet, settings.layers)
        made = {UNET: inject(self.unet, config_of(settings, layers), self.setting.seed)}
        if settings.text:
            for place, tower in enumerate(self.captions.towers):
                config = config_of(settings, TEXT_LAYERS)
                made[(TEXT, TEXT_2)[place]] = inject(tower.model, config, self.setting.seed + 1 + place)
        return made

    def _check_token(self) -> None:
        """What no caption calls is never learned."""
        token = self.settings.token
        if not any(says(text, token) for text in self.setting.captions()):
            raise LdmError(
                Code.USAGE,
                f"No caption of the data set says {token!r}.",
                "The subject is learned from the captions that its token stands in.",
                f"Set data.caption to 'a photo of {token}', for example.",
            )

    def networks(self) -> dict[str, nn.Module]:
        words: dict[str, nn.Module] = {} if self.captions.learned is None else {"words": self.captions.learned}
        return {**{f"{name}_adapter": weights for name, weights in self.weights.items()}, **words}

    def frozen(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vae": self.vae.model, "text": self.captions.model}

    def phases(self) -> list[Phase]:
        """The word alone at first; then the adapter, with the word as it is."""
        lora, learned, phases = self.lora, self.captions.learned, list[Phase]()
        first = 0
        if learned is not None:
            first = 0 if lora is None else max(1, round(lora.words_first * self.setting.steps))
            rate = 1.0 if lora is None else lora.word_rate
            alone = lora is None  # what the adapter is trained with must be what is saved, so no average follows it
            phases.append(Phase("word", list(learned.parameters()), rate, end=first or None, average=alone))
        if lora is not None:
            params = [p for weights in self.weights.values() for p in weights.parameters()]
            phases.append(Phase("adapter", params, start=first, average=True, rates=_rates(lora)))
        return phases

    def context(self, turn: Turn, micros: Sequence[Batch]) -> None:
        return None

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Figures]:
        rows = self.denoising.rows(turn.draws, batch)
        output = answer(self.network, rows)
        each, figures = self.denoising.losses(output, rows)
        if self.settings.preserve:
            each = self._preserved(turn.draws, batch, output, each)
        return turn.mean(each), {name: turn.mean(value.detach()) for name, value in figures.items()}

    def _preserved(self, draws: Draws, batch: Batch, output: Tensor, each: Tensor) -> Tensor:
        """[n] losses, those of captions without the token replaced by w |output - what the model as it was says|^2.

        So is that of a caption which was dropped: the empty prompt does not name the token either, and what it stands
        for is half of every guided picture.
        All that is random is a function of the places, so the model is asked about the same noise.
        """
        dropped = dropped_captions(draws, self.denoising.drop).tolist()
        others = [i for i, text in enumerate(batch.text) if dropped[i] or not says(text, self.settings.token)]
        if not others:
            return each
        some = batch.chosen(others)
        with torch.no_grad(), switched_off(self.unet, self.captions.model):
            said = answer(self.network, self.denoising.rows(replace(draws, places=some.places), some)).float()
        ours = output.float().view(-1, len(batch), *output.shape[1:])[:, others]
        wrong = self.settings.preserve_weight * (ours - said.view_as(ours)).square().flatten(2).mean((0, 2))
        return each.index_put((torch.tensor(others, device=each.device),), wrong)

    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        with evaluating(self.unet, self.captions.model):
            rows = self.denoising.rows(draws, batch, steady=True)
            return self.denoising.judged(answer(self.network, rows), rows)

    def preview(self, seed: int) -> dict[str, Tensor]:
        """Pictures of a few captions, as they are made with what is learned so far."""
        with evaluating(self.unet, self.captions.model):
            device = next(self.vae.model.parameters()).device
            texts = prompts(self.setting)
            side = self.setting.size // self.vae.factor
            noise = start_noise(seed, (self.vae.channels, side, side), len(texts), device)
            return {"pictures": self.pictures(texts, noise, Look(), self.whole_hole(len(texts)))}

    def pictures(self, texts: Sequence[str], noise: Tensor, look: Look, channels: Tensor | None = None) -> Tensor:
        """[B,3,H,W] in [-1,1] of texts, from this noise."""
        cond, null = conditions(self.captions, texts, noise, self.vae.factor, channels)
        return pictures(self.network, self.vae, self.scheduler, noise, cond, null, look)

    def whole_hole(self, count: int) -> Tensor | None:
        """Beside the latents of an inpainting network: everything is to be painted."""
        if not self.network.inpaints:
            return None
        device = next(self.vae.model.parameters()).device
        batch = examples(self.setting, 1).to(device)
        return whole_hole(self.vae, batch, 0).repeat(count, 1, 1, 1)

    def cached_latents(self, image: Tensor) -> dict[str, Tensor]:
        """What a latent cache keeps of pictures [n,3,H,W]."""
        return dict(zip(("mean", "std"), moments(self.vae, image), strict=True))

    def cached_text(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What a text cache keeps of captions, where nothing of the text is learned."""
        return self.captions.cached(texts)

    def save(self, folder: Path) -> None:
        save_subject(folder, self.parts, self.settings, self.setting, self.weights, self.captions.learned)


def _rates(settings: LoraSettings) -> Any:
    def share(name: str) -> float:
        text = settings.text_rate if name.startswith(TEXT) else 1.0
        return text * (settings.up_rate if "/lora_B/" in name else 1.0)

    return share


def _check_layers(unet: nn.Module, layers: Sequence[str]) -> None:
    """Each name is the end of that of some layer with a matrix, and of no other."""
    modules = dict(unet.named_modules())
    for end in layers:
        found = [m for name, m in modules.items() if name == end or name.endswith(f".{end}")]
        if not found or not all(isinstance(m, nn.Linear | nn.Conv2d) for m in found):
            raise LdmError(
                Code.USAGE,
                f"task.layers: {end!r} names {'other layers than' if found else 'none of'} this U-Net's matrices.",
                "They are ends of names such as down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.",
                "Write to_q, to_k, to_v and the like, or leave task.layers out.",
            )
