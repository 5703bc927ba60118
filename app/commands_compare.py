"""`ldm compare` and `ldm evaluate` as typer sees them. Nothing heavy is imported before it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands import Json, single

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="A folder, a table, or scenes; as ldm train reads it.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[data.KEY=VALUE]...", help="More of the data section.", show_default=False),
]
Size = Annotated[int, typer.Option("--size", metavar="N", min=8, max=256, help="Side of the pictures.")]
Samples = Annotated[int, typer.Option("--samples", metavar="N", min=100, help="Drawn by each model.")]
Cap = Annotated[int, typer.Option("--cap", metavar="S", min=1, help="Seconds that it may draw for.")]
HeldOut = Annotated[int, typer.Option("--held-out", metavar="N", min=100, help="Pictures that nothing is trained on.")]
Clip = Annotated[
    str | None, typer.Option("--clip", metavar="CLIP", help="Features of this CLIP; else of a classifier made here.")
]
Inception = Annotated[
    str | None, typer.Option("--inception", metavar="FILE", help="Features of Inception, from your weights.")
]
ClassifierSteps = Annotated[
    int, typer.Option("--classifier-steps", metavar="N", min=0, help="Of the classifier; 0: raw pixels instead.")
]


def compare() -> typer.Typer:
    return single(_compare)


def evaluate() -> typer.Typer:
    return single(_evaluate)


def _compare(
    data: Data,
    overrides: Overrides = None,
    families: Annotated[
        str | None, typer.Option("--families", metavar="A,B", help="Names of configs/family, or run files; else all.")
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", metavar="B", help="Of training, for each cell: 10min, 2000-steps, 1e6-images.")
    ] = "10min",
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, max=100, help="Cells of each family.")] = 3,
    size: Size = 32,
    samples: Samples = 2000,
    cap: Cap = 300,
    held_out: HeldOut = 1000,
    clip: Clip = None,
    inception: Inception = None,
    classifier_steps: ClassifierSteps = 1500,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="Else runs/compare/DATA.")] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Cells on a Ray cluster: auto, local, or an address.")
    ] = None,
    ray_cpus: Annotated[int, typer.Option("--ray-cpus", metavar="N", min=1, help="Of a cell there.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="What it will cost; nothing is trained.")] = False,
    as_json: Json = False,
) -> int:
    """Families of generative models on your pictures, under one protocol: ldm compare photos --budget 10min"""
    from app.compare import compare as run

    fields = {
        "families": families, "budget": budget, "seeds": seeds, "size": size, "samples": samples, "cap": cap,
        "held_out": held_out, "clip": clip, "inception": inception, "classifier_steps": classifier_steps, "out": out,
    }  # fmt: skip
    return run(data, overrides or [], fields, ray=ray, ray_cpus=ray_cpus, dry_run=dry_run, as_json=as_json)


def _evaluate(
    made: Annotated[str, typer.Argument(metavar="MADE", help="A model, or a folder of pictures.", show_default=False)],
    data: Annotated[str, typer.Option("--against", metavar="DATA", help="The pictures that it is measured against.")],
    overrides: Overrides = None,
    size: Size = 32,
    samples: Samples = 2000,
    cap: Cap = 300,
    held_out: HeldOut = 1000,
    clip: Clip = None,
    inception: Inception = None,
    classifier_steps: ClassifierSteps = 1500,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of what is drawn.")] = 0,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="DIR", help="A new folder for the pictures that were measured.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of this measure; else MADE's.")] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="Else runs/evaluate/DATA.")] = None,
    as_json: Json = False,
) -> int:
    """Measure a model, or a folder of pictures, against a data set: ldm evaluate made/ --against photos"""
    from app.evaluate import evaluate as run

    fields = {
        "size": size, "held_out": held_out, "clip": clip, "inception": inception, "classifier_steps": classifier_steps,
        "out": out,
    }  # fmt: skip
    return run(
        made, data, overrides or [], fields,
        samples=samples, cap=cap, seed=seed, keep=keep, name=name, as_json=as_json,
    )  # fmt: skip
