"""Repeats the recipe in a picture and compares: equal, the greatest difference, or what is missing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image, save_image
from ldm.images.picture import unit
from ldm.store.find import find_model
from pipelines.recipe import ModelId, Recipe, pixel_hash, processor_class, read_recipe, recipe_of
from pipelines.repeat import MissingInputError, model_path, request_fields, with_prompt
from pipelines.request import Record, Request

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

CLOSE = 2.0  # of 255: what fp32 on another machine or in another batch may differ by

Outcome = Literal["equal", "close", "different", "missing"]


class Verdict(Record):
    """What a repetition showed. `difference` is the greatest of all samples, in 1/255."""

    file: str
    outcome: Outcome
    difference: float | None = None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the picture is what its recipe says, as closely as was promised."""
        return self.outcome in ("equal", "close")

    def __str__(self) -> str:
        said = {
            "equal": "equal: the recipe makes this picture, bit for bit",
            "close": f"close: the greatest difference is {self.difference} of 255, within what is promised here",
            "different": f"different: the greatest difference is {self.difference} of 255",
            "missing": f"not repeated: {'; '.join(self.missing)}",
        }[self.outcome]
        fix = (
            "fix: put it beside the picture, or name its folder with --inputs, the model with --model, "
            "private words with --prompt and --negative"
        )
        return "\n  ".join((f"{self.file}: {said}", *self.notes, *([fix] if self.outcome == "missing" else [])))


def verify(
    path: Path | str,
    inputs: Sequence[Path] = (),
    *,
    model: str | None = None,
    prompt: str | None = None,
    negative: str | None = None,
) -> Verdict:
    """Inputs are sought beside the picture, in the current folder and in `inputs`; private recipes need the prompt.

    A sidecar stands for the picture beside it: so pictures are proved whose metadata a site stripped.
    """
    if model:
        find_model(model)  # what the caller names is looked for as such, not as a part of the recipe
    path = Path(path)
    told = read_recipe(path) if path.suffix.lower() == ".json" else None
    path = path if told is None else picture_of(path)
    picture = open_image(path, keep_location=True)
    recipe = told or recipe_of(picture, path.name)
    if recipe.origin != "ldm" or not recipe.pixels:
        raise LdmError(
            Code.DIFFERENT,
            f"{path.name} cannot be proved.",
            "Its metadata is another program's, which does not tell enough to repeat a picture exactly.",
            f"Make a picture like it with `ldm generate --from {path.name}`.",
        )
    folders = [path.parent, Path(), *inputs]
    try:
        if recipe.private and prompt is not None:
            recipe = with_prompt(recipe, prompt, negative)
        request = Request.model_validate(request_fields(recipe, folders))
        where = model or model_path(recipe.model.name, folders, recipe.model.fingerprint)
        pipeline = _pipeline(recipe, where, folders)
        _same_parts(recipe, request, pipeline, folders)
    except MissingInputError as error:
        return Verdict(file=path.name, outcome="missing", missing=error.inputs)
    with _threads(recipe):
        again = _repeat(pipeline, request, recipe)
    return judge(path.name, recipe, picture, again, caveats(recipe, str(pipeline.device)))


def picture_of(sidecar: Path) -> Path:
    """The picture that a sidecar lies beside."""
    for suffix in (".png", ".jpg", ".jpeg", ".webp"):
        if (picture := sidecar.with_suffix(suffix)).is_file():
            return picture
    raise LdmError(
        Code.FILE,
        f"{sidecar.name} has no picture beside it.",
        f"There is no {sidecar.stem}.png, .jpg or .webp in its folder.",
        "Put the picture there, under the name of the sidecar.",
    )


def judge(name: str, recipe: Recipe, picture: Picture, again: Picture, caveats: Sequence[str]) -> Verdict:
    """Compares what was made, what is in the file, and what was made again.

    A file that is compressed with loss is compared with the repetition compressed in the same way.
    """
    notes, repeated = list(caveats), pixel_hash(again) == recipe.pixels
    if pixel_hash(picture) != recipe.pixels and lossy(name):
        notes.append("the file is compressed with loss, and so was the repetition before the two were compared")
        again = compressed(again, Path(name).suffix)
    difference = greatest_difference(picture, again)
    if repeated and difference == 0:
        return Verdict(file=name, outcome="equal", difference=0.0, notes=tuple(notes))
    if repeated and not lossy(name):
        notes.append("the recipe still gives the picture it was written for, but the samples in the file were changed")
    may_differ = bool(caveats) or not recipe.exact or lossy(name)  # encoders differ by a rounding between versions
    near = may_differ and not (repeated and not lossy(name)) and difference is not None and difference <= CLOSE
    return Verdict(file=name, outcome="close" if near else "different", difference=difference, notes=tuple(notes))


def compressed(picture: Picture, suffix: str) -> Picture:
    """The picture after a way through a lossy format, as `ldm generate` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        return open_image(save_image(picture, Path(folder) / f"again{suffix}", allow_lossy=True), keep_location=True)


def caveats(recipe: Recipe, device: str) -> list[str]:
    """Why bit-equality is not promised here."""
    from importlib.metadata import version

    found, machine = [], recipe.machine
    if machine.processor and machine.processor != processor_class():
        found.append(
            f"made on {machine.processor}, repeated on {processor_class()}: bit-equality is promised on one kind only"
        )
    if machine.device and machine.device.partition(":")[0] != device.partition(":")[0]:
        found.append(f"made on {machine.device}, repeated on {device}")
    torch_then, torch_now = machine.software.get("torch", ""), version("torch")
    if torch_then and torch_then != torch_now:
        found.append(f"made with torch {torch_then}, repeated with {torch_now}")
    return found


def greatest_difference(a: Picture, b: Picture) -> float | None:
    """Over all samples, in 1/255; None when the sizes differ."""
    if a.size != b.size:
        return None
    same_space = a.pixels.shape == b.pixels.shape and a.icc == b.icc
    pixels = np.abs(unit(a.pixels) - unit(b.pixels)) if same_space else np.abs(a.rgb() - b.rgb())
    worst = float(pixels.max())
    if a.alpha is not None and b.alpha is not None:
        worst = max(worst, float(np.abs(unit(a.alpha) - unit(b.alpha)).max()))
    return round(worst * 255, 3)


def lossy(name: str) -> bool:
    return Path(name).suffix.lower() in (".jpg", ".jpeg", ".webp")


def _pipeline(recipe: Recipe, where: str, folders: Sequence[Path]) -> Pipeline:
    """The model of the recipe; another one under its name counts as missing."""
    from ldm.store.describe import describe
    from pipelines.pipeline import Pipeline

    try:
        found = describe(find_model(where)).fingerprint
    except LdmError as error:
        raise MissingInputError([f"the model {_label(recipe.model)} is missing"], folders) from error
    if recipe.model.fingerprint and found != recipe.model.fingerprint:
        label = f"the model {_label(recipe.model)} is missing: what is there is {found}"
        raise MissingInputError([label], folders)
    machine = recipe.machine
    vae = None if recipe.vae is None else model_path(recipe.vae.name, folders, recipe.vae.fingerprint)
    if vae == "" and recipe.vae is not None:
        raise MissingInputError([f"the autoencoder {_label(recipe.vae)} is missing"], folders)
    return Pipeline.load(
        where,
        vae=vae,
        device=same_device(machine.device),
        dtype=machine.dtype or "auto",
        prediction=recipe.request.get("prediction"),
    )


def _same_parts(recipe: Recipe, request: Request, pipeline: Pipeline, folders: Sequence[Path]) -> None:
    """Autoencoder and controls are those of the recipe; others under their names count as missing."""
    told = [*([recipe.vae] if recipe.vae else []), *recipe.controls]
    there = [*([pipeline.vae_source] if pipeline.vae_source else []), *(use.model for use in request.controls)]
    missing = []
    for part, where in zip(told, there, strict=False):
        label = f"the {'autoencoder' if part is recipe.vae else 'control'} {_label(part)}"
        try:
            found = pipeline.identity(where).fingerprint
        except LdmError:
            missing.append(f"{label} is missing")
            continue
        if part.fingerprint and found != part.fingerprint:
            missing.append(f"{label} is missing: what is there is {found}")
    if missing:
        raise MissingInputError(missing, folders)


def _label(part: ModelId) -> str:
    """Name and fingerprint; a private recipe has no name."""
    return f"{part.name} ({part.fingerprint})" if part.name else f"with the fingerprint {part.fingerprint}"


def same_device(wanted: str) -> str:
    """The device of a recipe if it is here, else the CPU."""
    from pipelines.device import pick_device

    try:
        pick_device(wanted or "cpu")
    except LdmError:
        return "cpu"
    return wanted or "cpu"


def _repeat(pipeline: Pipeline, request: Request, recipe: Recipe) -> Picture:
    """The picture once more; a partial one is stopped where it was stopped."""
    for step in pipeline.run(request):
        if recipe.partial and step.index == recipe.steps and (partial := step.partial()):
            return partial[0].picture
        if step.done:
            return step.done[0].picture
    raise LdmError(
        Code.DIFFERENT,
        f"The recipe stops after {recipe.steps} steps.",
        "The run has fewer.",
        "Check whether the recipe was edited.",
    )


@contextmanager
def _threads(recipe: Recipe) -> Iterator[None]:
    """As many threads as the recipe names: the order of sums depends on it."""
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(recipe.machine.threads or before)
        yield
    finally:
        torch.set_num_threads(before)
