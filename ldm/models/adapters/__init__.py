"""Adapters: small files that change a base's weights (LoRA and its relatives) or add words to its text encoders."""

from ldm.models.adapters.adapter import Adapter, Part, parse_adapter
from ldm.models.adapters.comparing import Comparison, compare
from ldm.models.adapters.convert import DIALECTS, Dialect, convert
from ldm.models.adapters.embeddings import Embedding, parse_embedding
from ldm.models.adapters.extracting import Extracted, extracted
from ldm.models.adapters.mixing import Mixed, mixed
from ldm.models.adapters.stack import AdapterStack, Applied, Report
from ldm.models.adapters.summary import Summary, inspect

__all__ = [
    "DIALECTS",
    "Adapter",
    "AdapterStack",
    "Applied",
    "Comparison",
    "Dialect",
    "Embedding",
    "Extracted",
    "Mixed",
    "Part",
    "Report",
    "Summary",
    "compare",
    "convert",
    "extracted",
    "inspect",
    "mixed",
    "parse_adapter",
    "parse_embedding",
]
