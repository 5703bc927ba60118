"""The page of `make demo`: one HTML file without scripts, pictures beside it, and a contact sheet."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ldm.images import open_image

SHOWN = 128  # pixels of a picture on the sheet
STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1f;--soft:#6b6b76;--page:#fbfaf7;--line:#e4e1d8}
@media(prefers-color-scheme:dark){:root{--ink:#ececf1;--soft:#a2a2ad;--page:#16161a;--line:#2c2c34}}
body{margin:0 auto;max-width:1000px;padding:3rem 1.2rem 5rem;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,sans-serif}
h1{font-size:2rem;margin:0 0 .4rem}h2{font-size:1.15rem;margin:2.6rem 0 .2rem}
p{color:var(--soft);margin:.2rem 0 1rem;max-width:44rem}
.row{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;width:128px}
img{width:128px;height:128px;object-fit:contain;background:#fff;border:1px solid var(--line);border-radius:8px}
figcaption{font-size:.82rem;color:var(--soft);line-height:1.35;padding-top:.35rem;overflow-wrap:anywhere}
code{font-size:.85em}
footer{margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem;color:var(--soft);font-size:.85rem}
"""


@dataclass
class Section:
    """A heading, what it shows, and its pictures with captions."""

    title: str
    text: str
    pictures: list[tuple[str, str]] = field(default_factory=list)


def page(sections: Sequence[Section], model: str, side: int, seconds: float) -> str:
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>ldm: a demonstration</title><style>{STYLE}</style>",
        "<h1>Every mode, one sampling loop</h1>",
        f"<p>Made on this machine in {seconds:.0f} s, without a network, by <code>{html.escape(model)}</code>: it "
        f"draws at {side} pixels, shown at twice the size.</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p><div class=row>")
        for name, caption in section.pictures:
            shown = html.escape(caption)
            parts.append(f"<figure><img src='{name}' alt='{shown}'><figcaption>{shown}</figcaption></figure>")
        parts.append("</div>")
    parts.append(
        "<footer>Try <code>ldm generate 'tulip, noto style'</code> and <code>ldm verify</code>.</footer></html>"
    )
    return "\n".join(parts)


def contact_sheet(folder: Path, section: Section, columns: int = 8) -> Path:
    """The pictures of a section in one PNG, enlarged."""
    gap, rows = 4, -(-len(section.pictures) // columns)
    cell = SHOWN + gap
    sheet = Image.new("RGB", (columns * cell + gap, rows * cell + gap), "white")
    for i, (name, _) in enumerate(section.pictures):
        tile = Image.fromarray(open_image(folder / name).pixels).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)
        sheet.paste(tile, (gap + i % columns * cell, gap + i // columns * cell))
    path = folder / "sheet.png"
    sheet.save(path)
    return path
