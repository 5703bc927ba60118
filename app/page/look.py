"""Colours and letters of the page. Fonts are those of the machine: nothing is fetched."""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import colors

LETTERS = ("ui-sans-serif", "system-ui", "sans-serif")
CODE = ("ui-monospace", "monospace")


def theme() -> gr.themes.Base:
    """Paper and ink, and one colour for what acts. `page.css` has the same names for our own markup."""
    made = gr.themes.Base(
        primary_hue=colors.orange, neutral_hue=colors.stone, font=LETTERS, font_mono=CODE, radius_size="md"
    )
    return made.set(
        body_background_fill="#f6f4f0",
        body_background_fill_dark="#151311",
        body_text_color="#1f1b16",
        body_text_color_dark="#efe9e0",
        body_text_color_subdued="#625a4f",
        body_text_color_subdued_dark="#b0a698",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="#625a4f",
        block_label_text_color_dark="#b0a698",
        block_title_text_color="#3a342c",
        block_title_text_color_dark="#d8d0c4",
        block_title_text_size="0.82rem",
        block_title_text_weight="600",
        block_info_text_color="#625a4f",
        block_info_text_color_dark="#b0a698",
        input_background_fill="#fffdf9",
        input_background_fill_dark="#211e1a",
        input_border_width="1px",
        input_border_color="#b9ae9c",
        input_border_color_dark="#5d5447",
        input_border_color_focus="#b4430f",
        input_border_color_focus_dark="#ff9a62",
        input_placeholder_color="#776d5f",
        input_placeholder_color_dark="#978c7d",
        border_color_primary="#e0d9cc",
        border_color_primary_dark="#37312a",
        color_accent="#b4430f",
    )
