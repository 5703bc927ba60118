"""The form: what a person sets, each field named as in a request. Its values are read and filled in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

AUTO = "suits the model"


@dataclass
class Form:
    """Names of a request and the components that hold their values, in one order."""

    names: list[str] = field(default_factory=list)
    components: list[Component] = field(default_factory=list)

    def add(self, name: str, component: Component) -> Component:
        self.names.append(name)
        self.components.append(component)
        return component

    def number(self, name: str, label: str, **more: Any) -> Component:
        """Empty: what suits the model."""
        more = {"placeholder": "auto", "min_width": 110, **more}
        return self.add(name, gr.Number(None, label=label, elem_id=_id(name), **more))

    def choice(self, name: str, label: str, choices: Sequence[Any], value: str, **more: Any) -> Component:
        more = {"min_width": 140, "filterable": False} | more
        return self.add(name, gr.Dropdown(list(choices), value=value, label=label, elem_id=_id(name), **more))


def words(form: Form) -> None:
    """What the picture shows."""
    form.add(
        "prompt",
        gr.Textbox(
            label="Prompt",
            placeholder="red apple, noto style",
            lines=3,
            max_lines=8,
            max_length=20_000,
            elem_id=_id("prompt"),
            autofocus=True,
        ),
    )
    gr.HTML('<div id="ldm-tokens" class="ldm-tokens" aria-live="polite"></div>')
    form.add("negative", gr.Textbox(label="Not in the picture", lines=1, max_lines=4, elem_id=_id("negative")))


def settings(form: Form, models: Sequence[str], model: str) -> None:
    """How it is made. What is left empty suits the model."""
    form.choice("model", "Model", models, model)
    with gr.Row(equal_height=True):
        form.number("width", "Width", minimum=8, step=8, precision=0)
        form.number("height", "Height", minimum=8, step=8, precision=0)
    with gr.Row(equal_height=True):
        form.number("steps", "Steps", minimum=1, precision=0)
        form.number("guidance.scale", "Guidance", minimum=0, step=0.5)
    form.number("seed", "Seed", minimum=0, precision=0, placeholder="any")
    with gr.Row(equal_height=True):
        form.number("count", "Pictures", minimum=1, precision=0, placeholder="1")
        form.number("best_of", "Best of", minimum=1, precision=0, placeholder="1")


def finer(form: Form) -> None:
    """What most never need."""
    with gr.Row(equal_height=True):
        form.choice("solver", "Solver", [(AUTO, "auto")], "auto")
        form.choice("spacing", "Spacing of steps", [(AUTO, "auto")], "auto")
    with gr.Row(equal_height=True):
        form.number("variation_seed", "Variation seed", minimum=0, precision=0, placeholder="none")
        form.number("variation", "Variation", minimum=0, maximum=1, step=0.05, placeholder="0")
    with gr.Row(equal_height=True):
        form.number("hires.scale", "Second pass: enlarge by", minimum=1, maximum=8, step=0.25, placeholder="no")
        form.number("hires.strength", "Second pass: strength", minimum=0, maximum=1, step=0.05, placeholder="0.5")
    with gr.Row(equal_height=True):
        form.number("guidance.rescale", "Guidance rescale", minimum=0, maximum=1, step=0.05, placeholder="0")
        form.number("clip_skip", "CLIP skip", minimum=0, maximum=12, precision=0, placeholder="0")
    form.add("exact", gr.Checkbox(False, label="Exact: equal to the bit, never shared", elem_id=_id("exact")))


def _id(name: str) -> str:
    return f"ldm-f-{name.replace('.', '-')}"
