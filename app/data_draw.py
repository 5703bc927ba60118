"""`ldm data draw`: coloured shapes with exact captions as files, for whoever has no pictures at hand yet."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from app.errors import printable
from ldm.errors import Code, LdmError


def draw(out: str, count: int, size: int, seed: int, as_json: bool) -> int:
    """Writes a new folder of PNG files, each with its caption beside it."""
    from ldm.data import scenes
    from ldm.images import from_rgb, save_image
    from ldm.store.write import staged

    if not out.strip():
        raise LdmError(Code.USAGE, "OUT is empty.", "It is the name of a new folder.", "Call it pictures.")
    with staged(Path(out).expanduser()) as stage:
        stage.mkdir()
        for i in range(count):
            scene, name = scenes.sample_scene(i, seed), stage / f"{i:0{len(str(count - 1))}d}"
            save_image(from_rgb(scenes.draw(scene, size)), name.with_suffix(".png"))
            name.with_suffix(".txt").write_text(scenes.caption(scene) + "\n", encoding="utf-8")
    told = {"path": out, "pictures": count, "size": size}
    typer.echo(json.dumps(told) if as_json else printable(f"{out}: {count:,} pictures of {size} pixels with captions"))
    return 0
