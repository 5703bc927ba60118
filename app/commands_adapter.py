"""`ldm adapter ...` as typer sees it: signatures and help. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands import Json, group


def adapter() -> typer.Typer:
    """`ldm adapter inspect | convert | merge | extract | compare`."""
    app = group("Inspect, convert, merge, extract and compare LoRAs; inspect embeddings.")
    for name, function in (
        ("inspect", _adapter_inspect),
        ("convert", _adapter_convert),
        ("merge", _adapter_merge),
        ("extract", _adapter_extract),
        ("compare", _adapter_compare),
    ):
        app.command(name)(function)
    return app


def _adapter_inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A LoRA or a textual inversion.", show_default=False)],
    as_json: Json = False,
) -> int:
    """What an adapter changes, how strongly, and its base: ldm adapter inspect style.safetensors"""
    from app.adapter import inspect

    return inspect(file, as_json)


def _adapter_convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What to convert.", show_default=False)],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new .safetensors file, or folder.", show_default=False)],
    to: Annotated[
        str, typer.Option("--to", metavar="DIALECT", help="diffusers, kohya, kohya-xl, peft (a folder).")
    ] = "diffusers",
    as_json: Json = False,
) -> int:
    """Write an adapter in another dialect: ldm adapter convert a.safetensors b.safetensors --to kohya"""
    from app.adapter import convert

    return convert(file, out, to, as_json)


def _adapter_merge(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE[:WEIGHT]...", help="Adapters, each with its weight.", show_default=False),
    ],
    out: Annotated[str, typer.Option("--out", metavar="OUT", help="A new .safetensors file; of --into also a folder.")],
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", min=1, max=4096, help="The nearest LoRA of this rank.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="The base; DoRA cannot be summed without it.")
    ] = None,
    into: Annotated[
        str | None, typer.Option("--into", metavar="MODEL", help="Write this model with the adapters in its weights.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="DIALECT", help="diffusers, kohya, kohya-xl or peft (a folder); diffusers."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Adapters as one, or in a model: ldm adapter merge a.safetensors:0.7 b.safetensors --out c.safetensors"""
    from app.adapter_sums import merge

    return merge(files, out, rank, base, into, to, as_json)


def _adapter_extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before.", show_default=False)],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model after.", show_default=False)],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new .safetensors file, or folder.", show_default=False)],
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", min=1, max=4096, help="Of every layer; else as --keep needs.")
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option("--keep", metavar="SHARE", min=0.0, max=1.0, help="Share of a layer's squared change; 0.98."),
    ] = None,
    convolutions: Annotated[
        bool, typer.Option("--convolutions/--no-convolutions", help="Whether 3x3 and other convolutions count.")
    ] = True,
    to: Annotated[
        str, typer.Option("--to", metavar="DIALECT", help="diffusers, kohya, kohya-xl, peft (a folder).")
    ] = "diffusers",
    as_json: Json = False,
) -> int:
    """The LoRA between two models: ldm adapter extract scenes my-scenes/ mine.safetensors --rank 16"""
    from app.adapter_sums import extract

    return extract(base, tuned, out, rank, keep, convolutions, to, as_json)


def _adapter_compare(
    one: Annotated[str, typer.Argument(metavar="FILE", help="An adapter.", show_default=False)],
    other: Annotated[str, typer.Argument(metavar="FILE", help="Another.", show_default=False)],
    as_json: Json = False,
) -> int:
    """How alike two adapters are, block by block: ldm adapter compare a.safetensors b.safetensors"""
    from app.adapter_sums import compare

    return compare(one, other, as_json)
