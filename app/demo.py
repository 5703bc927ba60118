"""`make demo`: every mode on the shipped model, as pictures and one page that opens without a server."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data import masks
from ldm.data.scenes import draw, make_scene, outline
from ldm.images import from_rgb, open_image, save_image
from pipelines.pipeline import Pipeline
from pipelines.recipe import chunks
from pipelines.request import ControlUse, GuidanceUse, HiresUse, Request
from pipelines.steps import Result

MODEL = "scenes"
SCALE = 5  # how much larger than life the page shows 32-pixel pictures
PROMPTS = (  # with a seed that draws it well, chosen by eye
    ("a red circle on a white background", 7),
    ("a big blue square", 1),
    ("a small green triangle at the top", 1),
    ("two yellow circles", 2),
    ("a purple cross on the left", 11),
    ("an orange ring on a black background", 7),
    ("a white square on the right", 6),
    ("three red triangles", 8),
)
STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1f;--soft:#6b6b76;--page:#fbfaf7;--line:#e4e1d8}
@media(prefers-color-scheme:dark){:root{--ink:#ececf1;--soft:#a2a2ad;--page:#16161a;--line:#2c2c34}}
body{margin:0 auto;max-width:1000px;padding:3rem 1.2rem 5rem;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,sans-serif}
h1{font-size:2rem;margin:0 0 .4rem}h2{font-size:1.15rem;margin:2.6rem 0 .2rem}
p{color:var(--soft);margin:.2rem 0 1rem;max-width:44rem}
.row{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;width:160px}
img{width:160px;height:160px;object-fit:contain;image-rendering:pixelated}
img{border:1px solid var(--line);border-radius:8px}
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


class Demo:
    """Draws the sections one by one into a folder, and tells each picture as it is made."""

    def __init__(self, pipeline: Pipeline, folder: Path, tell: Callable[[str], None]) -> None:
        self.pipeline, self.folder, self.tell, self.made = pipeline, folder, tell, 0

    def sections(self) -> list[Section]:
        return [self.prompts(), self.variations(), self.inpainting(), self.control(), self.strokes(), self.mixed()]

    def _section(self, title: str, text: str) -> Section:
        self.tell(title)
        return Section(title, text)

    def prompts(self) -> Section:
        section = self._section(
            "Prompts", "Text to image. Each picture's recipe is inside its PNG: try ldm verify on one."
        )
        for prompt, seed in PROMPTS:
            self._add(section, self._run(Request(prompt=prompt, seed=seed)), prompt)
        return section

    def variations(self) -> Section:
        section = self._section("Variations", "One seed, turned step by step towards another.")
        for share in (0.0, 0.15, 0.3, 0.45, 0.6):
            request = Request(prompt="a red ring on a white background", seed=4, variation_seed=8, variation=share)
            self._add(section, self._run(request), f"variation {share:g}")
        return section

    def inpainting(self) -> Section:
        text = "Only what the mask covers is painted; every other sample value of the picture stays as it was."
        section = self._section("Inpainting and outpainting", text)
        scene = from_rgb(draw(make_scene("circle", "red", position="left", background="white")))
        hole = masks.from_box(scene.size, (16, 4, 31, 28))
        mask = from_rgb(np.repeat(hole[..., None], 3, axis=2).astype(np.float32))
        self._keep(section, scene.pixels, "the picture")
        self._keep(section, mask.pixels, "the mask")
        request = Request(
            prompt="a red circle and a blue square on a white background", image=scene, mask=mask, strength=1.0, seed=1
        )
        result = self._run(request)
        self._add(section, result, "a blue square, painted in")
        changed = np.any(result[0].picture.pixels != scene.pixels, axis=2)
        self._keep(
            section,
            (changed * 255).astype(np.uint8)[..., None],
            f"changed pixels; outside the mask: {int((changed & (hole == 0)).sum())}",
        )
        wide = Request(prompt="a red circle and a blue square", image=scene, pad=(0, 0, 16, 0), strength=1.0, seed=5)
        self._add(section, self._run(wide), "16 pixels more on the right")
        return section

    def control(self) -> Section:
        section = self._section("Control", "Outlines say where, the prompt says what.")
        edges = outline(make_scene("triangle", "red", size="big", position="centre"))
        hint = from_rgb(edges.astype(np.float32))
        self._keep(section, hint.pixels, "drawn outlines")
        for colour in ("yellow", "blue", "purple"):
            use = ControlUse(model="edges", image=hint)
            self._add(
                section,
                self._run(Request(prompt=f"a {colour} triangle", controls=(use,), seed=5)),
                f"a {colour} triangle",
            )
        return section

    def strokes(self) -> Section:
        section = self._section("Image to image", "A crude stroke becomes a clean shape; strength says how far to go.")
        rng = np.random.default_rng(0)
        crude = draw(make_scene("square", "green", position="centre", background="white"))
        crude = np.clip(crude + rng.normal(0, 0.18, crude.shape), 0, 1).astype(np.float32)
        picture = from_rgb(crude)
        self._keep(section, picture.pixels, "the input")
        for strength in (0.3, 0.5, 0.7):
            request = Request(prompt="a green square on a white background", image=picture, strength=strength, seed=4)
            self._add(section, self._run(request), f"strength {strength:g}")
        return section

    def mixed(self) -> Section:
        section = self._section("Any mix", "The same loop with several of these at once.")
        edges = from_rgb(outline(make_scene("circle", "red", size="small", position="right")).astype(np.float32))
        scene = from_rgb(draw(make_scene("square", "blue", size="small", position="left", background="white")))
        hole = np.zeros((*scene.pixels.shape[:2], 3), np.float32)
        hole[:, 16:] = 1
        use = ControlUse(model="edges", image=edges)
        guidance = GuidanceUse(scale=4.0, rescale=0.5, interval=(0.0, 0.8))
        request = Request(
            prompt="a blue square and a red circle on a white background", negative="green", image=scene, strength=1.0,
            mask=from_rgb(hole), controls=(use,), guidance=guidance, solver="dpm++ 2m", spacing="karras", seed=8,
        )  # fmt: skip
        self._keep(section, scene.pixels, "the picture; its right half is painted")
        self._keep(section, edges.pixels, "drawn outlines")
        how = "mask + control + negative prompt + limited, rescaled guidance"
        self._add(section, self._run(request), f"{request.prompt}: {how}")
        large = Request(
            prompt="a big yellow circle on a blue background", hires=HiresUse(scale=2.0, strength=0.3), seed=7
        )
        self._add(section, self._run(large), f"{large.prompt}: two passes, 64 pixels")
        return section

    def _run(self, request: Request) -> list[Result]:
        return self.pipeline.results(request.model_copy(update={"guidance": _gentle(request.guidance)}))

    def _add(self, section: Section, results: Sequence[Result], caption: str) -> None:
        for result in results:
            name = self._name(f"seed{result.seed}")
            save_image(result.picture, self.folder / name, text=chunks(result.recipe))
            section.pictures.append((name, caption))
            self.tell(f"  {name}  {caption}")

    def _keep(self, section: Section, pixels: np.ndarray, caption: str) -> None:
        name = self._name("input")
        grey = pixels.shape[2] == 1
        Image.fromarray(pixels[..., 0] if grey else pixels).save(self.folder / name)
        section.pictures.append((name, caption))

    def _name(self, stem: str) -> str:
        self.made += 1
        return f"{self.made:03d}-{stem}.png"


def _gentle(guidance: GuidanceUse) -> GuidanceUse:
    """The scale that suits the small model, where the request leaves the default."""
    return GuidanceUse(scale=4.0) if guidance == GuidanceUse() else guidance


def page(sections: Sequence[Section], seconds: float) -> str:
    """One HTML page without scripts; pictures lie beside it."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>ldm: a demonstration</title><style>{STYLE}</style>",
        "<h1>Every mode, one sampling loop</h1>",
        f"<p>Made on this machine in {seconds:.0f} s, without a network, by the shipped <code>{MODEL}</code> model: "
        "coloured shapes at 32 pixels, shown enlarged.</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p><div class=row>")
        for name, caption in section.pictures:
            shown = html.escape(caption)
            parts.append(f"<figure><img src='{name}' alt='{shown}'><figcaption>{shown}</figcaption></figure>")
        parts.append("</div>")
    parts.append("<footer>Try <code>ldm generate 'a red circle'</code> and <code>ldm verify</code>.</footer></html>")
    return "\n".join(parts)


def contact_sheet(folder: Path, section: Section, columns: int = 4) -> Path:
    """The pictures of a section in one PNG, enlarged."""
    side, gap = 32 * SCALE, 8
    rows = -(-len(section.pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + gap) + gap), "white")
    for i, (name, _) in enumerate(section.pictures):
        tile = Image.fromarray(open_image(folder / name).pixels).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(tile, (gap + i % columns * (side + gap), gap + i // columns * (side + gap)))
    path = folder / "sheet.png"
    sheet.save(path)
    return path


def free_folder(wish: Path) -> Path:
    """The folder asked for, or with a number behind it: nothing is overwritten."""
    number, folder = 1, wish
    while folder.exists():
        number += 1
        folder = wish.with_name(f"{wish.name}-{number}")
    folder.mkdir(parents=True)
    return folder


def make(out: Path, tell: Callable[[str], None] = print) -> Path:
    """Draw the whole demonstration; returns its page."""
    begin = time.perf_counter()
    folder = free_folder(out)
    tell(f"Pictures in every mode, by the shipped model '{MODEL}', and a page of them in {folder} (a minute or two).")
    sections = Demo(Pipeline.load(MODEL), folder, tell).sections()
    contact_sheet(folder, sections[0])
    index = folder / "index.html"
    index.write_text(page(sections, time.perf_counter() - begin), encoding="utf-8")
    return index


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    index = make(parser.parse_args().out)
    import rich

    rich.print(f"Open [bold]{index}[/bold]")


if __name__ == "__main__":
    main()
