"""Dangerous calls stand in their door files only: weights, pictures, YAML, child processes, the network; one each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = ("app", "train", "pipelines", "ldm", "benchmarks")

# A call (by its dotted end) or an import -> the only files or folders in which it may stand. Empty: nowhere.
CALLS: dict[str, tuple[str, ...]] = {
    "torch.load": ("ldm/store/convert.py",),  # in its own process, weights_only, after --i-trust-this-file
    "yaml.load": (),
    "yaml.full_load": (),
    "yaml.unsafe_load": (),
    "Image.open": ("ldm/images/",),
    "eval": (),
    "exec": (),
    "compile": (),
    "__import__": (),
    "importlib.import_module": ("ldm/baselines/family.py",),  # a family by the name of its file, which must be there
    "import_module": ("ldm/baselines/family.py",),
    "os.system": (),
    "os.popen": (),
    "register_for_checkpointing": (),  # unpickles on resume
    "accelerator.load_state": (),
    "accelerator.save_state": (),
    "accelerator.accumulate": (),
}
CHILDREN = ("app/server/learning/process.py",)  # trainings of a server: its other helper imports torch
IMPORTS: dict[str, tuple[str, ...]] = {
    "yaml": ("ldm/config/",),
    "safetensors": ("ldm/store/", "train/"),
    "subprocess": ("ldm/store/convert.py", "train/compare/children.py", *CHILDREN, "benchmarks/"),
    "huggingface_hub": ("ldm/store/",),
    **dict.fromkeys(("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"), ()),
    "httpx": ("benchmarks/serve.py",),  # a caller of the server, on this machine
    **dict.fromkeys(("requests", "aiohttp", "urllib.request", "urllib3", "http.client", "ftplib"), ()),
    **dict.fromkeys(("omegaconf", "hydra"), ()),
}
# A keyword with this value is refused in every call but those named.
KEYWORDS: dict[tuple[str, object], tuple[str, ...]] = {
    ("strict", False): ("zip",),
    ("weights_only", False): (),
    ("trust_remote_code", True): (),
    ("allow_pickle", True): (),
    ("shell", True): (),
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a call; what is called on something unnamed keeps its end: `.load`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def is_call(called: str, rule: str) -> bool:
    """A bare rule (`eval`) means the builtin, never a method; the others match by their dotted end."""
    return called == rule or (("." in rule or "_" in rule) and called.endswith("." + rule))


def uses(source: str) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Each use of a door: what it is, its line, and the files in which it may stand."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            yield from ((rule, node.lineno, doors) for rule, doors in CALLS.items() if is_call(called, rule))
            for keyword in node.keywords:
                if not isinstance(keyword.value, ast.Constant):
                    continue
                fine = KEYWORDS.get((keyword.arg or "", keyword.value.value))
                if fine is not None and called not in fine:
                    yield f"{keyword.arg}={keyword.value.value}", node.lineno, ()
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((n, node.lineno, CALLS[n]) for n in names if n in CALLS)  # from torch import load
        for name in names:
            for rule, doors in IMPORTS.items():
                if name == rule or name.startswith(rule + "."):
                    yield f"import {rule}", node.lineno, doors


def violations(path: str, source: str) -> list[str]:
    return [
        f"{path}:{line}: {use} may stand in {', '.join(doors) or 'no file'}"
        for use, line, doors in uses(source)
        if not any(path == door or (door.endswith("/") and path.startswith(door)) for door in doors)
    ]


def files() -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for tree in TREES for p in (ROOT / tree).rglob("*.py"))


@pytest.mark.parametrize("path", files())
def test_dangerous_calls_stand_in_their_doors(path: str) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "from torch import load",
        "import pickle",
        "from pickle import loads",
        "yaml.load(text, yaml.SafeLoader)",
        "import yaml",
        "Image.open(path)",
        "PIL.Image.open(path)",
        "from PIL.Image import open; eval('1')",
        "exec(code)",
        "import requests",
        "from urllib.request import urlopen",
        "import subprocess",
        "os.system('ls')",
        "net.load_state_dict(weights, strict=False)",
        "dict(strict=False)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "np.load(x, allow_pickle=True)",
        "from safetensors.torch import load_file",
        "self.accelerator.load_state(x)",
        "def late():\n    import dill",
    ],
)
def test_a_dangerous_call_is_found_elsewhere(source: str) -> None:
    assert violations("pipelines/pipeline.py", source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pipelines/pipeline.py", "net.eval()\nzip(a, b, strict=False)\nre.compile('a')\ntorch.compile(net)"),
        ("pipelines/pipeline.py", "'torch.load( and pickle in words only'"),
        ("ldm/config/reader.py", "import yaml\nyaml.safe_load(text)"),
        ("ldm/images/door.py", "Image.open(path)"),
        ("ldm/store/convert.py", "import subprocess\ntorch.load(path, weights_only=True)"),
        ("ldm/store/weights.py", "from safetensors import safe_open"),
    ],
)
def test_doors_and_harmless_namesakes_are_fine(path: str, source: str) -> None:
    assert violations(path, source) == []
