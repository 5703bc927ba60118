"""`ldm data draw`: coloured shapes with captions, or one creature in many poses, for whoever has no pictures yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from app.errors import printable
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from ldm.images import Picture


def draw(out: str, count: int, size: int, seed: int, character: int | None, as_json: bool) -> int:
    """Writes a new folder of PNG files: shapes with a caption beside each, or pictures of a creature."""
    from ldm.images import save_image
    from ldm.store.write import staged

    if not out.strip():
        raise LdmError(Code.USAGE, "OUT is empty.", "It is the name of a new folder.", "Call it pictures.")
    with staged(Path(out).expanduser()) as stage:
        stage.mkdir()
        for i in range(count):
            name = stage / f"{i:0{len(str(count - 1))}d}"
            picture, caption = _scene(i, seed, size) if character is None else _creature(character, i, seed, size)
            save_image(picture, name.with_suffix(".png"))
            if caption:
                name.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    told = {"path": out, "pictures": count, "size": size}
    what = "with captions" if character is None else "of one creature"
    typer.echo(json.dumps(told) if as_json else printable(f"{out}: {count:,} pictures of {size} pixels {what}"))
    return 0


def _scene(number: int, seed: int, size: int) -> tuple[Picture, str]:
    from ldm.data import scenes
    from ldm.images import from_rgb

    scene = scenes.sample_scene(number, seed)
    return from_rgb(scenes.draw(scene, size)), scenes.caption(scene)


def _creature(character: int, number: int, seed: int, size: int) -> tuple[Picture, str]:
    """A pose of its own for each number and seed; no words, for it is to be learned by a token."""
    import numpy as np

    from ldm.data import characters
    from ldm.images import from_rgb

    drawn = characters.draw_character(characters.character(character), characters.pose(1_000_000 * seed + number), size)
    return from_rgb(np.asarray(drawn, np.float32) / 255), ""
