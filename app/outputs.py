"""Where pictures go: a folder with numbered names, one file, or a pipe. Nothing is ever overwritten."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from app.validation import did_you_mean
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from ldm.images import Picture
    from pipelines.recipe import Recipe
    from pipelines.request import Request

FORMATS = {"png": ".png", "jpg": ".jpg", "jpeg": ".jpg", "webp": ".webp"}
OTHERS = frozenset({".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".jp2", ".svg", ".pdf", ".ico", ".json"})
_NUMBERED = re.compile(r"(\d{4,9})-")


@dataclass
class Outputs:
    """`target` is a folder, a file with a picture's suffix, or "-"."""

    target: str = "outputs"
    format: str | None = None
    private: bool = False
    sidecar: bool = True
    allow_lossy: bool = False
    number: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.suffix = _suffix(self.format)
        if self.is_file:
            suffix = FORMATS[Path(self.target).suffix.lower().lstrip(".")]
            if self.format and suffix != self.suffix:
                raise LdmError(
                    Code.USAGE,
                    f"--out {Path(self.target).name} and --format {self.format} contradict each other.",
                    "The suffix of a file says its format.",
                    "Leave --format out.",
                )
            self.suffix = suffix
        elif not self.is_pipe and Path(self.target).suffix.lower() in OTHERS and not Path(self.target).is_dir():
            raise LdmError(
                Code.USAGE,
                f"--out: {Path(self.target).suffix} pictures are not written.",
                "The formats are png, jpg and webp.",
                "Name a folder, or a file that ends in .png, .jpg or .webp.",
            )

    @property
    def is_pipe(self) -> bool:
        return self.target == "-"

    @property
    def is_file(self) -> bool:
        return not self.is_pipe and Path(self.target).suffix.lower().lstrip(".") in FORMATS

    @property
    def folder(self) -> Path:
        return Path(self.target).parent if self.is_file else Path(self.target)

    def check(self, requests: list[Request]) -> None:
        """What can be known before the work: one place for one picture, a free name, a format that can hold it."""
        pictures = sum(request.count for request in requests)
        if (self.is_pipe or self.is_file) and pictures > 1:
            raise LdmError(
                Code.USAGE,
                f"--out {self.target} takes one picture, and {pictures} are asked for.",
                "A file or a pipe holds one picture.",
                "Give --out a folder.",
            )
        taken = [
            p for p in (Path(self.target), self._sidecar(Path(self.target))) if self.is_file and os.path.lexists(p)
        ]
        if taken:
            raise LdmError(
                Code.FILE, f"{taken[0].name} exists already.", "Outputs are never overwritten.", "Choose another --out."
            )
        painted = any(request.mask is not None or any(request.pad) for request in requests)
        if painted and self.suffix == ".jpg" and not self.allow_lossy:
            raise LdmError(
                Code.USAGE,
                "JPEG would change the picture outside its mask.",
                "Nothing outside a mask may change, and JPEG changes samples everywhere.",
                "Choose --format png or webp, or add --allow-lossy.",
            )

    def probe(self) -> None:
        """Writes an empty file where the pictures will be and takes it away again: better now than after the work."""
        if self.is_pipe:
            return
        target = Path(self.target)
        names = [target, self._sidecar(target)] if self.is_file else [self.folder / f".ldm-{os.getpid()}.tmp"]
        from ldm.images.save import make_folder, way_out

        made = [folder for folder in (self.folder, *self.folder.parents) if not os.path.lexists(folder)]
        try:
            make_folder(self.folder)
            for path in names:
                try:
                    with path.open("xb"):
                        pass
                except OSError as error:
                    why = f"The system says: {error.strerror}."
                    what = f"--out: {path.name[:80]} cannot be written."
                    raise LdmError(Code.FILE, what, why, way_out(error.errno)) from error
                path.unlink()
        finally:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def save(self, picture: Picture, recipe: Recipe) -> Path | None:
        """Writes one picture with its recipe; the path, or None for a pipe."""
        from pipelines.recipe import chunks

        text = chunks(recipe, self.private, picture.text)
        if self.private:  # chunks of an input hold its prompt
            picture = _without_text(picture)
        if self.is_pipe:
            _pipe(picture, text, self.suffix, self.allow_lossy)
            return None
        path = self._write(picture, f"{recipe.seed}", text)
        if self.sidecar:
            with self._sidecar(path).open("x", encoding="utf-8") as stream:
                stream.write(text["ldm"] + "\n")
        return path

    def preview(self, picture: Picture, offset: int, seed: int, step: int) -> Path | None:
        """A rough picture under the name that the finished one will get; None where it would get in the way."""
        from ldm.images import save_image

        if self.is_pipe:
            return None
        stem = Path(self.target).stem if self.is_file else f"{self._next() + offset:04d}-{seed}"
        path = self.folder / f"{stem}-step{step:03d}.png"
        return None if os.path.lexists(path) else save_image(picture, path)

    def table(self, picture: Picture) -> Path:
        """A grid; it has no recipe of its own (its pictures have)."""
        folder = Outputs(str(self.folder), "png", sidecar=False)
        return folder._write(picture, "grid", {})

    def _write(self, picture: Picture, ending: str, text: dict[str, str]) -> Path:
        from ldm.images import save_image

        while True:
            self.number = self._next()
            path = Path(self.target) if self.is_file else self.folder / f"{self.number:04d}-{ending}{self.suffix}"
            try:
                return save_image(picture, path, text=text, allow_lossy=self.allow_lossy)
            except LdmError:
                if self.is_file or not os.path.lexists(path):  # else another process took the number just now
                    raise

    def _next(self) -> int:
        names = [entry.name for entry in os.scandir(self.folder)] if self.folder.is_dir() else []
        return (
            max(
                (int(found[1]) for name in names if (found := _NUMBERED.match(name)) and "-step" not in name), default=0
            )
            + 1
        )

    @staticmethod
    def _sidecar(path: Path) -> Path:
        return path.with_suffix(".json")


def _suffix(format: str | None) -> str:
    if format is not None and format.lower() not in FORMATS:
        raise LdmError(
            Code.USAGE,
            f"--format: {format[:40]!r} is not written.",
            f"{did_you_mean(format, list(FORMATS))}The formats are png, jpg and webp.",
            "Choose one of them.",
        )
    return FORMATS[(format or "png").lower()]


def _without_text(picture: Picture) -> Picture:
    from dataclasses import replace

    return replace(picture, text={})


def _pipe(picture: Picture, text: dict[str, str], suffix: str, allow_lossy: bool) -> None:
    from ldm.images import save_image

    with tempfile.TemporaryDirectory() as folder:
        path = save_image(picture, Path(folder) / f"picture{suffix}", text=text, allow_lossy=allow_lossy)
        sys.stdout.buffer.write(path.read_bytes())
        sys.stdout.buffer.flush()
