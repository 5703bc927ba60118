"""What a server does for one caller at most: one record, printed by `ldm doctor`, told at /v1/limits."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ldm.errors import Code, LdmError
from ldm.models.prompt import MAX_SAID, parse, resolve
from pipelines.request import Request

Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Limits(BaseModel):
    """Sizes in bytes and pixels, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body: Count = 16 << 20  # bytes of a request
    input_pixels: Count = 40_000_000  # of a picture that comes in
    output_pixels: Count = 2_000_000  # of a picture that is made, with its margins and its second pass
    steps: Count = 150  # of a picture, the second pass included
    pictures: Count = 100  # of a job
    work: Count = 1_000_000_000  # pixels x steps x pictures of a job, more for tiles, controls and the like
    words: Count = MAX_SAID  # characters of all texts that the prompts of a picture are; ten times as many of a job
    batch_pixels: Count = 4_000_000  # of pictures that share a call of the network
    stored: Count = 10 << 30  # bytes of uploads that are kept
    imported: Count = 8 << 30  # bytes of a file of weights that is brought
    imports: Count = 2  # such files at a time
    library: Count = 50 << 30  # bytes of the server's own models and adapters, and of its trash
    waiting: Count = 32  # jobs in the queue
    trainings: Count = 8  # in their queue
    training_photos: Count = 100
    trained: Count = 50 << 30  # bytes of all trainings, and of their trash
    training_steps: Count = 20_000
    connections: Count = 256
    header_seconds: Seconds = 10.0  # until the head of a request is there
    body_seconds: Seconds = 30.0  # until its body is there
    idle_seconds: Seconds = 15.0  # of a connection on which nothing is asked

    def check(self, request: Request, size: tuple[int, int]) -> float:
        """Refuses what is too much work; else how much it is. `size` is that of the latent work."""
        width, height = self._drawn(request, size)
        steps = self.steps_of(request)
        pixels = width * height
        branches = 1 + len(request.controls) + (request.guidance.pag > 0)
        work = round(pixels * steps * request.count * branches * _overlapping(request, width, height))
        self._most("width x height", pixels, self.output_pixels, "pixels of a picture", "Ask for a smaller one.")
        self._most("steps", steps, self.steps, "steps of a picture", "Ask for fewer.")
        self._most("count", request.count, self.pictures, "pictures of a job", "Ask for fewer, and again for more.")
        self._most("count x steps x size", work, self.work, "pixels x steps", "Ask for less in one job.")
        self._check_words(request)
        return float(work)

    def _check_words(self, request: Request) -> None:
        """All texts are laid out before the first step. Those of other pictures differ where there is a choice."""
        drawn = request.seed if request.variation_seed is None or request.variation <= 0 else request.variation_seed
        texts, whole = (request.prompt, request.negative or ""), 0
        for place in range(request.count if any("{" in text for text in texts) else 1):
            spoken = (resolve(text, seed=drawn + place, wildcards=request.wildcards).text for text in texts)
            said = sum(parse(text, request.dialect, steps=request.steps).said for text in spoken)
            whole += said
            fix = "Shorten the prompts, or let them change less often."
            self._most("prompt x changes", said, self.words, "characters that are read for a picture", fix)
            fix = "Shorten the prompts, or ask for fewer pictures."
            self._most("prompts x pictures", whole, 10 * self.words, "characters that are read for a job", fix)

    @staticmethod
    def steps_of(request: Request) -> int:
        """Calls of the network for a picture, the second pass included."""
        steps = max(request.steps, len(request.sigmas or ())) * (2 if request.solver == "heun" else 1)
        return steps + (0 if request.hires is None else request.hires.steps or request.steps)

    def __str__(self) -> str:
        return (
            f"requests of {self.body >> 20} MB, pictures of {self.input_pixels / 1e6:g} Mpx in and "
            f"{self.output_pixels / 1e6:g} Mpx out, {self.steps} steps, {self.pictures} pictures a job, "
            f"{self.waiting} jobs waiting, {self.training_steps:,} steps a training, "
            f"{self.trained / 1e9:.0f} GB of them; a head within "
            f"{self.header_seconds:g} s, a body within {self.body_seconds:g} s, {self.idle_seconds:g} s idle; "
            f"imports of {self.imported / 1e9:.1f} GB, {self.imports} at a time, {self.library / 1e9:.0f} GB in all"
        )

    def batch(self, request: Request, size: tuple[int, int]) -> int:
        """How many pictures of a request share a call: as asked, as far as memory is meant to go. None is changed."""
        width, height = self._drawn(request, size)
        return max(1, min(request.batch, self.batch_pixels // (width * height)))

    @staticmethod
    def _drawn(request: Request, size: tuple[int, int]) -> tuple[int, int]:
        """The sides of what is made: those of the latent work, or of the user's picture where that stays."""
        width, height = size
        stays = request.mask is not None or any(request.pad) or not (request.width and request.height)
        if request.image is not None and stays:
            left, top, right, bottom = request.pad
            own = getattr(request.image, "size", size)
            width, height = max(width, own[0] + left + right), max(height, own[1] + top + bottom)
        if request.hires is not None:
            width, height = (round(side * request.hires.scale) for side in (width, height))
        return width, height

    @staticmethod
    def _most(name: str, asked: int, most: int, what: str, fix: str) -> None:
        if asked > most:
            raise LdmError(Code.USAGE, f"{name} is too much: {asked:,}.", f"The limit is {most:,} {what}.", fix)


def _overlapping(request: Request, width: int, height: int) -> float:
    """How many times as many pixels tiles compute, since neighbours overlap."""
    if request.tile is None:
        return 1.0
    size = request.tile.size
    step = max(1, size - (size // 4 if request.tile.overlap is None else request.tile.overlap))
    across, down = (1 + max(0, math.ceil((side - size) / step)) for side in (width, height))
    return max(1.0, across * down * size * size / (width * height))
