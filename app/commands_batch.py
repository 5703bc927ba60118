"""`ldm batch` as typer sees it. Nothing heavy is imported before it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands import Json, single


def batch() -> typer.Typer:
    return single(_batch)


def _batch(
    prompts: Annotated[
        str, typer.Argument(metavar="PROMPTS", help="A file of JSON, a request or a text a line.", show_default=False)
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="A folder, or an address that fsspec knows.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="As of ldm generate.")] = "emoji",
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the first line; then one more each.")] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A field that lines need not name.")
    ] = None,
    defaults: Annotated[
        str | None, typer.Option("--defaults", metavar="FILE", help="More of them, as ldm config shows them.")
    ] = None,
    format: Annotated[str, typer.Option("--format", metavar="F", help="files or webdataset.")] = "files",
    chunk: Annotated[int, typer.Option("--chunk", metavar="N", min=1, help="Requests of a chunk, and a shard.")] = 1000,
    together: Annotated[int, typer.Option("--together", metavar="N", min=1, help="Requests that share calls.")] = 8,
    again: Annotated[bool, typer.Option("--again", help="Try those that could not be made anew.")] = False,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="On a Ray cluster: auto, local, or an address.")
    ] = None,
    ray_cpus: Annotated[int, typer.Option("--ray-cpus", metavar="N", min=1, help="Of a worker there.")] = 2,
    workers: Annotated[int | None, typer.Option("--workers", metavar="N", min=1, help="At most, on Ray.")] = None,
    device: Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", metavar="T", help="auto, float32, float16, bfloat16.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="How much is left; nothing is written.")] = False,
    as_json: Json = False,
) -> int:
    """Many pictures from a file of requests: ldm batch prompts.jsonl --out pictures"""
    from app.batch.command import batch as run

    return run(
        {
            "prompts": prompts, "out": out, "model": model, "seed": seed, "set_": set_, "defaults": defaults,
            "format": format, "chunk": chunk, "together": together, "again": again, "ray": ray,
            "ray_cpus": ray_cpus, "workers": workers, "device": device, "dtype": dtype, "dry_run": dry_run,
            "as_json": as_json,
        }
    )  # fmt: skip
