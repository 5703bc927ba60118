"""Prompts: cleaning, wildcards, weights, schedules and chunks. Needs a tokenizer at most, never weights."""

from ldm.models.prompt.chunks import BACKTRACK, MAX_CHUNKS, Layout, Token, lay_out
from ldm.models.prompt.clean import MAX_BYTES, check_size, clean
from ldm.models.prompt.explain import Explanation, explain
from ldm.models.prompt.parse import DIALECTS, MAX_SAID, Prompt, parse
from ldm.models.prompt.resolve import Lora, Resolved, resolve, retagged, tagged
from ldm.models.prompt.weights import MAX_WEIGHT, Dialect, Piece, Section
from ldm.models.prompt.words import remark, says, vocabulary

__all__ = [
    "BACKTRACK",
    "DIALECTS",
    "MAX_BYTES",
    "MAX_CHUNKS",
    "MAX_SAID",
    "MAX_WEIGHT",
    "Dialect",
    "Explanation",
    "Layout",
    "Lora",
    "Piece",
    "Prompt",
    "Resolved",
    "Section",
    "Token",
    "check_size",
    "clean",
    "explain",
    "lay_out",
    "parse",
    "remark",
    "resolve",
    "retagged",
    "says",
    "tagged",
    "vocabulary",
]
