"""From the recipe in a picture to a request of this server, and in plain sentences what could not be taken over."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from app.generate import DEFAULT_MODEL
from app.server.asking import Ask
from app.server.masks import kept
from app.server.recognising import find_adapter, find_model
from app.server.service import Service
from app.server.uploads import ID
from ldm.errors import Code, LdmError
from ldm.models.prompt import retagged
from ldm.store.header import printable
from pipelines.mask_rule import is_rule, mask_from_rule
from pipelines.recipe import LEFT_OUT, ModelId, Recipe, Source, recipe_of
from pipelines.request import GuidanceUse, Request, nearest_side

SUITED = ("steps", "solver", "spacing")  # where nothing is said, a model says it: so each is said
OF_IMAGE = ("strength", "keep_location", "pad", "mask")  # mean nothing without an image
OF_MASK = ("only_masked", "padding", "resize_mask")
OF_HOLE = ("fill", "fill_colour", "mask_blur")  # of a mask, or of margins


def recipe(service: Service, data: bytes) -> dict[str, Any]:
    """Where the recipe in a picture comes from, the request that it is here, what is missing, and itself."""
    told = recipe_in(service, data)
    try:
        plain = json.loads(told.to_json())
        again = Again(service, told)
        again.take()
        made = {"source": told.origin, "request": again.fields, "notes": again.notes, "recipe": plain}
        return {name: sound(value) for name, value in made.items()}
    except (ValueError, RecursionError) as error:  # numbers that are none, lists in lists without end
        why, fix = "It holds values that no recipe has.", "Send the file as it was made."
        raise LdmError(Code.REFUSED, "The recipe in the picture is damaged.", why, fix) from error


def recipe_in(service: Service, data: bytes) -> Recipe:
    """Ours, else A1111's text, else what ComfyUI's graph tells."""
    picture = service.uploads.look(data)
    try:
        return recipe_of(picture)
    except LdmError as error:
        if not {"ldm", "parameters"} & set(picture.text):
            why = "Nothing of ours, of A1111 or of ComfyUI is written into it; many sites and editors strip that."
            fix = "Send the file as it was made, or write the request yourself."
            raise LdmError(Code.REFUSED, "The picture holds no recipe.", why, fix) from error
        raise LdmError(Code.REFUSED, error.what, error.why, error.fix) from error


def sound(value: Any) -> Any:
    """Without lone surrogates, which no answer can carry; prompts are read without them as well. A number that is none
    is an error."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    if isinstance(value, dict):
        return {sound(name): sound(each) for name, each in value.items()}
    return [sound(each) for each in value] if isinstance(value, list | tuple) else value


@dataclass
class Again:
    """A request in the making: `fields` of it so far, and `notes` on what it lacks."""

    service: Service
    recipe: Recipe
    model: str | None = None  # that it asks for, if it is here
    fields: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(self) -> None:
        recipe = self.recipe
        self.notes += [_sentence(note) for note in recipe.notes if recipe.origin != "ldm" and "--image" not in note]
        self.fields = {name: sound(value) for name, value in recipe.request.items() if name not in LEFT_OUT}
        for part in (self._model, self._settings, self._words, self._adapters, self._pictures, self._beside):
            part()
        self._check()

    def _model(self) -> None:
        told = self.recipe.model
        self.model = self._known(told, "model", self.service.catalog.models())
        if self.model is not None:
            self.fields["model"] = self.model
            return
        if told.name or told.fingerprint:
            self.notes.append(f"The model {_label(told)} is not here; {DEFAULT_MODEL} is used if no other is chosen.")
        drawn = self.recipe.width, self.recipe.height
        if not {"image", "hires", "width", "height"} & set(self.fields) and all(nearest_side(s) == s for s in drawn):
            self.fields["width"], self.fields["height"] = drawn  # it was of that model's own size

    def _settings(self) -> None:
        """A recipe of ours leaves out what is a request's default, and a request here what suits the model."""
        if self.recipe.origin != "ldm":
            return
        for name in SUITED:
            self.fields.setdefault(name, Request.model_fields[name].default)
        guidance = self.fields.get("guidance", {})
        if isinstance(guidance, dict):
            self.fields["guidance"] = {"scale": GuidanceUse().scale} | guidance

    def _words(self) -> None:
        recipe = self.recipe
        if recipe.private:
            self.notes.append("The recipe is private: it holds neither its prompt nor names, only what they hash to.")
        if recipe.wildcards:
            self.fields["prompt"] = recipe.prompt
            self.fields |= {} if recipe.negative is None else {"negative": recipe.negative}
            self.fields["loras"] = [
                {"path": {"name": a.name, "sha256": a.sha256}, "weight": a.weight, "text_weight": a.text_weight}
                for a in recipe.adapters
            ]
            self.notes.append("Wildcards of files are filled in, as those files are not here.")
        hashes = {each.name.removesuffix(".safetensors"): each.sha256 for each in recipe.adapters}
        for name in ("prompt", "negative"):
            if isinstance(text := self.fields.get(name), str):
                self.fields[name] = retagged(text, lambda tag: self._adapter(tag, hashes.get(tag, ""), "adapter"))

    def _adapters(self) -> None:
        uses = [(use, *_source(use.get("path"))) for use in _items(self.fields.pop("loras", ()))]
        if any(use.get("any_base") for use, *_ in uses):
            self.notes.append("An adapter was put on a model that it was not made for, which is not done here.")
        loras = [
            {"name": found} | {key: use[key] for key in ("weight", "text_weight") if use.get(key) is not None}
            for use, name, sha256 in uses
            if (found := self._adapter(name, sha256, "adapter")) is not None
        ]
        words = [_source(each) for each in _items(self.fields.pop("embeddings", ()))]
        listed = self.recipe.foreign.get("TI hashes", "").split(",")
        words += [(name.strip(), "") for name, colon, _ in (each.partition(":") for each in listed) if colon]
        embeddings = [found for name, sha256 in words if (found := self._adapter(name, sha256, "embedding"))]
        self.fields |= ({"loras": loras} if loras else {}) | ({"embeddings": embeddings} if embeddings else {})

    def _pictures(self) -> None:
        fields = self.fields
        asked = fields.pop("image", None)
        strength = fields.get("strength") if self.recipe.origin != "ldm" else None
        image = None if asked is None else self._picture(asked, "picture")
        if strength is not None:
            why = f"It was made from another picture, which its file does not hold, with strength {strength:g}."
            self.notes.append(f"{why} Bring that one as image.")
        if "mask_blur" in fields and self.recipe.origin != "ldm":
            self.notes.append("It was painted inside a mask, which its file does not hold.")
        if image is None:
            self._without(*OF_IMAGE)
        else:
            fields["image"] = image
        mask = None if "mask" not in fields else self._picture(fields.pop("mask"), "mask", image)
        if mask is None:
            self._without(*OF_MASK, *(() if fields.get("pad") else OF_HOLE))
        else:
            fields["mask"] = mask
        asked_for = enumerate(_items(fields.pop("controls", ())))
        controls = [use for i, told in asked_for if (use := self._control(i, told)) is not None]
        fields |= {"controls": controls} if controls else {}

    def _control(self, i: int, use: dict[str, Any]) -> dict[str, Any] | None:
        """As it was, or not at all: with another picture it would draw something else."""
        ids = self.recipe.controls
        told = ModelId(name=str(use.get("model", "")), fingerprint=ids[i].fingerprint if i < len(ids) else "")
        model = self._known(told, "control", self.service.catalog.controls(self.model or DEFAULT_MODEL))
        if model is None:
            self.notes.append(f"The control {_label(told)} is not here for this model, and was left out.")
            return None
        image = self._picture(use.get("image"), f"picture of the control {model}")
        if image is None:
            self.notes.append(f"The control {model} was left out, as it has no picture.")
            return None
        made = {name: value for name, value in use.items() if name not in ("model", "image", "mask")}
        mask = self._picture(use["mask"], f"mask of the control {model}", image) if "mask" in use else None
        return {"model": model, "image": image, **made} | ({} if mask is None else {"mask": mask})

    def _beside(self) -> None:
        recipe = self.recipe
        if isinstance(name := self.fields.pop("refiner", None), str):
            told = ModelId(name=name, fingerprint=recipe.refiner.fingerprint if recipe.refiner else "")
            if (found := self._known(told, "refiner", self.service.catalog.models())) is not None:
                self.fields["refiner"] = found
            else:
                self._without("refiner_start")
                self.notes.append(f"The refiner {_label(told)} is not here, and was left out.")
        if recipe.vae is not None:
            self.notes.append(f"It was decoded by another autoencoder, {_label(recipe.vae)}; here the model's own is.")
        if recipe.partial:
            self.notes.append(f"It was stopped after {recipe.steps} steps; the request goes on to the end.")

    def _check(self) -> None:
        """What is no field here, or is wrong, is left out; what is refused all the same is told."""
        for name in sorted(set(self.fields) - set(Ask.model_fields)):
            del self.fields[name]
            self.notes.append(f"{printable(name)!r} is not known here, and was left out.")
        try:
            Ask.model_validate(self.fields)
        except ValidationError as error:
            for name in dict.fromkeys(str(found["loc"][0]) for found in error.errors()):
                value = printable(json.dumps(self.fields.pop(name, None)), 60)
                self.notes.append(f"{name} is {value}, which is not allowed here, and was left out.")
        try:
            self.service.understanding(self.fields)
        except LdmError as error:
            self.notes.append(f"As it stands the request is refused: {_sentence(error.what)} {_sentence(error.why)}")

    def _known(self, told: ModelId, what: str, there: Mapping[str, Any]) -> str | None:
        """The name of a model here; that it is another one of that name is told."""
        found = find_model(told, there)
        if found is not None and not found.same and told.fingerprint and self.recipe.origin == "ldm":
            self.notes.append(f"The {what} {found.name!r} here is not the one that was used: the picture may differ.")
        return None if found is None else found.name

    def _adapter(self, name: str, sha256: str, what: str) -> str | None:
        found = find_adapter(name, sha256, self.service.catalog.adapters())
        if found is None:
            self.notes.append(f"The {what} {printable(name)!r} is not here, and was left out.")
        elif not found.same:
            self.notes.append(f"The {what} {found.name!r} here is not the one that was used: the picture may differ.")
        return None if found is None else found.name

    def _picture(self, value: object, what: str, image: str | None = None) -> str | None:
        """The upload of a source; a mask that is a rule is made again."""
        name, sha256 = _source(value)
        uploads = self.service.uploads
        if is_rule(name) and image is not None:
            try:
                self.service.worker.bring_in()
                return kept(uploads, mask_from_rule(name, uploads.open(image)).rgb()[..., 0])
            except LdmError:
                pass
        elif ID.fullmatch(sha256) and uploads.has(sha256):
            return sha256
        label = f" {printable(name)!r}" if name and not sha256.startswith(name) else ""  # uploads are called by it
        self.notes.append(f"The {what}{label} is not here: bring it again.")
        return None

    def _without(self, *names: str) -> None:
        for name in names:
            self.fields.pop(name, None)


def _label(told: ModelId) -> str:
    return repr(printable(told.name)) if told.name else f"with the fingerprint {printable(told.fingerprint)}"


def _source(value: object) -> tuple[str, str]:
    """Name and hash of a file that went in; nothing where a recipe is damaged."""
    told = value if isinstance(value, dict) else {}
    name, sha256 = (text if isinstance(text := told.get(key), str) else "" for key in ("name", "sha256"))
    return Source(name=name).name, sha256


def _items(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list | tuple) else []


def _sentence(text: str) -> str:
    """As the others are written."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
