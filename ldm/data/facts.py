"""What can be said of one picture without a network: size, sharpness, colours, and two small prints to compare it by.

*Edge width.* For an edge blurred by a Gaussian of sigma s, the energy of the gradient over the energy of the Laplacian
is 2 s^2, whatever the contrast and the number of edges. So s = sqrt(E|grad|^2 / (2 E[lap^2])) is how wide edges are, in
pixels at the training size. The plain variance of the Laplacian depends on both, and calls a quiet picture blurred.

*Prints.* 64 bits of the signs of the lowest frequencies (after Zauner 2010), by which pictures are found, and 8x8 mean
colours, by which they are compared: the bits know no colour, and a red car is not a blue one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from ldm.images import Picture
from ldm.images.save import eight_bits

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
SIDE, BANDS, THUMB = 32, 8, 8
DEAD_ZONE = 0.1  # of the root mean square: a frequency that is nearly absent gives a 0, not a toss of a coin
CLEAR = 0.005  # share of a picture that is transparent, from which on its alpha says where the subject is
FLAT = 2.0  # standard deviation, of 255, under which a picture shows nothing
_K, _N = np.arange(BANDS)[:, None], np.arange(SIDE)[None, :]
_COSINES = np.cos(np.pi * (2 * _N + 1) * _K / (2 * SIDE)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Facts:
    """One readable picture. `edge` is the edge width in pixels at the training size (nan: no edge to judge by)."""

    sha256: str
    width: int  # upright
    height: int
    edge: float
    flat: bool
    bits: int  # of the lowest frequencies
    thumb: bytes  # 8x8 colours
    alpha: float  # share of the picture that is transparent
    grey: bool
    deep: bool  # 16 bits a channel
    profile: bool  # another space than sRGB
    notes: tuple[str, ...]  # what opening changed
    extent: float  # share of the picture in which nearly all of its edges (or all that is not transparent) lie

    @property
    def aspect(self) -> float:
        """Long side over short side."""
        return max(self.width, self.height) / min(self.width, self.height)


def facts(picture: Picture, size: int) -> Facts:
    """Facts of a picture that is trained at `size` (its short side; a smaller picture is judged as it is)."""
    small = shrunk(picture, size)
    rgb = small.rgb()
    luma = rgb @ LUMA * 255
    alpha = 0.0 if small.alpha is None else 1 - float(small.alpha.mean()) / np.iinfo(small.alpha.dtype).max
    return Facts(
        picture.sha256,
        picture.width,
        picture.height,
        edge_width(luma),
        bool(luma.std() < FLAT and rgb.std((0, 1)).max() * 255 < FLAT),
        frequency_bits(luma),
        _scaled(rgb, THUMB).tobytes(),
        alpha,
        picture.pixels.shape[2] == 1,
        picture.pixels.dtype == np.uint16,
        picture.icc is not None and not _is_srgb(picture.icc),
        picture.notes,
        extent(
            luma, None if small.alpha is None or alpha < CLEAR else small.alpha > np.iinfo(small.alpha.dtype).max // 2
        ),
    )


def shrunk(picture: Picture, size: int) -> Picture:
    """The picture with 8 bits, its short side at most `size` pixels, colours not yet converted."""
    pixels, alpha = eight_bits(picture.pixels), None if picture.alpha is None else eight_bits(picture.alpha)
    factor = size / min(picture.size)
    if factor >= 1:
        return replace(picture, pixels=pixels, alpha=alpha)
    planes = pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], axis=2)
    image = Image.fromarray(np.ascontiguousarray(planes[..., 0] if planes.shape[2] == 1 else planes))
    goal = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    out = np.asarray(image.resize(goal, Image.Resampling.LANCZOS, reducing_gap=3.0))  # alpha weighs the colours
    out = out[..., None] if out.ndim == 2 else out
    channels = pixels.shape[2]
    return replace(picture, pixels=out[..., :channels], alpha=None if alpha is None else out[..., channels])


def edge_width(luma: npt.NDArray[np.float32]) -> float:
    """The sigma of the blur of the edges in [H,W], in pixels; nan where there are none (or under 3 pixels)."""
    if min(luma.shape) < 3:
        return float("nan")
    inner = luma[1:-1, 1:-1]
    lap = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    gradient = float((np.diff(luma, axis=0) ** 2).mean() + (np.diff(luma, axis=1) ** 2).mean())
    energy = float((lap**2).mean())
    return float("nan") if energy < 1e-3 else (gradient / (2 * energy)) ** 0.5


def extent(luma: npt.NDArray[np.float32], opaque: npt.NDArray[np.bool_] | None = None) -> float:
    """How much of a picture its subject fills, as far as edges tell: the box whose sides leave out 5 % of the energy of
    the gradient each. A thing on a plain ground fills little; a busy picture nearly all. With alpha: what is opaque."""
    height, width = luma.shape
    if opaque is not None and opaque.any():
        rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
        return float((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / (height * width))
    energy = np.zeros_like(luma)
    energy[:-1] += np.diff(luma, axis=0) ** 2
    energy[:, :-1] += np.diff(luma, axis=1) ** 2
    return _span(energy.sum(1)) * _span(energy.sum(0))


def _span(profile: npt.NDArray[np.float32]) -> float:
    """The share of an axis between its 5 and 95 % of a profile; 1 where there is nothing."""
    total = profile.cumsum()
    if not total[-1] > 0:
        return 1.0
    first, last = np.searchsorted(total, [0.05 * total[-1], 0.95 * total[-1]])
    return float((last - first + 1) / len(profile))


def frequency_bits(luma: npt.NDArray[np.float32]) -> int:
    """Which of the 63 lowest frequencies of a cosine transform are clearly positive, as a number of 64 bits."""
    square = np.asarray(Image.fromarray(luma).resize((SIDE, SIDE), Image.Resampling.BOX))
    waves = (_COSINES @ square @ _COSINES.T).ravel()[1:]
    level = DEAD_ZONE * float(np.sqrt((waves**2).mean()))
    return int.from_bytes(np.packbits(waves > level).tobytes(), "big")


def _scaled(rgb: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(np.rint(rgb * 255).astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def _is_srgb(icc: bytes) -> bool:
    """By the words of the profile, in either of its two encodings."""
    return b"sRGB" in icc or "sRGB".encode("utf-16-be") in icc
