"""What a caller asks of a training: upload ids, a token, and the few options of `ldm personalize` worth having."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from app.failing import without_folders
from app.generate import DEFAULT_MODEL
from app.server.asking import MAX_SEED, Named, Strict, read_as
from app.server.catalog import Catalog
from app.server.limits import Limits
from app.server.uploads import Uploads
from ldm.errors import Code, LdmError
from train.personal.settings import Method, Wish
from train.personal.token import refuse_syntax

LEAST_PHOTOS = 2
TOKEN_BYTES = 200  # the files of a training are called after its token
ROOM = 256 << 20  # bytes that are to be free beside the photos, whatever is trained
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
OPTION = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)")
OWN = ("photos", "token", "model", "name", "dry")  # fields that are no options of the command line
PHOTOS, OUT, MODELS = "photos", "out", "models"  # in the folder of a training

Text = Annotated[str, Field(max_length=300)]
Texts = Annotated[tuple[Text, ...], Field(max_length=16)]


class AskTraining(Strict):
    """What is left out suits the model."""

    photos: Annotated[tuple[str, ...], Field(description="Ids of uploads.")]
    token: Annotated[str, Field(description="A rare word, and what the thing is: sks dog.")]
    model: Named = DEFAULT_MODEL
    name: Annotated[str | None, Field(description="Of the adapter; else it is called after the token.")] = None
    dry: Annotated[bool, Field(description="Only the plan: findings, notes and cost.")] = False
    method: Method = "lora"
    kind: Text | None = None
    steps: Annotated[int | None, Field(gt=0)] = None
    checkpoints: Annotated[int | None, Field(gt=0, le=50)] = None
    rank: Annotated[int | None, Field(gt=0, le=256)] = None
    rate: Annotated[float | None, Field(gt=0, le=1)] = None
    size: Annotated[int | None, Field(ge=8, le=1024)] = None
    batch: Annotated[int | None, Field(gt=0, le=64)] = None
    prior: Annotated[int | None, Field(ge=0, le=1000)] = None
    prompts: Annotated[Texts, Field(description="To look at, with {} where the token goes.")] = ()
    unrelated: Texts = ()
    flip: bool = True
    seed: Annotated[int, Field(ge=0, lt=MAX_SEED)] = 0
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    licence: Text | None = None


@dataclass(frozen=True)
class Training:
    """What may be begun: `fields` as they were asked for; `photos` are ids of uploads, `link` a model of the user's."""

    fields: Mapping[str, Any]
    photos: tuple[str, ...]
    name: str
    link: Path | None

    def command(self, device: str) -> list[str]:
        """The words of `ldm personalize`, given in the folder of the training. No value is read as an option."""
        model = f"{MODELS}/{self.link.name}" if self.link is not None else self.fields["model"]
        words = ["personalize", PHOTOS, f"--token={self.fields['token']}", f"--model={model}", f"--out={OUT}", "--json"]
        words += [f"--device={device}"] if device != "auto" else []
        for name, value in self.fields.items():
            if name in ("prompts", "unrelated"):
                words += [f"--{name.removesuffix('s')}={text}" for text in value]
            elif name == "flip":
                words.append("--flip" if value else "--no-flip")
            elif name not in OWN:
                words.append(f"--{name}={value}")
        return words

    @property
    def files(self) -> tuple[str, str]:
        """How the trainer calls the adapter and the word."""
        called = wish_of(self.fields).name
        return f"{called}.safetensors", f"{called}-word.safetensors"


@dataclass(frozen=True)
class Understanding:
    """From JSON to a training; whatever can be wrong without looking at pictures or loading a model is said."""

    catalog: Catalog
    uploads: Uploads
    limits: Limits
    folder: Path

    def __call__(self, given: Mapping[str, Any]) -> Training:
        ask = read_as(AskTraining, given)
        fields = ask.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        fields |= {"token": plain(ask.token), "model": ask.model}
        photos = self._photos(ask.photos)
        fields["photos"] = list(photos)
        for name in ("kind", "licence", "prompts", "unrelated"):
            check_text(name, " ".join(fields[name]) if isinstance(fields.get(name), list) else fields.get(name, ""))
        if (steps := ask.steps or 0) > self.limits.training_steps:
            why = f"The limit is {self.limits.training_steps:,} steps of a training."
            raise LdmError(Code.USAGE, f"steps is too much: {steps:,}.", why, "Ask for fewer.")
        self.check_room(photos)
        return self.again(fields)

    def again(self, fields: Mapping[str, Any]) -> Training:
        """Of what was kept of one that was understood before."""
        path = self.catalog.model(fields["model"])
        link = path if self.catalog.source(fields["model"], path) in ("folder", "imported") else None
        name = _name(fields.get("name"), wish_of(fields))
        return Training(fields, tuple(fields["photos"]), name, link)

    def check_room(self, photos: tuple[str, ...] = ()) -> None:
        """The photos may be kept twice, and what is trained beside them; of one that goes on the photos are there."""
        more = sum((self.uploads.folder / photo).stat().st_size for photo in photos)
        check_kept(size_of(self.folder), more, self.limits.trained)
        needed = ROOM + 2 * more
        if (free := shutil.disk_usage(self.folder).free) < needed:
            why = f"{free / 1e6:,.0f} MB are free, and at least {needed / 1e6:,.0f} MB are needed."
            what = "There is not enough room on the disk for a training."
            raise LdmError(Code.RESOURCE, what, why, "Free some space where the server keeps its files.")

    def _photos(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """Each once; all of them are here."""
        if len(given) > self.limits.training_photos:
            why = f"The limit is {self.limits.training_photos} photos of a training."
            raise LdmError(Code.USAGE, f"photos are too many: {len(given):,}.", why, "Choose the best of them.")
        photos = tuple(dict.fromkeys(map(self.uploads.found, given)))
        if len(photos) < LEAST_PHOTOS:
            what = "There are no photos." if not photos else "There is only one photo."
            why = "What is the subject and what is the picture cannot be told apart."
            fix = (
                "Send photos to /v1/uploads first, and name their ids." if not photos else "Add others of it: 5 to 20."
            )
            raise LdmError(Code.USAGE, what, why if photos else "A subject is learned from a few photos.", fix)
        return photos


def check_kept(kept: int, more: int, most: int) -> None:
    """All trainings and their trash take so much and no more, whatever the disk has."""
    if kept + more > most:
        why = f"Trainings and their trash take {kept / 1e9:.1f} GB, and no more than {most / 1e9:.1f} are kept"
        why += f"; this takes {more / 1e9:.2f} GB."
        fix = "Whoever runs the server can empty its folder trainings/trash."
        raise LdmError(Code.RESOURCE, "There is no room for another training.", why, fix)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, of which each counts once, whatever names it has."""
    found = dict[tuple[int, int], int]()
    for home, _, names in os.walk(folder):
        for name in (".", *names):
            with suppress(OSError):  # a process may be at work there
                told = (Path(home) / name).lstat()
                found[told.st_dev, told.st_ino] = told.st_size
    return sum(found.values())


def plain(token: str) -> str:
    """A token as it can be said in a prompt, and as files can be called."""
    kept = unicodedata.normalize("NFC", " ".join(token.split()))
    why = "It is what calls the subject in a prompt: a rare word, and what the thing is."
    if not kept:
        raise LdmError(Code.USAGE, "The token is empty.", why, "Write something like: sks dog.")
    check_text("token", kept)
    if (size := len(kept.encode())) > TOKEN_BYTES or len(kept) > 100:
        why = f"It has {len(kept):,} characters of {size:,} bytes; at most 100 of {TOKEN_BYTES} are taken."
        raise LdmError(Code.USAGE, "The token is too long.", why, "Two short words are enough: sks dog.")
    if not any(c.isalnum() for c in kept):
        raise LdmError(Code.USAGE, f"The token {kept!r} has no letters.", why, "Write something like: sks dog.")
    try:
        refuse_syntax(kept)
    except LdmError as error:
        raise without_options(error) from error
    return kept


def check_text(name: str, text: str) -> None:
    """No control characters, no halves of characters, nothing that turns the direction of writing."""
    strange = next((c for c in text if not (c.isprintable() or c.isspace())), None)
    if strange is not None:
        what = f"{name} holds a character that cannot be seen."
        raise LdmError(Code.USAGE, what, f"It is U+{ord(strange):04X}.", "Type the words again.")


def wish_of(fields: Mapping[str, Any]) -> Wish:
    """As the trainer will read it; what does not go together is said."""
    given = {name: value for name, value in fields.items() if name not in ("name", "dry", "photos")}
    try:
        return Wish(photos=Path(PHOTOS), out=Path(OUT), **given)
    except ValidationError as error:
        first = error.errors()[0]
        name, said = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
        raise LdmError(Code.USAGE, f"{name} does not fit.", f"{said}.", f"Leave {name} out.") from error


def without_options(error: LdmError) -> LdmError:
    """Options of the command line are fields here, and folders are nobody's business."""
    texts = (OPTION.sub(lambda found: found[1].replace("-", "_"), text) for text in (error.what, error.why, error.fix))
    return without_folders(LdmError(error.code, *texts))


def _name(asked: str | None, wish: Wish) -> str:
    """Of the adapter: as it was asked for, else of the token what every file system and prompt takes."""
    if asked is not None:
        if not NAME.fullmatch(asked):
            what, why = f"{asked[:40]!r} is no name of an adapter.", "It takes 1 to 64 letters, digits, - and _."
            raise LdmError(Code.USAGE, what, why, "Choose another name, or leave it out.")
        return asked
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in wish.name)
    return "-".join(part for part in kept.split("-") if part)[:48] or "subject"
