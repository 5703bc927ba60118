"""What a command line of `ldm generate` names, found and opened before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.options import bad, existing, existing_folder, request_fields
from app.validation import did_you_mean
from ldm.errors import Code, LdmError

if TYPE_CHECKING:
    from pipelines.request import Request

MAX_PROMPTS_BYTES = 10_000_000


def request_file(file: str) -> dict[str, Any]:
    """The fields that a request written as YAML sets (`ldm config show`)."""
    from app.config import read

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        return str(value) if isinstance(value, Path) else value

    told: dict[str, Any] = plain(read(file).model_dump(exclude_unset=True))
    return told


def prompts_of(words: list[str], given: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
    """The prompts of a command line: `--set prompt=...`, else one for each line of a file, else the words."""
    if "prompt" in (told := request_fields({"set_": given.get("set_")})):
        return [str(told["prompt"])]
    if given.get("prompts_"):
        if words:
            raise bad("--prompts", " ".join(words), "The command line has a prompt too", "Give one of them")
        path = existing(given["prompts_"], "--prompts")
        if path.stat().st_size > MAX_PROMPTS_BYTES:
            raise bad("--prompts", path.name, f"It is larger than {MAX_PROMPTS_BYTES} bytes", "Split the file")
        lines = _text(path).splitlines()
        if not (prompts := [line.strip() for line in lines if line.strip()]):
            raise bad("--prompts", path.name, "It has no prompt", "Write one prompt per line")
        return prompts
    if words:
        return [" ".join(words)]
    if "prompt" not in fields and "prompt" not in {axis.split(":")[0][2:] for axis in given.get("grid_") or []}:
        raise LdmError(
            Code.USAGE,
            "PROMPT is missing.",
            "Nothing says what the picture should show.",
            'Write ldm generate "a red circle", or "" for no prompt.',
        )
    return [str(fields.get("prompt", ""))]


def _text(path: Path) -> str:
    """UTF-8, strictly: a picture of garbage is no answer to a file of another kind."""
    raw = path.read_bytes()
    what, fix = f"--prompts: {path.name} is not a text file.", "Save the file as UTF-8 text, one prompt per line."
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise LdmError(Code.FILE, what, f"Line {line} is not UTF-8.", fix) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise LdmError(Code.FILE, what, f"Line {line} holds a NUL character.", fix)
    return text


def opened(fields: dict[str, Any], model: str) -> dict[str, Any]:
    """Pictures opened, masks made, files found, sampler names understood. `model`: where short control names live."""
    from ldm.images import open_image
    from pipelines.mask_rule import RULES, is_rule, mask_from_rule

    keep = fields.get("keep_location") is True

    def picture(value: Any, option: str) -> Any:
        return open_image(existing(value, option), keep_location=keep) if isinstance(value, str) else value

    fields = dict(fields)
    image = fields["image"] = picture(fields.get("image"), "--image")

    def mask(value: Any, option: str, of: Any) -> Any:
        rule = isinstance(value, str) and is_rule(value)
        if rule and of is None:
            raise bad(option, value, "It makes a mask from the input picture, and there is none", "Add --image FILE")
        if isinstance(value, str) and not rule and ":" in value and not Path(value).expanduser().exists():
            near = did_you_mean(value.partition(":")[0], RULES)
            why = f"{near}It is neither a file nor a rule: alpha, colour:#00ff00:20, box:x,y,w,h, polygon:x,y x,y x,y"
            raise bad(option, value, why, "Write one of these rules, or name a picture")
        return mask_from_rule(value, of) if rule else picture(value, option)

    fields["mask"] = mask(fields.get("mask"), "--mask", image)
    if isinstance(controls := fields.get("controls"), list):
        fields["controls"] = [_control(use, image, picture, mask) if isinstance(use, dict) else use for use in controls]
    _found(fields, model)
    _name_solver(fields)
    return fields


def _found(fields: Mapping[str, Any], model: str) -> None:
    """Whatever is named is there: asked before a model is loaded for nothing."""
    for use in _records(fields.get("loras")):
        if isinstance(use.get("path"), str):
            existing(use["path"], "--lora", peft=True)
    embeddings = fields.get("embeddings")
    for path in embeddings if isinstance(embeddings, list) else []:
        if isinstance(path, str):
            existing(path, "--embedding")
    for name, option in (("wildcards", "--wildcards"), ("lora_folder", "--lora-folder")):
        if isinstance(fields.get(name), str):
            existing_folder(fields[name], option)
    for use in _records(fields.get("controls")):
        if isinstance(use.get("model"), str) and use["model"]:
            _find(use["model"], "--control", Path(model))
    if isinstance(fields.get("refiner"), str):
        _find(fields["refiner"], "--refiner", None)


def check_words(request: Request) -> None:
    """The words of every picture can be made: each wildcard is filled in, and each `<lora:...>` tag has its file."""
    from pipelines.adapting import check_tags
    from pipelines.jobs import jobs

    check_tags(request, (tag for job in jobs(request) for tag in job.loras))


def _records(value: Any) -> list[dict[str, Any]]:
    return [use for use in value if isinstance(use, dict)] if isinstance(value, list) else []


def _find(name: str, option: str, beside: Path | None) -> None:
    """A model or control is there: by its path or name, or by its short name in the model folder."""
    from ldm.store.find import find_model

    near = [beside / f"controlnet-{name}", beside / name] if beside and "/" not in name and "\0" not in name else []
    try:
        if not any(folder.is_dir() for folder in near):
            find_model(name)
    except LdmError as error:
        raise LdmError(error.code, f"{option}: {error.what}", error.why, error.fix) from error
    except OSError as error:  # a name that the system refuses
        raise bad(option, name, error.strerror or "The system refuses the name", "Check the name") from error


def _control(use: dict[str, Any], image: Any, picture: Any, mask: Any) -> dict[str, Any]:
    """A control without a picture of its own looks at the input picture."""
    if "image" not in use and image is None:
        raise bad("--control", use.get("model", ""), "It names no picture, and there is no --image", "Add image=FILE")
    seen = picture(use["image"], "--control image") if "image" in use else image
    return use | {"image": seen} | ({"mask": mask(use["mask"], "--control mask", seen)} if "mask" in use else {})


def _name_solver(fields: dict[str, Any]) -> None:
    from pipelines.a1111 import solver_from_name, spacing_from_name

    solver, spacing = fields.get("solver", "auto"), fields.get("spacing")
    if isinstance(solver, str) and solver != "auto":
        fields["solver"], within = solver_from_name(solver)
        spacing = spacing if spacing is not None else within
    if isinstance(spacing, str):
        fields["spacing"] = spacing_from_name(spacing, fields.get("solver", "auto"))
