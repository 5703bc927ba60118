"""`ldm generate`: from the command line to requests, and from results to files."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.errors import INTERRUPTED, NOTHING_YET
from app.grids import Grid
from app.inputs import check_words, opened, prompts_of, request_file
from app.options import bad, existing, option_of, refuse_empty, request_fields
from app.outputs import Outputs
from app.progress import Reporter, Stop
from app.tell import check_memory, explain, plan
from app.validation import in_options, make_request
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from pipelines.device import Offload
    from pipelines.pipeline import Pipeline
    from pipelines.recipe import ModelId, Recipe
    from pipelines.request import Request
    from pipelines.steps import Result, Step

DEFAULT_MODEL = "emoji"


@dataclass(frozen=True)
class Order:
    """One command line, understood: requests (prompt by prompt, cell by cell), and how to carry them out."""

    requests: tuple[Request, ...]
    model: str
    vae: str | None
    device: str
    dtype: str
    offload: Offload
    outputs: Outputs
    grid: Grid | None
    recipe: Recipe | None
    notes: tuple[str, ...]
    best_of: int = 1
    ranker: str | None = None

    def whole(self, request: Request) -> Request:
        """The request with all pictures that are made for it, also those that the best ones are chosen from."""
        return request.model_copy(update={"count": request.count * self.best_of})


def generate(words: list[str], given: Mapping[str, Any]) -> int:
    """Makes the pictures; the exit status."""
    from pipelines.request import Request

    try:
        return _generate(words, given)
    except LdmError as error:  # what the pipeline calls resize_mask is --resize-mask here
        told = (in_options(text, Request, option_of) for text in (error.what, error.why, error.fix))
        raise LdmError(error.code, *told) from error


def _generate(words: list[str], given: Mapping[str, Any]) -> int:
    refuse_empty(given)
    as_json, quiet = bool(given.get("json_")), bool(given.get("quiet_"))
    every = _whole("--preview-every", given.get("preview_every_"))
    with ExitStack() as stack:
        reporter = stack.enter_context(Reporter(quiet or as_json))
        order = understand(words, given)
        for note in order.notes:
            reporter.note(f"note: {note}")
        pipeline = _load(order, reporter)
        if given.get("explain_prompt_"):
            return explain(pipeline, order, as_json)
        if given.get("dry_run_"):
            return plan(pipeline, order, as_json)
        for request in order.requests:
            check_memory(pipeline, request)
        return _make(pipeline, order, reporter, stack.enter_context(Stop()), every, as_json)


def understand(words: list[str], given: Mapping[str, Any]) -> Order:
    """Everything that can be wrong in a command line is found here, before anything heavy is loaded."""
    from ldm.store.find import find_model
    from pipelines.suited import merged, settled

    fields = request_fields(given)
    recipe, notes = None, list[str]()
    if given.get("from_"):
        if Path(given["from_"]).suffix.lower() in (".yaml", ".yml"):
            fields = merged(request_file(given["from_"]), fields)
        else:
            recipe, fields, told = _repeated(given, fields, bool(words))
            notes += told
    prompts = prompts_of(words, given, fields)
    if "seed" not in fields:
        fields |= request_fields({"seed_": "-1"})
    grid = Grid.read(given.get("grid_") or [])
    cells = grid.cells() if grid else [{}]
    model = given.get("model_") or (_model_of(recipe.model, given) if recipe else "") or DEFAULT_MODEL
    where = str(find_model(model))
    asked = [merged(fields | {"prompt": prompt}, cell) for prompt in prompts for cell in cells]
    if recipe is None:
        asked = [settled(Path(where), each["prompt"], each) for each in asked]
    requests = tuple(make_request(opened(each, where), option_of) for each in asked)
    for request in requests:
        check_words(request)
    outputs = Outputs(
        target=given.get("out_") or "outputs",
        format=given.get("format_"),
        private=bool(given.get("private_")),
        sidecar=given.get("sidecar_") is not False,
        allow_lossy=bool(given.get("allow_lossy_")),
    )
    if outputs.is_pipe and given.get("json_"):
        raise bad("--json", "--out -", "Both want stdout", "Leave one of them out")
    if grid and (outputs.is_file or outputs.is_pipe):
        raise bad("--grid", f"--out {outputs.target}", "A grid makes several pictures", "Give --out a folder")
    outputs.check(list(requests))
    if not (given.get("dry_run_") or given.get("explain_prompt_")):
        outputs.probe()
    return Order(
        requests=requests,
        model=model,
        vae=given.get("vae_") or (_model_of(recipe.vae, given) if recipe and recipe.vae else None),
        device=given.get("device_") or (recipe.machine.device if recipe else "") or "auto",
        dtype=given.get("dtype_") or (recipe.machine.dtype if recipe else "") or "auto",
        offload=_offload(given.get("offload_") or "none"),
        outputs=outputs,
        grid=grid,
        recipe=recipe,
        notes=tuple(notes),
        best_of=_best_of(given, requests),
        ranker=_ranker_name(given, Path(where)),
    )


def _repeated(
    given: Mapping[str, Any], fields: dict[str, Any], words: bool
) -> tuple[Recipe, dict[str, Any], list[str]]:
    """The recipe of `--from`, its fields with the given ones over them, and what to say about it."""
    from pipelines.recipe import read_recipe
    from pipelines.repeat import request_fields as recipe_fields
    from pipelines.suited import merged

    path = existing(given["from_"], "--from")
    recipe = read_recipe(path)
    skip = {name for name in fields if name != "guidance"} | ({"prompt"} if words or given.get("prompts_") else set())
    drawn_anew = bool({"seed", "wildcards", "count"} & set(fields))  # then the template is drawn from again
    base = recipe_fields(recipe, _folders(path, given), skip=skip, resolved=not drawn_anew)
    notes = [] if recipe.origin == "ldm" else list(recipe.notes)
    return recipe, merged(base, fields), notes


def _folders(path: Path, given: Mapping[str, Any]) -> list[Path]:
    return [path.parent, Path(), *(Path(folder).expanduser() for folder in given.get("inputs_") or [])]


def _model_of(model: ModelId, given: Mapping[str, Any]) -> str:
    from pipelines.repeat import model_path

    return model_path(model.name, _folders(Path(given["from_"]), given), model.fingerprint)


def _load(order: Order, reporter: Reporter) -> Pipeline:
    """The model; for a repetition on the device, with the threads, and if possible with the weights of the recipe."""
    from pipelines.pipeline import Pipeline
    from pipelines.verify import same_device

    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it warns about what we do on purpose
    recipe, device = order.recipe, order.device
    if recipe and device == recipe.machine.device:
        device = same_device(device)
    prediction = order.requests[0].prediction
    pipeline = Pipeline.load(
        order.model, vae=order.vae, device=device, dtype=order.dtype, offload=order.offload, prediction=prediction
    )
    if recipe and recipe.origin == "ldm":
        then, now = recipe.model.fingerprint, pipeline.model.parts.fingerprint
        if then != now:
            reporter.note(f"note: the recipe was made with {recipe.model.name} ({then}), this model is {now}")
        if recipe.exact and recipe.machine.threads:
            import torch

            torch.set_num_threads(recipe.machine.threads)
    return pipeline


def _recipe(result: Result, order: Order) -> Recipe:
    """The recipe to write. An exact repetition keeps that of the original, template included: the same file again."""
    old, new = order.recipe, result.recipe
    if old and old.origin == "ldm" and not old.private and (old.pixels, old.machine) == (new.pixels, new.machine):
        return old
    return new


def _make(pipeline: Pipeline, order: Order, reporter: Reporter, stop: Stop, every: int, as_json: bool) -> int:
    from pipelines.ranking import Ranker, best_of

    began, made, tables = time.monotonic(), list[dict[str, Any]](), dict[tuple[int, int], list[Any]]()
    cells = order.grid.columns * order.grid.rows if order.grid else 1
    ranker = Ranker.load(order.ranker) if order.ranker else None
    try:
        for number, request in enumerate(order.requests):
            results = _results(pipeline, order.whole(request), order.outputs, reporter, stop, every)
            for result in results if ranker is None else best_of(results, order.best_of, ranker):
                path = order.outputs.save(result.picture, _recipe(result, order))
                made.append(_told(result, path))
                _show(result, path, reporter, as_json)
                if order.grid and not result.recipe.partial:
                    tables.setdefault((number // cells, result.index // order.best_of), []).append(result.picture)
            if stop.status is not None:
                break
    except KeyboardInterrupt:  # the second Ctrl-C: at once, and what is saved is still told
        stop.status, tables = stop.status or INTERRUPTED, {}
    if order.grid:
        made += [{"grid": str(p)} for p in _tables(order, tables, cells, as_json)]
    if as_json:
        typer.echo(
            json.dumps(
                {"pictures": made, "seconds": round(time.monotonic() - began, 3), "stopped": stop.status is not None}
            )
        )
    elif stop.status is not None:
        reporter.note("stopped; what was made so far is kept" if made else NOTHING_YET)
    return stop.status or 0


def _show(result: Result, path: Path | None, reporter: Reporter, as_json: bool) -> None:
    """The path on stdout; how the picture was made, and what was changed on the way, on stderr."""
    if path is not None and not as_json:
        try:
            typer.echo(str(path))
        except BrokenPipeError:
            raise
        except OSError as error:
            why = f"The system says: {error.strerror}; {path} was saved."
            raise LdmError(Code.RESOURCE, "Standard output cannot be written.", why, "Check where it leads.") from error
    partial = ", partial" if result.recipe.partial else ""
    reporter.note(f"{path.name if path else 'picture'}: seed {result.seed}, {result.recipe.steps} steps run{partial}")
    for note in result.recipe.notes:
        reporter.note(f"note: {note}")


def _results(
    pipeline: Pipeline, request: Request, outputs: Outputs, reporter: Reporter, stop: Stop, every: int
) -> Iterator[Result]:
    """The results of a request; after a stop the pictures under way, as far as they are."""
    for step in pipeline.run(request):
        reporter.step(step)
        yield from step.done
        if stop.status is not None:
            yield from step.partial()
            return
        if every and step.stage == "sample" and step.index and step.index % every == 0 and step.index < step.count:
            _preview(step, request, outputs, reporter)


def _preview(step: Step, request: Request, outputs: Outputs, reporter: Reporter) -> None:
    from ldm.images import from_rgb

    for offset, array in enumerate(step.preview()):
        path = outputs.preview(from_rgb(array, None), offset, request.seed + step.pictures[0] + offset, step.index)
        if path is not None:
            reporter.note(f"preview: {path}")


def _tables(order: Order, tables: Mapping[tuple[int, int], list[Any]], cells: int, as_json: bool) -> Iterator[Path]:
    """One table per prompt and per picture of a cell; not where the run was stopped before the last cell."""
    from ldm.images import open_image
    from pipelines.pipeline import pil

    for pictures in tables.values():
        if order.grid and len(pictures) == cells:
            path = order.outputs.table(open_image(order.grid.draw([pil(picture) for picture in pictures])))
            if not as_json:
                typer.echo(str(path))
            yield path


def _told(result: Result, path: Path | None) -> dict[str, Any]:
    recipe = result.recipe
    return {
        "path": None if path is None else str(path),
        "seed": result.seed,
        "index": result.index,
        "width": recipe.width,
        "height": recipe.height,
        "steps": recipe.steps,
        "partial": recipe.partial,
        "pixels": recipe.pixels,
        "notes": list(recipe.notes),
    }


def _best_of(given: Mapping[str, Any], requests: Sequence[Request]) -> int:
    from pipelines.request import MAX_COUNT

    best = _whole("--best-of", given.get("best_of_")) or 1
    if given.get("ranker_") and best == 1:
        raise bad("--ranker", given["ranker_"], "There is nothing to rank", "Say how many to choose from: --best-of 4")
    for request in requests:
        if request.count * best > MAX_COUNT:
            raise bad(
                "--best-of",
                str(best),
                f"{request.count} x {best} pictures are more than {MAX_COUNT:,}",
                "Ask for fewer",
            )
    return best


def _ranker_name(given: Mapping[str, Any], model: Path) -> str | None:
    """The CLIP that chooses the best: as asked, else the one that ships beside the model."""
    from ldm.store.find import find_model, ranker_of

    if not given.get("best_of_"):
        return None
    name = given.get("ranker_") or ranker_of(model)
    if name is None:
        why = f"No CLIP lies beside {model.name} that could say which picture is most like the prompt"
        raise bad("--best-of", given["best_of_"], why, "Name one: --ranker FOLDER, such as the model/ of a CLIP run")
    find_model(name)
    return str(name)


def _offload(name: str) -> Offload:
    if name == "none" or name == "model":
        return "model" if name == "model" else "none"
    raise bad("--offload", name, "It is none or model", "Write --offload model")


def _whole(option: str, text: str | None) -> int:
    if text is None:
        return 0
    if not text.isdecimal() or not int(text[:9]) > 0:
        raise bad(option, text, "It takes a whole number from 1", f"Write {option} 5")
    return int(text[:9])
