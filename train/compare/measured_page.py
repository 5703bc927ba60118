"""The page of one measure: figures beside what held-out pictures reach, and the pictures that they were taken of."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from train.compare.gallery import ACROSS, NEAREST, OWN, SHEET, WORDS, beside, gallery, number, times_of
from train.compare.reference import Pictures
from train.report_style import STYLE

READ = (
    "Lower is better of FID, KID, spectrum, classes off by, rFID, distance of features and bits; higher of IS, "
    "precision, recall, density, coverage, PSNR and SSIM. Copies and authentic are warnings: compare them with "
    "those of held-out pictures."
)
OF_ITS_OWN = {
    "rfid": "rFID", "psnr_db": "PSNR, dB", "ssim": "SSIM", "bits_per_dim": "bits/dim", "clip_score": "CLIP score",
    "feature_distance": "distance of features, as a share of a stranger's",
}  # fmt: skip
AS_GREAT = 4  # times that differences are shown


def measured_page(told: Mapping[str, Any], pictures: Tensor, kept: Pictures) -> str:
    """Of what was measured of uint8 pictures [n,3,H,W]; an autoencoder's are those that came back."""
    by, name, made = told["protocol"], html.escape(told["name"]), html.escape(told["made"])
    back = "psnr_db" in told["figures"]
    what = "held-out pictures that were encoded and decoded" if back else f"pictures against {by['real']:,}"
    looks = f"as {html.escape(by['extractor'])} sees them (resize: {html.escape(by['resize'])})"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{name}, measured</title><style>{STYLE}{OWN}</style><main><h1>{name}, measured</h1>",
        f"<p>{made}: {by['made']:,} {what}, {looks}.</p>",
        _table(told), f"<p>{READ}</p>", _came_back(pictures, kept) if back else _drawn(told, pictures, kept),
        _notes(told["notes"]), "</main></html>",
    ]  # fmt: skip
    return "\n".join(parts)


def _table(told: Mapping[str, Any]) -> str:
    """A line a figure: its interval, and what real pictures that nobody trained on reach."""
    figures = dict(told["figures"]) | {name: told[name] for name in ("bits_per_dim", "clip_score") if name in told}
    scale = (told.get("held_out") or {}).get("figures", {})
    lines = []
    for name, one in figures.items():
        bound = "&le; " if one.get("kind") == "bound" else ""
        times = times_of(name, told["protocol"]["extractor"])
        value, low, high = (number(one[key] * times) for key in ("value", "low", "high"))
        real = number(scale[name]["value"] * times) if name in scale else "&ndash;"
        lines.append(
            f"<tr><td>{(WORDS | OF_ITS_OWN)[name]}{' &times; 1000' * (times > 1)}</td><td>{bound}{value}</td>"
            f"<td>{low} &ndash; {high}</td><td>{real}</td></tr>"
        )
    head = "<tr><th>figure</th><th>value</th><th>interval</th><th>held-out pictures</th></tr>"
    return f"<div class=wide><table>{head}{''.join(lines)}</table></div>"


def _drawn(told: Mapping[str, Any], pictures: Tensor, kept: Pictures) -> str:
    shown = [("what was measured", pictures[:SHEET]), ("the data, held out", kept.held_out[:SHEET])]
    both = beside(pictures, kept.training, told["nearest"])
    near = [("below each picture the one of the data that is nearest", both)]
    return f"<h2>Pictures</h2>{gallery(shown)}<h2>The nearest of the data</h2>{gallery(near, NEAREST)}"


def _came_back(pictures: Tensor, kept: Pictures) -> str:
    """Each line of held-out pictures, what came back of it, and the difference."""
    lines = list[Tensor]()
    for start in range(0, min(SHEET, len(pictures)), ACROSS):
        before, after = kept.held_out[start : start + ACROSS], pictures[start : start + ACROSS]
        apart = ((after.int() - before.int()).abs() * AS_GREAT).clamp(max=255).to(before.dtype)
        lines += [*before, *after, *apart]
    name = f"held-out pictures, what came back of them, and the difference, {AS_GREAT} times as bright"
    return f"<h2>Before and after</h2>{gallery([(name, lines)])}"


def _notes(notes: Sequence[str]) -> str:
    lines = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<h2>Notes</h2><ul>{lines}</ul>" if lines else ""
