"""What fits what: requests, controls and refiners against a model, said before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ldm.diffusion.level import Kind
from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.unet import UNet
from ldm.store.parts import Parts
from pipelines.request import Request, nearest_side


def check_size(size: tuple[int, int], factor: int) -> None:
    """Sides are multiples of 8, and of what one latent covers."""
    step = max(8, factor)
    for name, side in zip(("width", "height"), size, strict=True):
        if side % step:
            raise LdmError(
                Code.USAGE,
                f"{name}={side} does not fit the model's autoencoder",
                f"it must be a multiple of {step}",
                f"Use {nearest_side(max(1, round(side / step)) * step)}.",
            )


def check_request(parts: Parts, kind: Kind, request: Request) -> None:
    """Solver, schedule and prediction type agree."""
    reason = parts.reason if request.prediction is None else "set by hand"
    told = parts.scheduler.get("rescale_betas_zero_snr", False)
    if (told if request.zero_snr is None else request.zero_snr) and kind == "epsilon":
        raise LdmError(
            Code.USAGE,
            f"zero terminal SNR does not fit {parts.name}",
            f"it predicts epsilon ({reason}), which says nothing where there is no signal",
            "Set prediction to v_prediction if the model was trained so, or zero_snr to false.",
        )
    if request.guidance.zero_steps and kind != "flow":
        raise LdmError(
            Code.USAGE,
            f"guidance.zero_steps={request.guidance.zero_steps} does not fit {parts.name}",
            f"it stands still for the first steps of a flow; the model predicts {kind} ({reason})",
            "Leave zero_steps at 0.",
        )
    if request.solver != "auto" and (request.solver == "flow-euler") != (kind == "flow"):
        raise LdmError(
            Code.USAGE,
            f"solver {request.solver!r} does not fit {parts.name}",
            f"the model predicts {kind} ({reason})",
            "Leave the solver at auto, or choose flow-euler for flow models and another for all others.",
        )


def check_control(network: UNet, control: nn.Module, name: str) -> None:
    """A ControlNet mirrors the encoder of the U-Net that it was made for."""
    _same(
        network.config,
        control.config,
        f"control {name}",
        ("block_out_channels", "cross_attention_dim", "addition_embed_type"),
    )
    if int(control.config.in_channels) != network.latent_channels:  # type: ignore[union-attr, arg-type]
        _same(network.config, control.config, f"control {name}", ("in_channels",))


def check_refiner(network: UNet, refiner: UNet, vaes: tuple[Autoencoder, Autoencoder], name: str) -> None:
    """A refiner goes on with the same latents: as many channels, in the same scale."""
    if int(refiner.config.in_channels) != network.latent_channels:
        _same(network.config, refiner.config, f"refiner {name}", ("in_channels",))
    _same(vaes[0], vaes[1], f"refiner {name}", ("factor", "scale", "shift"))


def _same(base: Any, other: Any, what: str, names: tuple[str, ...]) -> None:
    """The configurations agree in these fields; the first that does not is named."""
    for name in names:
        ours, theirs = _plain(getattr(base, name, None)), _plain(getattr(other, name, None))
        if ours != theirs:
            raise LdmError(
                Code.MODEL,
                f"{what} was made for another base",
                f"its {name} is {theirs}, and this model's is {ours}",
                "Take one that was made for this model's family.",
            )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def folder_stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells weights (a file, or those of a folder) from their earlier selves without reading them."""
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return tuple((f.name, (s := f.stat()).st_mtime_ns, s.st_size) for f in files)
