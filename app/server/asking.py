"""What a caller asks for, as JSON: the fields of a `Request` with names and ids where that one has paths."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from app.generate import DEFAULT_MODEL
from app.server.catalog import Catalog, brief_of
from app.server.limits import Limits
from app.server.uploads import Uploads
from ldm.config.explain import explain
from ldm.errors import Code, LdmError
from ldm.models.prompt import tagged
from ldm.store.shards import read_json
from pipelines.request import MAX_PROMPT_BYTES, ControlUse, Request
from pipelines.suited import request_of, settled

HERE = ("wildcards", "lora_folder")  # folders of this machine are no caller's business
SIDES = {"xl": 1024, "sd2": 768}  # of single files, which do not tell; else 512
TAG = re.compile(r"<lora:[^>]*>")  # adapters swap weights at each call, so jobs of one kind have the same
MAX_SEED = 2**53  # what any JSON reader keeps exactly

Named = Annotated[str, Field(min_length=1, max_length=200)]
Words = Annotated[str, Field(max_length=MAX_PROMPT_BYTES)]
Brought = Annotated[str, Field(description="The id of an upload, or a picture in base64 (a data URL, or bare).")]


class Strict(BaseModel):
    """An unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Record = TypeVar("Record", bound=BaseModel)


def read_as(record: type[Record], given: Mapping[str, Any], where: str = "in the request") -> Record:
    """What a caller asks, as this record; what is wrong with it is said by its field."""
    try:
        return record.model_validate(given)
    except ValidationError as error:
        raise explain(error, record, given, lambda path: where) from None


class AskedLora(Strict):
    """An adapter by its name."""

    name: Named
    weight: float = 1.0
    text_weight: float | None = None


def _fields(record: type[BaseModel], **other: Any) -> dict[str, Any]:
    """The fields of a record, none of them needed, some of another type."""
    kinds = {name: Annotated[field.annotation, *field.metadata, None] for name, field in record.model_fields.items()}
    return {name: (kind | None, None) for name, kind in (kinds | other).items() if name not in HERE}


AskedControl: type[Strict] = create_model(
    "AskedControl", __base__=Strict, **_fields(ControlUse, image=Brought, mask=Brought)
)
Ask: type[Strict] = create_model(
    "Ask",
    __base__=Strict,
    __doc__="A request. What is left out suits the model.",
    **_fields(
        Request,
        model=Named,
        seed=Annotated[int, Field(ge=-1, lt=2**63, description="-1: any")],
        prompt=Words,
        negative=Words,
        sigmas=Annotated[tuple[float, ...], Field(max_length=1000)],
        image=Brought,
        mask=Brought,
        controls=Annotated[tuple[AskedControl, ...], Field(max_length=8)],
        loras=Annotated[tuple[AskedLora, ...], Field(max_length=16)],
        embeddings=Annotated[tuple[Named, ...], Field(max_length=16)],
        refiner=Named,
    ),
)


@dataclass(frozen=True)
class Understood:
    """A request that may be queued: `asked` is what is kept of it, `kind` says what may be made together with it."""

    asked: Mapping[str, Any]
    request: Request
    kind: str
    work: float


@dataclass(frozen=True)
class Understanding:
    """From JSON to a `Request`; everything that can be wrong without loading a model is said."""

    catalog: Catalog
    uploads: Uploads
    limits: Limits

    def __call__(self, given: Mapping[str, Any]) -> Understood:
        ask = read_as(Ask, given)
        asked = {"model": DEFAULT_MODEL} | ask.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        if asked.get("seed", -1) == -1:
            asked["seed"] = secrets.randbelow(MAX_SEED - int(asked.get("count", 1)))
        for use in (asked, *asked.get("controls", ())):
            use |= {name: self.uploads.found(use[name]) for name in ("image", "mask") if name in use}
        self._check_pictures(asked)
        request = self.request(asked)
        size = self.size(asked["model"], request)
        work = self.limits.check(request, size)
        if (batch := self.limits.batch(request, size)) < request.batch:
            asked["batch"] = batch
        return Understood(asked, request, _kind(asked, request, size), work)

    def request(self, asked: Mapping[str, Any]) -> Request:
        """The request of what was kept: names become paths, ids become pictures."""
        fields = {name: value for name, value in asked.items() if name != "model"}
        model, prompt = asked["model"], str(fields.pop("prompt", ""))
        fields |= {name: self.uploads.open(fields[name]) for name in ("image", "mask") if name in fields}
        if "loras" in fields:
            fields["loras"] = [self._lora(use) for use in fields["loras"]]
        if "embeddings" in fields:
            fields["embeddings"] = [self.catalog.adapter(name) for name in fields["embeddings"]]
        if "controls" in fields:
            fields["controls"] = [self._control(use, model, fields.get("image")) for use in fields["controls"]]
        if "refiner" in fields:
            fields["refiner"] = str(self.catalog.model(fields["refiner"]))
        if tags := set(tagged(f"{prompt} {fields.get('negative', '')}")):
            fields["lora_folder"] = {name: self.catalog.adapter(name) for name in tags}
        return request_of(prompt, settled(self.catalog.model(model), prompt, fields))

    def size(self, model: str, request: Request) -> tuple[int, int]:
        """Width and height of the latent work: as asked, else what the model was made for."""
        side = 0 if request.width and request.height else own_side(self.catalog.model(model))
        return request.width or side, request.height or side

    def _check_pictures(self, asked: Mapping[str, Any]) -> None:
        """All pictures of a request lie in memory at once."""
        named = {use[name] for use in (asked, *asked.get("controls", ())) for name in ("image", "mask") if name in use}
        sizes = [self.uploads.size(name) for name in named]
        if (pixels := sum(width * height for width, height in sizes)) > self.limits.input_pixels:
            why = f"They have {pixels:,} pixels together; the limit is {self.limits.input_pixels:,}."
            raise LdmError(Code.USAGE, "The pictures of the request are too large.", why, "Send smaller ones.")

    def _lora(self, use: Mapping[str, Any]) -> dict[str, Any]:
        weights = {name: value for name, value in use.items() if name != "name"}
        return {"path": self.catalog.adapter(use["name"]), **weights}

    def _control(self, use: Mapping[str, Any], model: str, image: object) -> dict[str, Any]:
        """A control without a picture of its own looks at the input picture."""
        if "model" not in use or ("image" not in use and image is None):
            lacks = "image" if "model" in use else "model"
            raise LdmError(Code.USAGE, f"A control has no {lacks}.", f"It needs its {lacks}.", f"Add {lacks} to it.")
        told = dict(use, model=str(self.catalog.control(use["model"], model)))
        told |= {name: self.uploads.open(use[name]) for name in ("image", "mask") if name in use}
        return {"image": image} | told


def own_side(path: Path) -> int:
    """The side of the pictures that a model was made for, as its configuration tells it."""
    if path.is_dir():
        unet, vae = (read_json(path / part / "config.json") for part in ("unet", "vae"))
        halvings = len(vae.get("block_out_channels", [0] * 4)) - 1
        side: int = int(unet.get("sample_size") or 64) * 2**halvings
        return side
    return SIDES.get(brief_of(path).family or "", 512)


def _kind(asked: Mapping[str, Any], request: Request, size: tuple[int, int]) -> str:
    """What must be equal for two requests to share calls of the network; empty: it is made alone."""
    if request.exact or request.controls or request.tile is not None or request.hires is not None:
        return ""
    guided = request.guidance.scale > 1
    tags = sorted(TAG.findall(f"{request.prompt} {request.negative or ''}"))
    told = [asked["model"], size, guided, asked.get("loras"), tags, asked.get("embeddings"), request.prediction]
    return json.dumps(told)
