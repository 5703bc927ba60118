"""What can be read, best effort, of the graph that ComfyUI writes into the PNG chunk `prompt`."""

from __future__ import annotations

import json
from typing import Any

from pipelines.a1111 import Parameters

MAX_DEPTH = 40  # links followed; a damaged graph may run in circles
SAMPLERS = ("KSampler", "KSamplerAdvanced")


def read_graph(text: str) -> Parameters | None:
    """The fields of the first KSampler as A1111-like parameters; None when there is no such node."""
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(graph, dict):
        return None
    nodes = {
        str(key): node for key, node in graph.items() if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    for node in nodes.values():
        if node.get("class_type") in SAMPLERS:
            return _sampler(nodes, node["inputs"])
    return None


def _sampler(nodes: dict[str, dict[str, Any]], inputs: dict[str, Any]) -> Parameters:
    wanted = {
        "Steps": inputs.get("steps"),
        "Sampler": inputs.get("sampler_name"),
        "Schedule type": inputs.get("scheduler"),
        "CFG scale": inputs.get("cfg"),
        "Seed": inputs.get("seed", inputs.get("noise_seed")),
    }
    width, height = (_find(nodes, inputs.get("latent_image"), name) for name in ("width", "height"))
    if isinstance(width, int) and isinstance(height, int):
        wanted["Size"] = f"{width}x{height}"
    model = _find(nodes, inputs.get("model"), "ckpt_name")
    if isinstance(model, str):
        wanted["Model"] = model.replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors")
    pairs = {key: str(value) for key, value in wanted.items() if isinstance(value, (int, float, str))}
    return Parameters(
        prompt=_text(nodes, inputs.get("positive"), "positive") or "",
        negative=_text(nodes, inputs.get("negative"), "negative"),
        pairs=pairs,
    )


def _text(nodes: dict[str, dict[str, Any]], link: object, side: str) -> str | None:
    """The text behind a conditioning link, through control and combine nodes."""
    for _ in range(MAX_DEPTH):
        node = _target(nodes, link)
        if node is None:
            return link if isinstance(link, str) else None
        inputs = node["inputs"]
        # `text` of XL's encoder is called text_g; a primitive or string node holds `value` or `string`
        names = ("text", "text_g", "value", "string", side, "conditioning", "conditioning_1")
        link = next((inputs[name] for name in names if name in inputs), None)
        if isinstance(link, str):
            return link
    return None


def _find(nodes: dict[str, dict[str, Any]], link: object, name: str) -> object:
    """The first value called `name` on the way up from a link (a LoRA loader passes the model on)."""
    for _ in range(MAX_DEPTH):
        node = _target(nodes, link)
        if node is None:
            return None
        inputs = node["inputs"]
        if name in inputs and not isinstance(inputs[name], list):
            return inputs[name]
        link = next(
            (inputs[key] for key in ("model", "samples", "latent_image", "pixels", "image") if key in inputs), None
        )
    return None


def _target(nodes: dict[str, dict[str, Any]], link: object) -> dict[str, Any] | None:
    return nodes.get(str(link[0])) if isinstance(link, list) and len(link) == 2 else None
