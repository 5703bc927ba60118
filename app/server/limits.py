"""What a server does for one caller at most: one record, printed by `ldm doctor`, told at /v1/limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ldm.errors import Code, LdmError
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
    work: Count = 1_000_000_000  # pixels x steps x pictures of a job
    waiting: Count = 32  # jobs in the queue
    connections: Count = 256
    header_seconds: Seconds = 10.0  # until the head of a request is there
    body_seconds: Seconds = 30.0  # until its body is there
    idle_seconds: Seconds = 15.0  # of a connection on which nothing is asked

    def check(self, request: Request, size: tuple[int, int]) -> float:
        """Refuses what is too much work; else how much it is. `size` is that of the latent work."""
        width, height = size
        if request.image is not None:
            left, top, right, bottom = request.pad
            own = getattr(request.image, "size", size)
            width, height = max(width, own[0] + left + right), max(height, own[1] + top + bottom)
        if request.hires is not None:
            width, height = (round(side * request.hires.scale) for side in (width, height))
        steps = request.steps + (0 if request.hires is None else request.hires.steps or request.steps)
        pixels = width * height
        work = pixels * steps * request.count
        self._most("width x height", pixels, self.output_pixels, "pixels of a picture", "Ask for a smaller one.")
        self._most("steps", steps, self.steps, "steps of a picture", "Ask for fewer.")
        self._most("count", request.count, self.pictures, "pictures of a job", "Ask for fewer, and again for more.")
        self._most("count x steps x size", work, self.work, "pixels x steps", "Ask for less in one job.")
        return float(work)

    def __str__(self) -> str:
        return (
            f"requests of {self.body >> 20} MB, pictures of {self.input_pixels / 1e6:g} Mpx in and "
            f"{self.output_pixels / 1e6:g} Mpx out, {self.steps} steps, {self.pictures} pictures a job, "
            f"{self.waiting} jobs waiting; a head within {self.header_seconds:g} s, a body within "
            f"{self.body_seconds:g} s, {self.idle_seconds:g} s idle"
        )

    @staticmethod
    def _most(name: str, asked: int, most: int, what: str, fix: str) -> None:
        if asked > most:
            raise LdmError(Code.USAGE, f"{name} is too much: {asked:,}.", f"The limit is {most:,} {what}.", fix)
