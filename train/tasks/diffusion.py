"""The latent diffusion task: a U-Net (and, if asked, its text tower) learns to take noise away from latents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.diffusion.training import Schedule, scheduler_config
from ldm.errors import Code, LdmError
from ldm.models.prompt import vocabulary
from ldm.models.tokenizer import CLIPS_OWN
from ldm.models.unet import UNet
from ldm.store.detect import facts_of_config, family_of, prediction_of_scheduler
from ldm.store.find import find_model
from ldm.store.folder import read_words
from ldm.store.parts import Parts
from ldm.store.save import save_folder
from ldm.store.shards import read_json
from train.draws import Draws
from train.task import Figures, Phase, Setting, Turn
from train.tasks.captions import Captions
from train.tasks.denoising import Denoising, answer, check_sizes, conditions
from train.tasks.latents import latents_with_hole, moments
from train.tasks.parts import changed, frozen, is_new, open_network, open_text, open_vae, owned, refuse_told
from train.tasks.sampling import Look, evaluating, examples, pictures, prompts, start_noise
from train.tasks.settings import DiffusionSettings
from train.tasks.shapes import holes

log = logging.getLogger(__name__)
MOST_READ = 1_000_000  # captions that are read for the words of a model


class DiffusionTask:
    """eps, v or flow; 4 or 9 channels; with learned variances where the bound has a weight."""

    exact = True
    exception = ""

    def __init__(self, settings: DiffusionSettings, setting: Setting) -> None:
        noise = settings.noise
        self.settings, self.setting = settings, setting
        self.vae = open_vae(settings.vae)
        frozen(self.vae.model)
        towers = open_text(settings.text, settings.tokenizer, setting.captions(), settings.vocabulary, setting.seed)
        trained = settings.train_text or is_new(settings.text)
        xl = len(towers) > 1
        self.captions = Captions(
            [(words, owned(tower) if trained else tower) for words, tower in towers], trained, xl=xl, zero_null=xl
        )
        self.unet: Any = self._unet()
        self.scheduler = scheduler_config(
            noise.kind,
            noise.schedule,
            zero_snr=noise.zero_snr,
            shift=noise.shift,
            learned_variance=noise.bound > 0,
        )
        self.denoising = Denoising(
            self.vae,
            self.captions,
            Schedule.of(self.scheduler),
            noise.kind,
            noise,
            settings.inpaint,
            settings.levels,
            settings.drop_caption,
        )
        self.network = UNet(self.unet, noise.kind)

    def _unet(self) -> Any:
        """The U-Net with the channels that this run asks for; it works at the size of the pictures by default."""
        settings, size, channels = self.settings, self.setting.size, self.vae.channels
        unet = open_network(settings.unet, "unet", "UNet2DConditionModel", self.setting.seed)
        refuse_told(unet.config, settings.unet, len(self.captions.towers))
        check_sizes(self.setting, self.vae, unet.config, self.captions.width, settings.unet)
        if settings.inpaint and channels != 4:
            raise LdmError(
                Code.USAGE,
                f"task.inpaint does not fit {settings.vae}",
                f"its latents have {channels} channels, and a 9-channel network is 4 + 1 + 4",
                "Use an autoencoder with 4 channels, or inpaint with an ordinary network: the loop can.",
            )
        shown = 2 * channels + 1 if settings.inpaint else channels
        if int(unet.config.in_channels) > shown:
            raise LdmError(
                Code.MODEL,
                f"{settings.unet} is an inpainting network with {unet.config.in_channels} channels",
                "this run shows it the latent alone",
                "Set task.inpaint to true, or start from an ordinary network.",
            )
        wanted = {
            "in_channels": shown,
            "out_channels": 2 * channels if settings.noise.bound else channels,
            "sample_size": size // self.vae.factor,
        }
        _check_kind(settings)
        different = {k: v for k, v in wanted.items() if unet.config[k] != v}
        if different.keys() <= {"sample_size"}:
            unet.reconfigured(**different)
        else:
            unet = changed(unet, **different)
        return unet

    def networks(self) -> dict[str, nn.Module]:
        text = {"text": self.captions.model, "words": self.captions.words}
        return {"unet": self.unet} | (text if self.captions.trained else {})

    def frozen(self) -> dict[str, nn.Module]:
        return {"vae": self.vae.model} | ({} if self.captions.trained else {"text": self.captions.model})

    def phases(self) -> list[Phase]:
        params = [p for network in self.networks().values() for p in network.parameters()]
        return [Phase("denoiser", params, average=True)]

    def context(self, turn: Turn, micros: Sequence[Batch]) -> None:
        return None

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Figures]:
        rows = self.denoising.rows(turn.draws, batch)
        output = answer(self.network, rows)
        each, figures = self.denoising.losses(output, rows)
        return turn.mean(each), {name: turn.mean(value.detach()) for name, value in figures.items()}

    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        with evaluating(self.unet, self.captions.model):
            rows = self.denoising.rows(draws, batch, steady=True)
            return self.denoising.judged(answer(self.network, rows), rows)

    def preview(self, seed: int) -> dict[str, Tensor]:
        """Pictures of a few captions; of an inpainting network the picture with its hole, and filled."""
        with evaluating(self.unet, self.captions.model):
            device = next(self.unet.parameters()).device
            if self.settings.inpaint:
                return self._repainted(seed, device)
            texts = prompts(self.setting)
            noise = start_noise(seed, self._shape, len(texts), device)
            return {"pictures": self._pictures(noise, texts, None)}

    def cached_latents(self, image: Tensor) -> dict[str, Tensor]:
        """What a latent cache keeps of pictures [n,3,H,W]."""
        return dict(zip(("mean", "std"), moments(self.vae, image), strict=True))

    def cached_text(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What a text cache keeps of captions, where the tower is frozen."""
        return self.captions.cached(texts)

    def save(self, folder: Path) -> None:
        save_folder(self.parts(), folder)

    def parts(self) -> Parts:
        """The whole model as it is now."""
        kind, reason = prediction_of_scheduler(self.scheduler)
        return Parts(
            self.setting.name or "diffusion",
            family_of(facts_of_config(self.unet.config), len(self.captions.towers)),
            Path(),
            "",
            self.unet,
            self.vae.model,
            tuple(
                (words, tower.model)
                for words, tower in zip(self.captions.tokenizers, self.captions.towers, strict=True)
            ),
            self.scheduler,
            kind,
            reason,
            words=self.words(),
        )

    def words(self) -> frozenset[str]:
        """What its text tower had read before, and what it read here: of a frozen tower too the network has learned
        what pictures go with its answer to a new word. None, where nobody knows what a frozen one had read."""
        if len(self.captions.tokenizer) == CLIPS_OWN:
            return frozenset()
        before = frozenset[str]() if is_new(self.settings.text) else read_words(find_model(str(self.settings.text)))
        if not before and not self.captions.trained:
            return before
        return before | frozenset(vocabulary(islice(self.setting.captions(), MOST_READ)))

    @property
    def _shape(self) -> tuple[int, int, int]:
        side = self.setting.size // self.vae.factor
        return self.vae.channels, side, side

    def _pictures(self, noise: Tensor, texts: Sequence[str], channels: Tensor | None) -> Tensor:
        cond, null = conditions(self.captions, texts, noise, self.vae.factor, channels)
        return pictures(self.network, self.vae, self.scheduler, noise, cond, null, Look())

    def _repainted(self, seed: int, device: torch.device) -> dict[str, Tensor]:
        batch = examples(self.setting).to(device)
        assert batch.image is not None
        draws = Draws(seed, torch.arange(len(batch), device=device), len(batch), "preview")
        mask = holes(draws, *batch.image.shape[-2:])
        clean, channels = latents_with_hole(self.vae, draws, batch, mask)
        noise = start_noise(seed, tuple(clean.shape[1:]), len(batch), device)
        texts = batch.text or ("",) * len(batch)
        return {"holes": batch.image * (mask < 0.5), "pictures": self._pictures(noise, texts, channels)}


def _check_kind(settings: DiffusionSettings) -> None:
    """Weights of a model with another kind of output start far off. It is how models are moved over, so it is allowed
    to whoever says it; who says nothing is asked."""
    if is_new(settings.unet):
        return
    folder = find_model(str(settings.unet))
    whole = folder if (folder / "unet").is_dir() else folder.parent
    told = whole / "scheduler" / "scheduler_config.json"
    wanted = settings.noise.kind
    if not told.is_file() or (kind := prediction_of_scheduler(read_json(told))[0]) == wanted:
        return
    if "kind" not in settings.noise.model_fields_set:
        own = f"task.noise.kind={kind}" + (" and task.noise.schedule=flow" if kind == "flow" else "")
        raise LdmError(
            Code.USAGE,
            f"{settings.unet} predicts {kind}, and the run does not say what it is to predict.",
            f"Where nothing is said it is {wanted}, and such a model would begin far off.",
            f"Set {own} to go on as it was trained, or task.noise.kind={wanted} to move it over.",
        )
    log.warning("%s predicts %s, and task.noise.kind is %s", settings.unet, kind, wanted)
