"""The `parameters` text that A1111 and its descendants write into pictures, and the sampler names of A1111 and ComfyUI.

    <prompt, any number of lines>
    Negative prompt: <any number of lines>
    Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, ...

The first two parts are not escaped in this format, so some prompts cannot be read back from them (a line of the prompt
that begins with "Negative prompt:", spaces at a line's end). Rule: the writer reads what it wrote; where that differs,
the exact texts follow as JSON strings under `Prompt text` and (unless there is none) `Negative text` in the last line,
and a reader of ours then takes both from there.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ldm.errors import Code, LdmError

NEGATIVE = "Negative prompt:"
EXACT_PROMPT, EXACT_NEGATIVE = "Prompt text", "Negative text"
MIN_PAIRS = 3  # fewer `key: value` pairs in the last line, and it belongs to the prompt
_KEY = re.compile(r"\w[\w /-]*")

# ours -> (A1111, ComfyUI). The first of several names is the one that is written.
SOLVERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ddpm": (("DDPM",), ("ddpm",)),
    "ddim": (("DDIM", "DDIM CFG++"), ("ddim",)),
    "euler": (("Euler",), ("euler",)),
    "euler-a": (("Euler a", "Euler ancestral"), ("euler_ancestral",)),
    "heun": (("Heun",), ("heun",)),
    "dpm++ 2m": (("DPM++ 2M",), ("dpmpp_2m",)),
    "dpm++ 2m sde": (("DPM++ 2M SDE",), ("dpmpp_2m_sde", "dpmpp_2m_sde_gpu")),
    "dpm++ single": (("DPM++ single",), ("dpmpp_single",)),
    "unipc": (("UniPC",), ("uni_pc", "uni_pc_bh2")),
    "deis": (("DEIS",), ("deis",)),
    "lcm": (("LCM",), ("lcm",)),
    "flow-euler": (("Flow Euler",), ("flow_euler",)),
}
SPACINGS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "leading": (("DDIM",), ("ddim_uniform",)),
    "trailing": (("SGM Uniform", "Simple"), ("sgm_uniform", "simple")),
    "linspace": (("Uniform", "Normal"), ("normal",)),
    "karras": (("Karras",), ("karras",)),
    "exponential": (("Exponential",), ("exponential",)),
    "beta": (("Beta",), ("beta",)),
    "ays": (("Align Your Steps",), ("ays", "align_your_steps")),
    "sigmas": (("Sigmas",), ("sigmas",)),
}
# What "Schedule type: Automatic" means there, for the solvers where it is not the solver's own default here.
AUTOMATIC: Mapping[str, str] = {"dpm++ 2m": "karras", "dpm++ 2m sde": "exponential"}


@dataclass(frozen=True)
class Parameters:
    """The three parts of the text. `negative` None: there is none; `pairs` keeps the order of the last line."""

    prompt: str = ""
    negative: str | None = None
    pairs: Mapping[str, str] = field(default_factory=dict)


def write(parameters: Parameters) -> str:
    """The text; with `MIN_PAIRS` pairs or more, `read(write(p))` gives p back, whatever the prompts hold."""
    p = parameters
    text = _write(p.prompt, p.negative, p.pairs)
    seen = read(text)
    if (seen.prompt, seen.negative) == (p.prompt, p.negative):
        return text
    exact = {EXACT_PROMPT: p.prompt} | ({} if p.negative is None else {EXACT_NEGATIVE: p.negative})
    return _write(p.prompt, p.negative, {**p.pairs, **exact})


def read(text: str) -> Parameters:
    """The parts of a text of ours or of A1111; never an error: what is no parameter is prompt."""
    head, last = _split(text.strip())
    pairs = dict(_pairs(last))
    if EXACT_PROMPT in pairs:
        return Parameters(prompt=pairs.pop(EXACT_PROMPT), negative=pairs.pop(EXACT_NEGATIVE, None), pairs=pairs)
    prompt: list[str] = []
    negative: list[str] | None = None
    for line in head:
        line = line.strip()
        if line.startswith(NEGATIVE):
            line, negative = line.removeprefix(NEGATIVE).strip(), negative or []
        (prompt if negative is None else negative).append(line)
    told = None if negative is None else "\n".join(negative)
    return Parameters(prompt="\n".join(prompt), negative=told, pairs=pairs)


def _write(prompt: str, negative: str | None, pairs: Mapping[str, str]) -> str:
    last = ", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items())
    return "\n".join(part for part in (prompt, f"{NEGATIVE} {negative}" if negative else "", last) if part).strip()


def _quoted(value: str) -> str:
    plain = value == value.strip() and not any(mark in value for mark in ',:"\n\r')
    return value if plain and value else json.dumps(value, ensure_ascii=False)


def _split(text: str) -> tuple[list[str], str]:
    """Lines of the two prompts, and the line of pairs (empty if there is none)."""
    *head, last = text.split("\n")
    if sum(1 for _ in _pairs(last)) >= MIN_PAIRS:
        return head, last
    return [*head, last] if text else [], ""


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """`key: value, ...` with values plain or as JSON strings, in time linear in the length of the line."""
    at, decoder = 0, json.JSONDecoder()
    while (colon := line.find(":", at)) >= 0:
        key = line[at:colon].rpartition(",")[2].strip()
        start = colon + 1
        while start < len(line) and line[start] == " ":
            start += 1
        value, end = None, start
        if line[start : start + 1] == '"':
            try:
                value, end = decoder.raw_decode(line, start)
            except ValueError:
                value = None
            if line[end : end + 1] not in {"", ","}:
                value = None
        if value is None:
            end = line.find(",", start)
            end = len(line) if end < 0 else end
            value = line[start:end].strip()
        if _KEY.fullmatch(key):
            yield key, value
        at = end + 1


def solver_from_name(name: str) -> tuple[str, str]:
    """("DPM++ 2M Karras") -> ("dpm++ 2m", "karras"): our solver and spacing of an A1111, ComfyUI or own name."""
    wanted = " ".join(name.split()).lower()
    solvers, spacings = _names(SOLVERS), _names(SPACINGS)
    if wanted in solvers:
        return solvers[wanted], "auto"
    for label in sorted(spacings, key=len, reverse=True):
        for gap in (" ", "_", "+"):
            head = wanted.removesuffix(gap + label).strip(' "')
            if head != wanted and head in solvers:
                return solvers[head], spacings[label]
    raise unknown("solver", name, sorted(SOLVERS), solvers)


def spacing_from_name(name: str, solver: str = "auto") -> str:
    """Our spacing of an A1111 schedule type, a ComfyUI scheduler or ours; "Automatic" asks the solver."""
    wanted = " ".join(name.split()).lower()
    if wanted in {"automatic", "auto", ""}:
        return AUTOMATIC.get(solver, "auto") if wanted == "automatic" else "auto"
    spacings = _names(SPACINGS)
    if wanted not in spacings:
        raise unknown("spacing", name, sorted(SPACINGS), spacings)
    return spacings[wanted]


def a1111_name(solver: str, spacing: str) -> tuple[str, str]:
    """("dpm++ 2m", "karras") -> ("DPM++ 2M", "Karras"); names that A1111 does not have stay ours."""
    return _label(SOLVERS, solver, 0), _label(SPACINGS, spacing, 0)


def comfy_name(solver: str, spacing: str) -> tuple[str, str]:
    """("dpm++ 2m", "karras") -> ("dpmpp_2m", "karras")."""
    return _label(SOLVERS, solver, 1), _label(SPACINGS, spacing, 1)


def unknown(what: str, name: str, ours: list[str], known: Mapping[str, str]) -> LdmError:
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    hint = f"did you mean {known[near[0]]!r}? " if near else ""
    return LdmError(
        Code.USAGE,
        f"{what} {name[:80]!r} is not known",
        f"{hint}the {what}s are auto, {', '.join(ours)}, and the names that A1111 and ComfyUI have for them",
        f"choose one of these {what}s",
    )


def _names(table: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> dict[str, str]:
    return {label.lower(): ours for ours, (a, comfy) in table.items() for label in (*a, *comfy, ours)}


def _label(table: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]], ours: str, column: int) -> str:
    return table[ours][column][0] if ours in table else ours
