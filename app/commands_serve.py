"""`ldm serve` as typer sees it. Nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.commands import single
from ldm.errors import Code, LdmError


def serve() -> typer.Typer:
    return single(_serve)


def _serve(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Others than this machine need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0: any free one.")] = 7860,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Jobs, pictures and uploads.")] = "outputs/server",
    models: Annotated[
        str | None, typer.Option("--models", metavar="DIR", help="Each folder or file in it is offered, too.")
    ] = None,
    adapters: Annotated[
        str | None, typer.Option("--adapters", metavar="DIR", help="Each .safetensors file in it is offered, too.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="DIR", help="Each comparison in it is shown; else runs/compare.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="Another name of this machine.")
    ] = None,
    token_file: Annotated[
        str | None, typer.Option("--token-file", metavar="FILE", help="Holds the token; else LDM_TOKEN.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", metavar="GB", min=0.1, help="Of models; else half of all.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Opens the page in your browser.")] = False,
    device: Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", metavar="T", help="auto, float32, float16, bfloat16.")] = "auto",
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="Replicas on a Ray cluster: auto, local, an address.")
    ] = None,
    replicas: Annotated[
        str | None, typer.Option("--replicas", metavar="MIN:MAX", help="There, as the work wants; else 1:1.")
    ] = None,
    ray_cpus: Annotated[int, typer.Option("--ray-cpus", metavar="N", min=1, help="Of a replica there.")] = 2,
    waiting: Annotated[int | None, typer.Option("--queue", metavar="N", min=1, help="Jobs that may wait.")] = None,
) -> int:
    """Pictures for other programs, over HTTP: ldm serve"""
    from app.server.extra import needed

    needed()
    from app.server.crew import Wanted, numbers
    from app.server.limits import Limits
    from app.server.serve import Asked, serve

    least, most = numbers("1" if replicas is None else replicas)
    if replicas is not None and ray is None:
        why = "Without a cluster there is one worker, in the server itself."
        raise LdmError(Code.USAGE, "--replicas needs --ray.", why, "Add --ray auto, or --ray local.")
    limits = Limits() if waiting is None else Limits(waiting=waiting)
    return serve(
        Asked(
            host=host,
            port=port,
            out=Path(out).expanduser(),
            token_file=None if token_file is None else Path(token_file).expanduser(),
            names=allow_host or (),
            models=None if models is None else Path(models).expanduser(),
            adapters=None if adapters is None else Path(adapters).expanduser(),
            compare=None if compare is None else Path(compare).expanduser(),
            memory=None if memory is None else memory * 1e9,
            device=device,
            dtype=dtype,
            limits=limits,
            ray=None if ray is None else Wanted(ray, least, most, ray_cpus),
            browser=browser,
        )
    )
