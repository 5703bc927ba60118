"""The documentation of the API as one page: no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; text-transform: capitalize; }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .5rem 0; padding: .5rem .75rem; }
summary { cursor: pointer; } code, .verb { font-family: ui-monospace, monospace; font-size: .9em; }
.verb { display: inline-block; min-width: 3.5rem; font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; display: block; overflow-x: auto; }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); }
"""
INTRO = """
<p>Errors are <code>application/problem+json</code> with <code>title</code> (what), <code>detail</code> (why) and
<code>fix</code>. Where the server has a token, send <code>Authorization: Bearer TOKEN</code>. The whole description is
at <a href='/openapi.json'>/openapi.json</a>.</p>
"""


def page(told: Mapping[str, Any]) -> str:
    """OpenAPI as HTML."""
    groups: dict[str, list[str]] = {}
    for path, verbs in told["paths"].items():
        for verb, call in verbs.items():
            group = (call.get("tags") or ["others"])[0]
            groups.setdefault(group, []).append(_call(path, verb, call, told))
    body = "".join(f"<h2>{escape(group)}</h2>{''.join(calls)}" for group, calls in groups.items())
    info = told["info"]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(info['title'])}: API</title><style>{STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('summary', ''))}</p>"
        f"{INTRO}{body}</html>"
    )


def _call(path: str, verb: str, call: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    rows = [_row(p["name"], p["schema"], p["in"]) for p in call.get("parameters", ())]
    for kind, content in call.get("requestBody", {}).get("content", {}).items():
        rows += [_row(name, field, kind) for name, field in _fields(content["schema"], told)]
    table = f"<table><tr><th>name<th>kind<th>where<th>what</tr>{''.join(rows)}</table>" if rows else ""
    about = f"<p>{escape(call['description'])}</p>" if call.get("description") else ""
    return (
        f"<details><summary><span class='verb'>{escape(verb.upper())}</span> <code>{escape(path)}</code> "
        f"{escape(call.get('summary', ''))}</summary>{about}{table}</details>"
    )


def _fields(schema: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from schema.get("properties", {}).items()


def _row(name: str, schema: Mapping[str, Any], where: str) -> str:
    about = schema.get("description", "")
    cells = (f"<code>{escape(name)}</code>", escape(_kind(schema)), escape(where), escape(about))
    return f"<tr>{''.join(f'<td>{cell}' for cell in cells)}</tr>"


def _kind(schema: Mapping[str, Any]) -> str:
    """Of a value: its type and bounds, in a few words."""
    if "anyOf" in schema:
        return " or ".join(kind for one in schema["anyOf"] if (kind := _kind(one)) != "null")
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    bounds = [f"{words} {schema[key]:g}" for key, words in BOUNDS.items() if key in schema]
    return " ".join([kind, *bounds])


BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
