"""The run file: four sections, every key known, every default written down. `ldm train FILE section.key=value`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ldm.config import Strict
from ldm.data.settings import DataSettings
from train.tasks.settings import TaskSettings

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class OptimSettings(Strict):
    """The optimiser of every phase; a phase multiplies `lr` by its own rate.

    The learning rate is a function of the step alone: it rises for `warmup` steps, and falls from `decay_from` (a share
    of the run) to `floor` times its peak.
    """

    kind: Literal["adamw", "adamw8bit", "schedule_free", "muon", "sgd"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    muon_lr: float = Field(0.02, gt=0)  # of hidden matrices, with kind: muon; all else goes to AdamW
    betas: tuple[Share, Share] = (0.9, 0.99)  # of the moments; with sgd the first is its momentum
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0)
    decay: Literal["constant", "cosine", "linear"] = "cosine"
    decay_from: float = Field(0.0, ge=0, le=1)
    floor: float = Field(0.0, ge=0, le=1)
    clip: float = Field(1.0, ge=0)  # largest norm of a gradient; 0: never clipped
    ema: float = Field(0.999, ge=0, lt=1)  # 0: no average; it warms up: min(ema, (1 + n) / (10 + n))
    snapshots: Annotated[tuple[float, ...], Field(max_length=4)] = ()  # widths of averages kept for a choice afterwards


class RunSettings(Strict):
    """Where, how long, how large, and how often something is written."""

    out: Path
    seed: int = 0
    steps: Positive
    batch: Positive = 16  # examples of one step, over all processes
    micro: Positive | None = None  # examples of one forward pass; None: a process's whole share
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str | None = None  # None: the best that is there
    threads: Positive | None = None
    compile: bool = False
    checkpointing: bool = False  # recompute activations in the backward pass: slower, smaller
    sharding: Literal["none", "full"] = "none"  # of parameters over processes (FSDP)
    save: Positive = 1000
    keep: Positive = 2
    preview: int = Field(500, ge=0)  # 0: never
    evaluate: int = Field(500, ge=0)  # steps between validation losses; 0: never
    log: Positive = 10
    cache: Path | None = None  # folder for latents and text states: of tasks that denoise
    trackers: tuple[str, ...] = ()  # tensorboard, wandb, trackio, ...: by accelerate's names


OF_A_SUBJECT = ("lora", "inversion")


class RunFile(Strict):
    """The whole file."""

    task: TaskSettings
    data: DataSettings
    optim: OptimSettings = OptimSettings()
    run: RunSettings

    @property
    def refuses_masks(self) -> bool:
        """In a few pictures of a subject a mask says what the subject is: one that lies there and does nothing is a
        mistake that no figure shows."""
        return self.task.type in OF_A_SUBJECT and self.data.mask == "none"
