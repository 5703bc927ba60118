"""Moving averages of weights: what is looked at and saved is smoother than what is stepped.

Two kinds. `warmed` is the usual exponential average, which starts as a short one so that random first weights are soon
forgotten. `power` keeps averages whose length is a fixed share of the training so far; from stored ones, an average of
any other length can be made after the run is over (Karras et al. 2024, "Analyzing and improving the training dynamics
of diffusion models", section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from ldm.store.weights import load_weights
from ldm.store.write import remove, staged, write_weights

FOLDER = "averages"
WIDEST = 0.288  # the standard deviation of a flat profile on [0,1] is 1 / sqrt(12)
MISSED = 0.1  # of a wanted profile, at most: of the stored 0.05 and 0.10 all between are within half of that


def warmed(decay: float) -> Callable[[int], float]:
    """d_n = min(decay, (1 + n) / (10 + n)) for the n-th update."""
    return lambda n: min(decay, (1 + n) / (10 + n))


def power(width: float) -> Callable[[int], float]:
    """d_n = (1 - 1/t)^(gamma + 1), t = n + 1: the average weighs what was at time s by s^gamma (eq. 1 and 2 there)."""
    exponent = exponent_of(width)
    return lambda n: (1.0 - 1.0 / (n + 1)) ** (exponent + 1.0)


def exponent_of(width: float) -> float:
    """gamma of the profile s^gamma on [0,1] with this standard deviation: the largest root of
    gamma^3 + 7 gamma^2 + (16 - width^-2) gamma + 12 - width^-2 = 0, from sigma = sqrt((g+1) / ((g+2)^2 (g+3)))."""
    if not 0.0 < width <= WIDEST:
        raise LdmError(
            Code.USAGE,
            f"An average of relative width {width:g} does not exist.",
            f"Its length is a share of the training so far: above 0, and at most {WIDEST} (all of it alike).",
            "Choose widths such as 0.05 and 0.10.",
        )
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9 * max(1.0, abs(root.real))))


class Average:
    """a <- d_n a + (1 - d_n) p for each parameter p, in its own type and place."""

    def __init__(self, params: Mapping[str, nn.Parameter], decay: Callable[[int], float]) -> None:
        self.params = dict(params)
        self.decay = decay
        self.count = 0
        self.tensors = {name: p.detach().clone() for name, p in self.params.items()}

    @torch.no_grad()
    def update(self) -> None:
        d = self.decay(self.count)
        torch._foreach_lerp_(list(self.tensors.values()), list(self.params.values()), 1.0 - d)
        self.count += 1


def store(folder: Path, step: int, averages: Mapping[float, Average]) -> Path:
    """Keeps power averages for a choice afterwards: `averages/<step>.safetensors`; what is there already stays."""
    path = folder / FOLDER / f"{step}.safetensors"
    if not path.exists():
        tensors = {f"{width}/{name}": t for width, a in averages.items() for name, t in a.tensors.items()}
        counts = {f"count {width}": str(average.count) for width, average in averages.items()}
        with staged(path) as stage:
            write_weights(stage, tensors, {"ldm.step": str(step), **counts})
    return path


def forget(folder: Path, step: int) -> None:
    """Removes stored averages of steps after `step`, which are done again and may come out otherwise, and what was
    left half written. For who holds the run's lock."""
    for path in sorted((folder / FOLDER).iterdir()) if (folder / FOLDER).is_dir() else ():
        if path.name.startswith(".") or (path.stem.isdigit() and int(path.stem) > step):
            remove(path)


def chosen(folder: Path, width: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of relative width `width` at `step` (None: the last stored), made of the stored ones.

    The weights of the sum are those whose profiles come nearest to the wanted one, in the sense of least squares; one
    that they come nowhere near is refused.
    """
    exponent_of(width)
    found = [load_weights(path) for path in sorted((folder / FOLDER).glob("*.safetensors"))]
    steps = [int(weights.metadata["ldm.step"]) for weights in found]
    last = max(steps, default=0) if step is None else step
    stored = [
        (weights, float(key.removeprefix("count ")), int(count))
        for weights, at in zip(found, steps, strict=True)
        if at <= last
        for key, count in weights.metadata.items()
        if key.startswith("count ") and int(count) > 0
    ]
    if not stored:
        raise LdmError(
            Code.FILE,
            f"{folder / FOLDER} holds no averages up to step {last}.",
            "A run stores them only if it is asked to, each time it saves.",
            "Train with optim.snapshots=[0.05,0.10], or choose a later step.",
        )
    end = max(count for _, _, count in stored)
    times, widths = [float(count) for _, _, count in stored], [old for _, old, _ in stored]
    share = mixture(times, widths, float(end), width)
    if missed(times, widths, float(end), width, share) > MISSED:
        kept = sorted(set(widths))
        told = f"between {kept[0]:g} and {kept[-1]:g}" if len(kept) > 1 else f"near {kept[0]:g}"
        raise LdmError(
            Code.USAGE,
            f"An average of width {width:g} cannot be made of what {folder / FOLDER} holds.",
            f"Its averages are {', '.join(f'{each:g}' for each in kept)} wide, stored {len(set(times))} times; "
            "no mixture of them comes near enough to it.",
            f"Choose a width {told}; the oftener a run saves, the further beyond one may go.",
        )
    names = {name.partition("/")[2] for name in stored[0][0]}
    total = {name: torch.zeros(stored[0][0].entry(f"{widths[0]}/{name}").shape, dtype=torch.float64) for name in names}
    for (weights, old, _), part in zip(stored, share, strict=True):
        for name, tensor in total.items():
            tensor.add_(weights[f"{old}/{name}"].double(), alpha=float(part))
    return {name: tensor.float() for name, tensor in total.items()}


def mixture(times: Sequence[float], widths: Sequence[float], time: float, width: float) -> NDArray[np.float64]:
    """[k] weights w that minimise |sum_i w_i p_i - p|^2 for the profiles p_i of the stored averages (algorithm 3)."""
    t, g = np.array([*times, time]), np.array([exponent_of(w) for w in [*widths, width]])
    products = _product(t[:, None], g[:, None], t[None], g[None])
    weights, *_ = np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=None)
    return np.asarray(weights)


def missed(
    times: Sequence[float], widths: Sequence[float], time: float, width: float, weights: NDArray[np.float64]
) -> float:
    """|sum_i w_i p_i - p| / |p|: how far the profile of a mixture is from the wanted one."""
    t, g, w = np.array([*times, time]), np.array([exponent_of(w) for w in [*widths, width]]), np.append(weights, -1.0)
    products = _product(t[:, None], g[:, None], t[None], g[None])
    return float(np.sqrt(max(0.0, w @ products @ w) / products[-1, -1]))


def _product(
    ta: NDArray[np.float64], ga: NDArray[np.float64], tb: NDArray[np.float64], gb: NDArray[np.float64]
) -> NDArray[np.float64]:
    """<p_a, p_b> for p(s) = (g + 1) s^g / t^(g+1) on [0,t]: (ga+1)(gb+1) m^(ga+gb+1) / ((ga+gb+1) ta^(ga+1) tb^(gb+1)),
    m = min(ta, tb); the powers as ratios, which do not overflow."""
    m = np.minimum(ta, tb)
    ratios = (m / ta) ** (ga + 1.0) * (m / tb) ** (gb + 1.0) / m
    return np.asarray((ga + 1.0) * (gb + 1.0) / (ga + gb + 1.0) * ratios)
