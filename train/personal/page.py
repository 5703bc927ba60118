"""The report as a page: it opens from the disk, and asks nothing of a network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data.source import srgb
from ldm.data.survey import many
from ldm.data.transforms import shrunk
from ldm.images import open_image
from train.personal.strengths import AT_WEIGHTS, drawn_at
from train.personal.verdict import percent
from train.report import rewrite
from train.report_curves import Series, plot
from train.report_style import SCRIPT, STYLE

FLAGS = {
    "not learned": "not learned", "copies": "copies photos", "ignores prompts": "ignores prompts",
    "drift": "changed what is unrelated", "leak": "comes without its token", "unknown": "cannot be told",
    "perhaps copies": "copies not ruled out", "prompts unknown": "prompts: not known",
}  # fmt: skip
OPEN = {"unknown", "perhaps copies", "prompts unknown"}  # what is not known is neither wrong nor sound
IN_GRID = 2  # seeds of each prompt that the table of checkpoints shows
SHOWN = 256  # pixels of a picture's longer side, at most
UNDER_WAY = "<span class=badge>under way</span>"
GRID = """
.verdict{font-size:1.25rem;line-height:1.45;color:var(--ink);max-width:52rem;margin:.4rem 0 1.4rem}
.badge.bad{color:var(--a);border-color:currentColor}
.grid{overflow-x:auto}.grid table{border-collapse:collapse;width:auto;font-size:.8rem;color:var(--soft)}
.grid td,.grid th{padding:.25rem .35rem;text-align:left;vertical-align:middle;font-weight:400}
.grid th{white-space:nowrap}.grid .best{color:var(--good);font-weight:600}
.grid img{display:block;width:5.2rem;height:5.2rem;object-fit:cover;border-radius:6px;image-rendering:pixelated;
background:var(--shade)}
.grid img+img{margin-top:.3rem}
.pairs{display:flex;flex-wrap:wrap;gap:1rem}.pairs figure{margin:0;font-size:.8rem;color:var(--soft)}
.pairs img{width:5.2rem;margin-right:.2rem;height:5.2rem;object-fit:cover;border-radius:6px;image-rendering:pixelated}
.pairs .bad{color:var(--a)}
ul{color:var(--soft);padding-left:1.2rem;max-width:52rem}
"""


def write_page(path: Path, report: Mapping[str, Any]) -> None:
    """Pictures are inside the page: it can be moved and sent. Written anew at every checkpoint."""
    rewrite(path, page(path.parent, report), "Make room or mend the folder, and give the same command again.")


def page(folder: Path, report: Mapping[str, Any]) -> str:
    """The whole document; `folder` is where the pictures lie."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{_safe(report['token'])}: a subject</title><style>{STYLE}{GRID}</style>",
        f"<header><p class=kind>A subject from {many(len(report['photos']), 'photo')}</p>",
        f"<h1>{_safe(report['token'])}{badges(report)}</h1></header>",
        f"<p class=verdict>{_safe(report['verdict'][:1].upper() + report['verdict'][1:])}</p>",
        _tiles(report),
        _samples(folder, report),
        _curves(report),
        _nearest(folder, report),
        _strengths(folder, report),
        _unrelated(folder, report),
        _list("What cannot be concluded", report["unknowable"]),
        _list("The photos", _told(report)),
        _how(report),
        f"<script>{SCRIPT}</script></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def badges(report: Mapping[str, Any]) -> str:
    """What is wrong, or that nothing is; what cannot be told is neither."""
    told = "".join(
        f"<span class='badge{'' if flag in OPEN else ' bad'}'>{_safe(FLAGS[flag])}</span>" for flag in report["flags"]
    )
    return (told or "<span class='badge done'>sound</span>") + ("" if report["done"] else UNDER_WAY)


def _tiles(report: Mapping[str, Any]) -> str:
    m = report["measures"]
    tiles = [
        ("Subject", percent(m["subject"]), "of the way to the photos"),
        ("Prompts", percent(m["prompt"]), "of what the model understood"),
        ("Near copies", percent(m["copies"]), f"of {len(report['prompts']['subject']) * report['seeds']} samples"),
        ("Drift", percent(m["drift"]), "of the distance of two seeds"),
        ("Leak", percent(m["leak"]), "without the token"),
        (
            "Step",
            f"{report['step']:,}",
            f"of {report['steps']:,}" + (", stopped early" if report["stopped_early"] else ""),
        ),
    ]
    cells = (f"<div class=tile><span>{a}</span><b>{_safe(b)}</b><em>{_safe(c)}</em></div>" for a, b, c in tiles)
    return f"<div class=tiles>{''.join(cells)}</div>"


def _samples(folder: Path, report: Mapping[str, Any]) -> str:
    """Prompts downwards, checkpoints to the right; the first column is the model before."""
    prompts: Sequence[str] = report["prompts"]["subject"]
    steps = [0, *(c["step"] for c in report["checkpoints"])]
    heads = "".join(
        f"<th class='{'best' if step == report['step'] else ''}'>{'before' if step == 0 else f'step {step:,}'}</th>"
        for step in steps
    )
    rows = []
    for place, text in enumerate(prompts):
        cells = []
        for step in steps:
            shown = (
                _image(
                    folder / "samples" / str(step) / f"subject-{place + turn * len(prompts):02d}.png",
                    f"{text}, step {step}",
                )
                for turn in range(min(IN_GRID, report["seeds"]))
            )
            cells.append(f"<td>{''.join(shown)}</td>")
        rows.append(f"<tr><th>{_safe(text)}{_each(report, place)}</th>{''.join(cells)}</tr>")
    return (
        "<section><h2>Samples</h2><p>The same noise in each row; "
        f"{min(IN_GRID, report['seeds'])} of {report['seeds']} seeds are shown, and all of them counted. The first "
        "column is the model as it was, asked for the plain kind of thing, or in the same words where no kind was said;"
        " the chosen checkpoint is marked, and what was measured of it stands beside each prompt: how far its samples "
        "are on the way to the photos (below 0 %: less like them than before), and how much more they are like its own "
        "words than like those of the other prompts, now and before.</p>"
        f"<div class=grid><table><tr><th></th>{heads}</tr>{''.join(rows)}</table></div></section>"
    )


def _each(report: Mapping[str, Any], place: int) -> str:
    """Of one prompt at the chosen checkpoint, where it was told."""
    each = report["measures"].get("each") or ()
    if place >= len(each):
        return ""
    subject, ours, before = each[place]
    words = "" if ours is None else f", words {ours:.2f} (before {before:.2f})"
    return f"<br><small>subject {percent(subject)}{words}</small>"


def _curves(report: Mapping[str, Any]) -> str:
    points = report["checkpoints"]

    def line(name: str, key: str, tone: str) -> Series:
        return Series(name, [(c["step"], c[key]) for c in points if c[key] is not None], tone, noisy=False)

    first = plot("What it learned", [line("subject", "subject", "a"), line("prompts", "prompt", "b")])
    second = plot(
        "What it cost", [line("drift", "drift", "a"), line("near copies", "copies", "b"), line("leak", "leak", "c")]
    )
    third = plot("Validation loss", [line("fixed noise", "validation", "a")])
    return f"<section><h2>Curves</h2><div class=plots>{first}{second}{third}</div></section>"


def _nearest(folder: Path, report: Mapping[str, Any]) -> str:
    """The samples that come nearest to a photo, beside it; near copies are marked."""
    near = sorted(enumerate(report["measures"]["nearest"]), key=lambda pair: float(pair[1][1]))
    photos = sorted([*(folder / "photos" / "train").glob("*.png"), *(folder / "photos" / "aside").glob("*.png")],
                    key=lambda path: path.name)  # fmt: skip
    figures = []
    for sample, (photo, away) in near:
        name, mark = report["photos"][photo], " class=bad" if away < report["nearest"] else ""
        shown = _image(_sample(folder, report["step"], "subject", sample), "sample") + _image(photos[photo], name)
        words = f"<figcaption{mark}>{away:.3f} from {_safe(name)}</figcaption>"
        figures.append(f"<figure>{shown}{words}</figure>")
    return (
        "<section><h2>Nearest photos</h2><p>Each sample beside the photo that it is nearest to, the nearest first. "
        f"The two most alike photos are {report['nearest']:.3f} from each other: what is nearer is a near copy.</p>"
        f"<div class=pairs>{''.join(figures)}</div></section>"
    )


def _strengths(folder: Path, report: Mapping[str, Any]) -> str:
    """Prompts downwards; checkpoints to the right, each at its weights."""
    weights: Mapping[str, Sequence[float]] = report["weights"]
    if not weights:
        return ""
    columns = [(int(step), weight) for step, drawn in weights.items() for weight in drawn]
    rows = []
    for place, text in enumerate(report["prompts"]["subject"]):
        cells = (
            f"<td>{_image(drawn_at(folder / AT_WEIGHTS, s, place, w), f'{text}, step {s}, weight {w:g}')}</td>"
            for s, w in columns
        )
        rows.append(f"<tr><th>{_safe(text)}</th>{''.join(cells)}</tr>")
    steps = "".join(
        f"<th colspan={len(drawn)}{' class=best' if int(step) == report['step'] else ''}>step {int(step):,}</th>"
        for step, drawn in weights.items()
    )
    heads = "".join(f"<th>{weight:g}</th>" for _, weight in columns)
    return (
        "<section><h2>Weights</h2><p>How strongly the adapter acts (<code>--lora FILE:0.75</code>), from the same seed;"
        " the chosen checkpoint at the most weights. Each adapter lies in <code>checkpoints/STEP</code>.</p>"
        f"<div class=grid><table><tr><th></th>{steps}</tr><tr><th></th>{heads}</tr>"
        f"{''.join(rows)}</table></div></section>"
    )


def _unrelated(folder: Path, report: Mapping[str, Any]) -> str:
    """What has nothing to do with the subject, before and after."""
    cells = []
    for place, text in enumerate(report["prompts"]["unrelated"]):
        pair = "".join(
            _image(_sample(folder, step, "unrelated", place), f"{text}, step {step}") for step in (0, report["step"])
        )
        cells.append(f"<td>{pair}<span>{_safe(text)}</span></td>")
    return (
        "<section><h2>Unrelated prompts</h2><p>Above before, below after, from the same noise.</p>"
        f"<div class=grid><table><tr>{''.join(cells)}</tr></table></div></section>"
    )


def _told(report: Mapping[str, Any]) -> list[str]:
    told = [f"{f['what']}: {f['fix']}" for f in report["findings"]]
    told += report["notes"]
    if report["aside"]:
        told.append(f"{report['aside']} was kept aside, and never trained on: the validation loss is of it")
    return told or ["nothing needs mending"]


def _how(report: Mapping[str, Any]) -> str:
    return (
        "<section><h2>How it was judged</h2><ul>"
        f"<li>Features: {_safe(report['features'])}. Likeness is the cosine between them.</li>"
        f"<li>The photos' likeness to each other is {report['ceiling']:.3f}, that of the model's pictures before was "
        f"{report['floor']:.3f}: 0 % and 100 % of the way.</li>"
        f"<li>Chosen is {_safe(report['rule'])}.</li>"
        "<li>How a prompt's words are followed is how much more its samples are like them than the samples of other "
        "prompts are, beside what the model before made of them; only prompts in which the subject is to be seen "
        "count.</li>"
        "<li>A near copy is a sample nearer to a photo than the two most alike photos are to each other.</li>"
        "<li>Drift is how far unrelated pictures moved, beside the distance of two seeds of the model as it was.</li>"
        f"<li>Seed {report['seed']}, {report['size']} pixels, model {_safe(report['model'])}, "
        f"{report['prior']} pictures of the model itself trained along, ldm {_safe(report['version'])}.</li>"
        "</ul></section>"
    )


def _list(title: str, points: Sequence[str]) -> str:
    return f"<section><h2>{title}</h2><ul>{''.join(f'<li>{_safe(point)}</li>' for point in points)}</ul></section>"


def _sample(folder: Path, step: int, group: str, number: int) -> Path:
    return folder / "samples" / str(step) / f"{group}-{number:02d}.png"


def _image(path: Path, words: str) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(_small(path)).decode("ascii")
    return f"<img src='data:image/png;base64,{data}' alt='{html.escape(words, quote=True)}' loading=lazy>"


def _small(path: Path) -> bytes:
    """The file itself, or a smaller picture of it: they are shown 83 pixels wide, and a page is to be sent."""
    pixels = srgb(open_image(path))
    longest = max(pixels.shape[:2])
    if longest <= SHOWN:
        return path.read_bytes()
    file = io.BytesIO()
    Image.fromarray(shrunk(pixels, SHOWN / longest)).save(file, "PNG")
    return file.getvalue()


def _safe(text: object) -> str:
    return html.escape(str(text))
