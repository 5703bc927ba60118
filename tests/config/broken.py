"""Thirty broken run files: each with the line that is at fault, and the words that its message must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ldm.config import Strict


class Unet(Strict):
    channels: Annotated[int, Field(gt=0)] = 64
    heads: int = 4


class Model(Strict):
    unet: Unet = Unet()
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class Diffusion(Strict):
    type: Literal["diffusion"]
    drop_caption: Annotated[float, Field(ge=0, le=1)] = 0.1


class Gan(Strict):
    type: Literal["gan"]
    critic: Path


class Run(Strict):
    out: Path
    steps: Annotated[int, Field(ge=1)] = 1000
    resume: bool = False
    betas: tuple[float, float] = (0.9, 0.99)
    save: int | None = None
    every: int | Literal["end"] = 10

    @model_validator(mode="after")
    def _saves_within_the_run(self) -> Run:
        if self.save is not None and self.save > self.steps:
            raise ValueError(f"save {self.save} is more than steps {self.steps}")
        return self


class Config(Strict):
    task: Annotated[Diffusion | Gan, Field(discriminator="type")]
    model: Model = Model()
    run: Run
    stages: tuple[Unet, ...] = ()


GOOD = """\
task:
  type: diffusion
  drop_caption: 0.2
model:
  unet:
    channels: 32
  dtype: bf16
run:
  out: runs/a
  steps: 200
  resume: true
  betas: [0.9, 0.95]
stages:
  - {channels: 8}
  - {channels: 16}
"""


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


# name -> (file, line at fault or None, words of `what`, words of `fix`)
BROKEN: dict[str, tuple[str, int | None, str, str]] = {
    "misspelled key": (
        changed("    channels: 32", "    chanels: 32"),
        6,
        "model.unet.chanels: unknown key; did you mean channels?",
        "rename chanels to channels",
    ),
    "misspelled section": (
        changed("model:", "modle:"),
        4,
        "modle: unknown key; did you mean model?",
        "rename modle to model",
    ),
    "key of nothing": (changed("  resume: true", "  zzz: 1"), 11, "run.zzz: unknown key", "remove zzz"),
    "key of another task": (
        changed("  drop_caption: 0.2", "  critic: a"),
        3,
        "task.critic: unknown key",
        "remove critic",
    ),
    "misspelled key of a task": (changed("drop_caption", "drop_captoin"), 3, "did you mean drop_caption?", "rename"),
    "key in a list": (
        changed("{channels: 16}", "{chanels: 16}"),
        15,
        "stages.1.chanels: unknown key; did you mean channels?",
        "rename",
    ),
    "unknown task": (
        changed("type: diffusion", "type: difusion"),
        2,
        "task.type: difusion is none of diffusion, gan; did you mean diffusion?",
        "write diffusion",
    ),
    "task without type": (changed("  type: diffusion\n", ""), 1, "task.type: missing", "add type:"),
    "missing section": (GOOD[: GOOD.index("run:")], 1, "run: missing", "add run:"),
    "missing key": (changed("  out: runs/a\n", ""), 8, "run.out: missing", "add out:"),
    "word for a number": (
        changed("steps: 200", "steps: many"),
        10,
        "run.steps: many is not a whole number",
        "give steps a whole number",
    ),
    "quoted number": (
        changed("steps: 200", 'steps: "200"'),
        10,
        'run.steps: "200" is not a whole number',
        "give steps",
    ),
    "fraction for a whole number": (
        changed("steps: 200", "steps: 2.5"),
        10,
        "run.steps: 2.5 is not a whole number",
        "give steps",
    ),
    "yes for a number": (
        changed("steps: 200", "steps: true"),
        10,
        "run.steps: true is not a whole number",
        "give steps",
    ),
    "number for true": (
        changed("resume: true", "resume: 1"),
        11,
        "run.resume: 1 is not true or false",
        "true or false",
    ),
    "yes for true": (
        changed("resume: true", "resume: yes"),
        11,
        "run.resume: yes is not true or false",
        "true or false",
    ),
    "too small": (
        changed("steps: 200", "steps: 0"),
        10,
        "run.steps: 0: should be greater than or equal to 1",
        "change run.steps",
    ),
    "too large": (
        changed("drop_caption: 0.2", "drop_caption: 1.2"),
        3,
        "should be less than or equal to 1",
        "change task.drop_caption",
    ),
    "not a choice": (
        changed("dtype: bf16", "dtype: bf61"),
        7,
        "model.dtype: bf61 is none of fp32, bf16, fp16; did you mean bf16?",
        "write bf16",
    ),
    "not finite": (
        changed("drop_caption: 0.2", "drop_caption: .nan"),
        3,
        "task.drop_caption: .nan is not a finite number",
        "give",
    ),
    "overflow": (changed("drop_caption: 0.2", "drop_caption: 1e999"), 3, "1e999 is not a finite number", "give"),
    "list too short": (changed("[0.9, 0.95]", "[0.9]"), 12, "run.betas.1: missing", "add value number 1"),
    "text for a list": (changed("[0.9, 0.95]", "0.9"), 12, "run.betas: 0.9 is not a list", "give betas a list"),
    "value for a section": (
        changed("  unet:\n    channels: 32\n", "  unet: 32\n"),
        5,
        "model.unet: 32 is not a section",
        "give unet a section",
    ),
    "fields that do not fit": (
        changed("resume: true", "save: 900"),
        8,
        "run: save 900 is more than steps 200",
        "change run",
    ),
    "neither of two": (changed("resume: true", "every: often"), 11, "run.every: often is not a whole number", "every"),
    "written twice": (
        changed("resume: true", "steps: 300"),
        11,
        "run.steps: written twice, first in line 10",
        "keep one",
    ),
    "not closed": (changed("[0.9, 0.95]", "[0.9, 0.95"), 13, "not valid YAML", "close brackets"),
    "tab": (changed("  steps: 200", "\tsteps: 200"), 10, "not valid YAML", "indent with spaces"),
    "a list on top": ("- task\n- run\n", 1, "is not a section", "write key: value lines"),
    "empty": ("", 1, "task: missing", "add task:"),
    "two documents": (GOOD + "---\na: 1\n", 16, "not valid YAML", "key: value"),
}
