"""Pictures to latents while training: encoded on the fly or from a cache, drawn from the posterior by place."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.nets.coder import Posterior
from train.draws import Draws
from train.task import Setting


@torch.no_grad()
def moments(vae: Autoencoder, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [n,C,h,w] fp32 of the posterior of pictures [n,3,H,W] in [-1,1], straight from the network.

    These two are what a cache keeps, as `mean` and `std`: scale and shift of the autoencoder come later (`drawn`).
    """
    half = torch.is_autocast_enabled(picture.device.type) and not vae.config.get("force_upcast")
    with torch.autocast(picture.device.type, enabled=half):
        encoded = vae.model.encode(picture)
    if isinstance(encoded, Posterior):
        return encoded.mean.float(), encoded.std.float()
    return encoded.float(), torch.zeros_like(encoded, dtype=torch.float32)


def drawn(vae: Autoencoder, mean: Tensor, std: Tensor, draws: Draws, name: str = "posterior") -> Tensor:
    """Latents of unit variance, (mean + std * noise - shift) * scale."""
    return (mean + std * draws.normal(name, tuple(mean.shape[1:])) - vae.shift) * vae.scale


def latents(vae: Autoencoder, draws: Draws, batch: Batch) -> Tensor:
    """[n,C,h,w] of a batch."""
    if "mean" in batch.extra:
        return drawn(vae, batch.extra["mean"], batch.extra["std"], draws)
    return drawn(vae, *moments(vae, picture(batch)), draws)


def check_sides(setting: Setting, factor: int, what: str) -> None:
    """Every size that a batch may have is a whole number of latents; said before anything is trained."""
    square = (setting.size, setting.size)
    for size in setting.sizes or (square,):
        if any(side % factor for side in size):
            fit = " and ".join(str(max(1, round(side / factor)) * factor) for side in dict.fromkeys(size))
            bucket = size != square
            raise LdmError(
                Code.USAGE,
                f"The bucket {size[0]}x{size[1]} does not fit {what}."
                if bucket
                else f"data.size={setting.size} does not fit {what}.",
                f"It makes one latent of {factor} pixels a side.",
                f"Set data.buckets.step or sizes to multiples of {factor}, such as {fit}."
                if bucket
                else f"Set data.size to a multiple of {factor}, such as {fit}.",
            )


def picture(batch: Batch) -> Tensor:
    """[n,3,H,W] of a batch."""
    if batch.image is None:
        raise LdmError(
            Code.USAGE,
            "the pictures of the data set are not there",
            "only their cached latents were given, and this task looks at the pictures as well",
            "Leave the latent cache out.",
        )
    return batch.image


def latents_with_hole(vae: Autoencoder, draws: Draws, batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Latents, and the channels [n,1+C,h,w] beside them of a 9-channel network: mask, latent of the masked picture.

    As in stock pipelines: the hole is grey (0) in the picture, and the mask [n,1,H,W] is made small without blending.
    Both pictures are encoded in one call.
    """
    binary = (mask >= 0.5).float()
    image = picture(batch)
    mean, std = moments(vae, torch.cat([image, image * (1 - binary)]))
    count = len(batch)
    clean = drawn(vae, mean[:count], std[:count], draws)
    masked = drawn(vae, mean[count:], std[count:], draws, "posterior of the masked picture")
    small = torch.nn.functional.interpolate(binary, size=clean.shape[-2:])
    return clean, torch.cat([small, masked], dim=1)


def whole_hole(vae: Autoencoder, batch: Batch, seed: int) -> Tensor:
    """[n,1+C,h,w] beside the latents of previews of a 9-channel network: everything is to be painted."""
    image = picture(batch)
    draws = Draws(seed, torch.arange(len(batch), device=image.device), len(batch), "preview")
    return latents_with_hole(vae, draws, batch, image.new_ones(len(batch), 1, *image.shape[-2:]))[1]
