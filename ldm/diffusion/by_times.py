"""DDIM and LCM: the solvers of the models that come along, to the very bits of the schedulers of diffusers whose names
they bear. To import that library takes seconds, which a first picture need not wait for (docs/decisions.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from ldm.diffusion.sample import Generators
from ldm.diffusion.training import betas, zero_terminal
from ldm.fields import Fields


class ByTimes(ABC):
    """A solver over whole training times. It is handed v = alpha e - sigma c of a clean latent c."""

    order = 1
    init_noise_sigma = 1.0
    DEFAULTS: ClassVar[Mapping[str, Any]] = MappingProxyType({
        "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
        "trained_betas": None, "set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    })  # fmt: skip

    def __init__(self, **fields: Any) -> None:
        self.config = Fields({**self.DEFAULTS, **fields})
        table = betas(self.config, self.config.num_train_timesteps, torch.float32)
        if self.config.rescale_betas_zero_snr:
            table = without_end(table)
        self.alphas_cumprod = torch.cumprod(1.0 - table, dim=0)
        self.last = torch.tensor(1.0) if self.config.set_alpha_to_one else self.alphas_cumprod[0]
        self.timesteps = torch.empty(0, dtype=torch.int64)

    @abstractmethod
    def set_timesteps(self, steps: int) -> None: ...

    def add_noise(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        signal = self.alphas_cumprod[times.cpu()].to(clean).view(-1, *(1,) * (clean.dim() - 1))
        return signal**0.5 * clean + (1 - signal) ** 0.5 * noise

    def clean(self, v: Tensor, x: Tensor, time: Tensor) -> Tensor:
        signal = self.alphas_cumprod[time]
        return signal**0.5 * x - (1 - signal) ** 0.5 * v


class Ddim(ByTimes):
    """Song 2021, eq. 12 and 16. `eta`: how much of the noise is drawn anew."""

    def set_timesteps(self, steps: int) -> None:
        trained, spacing = self.config.num_train_timesteps, self.config.timestep_spacing
        if spacing == "linspace":
            times = np.linspace(0, trained - 1, steps).round()[::-1]
        elif spacing == "leading":
            times = (np.arange(steps) * (trained // steps))[::-1] + self.config.steps_offset
        else:
            times = np.round(np.arange(trained, 0, -trained / steps)) - 1
        self.timesteps = torch.from_numpy(times.astype(np.int64))
        self._stride = trained // steps

    def step(
        self, v: Tensor, time: Tensor, x: Tensor, eta: float = 0.0, generator: Generators = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:  # fmt: skip
        now, earlier = self.alphas_cumprod[time], int(time) - self._stride
        then = self.alphas_cumprod[earlier] if earlier >= 0 else self.last
        noise = now**0.5 * v + (1 - now) ** 0.5 * x
        drawn = eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        out = then**0.5 * self.clean(v, x, time) + (1 - then - drawn**2) ** 0.5 * noise
        return (out + drawn * normal_like(x, generator) if eta > 0 else out,)


class Lcm(ByTimes):
    """Luo 2023: to the clean latent at once, and back to the next level with other noise."""

    DEFAULTS = MappingProxyType({
        **ByTimes.DEFAULTS, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "original_inference_steps": 50, "timestep_scaling": 10.0,
    })  # fmt: skip
    DATA = 0.5  # the deviation of the data in the boundary condition

    def set_timesteps(self, steps: int) -> None:
        """Some of the times that the student was distilled at, evenly spread."""
        distilled = self.config.original_inference_steps
        times = (np.arange(1, distilled + 1) * (self.config.num_train_timesteps // distilled) - 1)[::-1]
        chosen = np.floor(np.linspace(0, distilled, num=steps, endpoint=False)).astype(np.int64)
        self.timesteps = torch.from_numpy(times[chosen].copy())

    def step(
        self, v: Tensor, time: Tensor, x: Tensor, generator: Generators = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        scaled = time * self.config.timestep_scaling
        kept, told = self.DATA**2 / (scaled**2 + self.DATA**2), scaled / (scaled**2 + self.DATA**2) ** 0.5
        out = told * self.clean(v, x, time) + kept * x
        later = self.timesteps[self.timesteps < time]
        if len(later):
            then = self.alphas_cumprod[later[0]]
            out = then.sqrt() * out + (1 - then).sqrt() * normal_like(x, generator)
        return (out,)


# By the names of diffusers.
OURS: Mapping[str, type[ByTimes]] = MappingProxyType({"DDIMScheduler": Ddim, "LCMScheduler": Lcm})


def normal_like(x: Tensor, generator: Generators) -> Tensor:
    """One generator for all rows, or one for each; drawn where the generator is."""
    if generator is None or isinstance(generator, Generator):
        device = x.device if generator is None else generator.device
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
    rows = [torch.randn(1, *x.shape[1:], generator=g, dtype=x.dtype, device=g.device) for g in generator]
    return torch.cat(rows).to(x.device)


def without_end(table: Tensor) -> Tensor:
    """The betas of a schedule, so that it ends without signal."""
    signal = zero_terminal(torch.cumprod(1.0 - table, dim=0))
    return 1 - torch.cat([signal[:1], signal[1:] / signal[:-1]])
