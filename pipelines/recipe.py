"""The recipe of a picture: versioned JSON with all that is needed to make it again, and nothing private by accident.

Files are named and hashed, never given by path: whoever repeats a recipe says in which folders to look.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, ValidationError, field_validator

from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image
from ldm.store.find import adapter_file, peft_config
from ldm.version import __version__
from pipelines.a1111 import Parameters, a1111_name, read, write
from pipelines.mask_rule import is_rule
from pipelines.request import Record, Request

FORMAT = 1
CHUNK, PARAMETERS = "ldm", "parameters"
KEPT = ("prompt", "workflow")  # ComfyUI's chunks: never invented, kept when an input has them
LEFT_OUT = frozenset({"count", "batch", "wildcards", "lora_folder"})
MAX_JSON = 2_000_000  # characters; a recipe has a few thousand


class Source(Record):
    """A file that went in, by name and by the sha256 of its bytes. A private recipe has no name."""

    name: str = ""
    sha256: str = ""

    @field_validator("name")
    @classmethod
    def _no_path(cls, name: str) -> str:
        return name if is_rule(name) else file_name(name)


class AdapterSource(Source):
    """An adapter that acted, from a `--lora` or from a tag in the prompt."""

    weight: float = 1.0
    text_weight: float | None = None


class ModelId(Record):
    """A model by its name (a shipped one, a hub id, or the last part of a path) and the fingerprint of its weights."""

    name: str = ""
    fingerprint: str = ""
    family: str = ""

    @field_validator("name")
    @classmethod
    def _no_path(cls, name: str) -> str:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        hub_id = len(parts) == 2 and not {"/", "//", "..", "."} & set(parts) and ":" not in name
        return "/".join(parts) if hub_id else file_name(name)


class Machine(Record):
    """Where the picture was made; bit-equality is promised on the same kind only."""

    software: dict[str, str] = Field(default_factory=dict)
    threads: int = 0
    processor: str = ""
    device: str = ""
    dtype: str = ""


class Recipe(Record):
    """One picture's recipe. `request` asks for this picture alone; the fields beside it say what was really used."""

    ldm: Literal[1] = 1
    version: str = __version__
    origin: Literal["ldm", "a1111", "comfyui"] = "ldm"  # whose metadata it was read from
    request: dict[str, Any] = Field(default_factory=dict)
    model: ModelId = ModelId()
    vae: ModelId | None = None
    refiner: ModelId | None = None
    controls: tuple[ModelId, ...] = ()
    adapters: tuple[AdapterSource, ...] = ()
    embeddings: tuple[Source, ...] = ()
    prompt: str = ""  # resolved: wildcards expanded, tags taken out
    negative: str | None = None
    template: str | None = None  # what the user wrote, where that differs
    wildcards: dict[str, str] = Field(default_factory=dict)  # name -> sha256
    solver: str = "auto"
    spacing: str = "auto"
    steps: int = 0  # really run (strength < 1 runs fewer than were asked for)
    width: int = 0
    height: int = 0
    seed: int = 0
    index: int = 0  # place in its batch; the picture does not depend on it
    machine: Machine = Machine()
    exact: bool = False
    partial: bool = False  # stopped early; `steps` says when
    private: bool = False
    prompt_sha256: str = ""  # of a private recipe: of prompt, NUL, negative
    pixels: str = ""  # `pixel_hash` of the finished picture
    foreign: dict[str, str] = Field(default_factory=dict)  # parameters of another program, as they stood
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Defaults left out, ASCII (any string survives any file format)."""
        told = {"ldm": FORMAT, "version": self.version, **self.model_dump(mode="json", exclude_defaults=True)}
        return json.dumps(told, ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str = "the recipe") -> Recipe:
        return _from_json(text, where)

    def to_a1111(self) -> str:
        """The `parameters` text; the JSON is the source of truth, this is for other programs."""
        return write(Parameters(self.prompt, self.negative, self.foreign or _pairs(self)))

    @classmethod
    def from_a1111(cls, text: str) -> Recipe:
        from pipelines.foreign import foreign_recipe

        return foreign_recipe(read(text), "a1111")

    def without_prompt(self) -> Recipe:
        """Hashes instead of words: no prompt, no template, no names of files. Models that ship keep theirs."""
        return self.model_copy(
            update={
                "private": True,
                "prompt_sha256": prompt_hash(
                    self.request.get("prompt", self.prompt), self.request.get("negative", self.negative)
                ),
                "prompt": "",
                "negative": None,
                "template": None,
                "wildcards": {},
                "request": _nameless({k: v for k, v in self.request.items() if k not in {"prompt", "negative"}}),
                "model": _unnamed(self.model),
                "vae": self.vae and _unnamed(self.vae),
                "refiner": self.refiner and _unnamed(self.refiner),
                "controls": tuple(_unnamed(c) for c in self.controls),
                "adapters": tuple(a.model_copy(update={"name": ""}) for a in self.adapters),
                "embeddings": tuple(e.model_copy(update={"name": ""}) for e in self.embeddings),
                "notes": (),
                "foreign": {},
            }
        )


def chunks(recipe: Recipe, private: bool = False, kept: Mapping[str, str] | None = None) -> dict[str, str]:
    """What to write into the picture: `ldm`, `parameters`, and ComfyUI's chunks of an input (`kept`: its texts)."""
    if private:
        recipe = recipe.without_prompt()
    ours = {PARAMETERS: printable(recipe.to_a1111()), CHUNK: recipe.to_json()}
    return ours if private else {k: v for k, v in (kept or {}).items() if k in KEPT} | ours


def read_recipe(path: Path | str) -> Recipe:
    """The recipe in a picture or a `.json` file: ours, else A1111's text, else what ComfyUI's graph tells."""
    path = Path(path)
    if path.suffix.lower() == ".json":
        try:
            return _from_json(path.read_text("utf-8"), path.name)
        except (OSError, UnicodeDecodeError) as error:
            raise LdmError(
                Code.FILE, f"{path.name} cannot be read", str(error).replace(str(path), path.name), "check the file"
            ) from error
    return recipe_of(open_image(path), path.name)


def recipe_of(picture: Picture, name: str = "the picture") -> Recipe:
    """The recipe that an opened picture carries."""
    from pipelines.comfyui import read_graph
    from pipelines.foreign import foreign_recipe

    text = picture.text
    if CHUNK in text:
        return _from_json(text[CHUNK], name)
    if PARAMETERS in text:
        return foreign_recipe(read(text[PARAMETERS]), "a1111")
    if "prompt" in text and (found := read_graph(text["prompt"])):
        return foreign_recipe(found, "comfyui")
    raise LdmError(
        Code.FILE,
        f"{name} holds no recipe",
        "it has neither our chunk, nor A1111 parameters, nor a ComfyUI graph with a KSampler; many sites strip them",
        "use the original file or its .json sidecar",
    )


def request_json(request: Request) -> dict[str, Any]:
    """Every field that differs from its default, as JSON; files and pictures as name and sha256.

    Left out: what does not change this picture (count, batch), and folders (their files are told one by one).
    """
    told = {name: _plain(value) for name, value in request.fields_set().items() if name not in LEFT_OUT}
    return told | ({"seed": request.seed} if "seed" not in told else {})


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        changed = {
            k: getattr(value, k) for k in fields if fields[k].is_required() or getattr(value, k) != fields[k].default
        }
        told = {k: _plain(v) for k, v in changed.items()}
        if "model" in told:
            told["model"] = ModelId(name=told["model"]).name
        return told
    if isinstance(value, (Path, Picture, Image.Image)):
        return source_of(value).model_dump()
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def source_of(value: Path | Picture | Image.Image) -> Source:
    """Name and sha256 of an input; of an adapter, those of its weights."""
    if isinstance(value, Path):
        file = adapter_file(value)
        return Source(name=file.name, sha256=source_hash(file))
    picture = value if isinstance(value, Picture) else open_image(value)
    return Source(name=picture.name or "", sha256=picture.sha256)


def source_hash(path: Path) -> str:
    """sha256 of a file; of peft's two the hash of both hashes, for the strength of the adapter is in the second."""
    if (config := peft_config(path)) is None:
        return file_hash(path)
    return hashlib.sha256(f"{file_hash(path)} {file_hash(config)}".encode()).hexdigest()


def file_hash(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise LdmError(
            Code.FILE,
            f"{path.name} cannot be read",
            error.strerror or "the system refused",
            "check the path and its permissions",
        ) from error


def pixel_hash(picture: Picture) -> str:
    """sha256 of size, depth and samples (little endian, alpha last); metadata and compression do not enter."""
    digest = hashlib.sha256()
    for plane in (picture.pixels, picture.alpha):
        if plane is not None:
            digest.update(f"{plane.shape} {plane.dtype.itemsize}".encode())
            digest.update(np.ascontiguousarray(plane).astype(plane.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def prompt_hash(prompt: str, negative: str | None) -> str:
    return hashlib.sha256("\0".join((prompt, negative or "")).encode("utf-8", "surrogatepass")).hexdigest()


def this_machine(device: str, dtype: str) -> Machine:
    """The machine that this process runs on."""
    from importlib.metadata import version

    import torch

    return Machine(
        software={"python": platform.python_version()}
        | {n: version(n) for n in ("torch", "diffusers", "transformers", "numpy")},
        threads=torch.get_num_threads(),
        processor=processor_class(),
        device=device,
        dtype=dtype,
    )


def processor_class() -> str:
    """Architecture and vector instructions, "x86_64 AVX512": what decides the order of sums."""
    import torch

    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def file_name(path: str) -> str:
    """The last part of a path of any system; once more gives the same ("a:b:" holds a drive behind a drive)."""
    name = PureWindowsPath(PurePosixPath(path).name).name
    return name if name == path else file_name(name)


def printable(text: str) -> str:
    """Without what a text chunk cannot hold: lone surrogates and NUL become U+FFFD."""
    return "".join("\ufffd" if c == "\0" or 0xD800 <= ord(c) < 0xE000 else c for c in text)


def _unnamed(model: ModelId) -> ModelId:
    """A model by its fingerprint alone, unless everybody who has this program has it."""
    return model if _public(model.name) else model.model_copy(update={"name": ""})


def _public(name: str) -> bool:
    from ldm.store.find import shipped, shipped_beside, shipped_controls

    return name in (*shipped(), *shipped_beside(), *shipped_controls())


def _nameless(value: Any) -> Any:
    """The same JSON without names of files (mask rules stay: they are no names, and nothing else would find them)."""
    if isinstance(value, Mapping):
        if "sha256" in value:
            return {k: v for k, v in value.items() if k != "name" or is_rule(str(v))}
        private = {k for k in ("model", "refiner") if isinstance(value.get(k), str) and not _public(value[k])}
        return {k: "" if k in private else _nameless(v) for k, v in value.items()}
    return [_nameless(v) for v in value] if isinstance(value, list) else value


def _from_json(text: str, where: str) -> Recipe:
    why, fix = "", "use the original file, or a recipe written by this program"
    if len(text) > MAX_JSON:
        raise LdmError(Code.REFUSED, f"the recipe in {where} is too long", f"it has {len(text)} characters", fix)
    try:
        told = json.loads(text)
        if not isinstance(told, dict) or "ldm" not in told:
            why = "it is not a JSON object with a field `ldm`"
        elif told["ldm"] != FORMAT:
            why = f"its format is {str(told['ldm'])[:20]!r}, and this program reads {FORMAT}"
            fix = "update this program, or use a recipe of that format"
        else:
            return Recipe.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        why = f"it is not JSON ({str(error)[:100]})"
    raise LdmError(Code.FILE, f"the recipe in {where} cannot be read", why, fix)


def _pairs(recipe: Recipe) -> dict[str, str]:
    """The last line of the A1111 text."""
    request, guidance = recipe.request, recipe.request.get("guidance", {})
    sampler, schedule = a1111_name(recipe.solver, recipe.spacing)
    pairs: dict[str, object] = {
        "Steps": recipe.steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{guidance.get('scale', 7.5):g}",
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": recipe.model.fingerprint[:10],
        "Model": recipe.model.name,
        "VAE hash": recipe.vae and recipe.vae.fingerprint[:10],
        "VAE": recipe.vae and recipe.vae.name,
        "Variation seed": request.get("variation_seed"),
        "Variation seed strength": request.get("variation"),
        "Denoising strength": request.get("strength", 0.8) if "image" in request else None,
        "Clip skip": request["clip_skip"] + 1 if "clip_skip" in request else None,
        "Mask blur": request.get("mask_blur"),
        "Lora hashes": ", ".join(f"{a.name}: {a.sha256[:12]}" for a in recipe.adapters if a.name),
        "TI hashes": ", ".join(f"{e.name}: {e.sha256[:12]}" for e in recipe.embeddings if e.name),
        "RNG": "CPU",
        "Version": f"ldm {recipe.version}",
    }
    return {key: str(value) for key, value in pairs.items() if value not in (None, "")}
