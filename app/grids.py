"""Tables of pictures: one field of the request along x, another along y, labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from app.options import OPTIONS, request_fields
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from PIL import Image

MAX_CELLS = 400
GAP, TEXT = 6, 14  # pixels
CELL = 128  # pixels: smaller pictures are enlarged by whole factors until a cell is about as large
SWITCH = {True: ("1", "true", "yes", "on"), False: ("0", "false", "no", "off")}


@dataclass(frozen=True)
class Axis:
    """`side` is x or y; `name` an option or a field, `values` its texts."""

    side: str
    name: str
    values: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> Axis:
        """`x=guidance:3,5,7`; values that hold commas are separated by | instead."""
        side, equals, rest = text.partition("=")
        name, colon, values = rest.partition(":")
        told = tuple(v.strip() for v in values.split("|" if "|" in values else ",") if v.strip())
        if side.strip() not in ("x", "y") or not equals or not colon or not told:
            raise LdmError(
                Code.USAGE,
                f"--grid: {text[:80]!r} is no axis.",
                "An axis is x or y, a field, and its values.",
                "Write --grid x=guidance:3,5,7.",
            )
        return cls(side.strip(), name.strip().lstrip("-"), told)

    def fields(self, value: str) -> dict[str, Any]:
        """The fields of the request that one value fills."""
        for option in OPTIONS:
            if option.targets and self.name.replace("_", "-") in (option.flag.split("/")[0].lstrip("-"), option.field):
                given: Any = [value] if option.kind == "list" else value
                if option.kind == "switch":
                    given = self._on(value)
                return request_fields({option.name: given})
        return request_fields({"set_": [f"{self.name}={value}"]})

    def _on(self, value: str) -> bool:
        told = {word: on for on, words in SWITCH.items() for word in words}
        if value.lower() not in told:
            what = f"--grid: {self.name} takes yes or no, not {value[:40]!r}."
            raise LdmError(Code.USAGE, what, "It is a switch.", f"Write --grid {self.side}={self.name}:yes,no.")
        return told[value.lower()]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f"{self.name} {value}" for value in self.values)


@dataclass(frozen=True)
class Grid:
    """At most two axes; cells run along x first."""

    x: Axis | None = None
    y: Axis | None = None

    @classmethod
    def read(cls, texts: Sequence[str]) -> Grid | None:
        axes = [Axis.read(text) for text in texts]
        sides = [axis.side for axis in axes]
        if len(set(sides)) < len(sides):
            raise LdmError(
                Code.USAGE,
                f"--grid: {sides[-1]} is given twice.",
                "A grid has one axis along x and one along y.",
                "Give each side once.",
            )
        grid = cls(**{axis.side: axis for axis in axes})
        if grid.columns * grid.rows > MAX_CELLS:
            raise LdmError(
                Code.USAGE,
                f"--grid: {grid.columns}x{grid.rows} cells are too many.",
                f"A grid has at most {MAX_CELLS} cells.",
                "Give fewer values.",
            )
        return grid if axes else None

    @property
    def columns(self) -> int:
        return len(self.x.values) if self.x else 1

    @property
    def rows(self) -> int:
        return len(self.y.values) if self.y else 1

    def cells(self) -> list[dict[str, Any]]:
        """The fields of each cell."""
        from pipelines.suited import merged

        ys = [self.y.fields(v) for v in self.y.values] if self.y else [{}]
        xs = [self.x.fields(v) for v in self.x.values] if self.x else [{}]
        return [merged(y, x) for y, x in product(ys, xs)]

    def draw(self, pictures: Sequence[Image.Image]) -> Image.Image:
        """The table, with labels above the columns and before the rows."""
        from PIL import Image, ImageDraw, ImageFont

        font = ImageFont.load_default(TEXT)
        factor = max(1, round(CELL / max(max(p.size) for p in pictures)))
        pictures = [p.resize((p.width * factor, p.height * factor), Image.Resampling.NEAREST) for p in pictures]
        across, down = (axis.labels if axis else () for axis in (self.x, self.y))
        width = max([p.width for p in pictures] + [_length(font, label) for label in across]) + GAP
        height = max(p.height for p in pictures) + GAP
        left = max((_length(font, label) for label in down), default=0) + GAP
        top = (TEXT + 2 * GAP) if across else GAP
        table = Image.new("RGB", (left + width * self.columns, top + height * self.rows), "white")
        pen = ImageDraw.Draw(table)
        for i, label in enumerate(across):
            pen.text((left + width * i, GAP // 2), label, fill="black", font=font)
        for i, label in enumerate(down):
            pen.text((GAP // 2, top + height * i), label, fill="black", font=font)
        for i, picture in enumerate(pictures):
            table.paste(picture.convert("RGB"), (left + width * (i % self.columns), top + height * (i // self.columns)))
        return table


def _length(font: Any, text: str) -> int:
    return int(font.getlength(text)) + GAP
