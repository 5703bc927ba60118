"""Noise schedules as training sees them: tables of alpha and sigma, drawn levels, and the scheduler that samples them.

A schedule is made from a `scheduler_config.json`, also when a run describes a new one (`scheduler_config`): what is
trained and what is saved beside the weights are then the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.diffusion.level import Kind, Level
from ldm.errors import Code, LdmError

Shape = Literal["linear", "scaled_linear", "cosine", "flow"]
Times = Literal["uniform", "logit_normal", "power"]
STEPS = 1000  # training times of every schedule that is made here
_BETAS: dict[str, tuple[str, float, float]] = {  # our name -> diffusers' name, first and last beta
    "linear": ("linear", 1e-4, 0.02),
    "scaled_linear": ("scaled_linear", 0.00085, 0.012),
    "cosine": ("squaredcos_cap_v2", 1e-4, 0.02),
}


def scheduler_config(
    kind: Kind, shape: Shape, *, zero_snr: bool = False, shift: float = 1.0, learned_variance: bool = False
) -> dict[str, Any]:
    """The `scheduler_config.json` of a new schedule: DDIM, DDPM where variances are learned, Euler for a flow.

    With zero terminal SNR sampling has to begin at the last time: trailing spacing (Lin 2023, section 3.3).
    """
    if shape == "flow":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": STEPS, "shift": shift}
    name, first, last = _BETAS[shape]
    config = {
        "num_train_timesteps": STEPS,
        "beta_schedule": name,
        "beta_start": first,
        "beta_end": last,
        "prediction_type": kind,
        "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": "trailing" if zero_snr else "leading",
        "steps_offset": 1,
        "clip_sample": False,
    }
    if learned_variance:
        return {"_class_name": "DDPMScheduler", **config, "variance_type": "learned_range"}
    return {"_class_name": "DDIMScheduler", **config, "set_alpha_to_one": False}


@dataclass(frozen=True, eq=False)
class Schedule:
    """alpha and sigma of each training time, [T] fp64 on the CPU; of a flow only T and `shift` count."""

    alphas: Tensor
    sigmas: Tensor
    flow: bool = False
    shift: float = 1.0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Schedule:
        """From a scheduler config: alpha_t^2 = prod_{i<=t} (1 - beta_i)."""
        steps = int(config.get("num_train_timesteps", STEPS))
        if str(config.get("_class_name", "")).startswith("FlowMatch"):
            sigma = torch.arange(1, steps + 1, dtype=torch.float64) / steps
            return cls(1 - sigma, sigma, True, float(config.get("shift", 1.0)))
        signal = (1 - betas(config, steps)).cumprod(0)
        if config.get("rescale_betas_zero_snr"):
            signal = zero_terminal(signal)
        return cls(signal.sqrt(), (1 - signal).sqrt())

    def __len__(self) -> int:
        return len(self.alphas)

    def level(self, u: Tensor) -> Level:
        """The level of u [B] in [0,1), noisier with u: t = floor(T u).

        Of a flow: sigma = s u / (1 + (s - 1) u), t = T sigma; a shift s above 1 prefers noise (Esser 2024, eq. 23).
        """
        if not self.flow:
            return self.at((u * len(self)).long().clamp(max=len(self) - 1))
        sigma = self.shift * u / (1 + (self.shift - 1) * u)
        return _level(sigma * len(self), 1 - sigma, sigma)

    def at(self, t: Tensor) -> Level:
        """The level of the training times t [B] int64."""
        return _level(t, *(table.float().to(t.device)[t] for table in (self.alphas, self.sigmas)))


@dataclass(frozen=True)
class Posterior:
    """q(x_{t-1} | x_t, clean) at some times [B]: mean = from_clean * clean + from_x * x_t; and log beta_t.

    Ho et al. 2020, eq. 7. At t = 0 the variance is 0, and its logarithm that of t = 1 (Nichol & Dhariwal 2021).
    """

    from_clean: Tensor
    from_x: Tensor
    log_variance: Tensor
    log_beta: Tensor

    @classmethod
    def at(cls, schedule: Schedule, t: Tensor) -> Posterior:
        """Of a schedule of betas."""
        signal = schedule.alphas**2
        before = torch.cat([torch.ones_like(signal[:1]), signal[:-1]])
        noise = (schedule.sigmas**2).clamp(min=1e-20)
        earlier = torch.cat([torch.zeros_like(noise[:1]), noise[:-1]])
        beta = (1 - signal / before).clamp(min=1e-20)
        variance = beta * earlier / noise
        variance[0] = variance[1]
        tables = (before.sqrt() * beta / noise, (1 - beta).sqrt() * earlier / noise, variance.log(), beta.log())
        return cls(*(table.float().to(t.device)[t] for table in tables))


def spread_times(u: Tensor, times: Times, *, mean: float = 0.0, spread: float = 1.0, power: float = 1.0) -> Tensor:
    """u [B], uniform in [0,1), to times of another density; stratified stays stratified, for it is a quantile.

    logit_normal: sigmoid(mean + spread * Phi^-1(u)) (Esser 2024, eq. 19). power: u^power, below 1 prefers high noise.
    """
    if times == "logit_normal":
        normal = torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))
        u = torch.sigmoid(mean + spread * normal).float()
    elif times == "power":
        u = u**power
    return u.clamp(max=1 - 2.0**-24)


def zero_terminal(signal: Tensor) -> Tensor:
    """alpha^2 [T] with no signal at the end: alpha_t' = a_0 (a_t - a_T) / (a_0 - a_T)  (Lin 2023, algorithm 1)."""
    alpha = signal.sqrt()
    first, last = alpha[0], alpha[-1]
    return ((alpha - last) * (first / (first - last))) ** 2


def betas(config: Mapping[str, Any], steps: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """beta_t [T] as diffusers means the names."""
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=dtype)
    first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    name = config.get("beta_schedule", "linear")
    if name == "linear":
        return torch.linspace(first, last, steps, dtype=dtype)
    if name == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, steps, dtype=dtype) ** 2
    if name == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
        part = torch.arange(steps + 1, dtype=torch.float64) / steps
        signal = ((part + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        return (1 - signal[1:] / signal[:-1]).clamp(max=0.999).to(dtype)
    raise LdmError(
        Code.MODEL,
        f"the noise schedule {name!r} cannot be trained",
        "beta_schedule in scheduler_config.json is none of linear, scaled_linear and squaredcos_cap_v2",
        "Name the noise of the run yourself in task.noise.",
    )


def _level(t: Tensor, alpha: Tensor, sigma: Tensor) -> Level:
    """A level of no run: index and count stay on the CPU and say nothing."""
    nothing = torch.zeros(len(t), dtype=torch.long)
    return Level(t, alpha, sigma, nothing, nothing + 1)
