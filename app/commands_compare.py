"""`ldm compare` as typer sees it. Nothing heavy is imported before it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands import Json, single


def compare() -> typer.Typer:
    return single(_compare)


def _compare(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="A folder, a table, or scenes; as ldm train reads it.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[data.KEY=VALUE]...", help="More of the data section.", show_default=False),
    ] = None,
    families: Annotated[
        str | None, typer.Option("--families", metavar="A,B", help="Names of configs/family, or run files; else all.")
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", metavar="B", help="Of training, for each cell: 10min, 2000-steps, 1e6-images.")
    ] = "10min",
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, max=100, help="Cells of each family.")] = 3,
    size: Annotated[int, typer.Option("--size", metavar="N", min=8, max=256, help="Side of the pictures.")] = 32,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=100, help="Drawn by each cell.")] = 2000,
    cap: Annotated[int, typer.Option("--cap", metavar="S", min=1, help="Seconds that a cell may draw for.")] = 300,
    held_out: Annotated[
        int, typer.Option("--held-out", metavar="N", min=100, help="Pictures that nothing is trained on.")
    ] = 1000,
    clip: Annotated[
        str | None,
        typer.Option("--clip", metavar="CLIP", help="Features of this CLIP; else of a classifier made here."),
    ] = None,
    inception: Annotated[
        str | None, typer.Option("--inception", metavar="FILE", help="Features of Inception, from your weights.")
    ] = None,
    classifier_steps: Annotated[
        int, typer.Option("--classifier-steps", metavar="N", min=0, help="Of the classifier; 0: raw pixels instead.")
    ] = 1500,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="Else runs/compare/DATA.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="What it will cost; nothing is trained.")] = False,
    as_json: Json = False,
) -> int:
    """Families of generative models on your pictures, under one protocol: ldm compare photos --budget 10min"""
    from app.compare import compare as run

    fields = {
        "families": families, "budget": budget, "seeds": seeds, "size": size, "samples": samples, "cap": cap,
        "held_out": held_out, "clip": clip, "inception": inception, "classifier_steps": classifier_steps, "out": out,
    }  # fmt: skip
    return run(data, overrides or [], fields, dry_run=dry_run, as_json=as_json)
