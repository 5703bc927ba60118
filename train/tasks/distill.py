"""Few-step students of a model: guidance distilled into the network (Meng 2022), latent consistency (Luo 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.diffusion.consistency import consistent, ddim_step
from ldm.diffusion.level import Level
from ldm.diffusion.loss import pseudo_huber
from ldm.diffusion.training import Schedule
from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.latent import Cond
from ldm.models.unet import UNet, guidance_embedding
from ldm.store.parts import Parts, load_parts
from ldm.store.save import save_folder
from train.draws import Draws
from train.task import Figures, Phase, Setting, Turn
from train.tasks.captions import Captions
from train.tasks.denoising import Denoising, Rows, check_sizes
from train.tasks.latents import moments
from train.tasks.lora import Lora
from train.tasks.parts import changed, frozen, refuse_told, twin
from train.tasks.sampling import Look, evaluating, pictures, prompts, start_noise
from train.tasks.settings import DistillSettings, Noise

EMBEDDING = 256  # width of the embedding of a guidance scale


class DistillTask:
    """`guidance`: the student says in one call what the teacher says in two, for any scale that it is told.

    `consistency`: the student leads from any level to the clean latent; it agrees with a slow copy of itself (`target`)
    one solver step of the guided teacher further. The student is a whole U-Net that is told the scale, or a LoRA, which
    is not, and learns their mean.
    """

    exact = True
    exception = ""

    def __init__(self, settings: DistillSettings, setting: Setting) -> None:
        self.settings, self.setting = settings, setting
        self.parts = load_parts(settings.model)
        refuse_told(self.parts.unet.config, settings.model)
        _refuse(settings, self.parts)
        self.vae = Autoencoder(self.parts.vae)
        self.captions = Captions(self.parts.towers, trained=False)
        check_sizes(setting, self.vae, self.parts.unet.config, self.captions.width, settings.model)
        self.schedule = Schedule.of(self.parts.scheduler)
        self.kind = self.parts.prediction
        self.denoising = Denoising(self.vae, self.captions, self.schedule, self.kind, Noise())
        self.consistency = settings.method == "consistency"
        self.points = max(1, len(self.schedule) // settings.skip)  # times of LCM's grid
        self.skip = len(self.schedule) // self.points  # as its scheduler counts: the number asked for, where that fits
        self.lora: Lora | None = None
        if settings.rank is None:
            self.student: Any = _told(self.parts.unet).train().requires_grad_(True)
        else:
            self.student = self.parts.unet
            self.lora = Lora(self.student, settings.rank, setting.seed)
        self.learner: nn.Module = self.lora.weights if self.lora is not None else self.student
        self.target: Any = None
        if self.consistency:
            self.target = frozen(twin(self.learner))
            self.target.register_buffer("followed", torch.tensor(-1))
        self.network = UNet(self.student, self.kind)

    def networks(self) -> dict[str, nn.Module]:
        return {"student": self.learner} | ({"target": self.target} if self.target is not None else {})

    def frozen(self) -> dict[str, nn.Module]:
        return {"teacher": self.parts.unet, "vae": self.vae.model, "text": self.captions.model}

    def phases(self) -> list[Phase]:
        return [Phase("student", list(self.learner.parameters()), average=True)]

    @torch.no_grad()
    def context(self, turn: Turn, micros: Sequence[Batch]) -> None:
        """The target follows the student: once a step, before its loss, from what the steps before made of it.

        A step that was given up, or begun again with less memory, asks a second time: the target knows (`followed`).
        """
        if self.target is None:
            return
        self.target.eval()  # the trainer puts all that it saves into training mode, and dropout would blur the aim
        if int(self.target.followed) != turn.step:
            self.target.followed.fill_(turn.step)
            rate = 1.0 - self.settings.ema
            for slow, fast in zip(self.target.parameters(), self.learner.parameters(), strict=True):
                slow.lerp_(fast.detach().to(slow), rate)

    def loss(self, turn: Turn, batch: Batch) -> tuple[Tensor, Figures]:
        each, figures = self._losses(turn.draws, batch)
        return turn.mean(each), {name: turn.mean(value.detach()) for name, value in figures.items()}

    def validate(self, draws: Draws, batch: Batch) -> dict[str, Tensor]:
        with evaluating(self.student):
            return {"loss": self._losses(draws, batch)[0]}

    def preview(self, seed: int) -> dict[str, Tensor]:
        """Pictures of a few captions as they will be made: four steps of LCM, or DDIM without a second call."""
        with evaluating(self.student):
            device = next(self.learner.parameters()).device
            texts = prompts(self.setting)
            side = self.setting.size // self.vae.factor
            noise = start_noise(seed, (self.vae.channels, side, side), len(texts), device)
            middle = sum(self.settings.guidance) / 2
            look = Look("lcm", 4) if self.consistency else Look()
            cond, null = Cond(text=self.captions.states(texts)), Cond(text=self.captions.empty(len(texts)))
            scale = middle if self.network.told_scale else 1.0
            look = Look(look.solver, look.steps, scale)
            return {"pictures": pictures(self.network, self.vae, self.scheduler, noise, cond, null, look)}

    def cached_latents(self, image: Tensor) -> dict[str, Tensor]:
        """What a latent cache keeps of pictures [n,3,H,W]."""
        return dict(zip(("mean", "std"), moments(self.vae, image), strict=True))

    def cached_text(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What a text cache keeps of captions."""
        return self.captions.cached(texts)

    def save(self, folder: Path) -> None:
        """A whole model with a U-Net that is told the scale; or the LoRA with the scheduler that it is for."""
        if self.lora is not None:
            self.lora.save(folder, self.parts, self.scheduler)
            return
        name = self.setting.name or f"{self.parts.name}-distilled"
        made = {"name": name, "unet": self.student, "scheduler": self.scheduler}
        save_folder(type(self.parts)(**{**vars(self.parts), **made}), folder)

    @property
    def scheduler(self) -> dict[str, Any]:
        """That of the model; for consistency LCM's, whose grid of times is the one that was trained."""
        own = self.parts.scheduler
        if not self.consistency:
            return own
        kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
                "rescale_betas_zero_snr", "set_alpha_to_one", "steps_offset")  # fmt: skip
        return {
            "_class_name": "LCMScheduler",
            **{k: own[k] for k in kept if k in own},
            "prediction_type": self.kind,
            "original_inference_steps": self.points,
            "clip_sample": False,
            "timestep_spacing": "leading",
        }

    def _losses(self, draws: Draws, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.denoising.rows(draws, batch)
        low, high = self.settings.guidance
        scale = low + (high - low) * draws.uniform("scale")
        if self.consistency:
            return self._consistency(draws, rows, scale)
        wanted = self._teacher(rows.x, rows.level, rows.states, scale)
        said = self._student(rows.x, rows.level, rows.states, scale)
        each = (said.float() - wanted.float()).square().flatten(1).mean(1)
        return each, {"error": each}

    def _consistency(self, draws: Draws, rows: Rows, scale: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pseudo-Huber distance of f(x_t, t) and f'(x_s, s), x_s one DDIM step of the teacher from t to s = t - skip.

        t is on the grid of LCM's scheduler: skip - 1, 2 skip - 1, ..., up to T - 1.
        """
        index = (draws.stratified("time.0") * self.points).long()
        level = self.schedule.at((index + 1) * self.skip - 1)
        later = self.schedule.at((level.t - self.skip).clamp(min=0))
        x = level.noisy(rows.clean, rows.noise)
        with torch.no_grad():
            guided = level.clean(self._teacher(x, level, rows.states, scale), x, self.kind)
            stepped = ddim_step(guided, x, level, later)
            wanted = self._end(stepped, later, rows.states, scale, self.target)
        said = self._end(x, level, rows.states, scale, None)
        each = pseudo_huber(said, wanted, self.settings.huber)
        return each, {"distance": (said - wanted).detach().square().flatten(1).mean(1)}

    def _end(self, x: Tensor, level: Level, states: Tensor, scale: Tensor, weights: nn.Module | None) -> Tensor:
        """f(x, t), by the student or with the weights of the target."""
        output = self._student(x, level, states, scale, weights).float()
        return consistent(level.clean(output, x, self.kind), x, level)

    def _student(
        self, x: Tensor, level: Level, states: Tensor, scale: Tensor, weights: nn.Module | None = None
    ) -> Tensor:
        args = (x, level.t, states)
        if self.lora is not None:
            return self.lora.call(args, weights)
        network: Any = self.student if weights is None else weights
        said: Tensor = network(*args, guidance=guidance_embedding(scale, _width(network)))
        return said

    @torch.no_grad()
    def _teacher(self, x: Tensor, level: Level, states: Tensor, scale: Tensor) -> Tensor:
        """The teacher's output at a scale: null + scale (cond - null); one that is told the scale says it by itself."""
        teacher: Any = self.parts.unet
        if _width(teacher) and self.lora is None:
            said: Tensor = teacher(x, level.t, states, guidance=guidance_embedding(scale, _width(teacher)))
            return said
        both = torch.cat([states, self.captions.empty(len(states)).to(states)])
        args = (torch.cat([x, x]), level.t.repeat(2), both)
        call = teacher(*args) if self.lora is None else self.lora.base(args)
        cond, null = call.chunk(2)
        mixed: Tensor = null + scale.view(-1, 1, 1, 1) * (cond - null)
        return mixed


def _told(unet: Any) -> Any:
    """A copy that is told a guidance scale; at first it does not listen."""
    if _width(unet):
        return twin(unet)
    return changed(unet, time_cond_proj_dim=EMBEDDING)


def _width(unet: Any) -> int:
    """How wide the embedding of a guidance scale is; 0 where none is told."""
    return int(getattr(unet.config, "time_cond_proj_dim", None) or 0)


def _refuse(settings: DistillSettings, parts: Parts) -> None:
    """What cannot be distilled, in words."""
    unet, consistency = parts.unet, settings.method == "consistency"
    if consistency and parts.prediction == "flow":
        raise LdmError(
            Code.MODEL,
            f"{settings.model} is a flow",
            "latent consistency is defined on schedules of betas, and LCM's scheduler samples no flow",
            "Set task.method to guidance, or take a model that predicts epsilon or v.",
        )
    if consistency and int(unet.config.out_channels) == 2 * int(unet.config.in_channels):
        raise LdmError(
            Code.MODEL,
            f"{settings.model} has learned variances",
            "latent consistency leads straight to the clean latent, and LCM's scheduler has no use for them",
            "Set task.method to guidance, or train the model on with task.noise.bound: 0, which leaves them out.",
        )
    if consistency and settings.skip > (steps := len(Schedule.of(parts.scheduler))):
        raise LdmError(
            Code.USAGE,
            f"task.skip={settings.skip} is too large",
            f"the model has {steps} times, and skip is the distance between two of them",
            "Use 20, as LCM does.",
        )
    if int(unet.config.in_channels) == 9:
        raise LdmError(
            Code.MODEL,
            f"{settings.model} is an inpainting model",
            "students are made of ordinary networks",
            "Distill the ordinary model; the loop inpaints with it too.",
        )
    if _width(unet) and settings.rank is not None:
        raise LdmError(
            Code.MODEL,
            f"{settings.model} is told its guidance scale",
            "a LoRA cannot be told one",
            "Leave task.rank out.",
        )
