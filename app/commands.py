"""The commands as typer sees them: signatures and help. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from app.options import OPTIONS, Option

Json = Annotated[bool, typer.Option("--json", help="Results and errors as JSON on stdout.")]


def _parameter(option: Option) -> inspect.Parameter:
    kinds: dict[str, Any] = {"value": str | None, "switch": bool | None, "list": list[str] | None}
    info = typer.Option(option.flag, help=option.help, metavar=option.metavar or None, rich_help_panel=option.panel)
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kinds[option.kind], info]
    )


def generate() -> typer.Typer:
    """`ldm generate`, with one parameter per row of the table of options."""

    def command(words: list[str] | None = None, **given: Any) -> int:
        from app.generate import generate as run

        return run(list(words or []), given)

    argument = Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="What the picture shows.", show_default=False)
    ]
    words = inspect.Parameter("words", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=argument)
    command.__signature__ = inspect.Signature([words, *(_parameter(option) for option in OPTIONS)])  # type: ignore[attr-defined]
    command.__annotations__ = {}
    command.__doc__ = 'Make pictures from a prompt: ldm generate "a red circle" --size 32x32 --seed 1'
    return single(command)


def verify() -> typer.Typer:
    return single(_verify)


def train() -> typer.Typer:
    return single(_train)


def doctor() -> typer.Typer:
    return single(_doctor)


def config() -> typer.Typer:
    """`ldm config check FILE` and `ldm config show FILE`."""
    app = group("Check and show configuration files.")
    app.command("check")(_config_check)
    app.command("show")(_config_show)
    return app


def models() -> typer.Typer:
    """`ldm models list | show | pull | convert`."""
    app = group("List, show, pull and convert models.")
    for name, function in (
        ("list", _models_list),
        ("show", _models_show),
        ("pull", _models_pull),
        ("convert", _models_convert),
    ):
        app.command(name)(function)
    return app


def data() -> typer.Typer:
    """`ldm data check | prepare | draw`."""
    app = group("Look at a set of pictures before training on it; make one of published emoji, or of drawn shapes.")
    app.command("check")(_data_check)
    app.command("prepare")(_data_prepare)
    app.command("draw")(_data_draw)
    return app


def group(help: str) -> typer.Typer:
    """A command, or several under one name."""
    return typer.Typer(help=help, add_completion=False, pretty_exceptions_enable=False)


def single(function: Callable[..., int]) -> typer.Typer:
    """A command of its own."""
    app = group("")
    app.command()(function)
    return app


def _verify(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Pictures made here.", show_default=False)],
    inputs: Annotated[list[str] | None, typer.Option("--inputs", metavar="DIR", help="Where inputs may be.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="The model, if it moved.")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="The prompt of a private picture.")
    ] = None,
    negative: Annotated[str | None, typer.Option("--negative", metavar="TEXT", help="Its negative prompt.")] = None,
    as_json: Json = False,
) -> int:
    """Repeat the recipe in a picture and compare: ldm verify outputs/0001-1.png"""
    from app.verify import run

    return run(files, inputs or [], model=model, prompt=prompt, negative=negative, as_json=as_json)


def _train(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A run file (YAML), or the name of a shipped one.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="section.key=value...", help="What is to differ from the file.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Memory, disk and time it will take; nothing is written.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Only write report.html of the run folder anew.")] = False,
    average: Annotated[
        float | None,
        typer.Option(
            "--average",
            metavar="WIDTH",
            help="Only write the model with an average of this width, of a run's snapshots.",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="A new folder for the model of --average.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Short for run.seed=N.")] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="NAME", help="Short for run.device=NAME.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; the path of the result alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Each line of the log, results and errors as JSON.")] = False,
) -> int:
    """Train what a run file says; the same command again goes on: ldm train autoencoder/scenes run.steps=2000"""
    from app.training import train as run

    return run(
        file,
        overrides or [],
        dry_run=dry_run,
        report=report,
        average=average,
        out=out,
        seed=seed,
        device=device,
        as_json=as_json,
        quiet=quiet,
    )


def _doctor(as_json: Json = False) -> int:
    """Check the installation and make a self-test picture: ldm doctor"""
    from app.doctor import run

    return run(json=as_json)


def _config_check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A run file (YAML).", show_default=False)],
    as_json: Json = False,
) -> int:
    """Check a configuration file: ldm config check configs/x.yaml"""
    from app.config import check

    return check(file, json=as_json)


def _config_show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A run file (YAML).", show_default=False)],
    as_json: Json = False,
) -> int:
    """Show a configuration file with its defaults filled in: ldm config show configs/x.yaml"""
    from app.config import show

    return show(file, json=as_json)


def _models_list(as_json: Json = False) -> int:
    """The models that are here: ldm models list"""
    from app.models import list_models

    return list_models(as_json)


def _models_show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A path, a shipped name or a pulled id.", show_default=False)
    ],
    as_json: Json = False,
) -> int:
    """Kind, family, prediction type, size and fingerprint, from headers alone: ldm models show scenes"""
    from app.models import show

    return show(model, as_json)


def _models_pull(
    repo: Annotated[str, typer.Argument(metavar="ID", help="owner/name on the hub.", show_default=False)],
    revision: Annotated[str | None, typer.Option("--revision", metavar="NAME", help="Branch, tag or commit.")] = None,
    variant: Annotated[
        str | None,
        typer.Option("--variant", metavar="NAME", help="fp16: the half-precision files, where there are some."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> int:
    """Fetch a model from the hub, safetensors only; size and licence are shown first: ldm models pull owner/name"""
    from app.models import pull

    return pull(repo, revision, variant, yes, as_json)


def _models_convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What to convert.", show_default=False)],
    out: Annotated[
        str | None, typer.Argument(metavar="[OUT]", help="A folder, or a .safetensors file.", show_default=False)
    ] = None,
    trusted: Annotated[
        bool, typer.Option("--i-trust-this-file", help="Read a pickle, in a process of its own.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Between folder and single file, or from a pickle: ldm models convert model.safetensors model/"""
    from app.models import convert

    return convert(model, out, trusted, as_json)


def _data_prepare(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new .parquet file.", show_default=False)],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="A table of emoji, or style=FOLDER.", show_default=False),
    ],
    names: Annotated[
        str | None, typer.Option("--names", metavar="FILE", help="Unicode's emoji-test.txt, for folders.")
    ] = None,
    keywords: Annotated[
        str | None, typer.Option("--keywords", metavar="FILE", help="CLDR's annotations.json, for folders.")
    ] = None,
    as_json: Json = False,
) -> int:
    """One table of emoji to train on: ldm data prepare emoji.parquet noto=noto-emoji/png/128 --names emoji-test.txt"""
    from app.data_prepare import prepare

    return prepare(out, sources, names, keywords, as_json)


def _data_draw(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)],
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, max=1_000_000, help="How many.")] = 2000,
    size: Annotated[int, typer.Option("--size", metavar="N", min=16, max=2048, help="Their side in pixels.")] = 64,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, max=2**32 - 1, help="Others from each.")] = 0,
    character: Annotated[
        int | None,
        typer.Option("--character", metavar="N", min=0, max=2**32 - 1, help="A creature in many poses instead."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Coloured shapes with captions, as files to try training on: ldm data draw pictures --count 2000"""
    from app.data_draw import draw

    return draw(out, count, size, seed, character, as_json)


def _data_check(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A folder, parquet file, tar shards, or a run file (YAML).", show_default=False
        ),
    ],
    size: Annotated[
        int | None,
        typer.Option(
            "--size", metavar="N", min=8, max=16384, help="Pixels of training; else what most pictures reach."
        ),
    ] = None,
    buckets: Annotated[bool, typer.Option("--buckets", help="Train several shapes, not squares alone.")] = False,
    sheet: Annotated[
        str | None, typer.Option("--sheet", metavar="FILE", help="A picture that shows what was found.")
    ] = None,
    subject: Annotated[bool, typer.Option("--subject", help="They are a few pictures of one subject.")] = False,
    token: Annotated[str, typer.Option("--token", metavar="WORDS", help="What calls the subject: 'sks dog'.")] = "",
    clip: Annotated[
        str | None, typer.Option("--clip", metavar="CLIP", help="Whose features tell subjects apart.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Decode every picture and list what is worth mending before training: ldm data check photos --size 512"""
    from app.data import check

    return check(path, size, buckets, sheet, as_json, subject, token, clip)
