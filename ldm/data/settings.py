"""The `data:` section of a run file: which pictures, with which words, cut how, in which order. See docs/data.md."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ldm.config import Strict

Share = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=8, le=16384)]
Colour = Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")]
Texts = str | list[str]
CROWDED = 0.3  # the share of scenes with several things, where nobody says another
Kind = Literal["auto", "scenes", "folder", "kohya", "classes", "parquet", "shards"]


class Part(Strict):
    """Where examples come from. `path`: a folder, a file, a pattern (`shard-{000..127}.tar`), or the word `scenes`."""

    path: str | None = None
    kind: Kind = "auto"  # auto: by what lies there
    weight: float = Field(1.0, gt=0)  # of a part of a mix: its share of all draws is weight / sum of weights
    repeats: int = Field(1, gt=0)  # how often each picture comes in an epoch; kohya's folder numbers multiply it

    image_column: str = "image"  # of parquet
    text_column: str | None = None  # of parquet, metadata and json; None: the first there is of text, caption, name
    label_column: str | None = None  # None: "label", where there is one
    hint_column: str = "hint"
    mask_column: str = "mask"
    where: dict[str, str | int | list[str | int]] = Field({})  # only rows whose column has this value (or one of these)
    caption: Texts = Field([])  # templates such as "a {style} emoji of {name}"; of several, one is drawn each time

    count: int = Field(60_000, gt=0)  # of scenes
    combinations: Literal["all", "seen", "held_out"] = "all"  # of scenes: see ldm/data/held_out.py
    crowded: Share = CROWDED  # of scenes: how many hold several things, half of them equal ones, half a mixed pair
    scene_seed: int = Field(0, ge=0)

    @property
    def templates(self) -> tuple[str, ...]:
        return (self.caption,) if isinstance(self.caption, str) else tuple(self.caption)


class Buckets(Strict):
    """Sizes of about size x size pixels in several shapes; a picture goes where the least of it is cropped away."""

    step: Side = 64  # sides are multiples of this (and of what the autoencoder and the U-Net divide by)
    least: Side | None = None  # shortest side; None: half of `size`
    most: Side | None = None  # longest side; None: twice `size`
    sizes: list[tuple[Side, Side]] | None = None  # (width, height), instead of all shapes that the above allows


class DataSettings(Part):
    """The whole section. With `mix`, the keys of a source stand in its parts."""

    mix: list[Part] = Field([])
    size: Side  # of the side of a picture; with buckets, their area is size x size
    buckets: Buckets | None = None
    crop: Literal["centre", "random"] = "centre"
    zoom: float = Field(1.0, ge=1, le=4)  # random crops show the whole picture down to 1/zoom of its side
    flip: Share = 0.0  # probability of being mirrored left to right
    background: Colour = "#ffffff"  # under transparent pixels
    least_side: int = Field(8, ge=1)  # a picture with a shorter side than this is left out

    hint: Texts | None = None  # for controls: names of ldm/data/hints.py, made from the picture shown, or "beside"
    mask: Literal["none", "alpha", "beside"] = "none"  # what of a picture counts in the loss

    uncaptioned: Literal["refuse", "empty"] = "refuse"  # of a task that needs words
    shuffle_caption: bool = False  # the parts between separators in a new order each time
    keep_tokens: int = Field(0, ge=0)  # so many parts at the front stay there, and are never dropped
    keep_tokens_separator: str = ""  # what stands before this in a caption stays in front (instead of a number)
    caption_separator: str = Field(",", min_length=1)
    caption_prefix: str = ""
    caption_suffix: str = ""
    caption_dropout_rate: Share = 0.0  # the whole caption is empty
    caption_dropout_every_n_epochs: int = Field(0, ge=0)  # in epochs n, 2n, ... of the picture all captions are empty
    caption_tag_dropout_rate: Share = 0.0  # of each part that is not kept

    shuffle: bool = True  # the order of examples; false: as they lie there
    validation: float = Field(0.0, ge=0)  # kept from training: a share below 1, or a number of pictures
    memory: float = Field(2.0, ge=0)  # GB in each process for decoded pictures; a set that fits is decoded once
    workers: int | None = Field(None, ge=0, le=64)  # processes that decode; None: as many as help
    prefetch: int = Field(2, gt=0)  # batches that each of them makes ahead
    index: str | None = None  # folder for the indexes of shards and large tables; None: beside them

    @property
    def parts(self) -> list[Part]:
        return list(self.mix) or [self]

    @property
    def hints(self) -> tuple[str, ...]:
        return () if self.hint is None else (self.hint,) if isinstance(self.hint, str) else tuple(self.hint)

    @property
    def under(self) -> tuple[int, int, int]:
        """The background as three numbers of 0..255."""
        red, green, blue = bytes.fromhex(self.background[1:])
        return red, green, blue

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if (self.path is None) == (not self.mix):
            raise ValueError("give either path: or mix:, a list of parts with a path each")
        if any(part.path is None for part in self.mix):
            raise ValueError("each part of mix: needs a path")
        stray = [name for name, field in Part.model_fields.items() if getattr(self, name) != field.default]
        if self.mix and stray:
            raise ValueError(f"{', '.join(stray)} would do nothing beside mix: move it into its parts")
        if self.zoom > 1 and self.crop != "random":
            raise ValueError("zoom needs crop: random")
        if self.validation > 1 and self.validation != round(self.validation):
            raise ValueError("validation is a share below 1 or a whole number of pictures")
        return self
