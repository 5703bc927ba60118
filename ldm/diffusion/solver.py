"""Solvers: an adapter over schedulers, built for one call and never shared (they are not thread-safe).

Most are of diffusers; `by_times` has those of the models that come along. A scheduler is rebuilt to expect v with
clipping off, and is handed the v that belongs to the predicted clean latent: v = (alpha x - clean) / sigma. This is
exact, so a modifier of predictions works with every solver alike. Multistep solvers keep a history of what they are
handed; those that average raw outputs (PNDM, KDPM2) are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion import schedule
from ldm.diffusion.by_times import OURS
from ldm.diffusion.level import Level
from ldm.diffusion.sample import Generators, Prediction
from ldm.diffusion.schedule import Spacing
from ldm.errors import Code, LdmError

Space = Literal["times", "vp", "ve", "flow"]  # by training times; by sigma, x of unit variance; x = clean + sigma noise
FLAGS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
UNIFORM: frozenset[Spacing] = frozenset({"leading", "trailing", "linspace"})
EVERY: frozenset[Spacing] = frozenset(schedule.SPACINGS)


@dataclass(frozen=True)
class Spec:
    """One row of the table of solvers."""

    scheduler: str  # class name in diffusers; `by_times` has two of its own
    space: Space
    spacings: frozenset[Spacing] = EVERY
    config: Mapping[str, Any] = field(default_factory=dict)
    default: Spacing = "linspace"
    zero_snr: bool = True  # can start at alpha = 0
    ends_at_zero: bool = True  # can take a last step to sigma 0


SOLVERS: dict[str, Spec] = {
    "ddpm": Spec("DDPMScheduler", "times", UNIFORM | {"ays"}, default="leading"),
    "ddim": Spec("DDIMScheduler", "times", UNIFORM, default="leading"),
    "euler": Spec("EulerDiscreteScheduler", "ve", default="leading"),
    "euler-a": Spec("EulerAncestralDiscreteScheduler", "ve", default="leading"),
    "heun": Spec("HeunDiscreteScheduler", "ve", zero_snr=False),
    "dpm++ 2m": Spec("DPMSolverMultistepScheduler", "vp", config={"algorithm_type": "dpmsolver++"}),
    "dpm++ 2m sde": Spec("DPMSolverMultistepScheduler", "vp", config={"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ single": Spec("DPMSolverSinglestepScheduler", "vp", config={"lower_order_final": True}, zero_snr=False),
    "unipc": Spec("UniPCMultistepScheduler", "vp"),
    "deis": Spec("DEISMultistepScheduler", "vp", zero_snr=False, ends_at_zero=False),
    "lcm": Spec("LCMScheduler", "times", frozenset({"trailing"}), default="trailing"),
    "flow-euler": Spec(
        "FlowMatchEulerDiscreteScheduler",
        "flow",
        frozenset({"linspace", "karras", "exponential", "sigmas"}),
        zero_snr=False,
    ),
}


@dataclass(frozen=True)
class Run:
    """Which solver runs over which levels; `start` and `stop` are fractions of the training times (for a refiner)."""

    solver: str
    steps: int
    spacing: Spacing | Literal["auto"] = "auto"
    strength: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    sigmas: tuple[float, ...] | None = None
    eta: float = 0.0
    zero_snr: bool | None = None
    family: str = "sd"


class Solver:
    """`levels`, `start`, `scale` and `step` for one call of `sample`; `config` is the checkpoint's scheduler config."""

    def __init__(self, run: Run, config: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self.run, self.spec, self.device = run, spec_of(run.solver), torch.device(device)
        self.spacing = _spacing(run, self.spec, config)
        self.scheduler = _build(run, self.spec, self.spacing, config)
        _set_levels(self.scheduler, run, self.spec, self.spacing)
        self.origin, self.begin, self.end = self._bounds()
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(self.begin)
        self.scheduler.is_scale_input_called = True  # `scale` does it, in closed form
        accepted = inspect.signature(self.scheduler.step).parameters
        self._extra: dict[str, Any] = {"eta": run.eta} if "eta" in accepted else {}
        self._draws = "generator" in accepted

    @property
    def count(self) -> int:
        """How often the network is evaluated here."""
        return self.end - self.begin

    @property
    def steps(self) -> int:
        """Steps of the whole run: evaluations, where a step takes one; a refiner's part counts in."""
        order = int(getattr(self.scheduler, "order", 1))
        return -(-self._total // order)

    @property
    def _total(self) -> int:
        return len(self.scheduler.timesteps) - self.origin

    def levels(self) -> Iterator[Level]:
        for i in range(self.begin, self.end):
            yield self.level(i)

    def level(self, i: int) -> Level:
        """The level of evaluation i, counted from the start of the full list."""
        alpha, sigma = self._alpha_sigma(i)

        def each(value: float | int | Tensor, device: torch.device | str) -> Tensor:
            return torch.as_tensor(value, device=device).reshape(1)

        t, alpha, sigma = (each(v, self.device) for v in (self.scheduler.timesteps[i], alpha, sigma))
        return Level(t, alpha, sigma, each(i - self.origin, "cpu"), each(self._total, "cpu"))

    def start(self, noise: Tensor, known: Tensor | None = None) -> Tensor:
        """x of the first level: noise alone, or `known` brought to that level."""
        if known is None:
            return noise * self.scheduler.init_noise_sigma if self.spec.space != "flow" else noise
        if self.count == 0:
            return known
        first = self.scheduler.timesteps[self.begin : self.begin + 1].to(noise.device)
        if self.spec.space == "flow":
            return torch.as_tensor(self.scheduler.scale_noise(known, first.expand(len(known)), noise))
        return torch.as_tensor(self.scheduler.add_noise(known, noise, first.expand(len(known))))

    def scale(self, x: Tensor, level: Level) -> Tensor:
        """x as the network sees it, of unit variance: where the solver works with clean + sigma noise, times alpha."""
        return x * level.alpha.to(x.dtype).view(-1, 1, 1, 1) if self.spec.space == "ve" else x

    def step(self, prediction: Prediction, scaled: Tensor, x: Tensor, level: Level, generator: Generators) -> Tensor:
        """x at the next level."""
        level = level.expand(len(x))
        output = level.output(prediction.clean, scaled, "flow" if self.spec.space == "flow" else "v_prediction")
        if prediction.variance is not None and self.scheduler.config.get("variance_type", "") in (
            "learned",
            "learned_range",
        ):
            output = torch.cat([output, prediction.variance], dim=1)
        extra = dict(self._extra)
        if self._draws:
            extra["generator"] = (
                list(generator) if generator is not None and not isinstance(generator, torch.Generator) else generator
            )
        time = self.scheduler.timesteps[self.origin + int(level.index[0])]
        return torch.as_tensor(self.scheduler.step(output, time, x, return_dict=False, **extra)[0])

    def _alpha_sigma(self, i: int) -> tuple[Tensor, Tensor]:
        if self.spec.space == "times":
            signal = self.scheduler.alphas_cumprod[int(self.scheduler.timesteps[i])]
            return signal.sqrt(), (1 - signal).sqrt()
        sigma = self.scheduler.sigmas[i]
        if self.spec.space == "flow":
            return 1 - sigma, sigma
        alpha = (sigma**2 + 1) ** -0.5
        return alpha, sigma * alpha

    def _bounds(self) -> tuple[int, int, int]:
        """Origin (where strength begins), begin and end of the part of the list that is run here.

        A refiner goes on in the same list: its part has another begin and the same origin, so progress goes on too.
        """
        run, times, order = self.run, self.scheduler.timesteps, int(getattr(self.scheduler, "order", 1))
        origin, end = 0, len(times)
        if run.strength < 1.0:
            steps = -(-len(times) // order)
            origin = (steps - min(int(steps * run.strength), steps)) * order
        begin = origin
        trained = self.scheduler.config.num_train_timesteps
        if run.stop < 1.0:
            end = int((times >= round(trained * (1 - run.stop))).sum())
        if run.start > 0.0:
            count = int((times < round(trained * (1 - run.start))).sum())
            if order == 2 and count % 2 == 0:  # begin on a whole Heun step, not between its two halves
                count += 1
            begin = max(origin, len(times) - count)
        origin, begin = min(origin, len(times)), min(begin, len(times))
        return origin, begin, max(end, begin)


def spec_of(name: str) -> Spec:
    if name not in SOLVERS:
        import difflib

        near = difflib.get_close_matches(name, SOLVERS, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise LdmError(
            Code.USAGE,
            f"solver {name!r} is unknown",
            "it is not in the table of solvers",
            f"{hint}Choose one of: {', '.join(SOLVERS)}.",
        )
    return SOLVERS[name]


def spacing_table() -> dict[str, dict[Spacing, bool]]:
    """Which solver takes which spacing."""
    return {name: {s: s in spec.spacings for s in schedule.SPACINGS} for name, spec in SOLVERS.items()}


def _spacing(run: Run, spec: Spec, config: Mapping[str, Any]) -> Spacing:
    """The spacing asked for, or the one that the checkpoint's scheduler names."""
    wished: Any = run.spacing
    if wished == "auto" and run.sigmas is not None:
        wished = "sigmas"
    if wished == "auto":
        named = [s for s, flag in FLAGS.items() if config.get(flag)]
        wished = named[0] if named else config.get("timestep_spacing")
        return cast(Spacing, wished) if wished in spec.spacings else spec.default
    if wished not in spec.spacings:
        others = [n for n, s in SOLVERS.items() if wished in s.spacings]
        what, way = f"solver {run.solver!r} does not take the spacing {wished!r}", "Choose one of those, or"
        if run.spacing == "auto":  # nobody named a spacing: a list of sigmas was given
            what, way = f"sigmas needs a solver that takes such a list, and {run.solver!r} does not", "Choose"
        raise LdmError(
            Code.USAGE,
            what,
            f"it takes: {', '.join(s for s in schedule.SPACINGS if s in spec.spacings)}",
            f"{way} a solver that takes {wished!r}: {', '.join(others) or 'none does'}.",
        )
    if wished != "sigmas" and run.sigmas is not None:
        raise LdmError(
            Code.USAGE,
            f"spacing {wished!r} and a list of sigmas exclude each other",
            "both say which levels are visited",
            "Leave one of them out.",
        )
    if wished == "sigmas" and not run.sigmas:
        raise LdmError(
            Code.USAGE,
            "spacing 'sigmas' has no list",
            "the list of sigmas is empty",
            "Give sigmas, falling, such as 14.6,5,2,0.9,0.3.",
        )
    return cast(Spacing, wished)


def _scheduler(name: str) -> tuple[Any, Mapping[str, Any]]:
    """Ours, where there is one; else that of diffusers. And what it may be told."""
    if name in OURS:
        return OURS[name], OURS[name].DEFAULTS
    import diffusers.schedulers as stock  # late: it takes seconds

    cls = getattr(stock, name)
    return cls, inspect.signature(cls.__init__).parameters


def _build(run: Run, spec: Spec, spacing: Spacing, config: Mapping[str, Any]) -> Any:
    """The scheduler, with the checkpoint's schedule and our choices."""
    cls, known = _scheduler(spec.scheduler)
    wanted: dict[str, Any] = {k: v for k, v in config.items() if k in known}
    wanted |= {"prediction_type": "v_prediction", "clip_sample": False, "thresholding": False, **spec.config}
    wanted |= dict.fromkeys(FLAGS.values(), False)
    if spacing in FLAGS and FLAGS[spacing] in known and spacing != "beta":
        wanted[FLAGS[spacing]] = True
    if spacing in UNIFORM:
        wanted["timestep_spacing"] = spacing
    zero_snr = config.get("rescale_betas_zero_snr", False) if run.zero_snr is None else run.zero_snr
    if zero_snr and not spec.zero_snr:
        able = ", ".join(n for n, s in SOLVERS.items() if s.zero_snr)
        raise LdmError(
            Code.USAGE,
            f"solver {run.solver!r} cannot start at zero signal",
            "the schedule has zero terminal SNR",
            f"Choose one of: {able}.",
        )
    wanted["rescale_betas_zero_snr"] = bool(zero_snr)
    if config.get("use_dynamic_shifting"):
        raise LdmError(
            Code.USAGE,
            "the checkpoint's scheduler shifts its levels by the size of the picture",
            "use_dynamic_shifting belongs to model families that are not supported",
            "Use a model of the Stable Diffusion family.",
        )
    wanted |= {"use_lu_lambdas": False, "use_flow_sigmas": False}
    return cls(**{k: v for k, v in wanted.items() if k in known})


def _set_levels(scheduler: Any, run: Run, spec: Spec, spacing: Spacing) -> None:
    """The list of levels: by the scheduler itself where it knows the spacing, else computed here and put in place."""
    trained = scheduler.config.num_train_timesteps
    if run.solver == "lcm" and run.steps > (most := scheduler.config.original_inference_steps):
        raise LdmError(
            Code.USAGE,
            f"steps={run.steps} is too many for lcm",
            f"it was distilled for at most {most} steps",
            f"Use {most} steps or fewer.",
        )
    own = _own_sigmas(scheduler, run, spec, spacing)
    if run.steps > trained and spacing != "sigmas":
        raise _too_many(run, f"the model knows {trained} noise levels")
    if own is None:
        if spec.space == "times" and spacing == "leading" and run.steps + scheduler.config.steps_offset > trained:
            raise _too_many(run, "leading spacing begins one level late", trained - scheduler.config.steps_offset)
        scheduler.set_timesteps(run.steps)
    elif spec.space == "times":
        table = np.sqrt((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).numpy()
        times = [round(t) for t in schedule.time_of(own, table)]
        if len(set(times)) < len(times):
            raise _too_many(run, "levels would repeat")
        scheduler.set_timesteps(timesteps=times)
    elif spec.space == "flow":
        scheduler.set_timesteps(len(own))
        scheduler.sigmas = torch.from_numpy(np.append(own, 0.0)).float()
        scheduler.timesteps = scheduler.sigmas[:-1] * trained
    else:
        _replace_levels(scheduler, own, spec)
    falling = scheduler.timesteps if spec.space == "times" else scheduler.sigmas[:-1]
    step = int(getattr(scheduler, "order", 1))
    if bool((falling[step:] >= falling[:-step]).any()):
        raise _too_many(run, f"levels would repeat in the spacing {spacing!r}")


def _too_many(run: Run, why: str, most: int = 0) -> LdmError:
    return LdmError(
        Code.USAGE,
        f"steps={run.steps} is too many for {run.solver}",
        why,
        f"Use {most} or fewer." if most else f"Use fewer, such as {max(1, run.steps // 2)}.",
    )


def _own_sigmas(scheduler: Any, run: Run, spec: Spec, spacing: Spacing) -> schedule.Sigmas | None:
    """Sigmas that the scheduler cannot make by itself (None: it can)."""
    if spacing == "sigmas":
        own = np.asarray(run.sigmas, dtype=np.float64)
        own = own[:-1] if own[-1] == 0 else own
        if len(own) == 0 or np.any(np.diff(own) >= 0) or own[-1] <= 0:
            raise LdmError(
                Code.USAGE,
                f"sigmas {run.sigmas} do not fall",
                "each level must be less noisy than the one before it",
                "List them from large to small; a last 0 may stand or be left out.",
            )
        if spec.space == "flow" and own[0] > 1:
            raise LdmError(
                Code.USAGE,
                f"sigmas {run.sigmas} are too large",
                "a flow runs from sigma 1 to 0",
                "Use values of at most 1.",
            )
        return own
    if spacing == "ays":
        return schedule.ays(run.steps, run.family)
    native = scheduler.config
    if (
        spec.space == "flow"
        or (spacing in UNIFORM and "timestep_spacing" in native)
        or (spacing in FLAGS and native.get(FLAGS[spacing]))
    ):
        return None
    if spec.space == "times" or (spacing == "linspace" and "timestep_spacing" not in native):
        return None
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().double().numpy()
    if spacing in UNIFORM:
        return np.asarray(
            np.interp(
                _uniform_times(spacing, run.steps, len(table), native.get("steps_offset", 1)),
                np.arange(len(table)),
                table,
            )
        )
    low, high = float(table[0]), float(table[-1])
    return {"karras": schedule.karras, "exponential": schedule.exponential, "beta": schedule.beta}[spacing](
        low, high, run.steps
    )


def _uniform_times(spacing: Spacing, steps: int, trained: int, offset: int) -> schedule.Sigmas:
    """Training times of the three uniform spacings (Lin 2023, table 2), for schedulers that know only one of them."""
    if spacing == "trailing":
        return np.round(np.arange(trained, 0, -trained / steps)) - 1
    if spacing == "leading":
        return np.asarray((np.arange(0, steps) * (trained // steps))[::-1] + offset, dtype=np.float64)
    return np.linspace(0, trained - 1, steps + 1)[::-1][:-1]


def _replace_levels(scheduler: Any, own: schedule.Sigmas, spec: Spec) -> None:
    """Put a list of ours in the place of the scheduler's: sigmas with a last one, and their (fractional) times."""
    table = np.sqrt((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().numpy()
    times = torch.from_numpy(schedule.time_of(own, table)).float()
    last = 0.0 if spec.ends_at_zero else min(float(table[0]), float(own[-1]) / 2)
    sigmas = torch.from_numpy(np.append(own, last)).float()
    scheduler.set_timesteps(len(own))
    if getattr(scheduler, "order", 1) == 2:  # Heun visits each inner level twice
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
        times = torch.cat([times[:1], times[1:].repeat_interleave(2)])
    scheduler.sigmas, scheduler.timesteps = sigmas, times
