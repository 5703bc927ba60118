"""What pages of figures are made of: how figures are called and written, and pictures side by side."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from ldm.metrics.extractors import CLASSIFIER

SHEET, ACROSS, NEAREST = 32, 16, 8  # pictures of a sheet, of its lines, and those beside their nearest
WORDS = {
    "fid": "FID", "fid_infinity": "FID&#8734;", "kid": "KID", "inception_score": "IS",
    "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage",
    "spectrum_db": "spectrum, dB", "class_distance": "classes off by",
    "accuracy_score": "accuracy", "copies": "copies", "authentic": "authentic", "bits": "bits/dim",
}  # fmt: skip
MEANS = {
    "fid": "Fréchet distance between the features of samples and of the data; lower is better",
    "fid_infinity": "what FID tends to with ever more samples; lower is better",
    "kid": "kernel distance between both sets of features; lower is better; what held-out pictures reach is alike",
    "inception_score": "how sure the judge is of samples, and how varied they are; higher is better",
    "precision": "share of samples that are like some real picture; higher is better",
    "recall": "share of real pictures that samples come near to; higher is better",
    "density": "how many real pictures a sample is like, on average of what real ones are; higher is better",
    "coverage": "share of real pictures that have a sample near; higher is better",
    "spectrum_db": "difference of the power at each frequency; lower is better",
    "class_distance": "by how much the shares of the classes differ from the data's; lower is better",
    "accuracy_score": "real pictures named right by one who learned from samples; higher is better, 1 of k is chance",
    "copies": "samples nearer to a training picture than 99 % of held-out pictures are: 0.01 by chance",
    "authentic": "samples farther from a training picture than that is from the next; few beside held-out ones: copies",
    "bits": "bits that a number of a held-out picture takes; lower is better, and says little of how pictures look",
}
OWN = """
tr.scale td{color:var(--soft)}.legend span{margin-right:1rem;white-space:nowrap}
main{max-width:1180px}.wide table{width:auto;border-collapse:collapse;font-size:.82rem;
font-variant-numeric:tabular-nums}.wide th,.wide td{width:auto}
.wide{overflow-x:auto;margin:1rem 0}th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--page)}
td small{display:block;color:var(--soft);font-size:.72rem;font-weight:400;white-space:nowrap}td.best{font-weight:700}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--soft)}
dt{font-weight:600}dd{margin:0 0 .4rem;color:var(--soft)}
.trilemma svg{width:min(100%,34rem);height:auto}.frame,.lead{fill:none;stroke:var(--line)}
.lead{stroke:var(--soft);stroke-width:.5}
text{fill:var(--ink);font:12px system-ui,sans-serif}text.small{font-size:9.5px;fill:var(--soft)}
.sheets{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:1.2rem}
.sheets figure{margin:0}.sheets img{width:100%;image-rendering:pixelated;border-radius:6px}
.sheets figcaption{font-size:.82rem;color:var(--soft)}
"""


def times_of(name: str, extractor: str) -> int:
    """Kernel distances between features that are small numbers are told in thousandths, everywhere in one folder."""
    return 1 if name != "kid" or extractor.startswith(f"{CLASSIFIER} ") else 1000


def number(value: float) -> str:
    """With about three digits."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:.{digits}f}"


def beside(samples: Sequence[Tensor] | Tensor, training: Tensor, near: Sequence[int]) -> list[Tensor]:
    """The first samples, and then the pictures that the judge finds nearest to them."""
    few = near[:NEAREST]
    return [*samples[: len(few)], *(training[place] for place in few)]


def gallery(shown: Sequence[tuple[str, Sequence[Tensor] | Tensor]], across: int = ACROSS) -> str:
    """Sheets of uint8 pictures [3,H,W], each under its name."""
    figures = [
        f"<figure><img alt='{html.escape(name)}' src='data:image/webp;base64,{_webp(pictures, across)}'>"
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, pictures in shown
    ]
    return f"<div class=sheets>{''.join(figures)}</div>"


def _webp(pictures: Sequence[Tensor] | Tensor, across: int) -> str:
    """Lossless, and a fifth to a third smaller than PNG: a page with all families is to stay one that can be sent."""
    tiles = [np.asarray(one.permute(1, 2, 0)) for one in pictures]
    across = min(across, len(tiles))
    lines = [np.concatenate(tiles[i : i + across], 1) for i in range(0, len(tiles) - across + 1, across)]
    out = io.BytesIO()
    Image.fromarray(np.concatenate(lines, 0)).save(out, "WEBP", lossless=True, quality=80)
    return base64.b64encode(out.getvalue()).decode()
