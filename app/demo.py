"""`make demo`: every mode on the shipped model, as pictures and one page that opens without a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from app.demo_page import Section, contact_sheet, page
from ldm.data import masks
from ldm.images import Picture, from_rgb, save_image
from ldm.store.write import free
from pipelines.pipeline import Pipeline
from pipelines.ranking import Ranker
from pipelines.recipe import chunks
from pipelines.request import ControlUse, GuidanceUse, LoraUse
from pipelines.steps import Result

MODEL, FAST, SCRIBBLE, CLIP = "emoji", "emoji-fast", "emoji-scribble", "emoji-clip"
SIDE = 64
PROMPTS = (  # with a seed that draws it well, chosen by eye
    ("crying face, noto style", 5), ("red apple, noto style", 5), ("sun with face, noto style", 2),
    ("tulip, noto style", 1), ("hamburger, noto style", 8), ("Santa Claus, noto style", 1),
    ("globe showing Americas, noto style", 1), ("mushroom, noto style", 5), ("strawberry, noto style", 5),
    ("guitar, twemoji style", 3), ("cactus, noto style", 1), ("alarm clock, noto style", 4),
    ("cherries, noto style", 5), ("rocket, noto style", 3), ("lemon, noto style", 3), ("broken heart, noto style", 1),
)  # fmt: skip


class Demo:
    """Draws the sections one by one into a folder, and tells each picture as it is made."""

    def __init__(self, pipeline: Pipeline, folder: Path, tell: Callable[[str], None]) -> None:
        self.pipeline, self.folder, self.tell, self.made = pipeline, folder, tell, 0

    def sections(self) -> list[Section]:
        return [self.prompts(), self.styles(), self.variations(), self.inpainting(), self.scribbles(), self.fast(),
                self.strokes(), self.ranked(), self.mixed()]  # fmt: skip

    def prompts(self) -> Section:
        section = self._section("Prompts", "Each picture's recipe is inside its PNG: try ldm verify on one.")
        for prompt, seed in PROMPTS:
            self._add(section, self._run(prompt=prompt, seed=seed), prompt)
        return section

    def styles(self) -> Section:
        section = self._section("Names and styles", "One seed, three styles; words in a loose order do as well.")
        for prompt in (
            "hamburger, noto style",
            "twemoji style hamburger",
            "blob style hamburger",
            "hamburger",
        ):
            self._add(section, self._run(prompt=prompt, seed=3), prompt)
        return section

    def variations(self) -> Section:
        section = self._section("Variations", "One seed, turned step by step towards another.")
        for share in (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0):
            made = self._run(prompt="mushroom, noto style", seed=4, variation_seed=8, variation=share)
            self._add(section, made, f"variation {share:g}")
        return section

    def inpainting(self) -> Section:
        text = "Only what the mask covers is painted; every other sample value of the picture stays as it was."
        section = self._section("Inpainting", text)
        face = self._run(prompt="grinning face, noto style", seed=1)[0].picture
        hole = masks.from_box(face.size, (8, 10, 56, 32))
        mask = from_rgb(np.repeat(hole[..., None], 3, axis=2).astype(np.float32))
        self._keep(section, face.pixels, "the picture")
        self._keep(section, mask.pixels, "the mask")
        made = self._run(prompt="smiling face with sunglasses, noto style", image=face, mask=mask, strength=1.0, seed=1)
        self._add(section, made, "with sunglasses, painted in")
        changed = np.any(made[0].picture.pixels != face.pixels, axis=2)
        outside = int((changed & (hole == 0)).sum())
        self._keep(section, (changed * 255).astype(np.uint8)[..., None], f"changed; outside the mask: {outside} pixels")
        return section

    def scribbles(self) -> Section:
        section = self._section("Control", "A scribble says where, the prompt says what.")
        for drawing, prompts in (
            (scribbled_face(), ("smiling face, noto style", "sun with face, noto style", "cat face, noto style")),
            (scribbled_house(), ("house, noto style", "house, twemoji style")),
        ):
            self._keep(section, drawing.pixels, "a scribble")
            for prompt in prompts:
                use = ControlUse(model=SCRIBBLE, image=drawing)
                self._add(section, self._run(prompt=prompt, controls=(use,), seed=2), prompt)
        return section

    def fast(self) -> Section:
        section = self._section("Few steps", f"The student {FAST} needs four steps, and in a hurry two or one.")
        prompt, student = "red apple, noto style", (LoraUse(path=Path(FAST)),)
        whole = self._run(prompt=prompt, seed=3)
        self._add(section, whole, f"the model itself, {whole[0].recipe.steps} steps")
        for steps in (4, 2, 1):
            made = self._run(prompt=prompt, seed=3, loras=student, steps=steps)
            self._add(section, made, f"{FAST}, {steps} step{'s' * (steps > 1)}")
        return section

    def strokes(self) -> Section:
        section = self._section("Image to image", "Crude strokes become a clean picture; strength says how far to go.")
        crude = strokes()
        self._keep(section, crude.pixels, "the input")
        for strength in (0.4, 0.6, 0.8):
            made = self._run(prompt="strawberry, noto style", image=crude, strength=strength, seed=4)
            self._add(section, made, f"strength {strength:g}")
        return section

    def ranked(self) -> Section:
        section = self._section("The best of four", f"{CLIP} says how like its words each picture is (--best-of 4).")
        results = self._run(prompt="broken heart, noto style", seed=11, count=4)
        scores = Ranker.load(CLIP).scores(results)
        for result, score in zip(results, scores, strict=True):
            best = ", the best" if score == max(scores) else ""
            self._add(section, [result], f"{score:.3f}{best}")
        return section

    def mixed(self) -> Section:
        section = self._section("Any mix", "The same loop with several of these at once.")
        face = self._run(prompt="slightly smiling face, twemoji style", seed=1)[0].picture
        hole = masks.from_box(face.size, (0, 32, 64, 64))
        guidance = GuidanceUse(scale=4.0, rescale=0.5, interval=(0.0, 0.8))
        made = self._run(
            prompt="face with tongue, twemoji style", negative="noto style", image=face, strength=1.0, seed=8,
            mask=from_rgb(np.repeat(hole[..., None], 3, axis=2).astype(np.float32)), guidance=guidance,
            controls=(ControlUse(model=SCRIBBLE, image=scribbled_face(), weight=0.6),),
            solver="dpm++ 2m", spacing="karras",
        )  # fmt: skip
        self._keep(section, face.pixels, "the picture; its lower half is painted")
        how = "mask + control + negative prompt + limited, rescaled guidance"
        self._add(section, made, f"{made[0].recipe.prompt}: {how}")
        return section

    def _section(self, title: str, text: str) -> Section:
        self.tell(title)
        return Section(title, text)

    def _run(self, prompt: str, **fields: Any) -> list[Result]:
        return self.pipeline.results(self.pipeline.request(prompt, **fields))

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


def strokes() -> Picture:
    """A red blob with a green stroke over it."""
    canvas, pen = _canvas("white")
    pen.polygon((14, 20, 50, 20, 33, 58), fill="#d8342c")
    pen.line((18, 18, 46, 14), fill="#3c9a3c", width=7)
    return _picture(canvas)


def scribbled_face() -> Picture:
    """A round face with two eyes and a smile, white on black."""
    canvas, pen = _canvas("black")
    pen.ellipse((6, 6, 57, 57), outline="white", width=2)
    for x in (20, 38):
        pen.ellipse((x, 22, x + 6, 30), outline="white", width=2)
    pen.arc((18, 26, 46, 48), 20, 160, fill="white", width=2)
    return _picture(canvas)


def scribbled_house() -> Picture:
    """A gable, walls and a door, white on black."""
    canvas, pen = _canvas("black")
    pen.line((6, 30, 32, 8, 58, 30), fill="white", width=2)
    pen.rectangle((13, 28, 51, 57), outline="white", width=2)
    pen.rectangle((28, 40, 38, 57), outline="white", width=2)
    return _picture(canvas)


def _canvas(ground: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (SIDE, SIDE), ground)
    return canvas, ImageDraw.Draw(canvas)


def _picture(canvas: Image.Image) -> Picture:
    return from_rgb(np.asarray(canvas, np.float32) / 255)


def make(out: Path, tell: Callable[[str], None] = print) -> Path:
    """Draw the whole demonstration; returns its page."""
    begin = time.perf_counter()
    folder = free(out)
    folder.mkdir(parents=True)
    tell(f"Pictures in every mode, by the shipped model '{MODEL}', and a page of them in {folder} (a minute or two).")
    sections = Demo(Pipeline.load(MODEL), folder, tell).sections()
    contact_sheet(folder, sections[0])
    index = folder / "index.html"
    index.write_text(page(sections, MODEL, SIDE, time.perf_counter() - begin), encoding="utf-8")
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
