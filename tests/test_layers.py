"""Arrows point downwards: the imports of every file obey the table of `docs/architecture.md`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("app", "train", "pipelines", "ldm")

# What a file of each place may import of ours. The longest matching name decides; a place may always import itself.
BASE = ("ldm.errors", "ldm.extras", "ldm.fields", "ldm.version")
FLOOR = ("ldm.data", "ldm.metrics", "ldm.store", "ldm.images", "ldm.baselines")
ALLOWED: dict[str, tuple[str, ...]] = {
    "app": ("train", "pipelines", "ldm"),
    "train": ("pipelines", "ldm"),
    "pipelines": ("ldm",),
    **dict.fromkeys(FLOOR, (*BASE, *FLOOR, "ldm.models", "ldm.diffusion", "ldm.config", "ldm.pretrained")),
    "ldm.models": (*BASE, "ldm.diffusion"),
    "ldm.diffusion": BASE,
    "ldm.config": BASE,
    "ldm.errors": (),
    "ldm.extras": (),
    "ldm.fields": (),
    "ldm.version": (),
    "ldm.pretrained": (),
    "ldm": BASE,  # the package's own __init__
}

# Third-party packages (or parts of them) that only some places may see.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "accelerate": ("train",),
    "diffusers.schedulers": ("ldm.diffusion.solver",),
    "diffusers": ("ldm.diffusion.solver", "ldm.baselines"),
    "transformers": ("ldm.models",),
    "open_clip": ("ldm.models", "ldm.store", "ldm.metrics", "train"),
    "peft": ("ldm.models", "ldm.store", "train"),
    "gradio": ("app",),
    "fastapi": ("app",),
    "typer": ("app",),
    "rich": ("app",),
}


def module_of(path: Path) -> str:
    """`ldm/store/header.py` is ldm.store.header; a package's `__init__` is the package."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: str, source: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """Every imported name, absolute, with its line; imports inside functions and under TYPE_CHECKING count too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - is_package
                package = module.split(".")[: -up or None]
                base = ".".join([*package, *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def inside(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def scheduler_by_short_name(name: str) -> str:
    """`from diffusers import DDIMScheduler` is the same as importing it from diffusers.schedulers."""
    return "diffusers.schedulers" if name.startswith("diffusers.") and name.endswith("Scheduler") else name


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What this source imports and must not, in words."""
    place = max((p for p in ALLOWED if inside(module, p)), key=len)
    if place == "ldm" and module != "ldm":
        return [f"{module}: a new room of ldm/ needs a line in the layer table"]
    found = []
    for name, line in imports(module, source, is_package):
        name = scheduler_by_short_name(name)
        if name.split(".")[0] in OURS:
            if not any(inside(name, p) for p in (*ALLOWED[place], place)):
                found.append(
                    f"{module}:{line} imports {name}; {place} may import {', '.join(ALLOWED[place]) or 'nothing'}"
                )
        elif rule := max((p for p in THIRD_PARTY if inside(name, p)), key=len, default=None):
            if not any(inside(module, p) for p in THIRD_PARTY[rule]):
                found.append(f"{module}:{line} imports {name}; only {', '.join(THIRD_PARTY[rule])} may import {rule}")
        elif inside(module, "ldm.diffusion") and name.split(".")[0] not in (*sys.stdlib_module_names, "torch", "numpy"):
            found.append(f"{module}:{line} imports {name}; ldm.diffusion is torch and numpy alone")
    return found


def files() -> list[Path]:
    return sorted(p.relative_to(ROOT) for place in OURS for p in (ROOT / place).rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=str)
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    assert violations(module_of(path), (ROOT / path).read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ldm.models.text", "import ldm.store.weights"),
        ("ldm.models.text", "from ldm import store"),
        ("ldm.models.text", "def late():\n    from ..data import hints"),
        ("ldm.diffusion.solver", "from ldm.models.latent import Cond"),
        ("ldm.diffusion.denoise", "from diffusers.schedulers import DDIMScheduler"),
        ("ldm.diffusion.denoise", "import scipy"),
        ("ldm.models.unet", "from diffusers import DDIMScheduler"),
        ("ldm.config", "from ldm.images import Picture"),
        ("ldm.errors", "from ldm import version"),
        ("ldm.store.folder", "from pipelines.request import Request"),
        ("pipelines.pipeline", "import accelerate"),
        ("pipelines.pipeline", "from train.trainer import Trainer"),
        ("train.trainer", "import app.cli"),
        ("ldm.drawer", "import torch"),
    ],
)
def test_an_arrow_upwards_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ldm.diffusion.solver", "from diffusers.schedulers import DDIMScheduler\nimport torch, math"),
        (
            "ldm.models.text",
            "from ldm.diffusion.level import Level\nfrom . import prompt\nfrom ldm.errors import LdmError",
        ),
        ("ldm.data.masks", "from ldm.images import Picture"),
        ("train.trainer", "import accelerate\nfrom pipelines.request import Request"),
        ("app.cli", "from train import trainer\nfrom ldm import errors"),
    ],
)
def test_an_arrow_downwards_is_fine(module: str, source: str) -> None:
    assert violations(module, source) == []
