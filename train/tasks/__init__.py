"""The closed table of tasks: `type` in the run file -> the task. A task is imported when it is asked for."""

from __future__ import annotations

from train.task import Setting, Task
from train.tasks.settings import TaskSettings

__all__ = ["TaskSettings", "build"]


def build(settings: TaskSettings, setting: Setting) -> Task:
    """The task that this section of a run file describes, its networks on the CPU in fp32."""
    match settings.type:
        case "autoencoder":
            from train.tasks.autoencoder import AutoencoderTask

            return AutoencoderTask(settings, setting)
        case "classifier":
            from train.tasks.classifier import ClassifierTask

            return ClassifierTask(settings, setting)
        case "clip":
            from train.tasks.clip import ClipTask

            return ClipTask(settings, setting)
        case "diffusion":
            from train.tasks.diffusion import DiffusionTask

            return DiffusionTask(settings, setting)
        case "controlnet":
            from train.tasks.controlnet import ControlTask

            return ControlTask(settings, setting)
        case "decoder":
            from train.tasks.decoder import DecoderTask

            return DecoderTask(settings, setting)
        case "distill":
            from train.tasks.distill import DistillTask

            return DistillTask(settings, setting)
        case "lora" | "inversion":
            from train.tasks.subject import SubjectTask

            return SubjectTask(settings, setting)
        case "family":
            from train.tasks.family import FamilyTask

            return FamilyTask(settings, setting)
