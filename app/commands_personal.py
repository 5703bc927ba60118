"""`ldm personalize` as typer sees it. Nothing heavy is imported before it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands import Json, single


def personalize() -> typer.Typer:
    return single(_personalize)


def _personalize(
    photos: Annotated[
        str, typer.Argument(metavar="PHOTOS", help="A folder with a few pictures of one subject.", show_default=False)
    ],
    token: Annotated[
        str, typer.Option("--token", metavar="WORDS", help="What calls it: a rare word and its kind, 'sks dog'.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The base; else that of ldm generate.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="lora, inversion (a new word), or pivotal (both).")
    ] = "lora",
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="WORDS", help="What it is; else the token's last word.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="A new folder; else runs/TOKEN.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, max=1_000_000, help="At most.")] = None,
    checkpoints: Annotated[
        int | None, typer.Option("--checkpoints", metavar="N", min=1, max=50, help="How often it is measured; 6.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", metavar="N", min=1, max=1024, help="Of the LoRA; 16.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", metavar="R", help="Of learning; by method and model.")] = None,
    size: Annotated[int | None, typer.Option("--size", metavar="N", min=8, max=4096, help="The model's own.")] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", min=1, max=1024, help="Photos of a step."),
    ] = None,
    prior: Annotated[
        int | None,
        typer.Option("--prior", metavar="N", min=0, max=10_000, help="Pictures of the model itself, trained along."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="To look at, with {} for the token; again.")
    ] = None,
    unrelated: Annotated[
        list[str] | None, typer.Option("--unrelated", metavar="TEXT", help="Without the subject; again for several.")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip/--no-flip", help="Photos also left to right; not for writing or what has a side.")
    ] = True,
    clip: Annotated[
        str | None, typer.Option("--clip", metavar="CLIP", help="Who judges; else the one that ships with the model.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="NAME", help="Of what is made, for its header.")
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", metavar="NAME", help="fp32, bf16 or fp16.")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, max=2**62 - 1, help="Of everything random.")] = 0,
    device: Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, mps.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="What it will cost; nothing is written.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; only the paths of adapter and word.")] = False,
    as_json: Json = False,
) -> int:
    """Teach a model your own subject, with a report you can believe: ldm personalize photos --token "sks dog" """
    from app.personalize import personalize as run

    fields = {
        "photos": photos, "token": token, "model": model, "method": method, "kind": kind, "out": out, "steps": steps,
        "checkpoints": checkpoints,
        "rank": rank, "rate": rate, "size": size, "batch": batch, "prior": prior,
        "prompts": tuple(prompt) if prompt else None,
        "unrelated": tuple(unrelated) if unrelated else None, "clip": clip, "licence": licence, "seed": seed,
        "flip": flip,
        "precision": precision, "device": device,
    }  # fmt: skip
    return run(fields, dry_run=dry_run, as_json=as_json, quiet=quiet)
