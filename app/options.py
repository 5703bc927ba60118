"""The one table of what `ldm generate` can be told: option, field of the request, how its text is read, and help.

A field without an option of its own is reachable as `--set field=value`; a test enumerates both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.validation import did_you_mean
from ldm.errors import Code, LdmError

WORDS, PICTURE, INPUT, CONDITIONS, RUN, OUTPUT = (
    "Words",
    "Picture",
    "Input picture",
    "Conditions",
    "Model and machine",
    "Output",
)


@dataclass(frozen=True)
class Option:
    """One row. `field` is a dotted path into `Request`, or empty for what concerns this command only."""

    flag: str
    field: str
    metavar: str
    help: str
    panel: str
    kind: Literal["value", "switch", "list"] = "value"
    read: Callable[[str], Any] = str
    fields: tuple[str, ...] = ()  # where one option fills several fields

    @property
    def name(self) -> str:
        """The name of the argument in Python."""
        return self.flag.split("/")[0].lstrip("-").replace("-", "_") + "_"

    @property
    def targets(self) -> tuple[str, ...]:
        return self.fields or ((self.field,) if self.field else ())


def bad(option: str, text: str, why: str, fix: str) -> LdmError:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return LdmError(Code.USAGE, f"{option}: {shown!r} was not understood.", f"{why}.", f"{fix}.")


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def size(text: str) -> dict[str, str]:
    found = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:[x×X]\s*([0-9]{1,9})\s*)?", text)
    if found is None:
        raise bad("--size", text, "It takes width and height in pixels, or one number for both", "Write --size 512x512")
    return {"width": found[1], "height": found[2] or found[1]}


def pad(text: str) -> list[str]:
    parts = split(text)
    if len(parts) not in (1, 4):
        raise bad(
            "--pad",
            text,
            "It takes one number for all sides, or four: left, top, right, bottom",
            "Write --pad 64 or --pad 64,0,64,0",
        )
    return parts * 4 if len(parts) == 1 else parts


def colour(text: str) -> tuple[int, ...]:
    digits = text.strip().removeprefix("#")
    if re.fullmatch(r"[0-9a-fA-F]{6}", digits):
        return tuple(int(digits[i : i + 2], 16) for i in (0, 2, 4))
    parts = [int(part) if re.fullmatch("[0-9]{1,3}", part) else 256 for part in split(text)]
    if len(parts) != 3 or max(parts) > 255:
        raise bad(
            "--fill-colour",
            text,
            "A colour is six hexadecimal digits, or three numbers from 0 to 255",
            "Write #7f7f7f or 127,127,127",
        )
    return tuple(parts)


def seed(text: str) -> Any:
    """-1 is any seed; it is shown, and stands in the recipe."""
    if text.strip() == "-1":
        from secrets import randbelow

        return randbelow(2**32)
    return text


def lora(text: str) -> dict[str, Any]:
    """`path`, `path:0.8` or `path:0.8:0.5` (the last for the text towers); `!` before it: on any base."""
    any_base, text = text.startswith("!"), text.removeprefix("!")
    number = r":([+-]?(?:\d+\.?\d*|\.\d+|nan|inf))"
    found = re.fullmatch(rf"(.+?){number}(?:{number})?", text) or re.fullmatch(r"(.+)()()", text)
    if found is None:
        raise bad("--lora", text, "It names no file", "Write --lora file.safetensors:0.8")
    path, weight, text_weight = found.groups()
    from ldm.store.find import shipped_adapters

    file, _, word = path.rpartition(":")
    named = file.endswith(".safetensors") or file in shipped_adapters()
    if named and not Path(path).expanduser().exists():
        raise bad("--lora", text, f"The weight {word[:40]!r} is no number", f"Write --lora {file[-80:]}:0.8")
    told = {"path": path, "weight": weight, "text_weight": text_weight, "any_base": any_base}
    return {key: value for key, value in told.items() if value}


def pairs(option: str, keys: Sequence[str], text: str) -> dict[str, str]:
    """`key=value,key=value`; a comma inside a value is kept, unless what follows looks like a key."""
    told: dict[str, str] = {}
    for part in re.split(r",(?=\s*\w+=)", text):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or key not in keys:
            hint = did_you_mean(key, keys)
            raise bad(
                option,
                part,
                f"{hint}It takes {', '.join(keys)}, each as key=value",
                f"Write {option} {keys[0]}=..., with these keys",
            )
        told[key] = value.strip()
    return told


def control(text: str) -> dict[str, Any]:
    keys = ("model", "image", "hint", "weight", "start", "end", "mask", "guess")
    return {"model": text} if "=" not in text else pairs("--control", keys, text)


def hires(text: str) -> dict[str, Any]:
    return {"scale": text} if "=" not in text else pairs("--hires", ("scale", "strength", "steps", "upscale"), text)


def tile(text: str) -> dict[str, Any]:
    if "=" in text:
        return pairs("--tile", ("size", "overlap"), text)
    parts = split(text)
    return dict(zip(("size", "overlap"), parts, strict=False)) if len(parts) == 2 else {"size": text}


OPTIONS: tuple[Option, ...] = (
    Option("--negative", "negative", "TEXT", "What should not be in the picture.", WORDS),
    Option("--dialect", "dialect", "NAME", "Meaning of (word:1.3): a1111, comfy or compel.", WORDS),
    Option("--clip-skip", "clip_skip", "N", "Layers left out at the end of the text tower.", WORDS),
    Option("--wildcards", "wildcards", "DIR", "Folder of files for __name__ in the prompt.", WORDS),
    Option("--embedding", "embeddings", "FILE", "A textual inversion; again for several.", WORDS, "list"),
    Option("--size", "", "WxH", "Width and height, multiples of 8.", PICTURE, read=size, fields=("width", "height")),
    Option("--steps", "steps", "N", "Evaluations of the network.", PICTURE),
    Option("--solver", "solver", "NAME", 'ddim, euler, "dpm++ 2m", ...; A1111 and ComfyUI names too.', PICTURE),
    Option("--spacing", "spacing", "NAME", "leading, trailing, linspace, karras, exponential, beta or ays.", PICTURE),
    Option("--sigmas", "sigmas", "S,S,...", "Noise levels of your own, falling.", PICTURE, read=split),
    Option("--eta", "eta", "0..1", "Fresh noise in ddim.", PICTURE),
    Option("--guidance", "guidance.scale", "SCALE", "How strongly the prompt acts.", PICTURE),
    Option("--rescale", "guidance.rescale", "0..1", "Against overexposure at high guidance.", PICTURE),
    Option(
        "--guidance-interval",
        "guidance.interval",
        "A,B",
        "Part of the run in which guidance acts.",
        PICTURE,
        read=split,
    ),
    Option("--guidance-method", "guidance.method", "NAME", "cfg, apg or cfg-zero.", PICTURE),
    Option("--pag", "guidance.pag", "SCALE", "Perturbed-attention guidance.", PICTURE),
    Option("--seed", "seed", "N", "-1: any, and shown. Picture i has seed N+i.", PICTURE, read=seed),
    Option("--count", "count", "N", "Pictures of each prompt.", PICTURE),
    Option("--batch", "batch", "N", "Pictures that share a network call.", PICTURE),
    Option("--variation-seed", "variation_seed", "N", "A second seed to turn towards.", PICTURE),
    Option("--variation", "variation", "0..1", "How far.", PICTURE),
    Option(
        "--hires",
        "hires",
        "SPEC",
        "Second pass: 2, or scale=2,strength=0.5,steps=20,upscale=lanczos.",
        PICTURE,
        read=hires,
    ),
    Option("--tile", "tile", "SPEC", "Work in tiles: 512, or size=512,overlap=128.", PICTURE, read=tile),
    Option(
        "--zero-snr/--no-zero-snr",
        "zero_snr",
        "",
        "Begin at pure noise (default: as the model says).",
        PICTURE,
        "switch",
    ),
    Option(
        "--prediction",
        "prediction",
        "KIND",
        "epsilon, v_prediction, sample or flow (default: as the model says).",
        PICTURE,
    ),
    Option("--exact/--no-exact", "exact", "", "Bit-equal when repeated: CPU, fp32, one at a time.", PICTURE, "switch"),
    Option("--image", "image", "FILE", "Start from this picture.", INPUT),
    Option("--strength", "strength", "0..1", "How much of it may change.", INPUT),
    Option(
        "--mask",
        "mask",
        "MASK",
        "White: paint. A file, alpha, colour:#00ff00:20, box:x,y,w,h, polygon:x,y x,y ...",
        INPUT,
    ),
    Option("--fill", "fill", "NAME", "Under the mask: original, blur, noise or colour.", INPUT),
    Option("--fill-colour", "fill_colour", "#RRGGBB", "For --fill colour.", INPUT, read=colour),
    Option(
        "--only-masked/--whole",
        "only_masked",
        "",
        "Work on the masked part at full size, stitch it back.",
        INPUT,
        "switch",
    ),
    Option("--padding", "padding", "PX", "Context around the mask, for --only-masked.", INPUT),
    Option("--mask-blur", "mask_blur", "PX", "Softens the mask inside.", INPUT),
    Option("--resize-mask/--no-resize-mask", "resize_mask", "", "Accept a mask of another size.", INPUT, "switch"),
    Option("--pad", "pad", "PX", "Outpaint: one number, or left,top,right,bottom.", INPUT, read=pad),
    Option(
        "--keep-location/--no-location", "keep_location", "", "Keep the place where a photo was taken.", INPUT, "switch"
    ),
    Option(
        "--control",
        "controls",
        "SPEC",
        "model=NAME,image=FILE,hint=canny,weight=0.8,end=0.6; again for several.",
        CONDITIONS,
        "list",
        control,
    ),
    Option(
        "--lora",
        "loras",
        "FILE:W",
        "An adapter and its weight; again for several; !FILE: on any base.",
        CONDITIONS,
        "list",
        lora,
    ),
    Option("--lora-folder", "lora_folder", "DIR", "Where <lora:name:0.8> in a prompt finds its files.", CONDITIONS),
    Option("--refiner", "refiner", "MODEL", "A second model for the end of the run.", CONDITIONS),
    Option("--refiner-start", "refiner_start", "0..1", "Where it takes over.", CONDITIONS),
    Option("--set", "", "FIELD=VALUE", "Any field of the request: guidance.apg_eta=0.5.", CONDITIONS, "list"),
    Option("--model", "", "MODEL", "A folder, a .safetensors file, a shipped name or a pulled id.", RUN),
    Option("--vae", "", "MODEL", "Another autoencoder.", RUN),
    Option("--device", "", "NAME", "cpu, cuda or mps.", RUN),
    Option("--dtype", "", "NAME", "float32, float16 or bfloat16.", RUN),
    Option("--offload", "", "NAME", "Keep parts off the device until they are needed: none or model.", RUN),
    Option(
        "--from", "", "FILE", "Repeat a picture, a recipe (.json) or a request (.yaml); other options override it.", RUN
    ),
    Option("--inputs", "", "DIR", "Where the inputs of that recipe may be; again for several.", RUN, "list"),
    Option("--prompts", "", "FILE", "One prompt per line.", RUN),
    Option("--grid", "", "AXIS", "x=guidance:3,5,7 and y=steps:10,20: a labelled table of pictures.", RUN, "list"),
    Option("--out", "", "PATH", "A folder, a file, or - for a pipe.", OUTPUT),
    Option("--format", "", "NAME", "png, jpg or webp.", OUTPUT),
    Option("--allow-lossy", "", "", "Let JPEG change what lies outside a mask.", OUTPUT, "switch"),
    Option("--sidecar/--no-sidecar", "", "", "The recipe in a .json file beside the picture.", OUTPUT, "switch"),
    Option("--private", "", "", "Write hashes instead of prompts and names.", OUTPUT, "switch"),
    Option("--best-of", "", "N", "Of N pictures keep the one most like the prompt.", OUTPUT),
    Option("--ranker", "", "CLIP", "Who judges that: a CLIP folder (default: the model's own).", OUTPUT),
    Option("--preview-every", "", "N", "Save a rough picture every N steps.", OUTPUT),
    Option("--dry-run", "", "", "Show memory and time, make nothing.", OUTPUT, "switch"),
    Option("--explain-prompt", "", "", "Show tokens, chunks and weights, make nothing.", OUTPUT, "switch"),
    Option("--json", "", "", "Results and errors as JSON on stdout.", OUTPUT, "switch"),
    Option("--quiet", "", "", "No progress, no notes.", OUTPUT, "switch"),
)


def option_of(field: str) -> str:
    """The option that fills a dotted field, for messages."""
    for option in OPTIONS:
        for target in option.targets:
            if field == target or field.startswith(f"{target}."):
                rest = "".join(
                    f" {part}" for part in field.removeprefix(target).split(".") if part and not part.isdecimal()
                )
                return option.flag.split("/")[0] + rest
    return "PROMPT" if field == "prompt" else f"--set {field}"


def request_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The nested fields of what was given; `--set` comes last and so overrides."""
    fields: dict[str, Any] = {}
    for option in OPTIONS:
        value = given.get(option.name)
        if not option.targets or value is None or value == []:
            continue
        told = (
            value
            if option.kind == "switch"
            else [option.read(v) for v in value]
            if option.kind == "list"
            else option.read(value)
        )
        if option.fields:
            fields |= told
        else:
            put(fields, option.field, told)
    for text in given.get("set_") or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise bad("--set", text, "It takes a field and a value", "Write --set guidance.apg_eta=0.5")
        put(fields, name.strip(), plain_value(value))
    return fields


def put(fields: dict[str, Any], path: str, value: Any) -> None:
    """Sets a dotted path in nested fields; a whole record may already stand there."""
    *parents, last = path.split(".")
    for parent in parents:
        inner: Any = fields.get(parent)
        inner = inner.model_dump() if hasattr(inner, "model_dump") else inner
        fields[parent] = dict(inner) if isinstance(inner, dict) else {}
        fields = fields[parent]
    fields[last] = value


def plain_value(text: str) -> Any:
    """JSON where it is JSON, else the text."""
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def existing(path: str, option: str, *, peft: bool = False) -> Path:
    """A file that is there; with `peft` whatever names an adapter: a folder that holds one, or one that ships."""
    from app.validation import did_you_mean
    from ldm.store.find import LORA_WEIGHTS, PEFT_WEIGHTS, find_adapter, shipped, shipped_adapters, shipped_beside

    if peft and path:
        path = str(find_adapter(path))
    found, name = Path(path).expanduser(), Path(path).name[:80]
    if not path:
        raise LdmError(Code.FILE, f"{option}: the name is empty.", "It takes the name of a file.", "Name a file.")
    if "\0" not in path and found.is_dir():
        if peft and (found / PEFT_WEIGHTS).is_file():
            return found
        whose = f"those of diffusers or peft ({LORA_WEIGHTS}, {PEFT_WEIGHTS}), and those of one .safetensors file"
        why = f"Of folders it takes {whose}." if peft else "A file is needed."
        raise LdmError(Code.FILE, f"{option}: {name or path} is a folder.", why, "Name a file in it.")
    if "\0" in path or not found.is_file():
        ours = f", and no shipped adapter: {', '.join(shipped_adapters())}" if peft and shipped_adapters() else ""
        why = f"There is no file of that name{ours}."
        near = did_you_mean(path, list(shipped_adapters())) if peft else ""
        if peft and path in (*shipped_beside(), *shipped()):
            why = f"{path} ships, but is no adapter: ldm models list says how it is used."
        raise LdmError(Code.FILE, f"{option}: {name} was not found.", why, f"{near}Check the path.")
    return found


def existing_folder(path: str, option: str) -> Path:
    """A folder that is there."""
    found, name = Path(path).expanduser(), Path(path).name[:80] or path[:80]
    if "\0" in path or not found.exists():
        why = "There is no folder of that name."
        raise LdmError(Code.FILE, f"{option}: {name} was not found.", why, "Check the path.")
    if not found.is_dir():
        raise LdmError(Code.FILE, f"{option}: {name} is a file.", "A folder is needed.", "Name the folder it is in.")
    return found


def refuse_empty(given: Mapping[str, Any]) -> None:
    """An empty text is no name and no number; only words may be empty."""
    for option in OPTIONS:
        value = given.get(option.name)
        if option.flag != "--negative" and any(part == "" for part in (value if isinstance(value, list) else [value])):
            what = f"{option.flag}: the value is empty."
            raise LdmError(Code.USAGE, what, f"It takes {option.metavar}.", f"Give {option.metavar}, or leave it out.")
