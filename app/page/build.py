"""The page: a form on the left, what it makes on the right, one section for each thing that people do.

gradio draws the form and keeps its values; the sections are our own markup and scripts (`assets/`), which speak to /v1
as any other program does. So nothing can be done on the page that the API refuses, and the page holds no state that a
reload could lose.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from app.generate import DEFAULT_MODEL
from app.page.calls import pictures_of
from app.page.form import AUTO, Form, finer, settings, words
from app.server.service import Service

ASSETS = Path(__file__).parent / "assets"
SECTIONS = ("create", "edit", "control", "personalize", "compare", "models", "gallery")
WAITING, AT_ONCE = 16, 8  # calls of gradio's own clients


def page_of(service: Service) -> gr.Blocks:
    """Everything on it is there from the start; scripts show one section at a time."""
    form = Form()
    with gr.Blocks(title="ldm", analytics_enabled=False, fill_width=True) as page:
        _markup("header")
        with gr.Row(elem_id="ldm-main"):
            with gr.Column(elem_id="ldm-form", min_width=0):
                words(form)
                _markup("make")
                with gr.Accordion("Settings", open=True, elem_id="ldm-settings"):
                    settings(form, [DEFAULT_MODEL], DEFAULT_MODEL)
                    _markup("adapters")
                with gr.Accordion("Finer settings", open=False, elem_id="ldm-finer"):
                    finer(form)
            with gr.Column(elem_id="ldm-sections", min_width=0):
                for name in SECTIONS:
                    _markup(name)
                _markup("stage")
        _wire(form, service)
    page.queue(api_open=False, max_size=WAITING, default_concurrency_limit=AT_ONCE)
    made: gr.Blocks = page
    return made


def _markup(name: str) -> None:
    gr.HTML(
        (ASSETS / f"{name}.html").read_text("utf-8"),
        elem_id=f"ldm-{name}",
        padding=False,
        js_on_load=None,
        apply_default_css=False,
    )


def _wire(form: Form, service: Service) -> None:
    """Values go to the scripts and come from them; Python only tells which choices there are."""

    def here() -> list[Any]:
        from ldm.diffusion.schedule import SPACINGS
        from ldm.diffusion.solver import SOLVERS

        choices: tuple[Sequence[Any], ...] = (
            list(service.catalog.models()), [(AUTO, "auto"), *SOLVERS], [(AUTO, "auto"), *SPACINGS]
        )  # fmt: skip
        return [gr.Dropdown(choices=told) for told in choices]

    chosen = [form.components[form.names.index(name)] for name in _CHOSEN]
    names = json.dumps(form.names)
    make, fill, refresh = (gr.Button(name, elem_id=f"ldm-do-{name}", visible="hidden") for name in _DOING)
    make.click(None, form.components, None, js=f"(...given) => window.ldm.make({names}, given)")
    fill.click(None, None, form.components, js=f"() => window.ldm.filling({names})")
    told = refresh.click(here, None, chosen, queue=False, show_progress="hidden", api_visibility="private")
    told.then(None, None, chosen, js=f"() => window.ldm.again({json.dumps(_CHOSEN)})")  # a choice of its choices
    changed = [component.change for component in form.components if hasattr(component, "change")]
    gr.on(changed, None, form.components, None, js=f"(...given) => window.ldm.kept({names}, given)")
    api(pictures_of(service), api_name="generate")


_CHOSEN = ("model", "solver", "spacing")
_DOING = ("make", "fill", "refresh")
