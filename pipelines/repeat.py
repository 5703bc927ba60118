"""From a recipe back to a request: every input is looked for by its sha256 in the folders that the caller names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image
from ldm.store.find import shipped_adapters
from pipelines.mask_rule import is_rule, mask_from_rule
from pipelines.recipe import LEFT_OUT, ModelId, Recipe, Source, prompt_hash, source_hash

MAX_FILES = 5_000  # of one folder that are looked at
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
WEIGHTS = frozenset({".safetensors"})


class MissingInputError(LdmError):
    """Inputs of a recipe that were not found; `inputs` names each."""

    def __init__(self, inputs: Sequence[str], folders: Iterable[Path]) -> None:
        self.inputs = tuple(inputs)
        looked = ", ".join(dict.fromkeys(folder.name or str(folder) for folder in folders)) or "no folder"
        super().__init__(
            Code.DIFFERENT,
            f"the recipe cannot be repeated: {'; '.join(self.inputs)}",
            f"no file with that sha256 is in {looked}",
            "put the file beside the picture, or name its folder with --inputs DIR",
        )


@dataclass
class Finder:
    """Looks for files by sha256, first under their own name, then under any; collects what is not there."""

    folders: tuple[Path, ...]
    missing: list[str] = field(default_factory=list)
    hashes: dict[Path, str] = field(default_factory=dict)

    def find(self, source: Source, what: str, suffixes: frozenset[str]) -> Path | None:
        named = [folder / source.name for folder in self.folders if source.name]
        same_name = [path for path in named if path.is_file()]
        shipped = list(shipped_adapters().values()) if suffixes == WEIGHTS else []
        for path in (*same_name, *shipped, *self._all(suffixes)):
            if self._hash(path) == source.sha256:
                return path
        label = f"{source.name} " if source.name else ""
        changed = ", and the file of that name has other content" if same_name else ""
        self.missing.append(f"{what} {label}(sha256 {source.sha256[:12]}) is missing{changed}")
        return None

    def model(self, told: ModelId, what: str) -> str:
        """Where a model of a recipe is; one that a private recipe does not name is missing unless it is found."""
        found = model_path(told.name, self.folders, told.fingerprint)
        if not found:
            self.missing.append(f"{what} (fingerprint {told.fingerprint or 'unknown'}) is missing")
        return found

    def _all(self, suffixes: frozenset[str]) -> Iterable[Path]:
        for folder in self.folders:
            if folder.is_dir():
                for path in sorted(folder.iterdir())[:MAX_FILES]:
                    if path.suffix.lower() in suffixes and path.is_file():
                        yield path

    def _hash(self, path: Path) -> str:
        if path not in self.hashes:
            try:
                self.hashes[path] = source_hash(path)
            except LdmError:  # a file in the folder that we may not read is not the one we look for
                self.hashes[path] = ""
        return self.hashes[path]


def request_fields(
    recipe: Recipe, folders: Sequence[Path], *, skip: Collection[str] = (), resolved: bool = True
) -> dict[str, Any]:
    """The fields of the request that a recipe asks for, without those in `skip`.

    `resolved`: the prompt as it was used, with the adapters that acted; else as written, with wildcards and tags.
    """
    finder = Finder(tuple(dict.fromkeys(folders)))
    fields = {name: value for name, value in recipe.request.items() if name not in skip and name not in LEFT_OUT}
    if recipe.private and "prompt" not in skip:
        finder.missing.append("the prompt is private (the recipe holds its sha256 only)")
    if resolved and recipe.template is not None and "prompt" not in skip:
        fields["prompt"] = recipe.prompt
        if "loras" not in skip:
            fields["loras"] = [
                {"path": {"name": a.name, "sha256": a.sha256}, "weight": a.weight, "text_weight": a.text_weight}
                for a in recipe.adapters
            ]
    if resolved and recipe.negative is not None and "negative" not in skip:
        fields["negative"] = recipe.negative
    image = _open(fields.get("image"), "image", finder)
    if "image" in fields:
        fields["image"] = image
    if "mask" in fields:
        fields["mask"] = _open(fields["mask"], "mask", finder, image)
    if "controls" in fields:
        known = {i: control.fingerprint for i, control in enumerate(recipe.controls)}
        uses = enumerate(_items(fields["controls"]))
        fields["controls"] = [_control(use, i, finder, known.get(i, "")) for i, use in uses]
    if "loras" in fields:
        fields["loras"] = [
            use | {"path": finder.find(_source(use.get("path")), f"lora {i + 1}", WEIGHTS)}
            for i, use in enumerate(_items(fields["loras"]))
        ]
    if "embeddings" in fields:
        found = (
            finder.find(_source(e), f"embedding {i + 1}", WEIGHTS) for i, e in enumerate(_items(fields["embeddings"]))
        )
        fields["embeddings"] = list(found)
    if isinstance(fields.get("refiner"), str):
        told = ModelId(name=fields["refiner"], fingerprint=recipe.refiner.fingerprint if recipe.refiner else "")
        fields["refiner"] = finder.model(told, "refiner")
    if finder.missing:
        raise MissingInputError(finder.missing, finder.folders)
    return fields


def model_path(name: str, folders: Sequence[Path], fingerprint: str = "") -> str:
    """A model of that name in one of the folders, else the name itself (a shipped model, or a hub id).

    A private recipe leaves the name out: then the first model of that fingerprint, or "" if there is none.
    """
    if not name and fingerprint:
        candidates = (path for folder in folders for path in _models_in(folder))
        return next((str(path) for path in candidates if _fingerprint(path) == fingerprint), "")
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.safetensors"):
            if name and candidate.exists():
                return str(candidate)
    return name


def _models_in(folder: Path) -> Iterable[Path]:
    """What may be a model, an autoencoder or a control: weight files, and folders with a configuration."""
    for path in sorted(folder.iterdir())[:MAX_FILES] if folder.is_dir() else []:
        parts = (path / "model_index.json", path / "config.json")
        if path.suffix.lower() in WEIGHTS or any(part.is_file() for part in parts):
            yield path


def _fingerprint(path: Path) -> str | None:
    from ldm.store.describe import describe

    try:
        found = describe(path)
        return None if found.kind == "unet" else found.fingerprint  # of a U-Net alone it is that of its model
    except (LdmError, OSError):  # what cannot be read is not the one we look for
        return None


def with_prompt(recipe: Recipe, prompt: str, negative: str | None) -> Recipe:
    """A private recipe with the words put back, if they are the right ones."""
    if prompt_hash(prompt, negative) != recipe.prompt_sha256:
        raise LdmError(
            Code.DIFFERENT,
            "the prompt is not the one of the private recipe",
            "its sha256 (with the negative prompt) differs",
            "give prompt and negative exactly as they were",
        )
    words = {"prompt": prompt} | ({} if negative is None else {"negative": negative})
    return recipe.model_copy(
        update={"private": False, "prompt": prompt, "negative": negative, "request": recipe.request | words}
    )


def _control(use: dict[str, Any], i: int, finder: Finder, fingerprint: str) -> dict[str, Any]:
    image = _open(use.get("image"), f"control {i + 1}: image", finder)
    model = ModelId(name=str(use.get("model", "")), fingerprint=fingerprint)
    told = use | {"image": image, "model": finder.model(model, f"control {i + 1}: model")}
    return told | ({"mask": _open(use["mask"], f"control {i + 1}: mask", finder, image)} if "mask" in use else {})


def _open(value: object, what: str, finder: Finder, image: Picture | None = None) -> Picture | None:
    """The picture behind a source; a mask rule is applied again."""
    if value is None:
        return None
    source = _source(value)
    if is_rule(source.name):
        return None if image is None else mask_from_rule(source.name, image)
    path = finder.find(source, what, PICTURES)
    return None if path is None else open_image(path)


def _source(value: object) -> Source:
    if isinstance(value, dict) and isinstance(value.get("sha256"), str):
        return Source(name=str(value.get("name", "")), sha256=value["sha256"])
    raise LdmError(
        Code.FILE,
        "the recipe is damaged",
        "an input is not given by name and sha256",
        "use the original file or its sidecar",
    )


def _items(value: object) -> list[dict[str, Any]]:
    if isinstance(value, (list, tuple)) and all(isinstance(item, dict) for item in value):
        return list(value)
    raise LdmError(
        Code.FILE, "the recipe is damaged", "a list of inputs is not one", "use the original file or its sidecar"
    )
