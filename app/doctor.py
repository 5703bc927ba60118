"""`ldm doctor`: is this installation sound? Looks, computes a small picture, says what to mend. Asks no network."""

from __future__ import annotations

import importlib.metadata
import json as json_
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import typer

import ldm
from app import health
from app.health import Check
from ldm.errors import Code, LdmError

MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


def run(json: bool = False) -> int:
    """Print the report; 0 if nothing failed, else the exit status for missing resources."""
    start = time.perf_counter()
    checks = []
    for check in examine(Path("outputs")):
        checks.append(check)
        if not json:
            show(check)
    seconds = round(time.perf_counter() - start, 1)
    bad = [c for c in checks if c.state == "fail"]
    if json:
        report = [{"name": c.name, "state": c.state, "found": c.found, "fix": c.fix} for c in checks]
        typer.echo(json_.dumps({"ok": not bad, "version": ldm.__version__, "seconds": seconds, "checks": report}))
    else:
        said = f"{len(bad)} of {len(checks)} checks failed" if bad else f"all {len(checks)} checks passed"
        typer.echo(f"{said} in {seconds} s")
    return int(Code.RESOURCE) if bad else 0


def show(check: Check) -> None:
    mark, colour = MARKS[check.state]
    typer.echo(f"{typer.style(f'{mark:>4}', fg=colour)}  {check.name:<20} {check.found}")
    if check.fix:
        typer.echo(f"      {'':<20} fix: {check.fix}")


def examine(outputs: Path) -> Iterator[Check]:
    """All checks, the cheap ones first; what depends on a failed one is left out and said so."""
    installed = health.distributions()
    yield Check("ldm", "ok", ldm.__version__)
    checks = health.versions(_requirements(), installed)
    yield from checks
    yield health.shadows(Path(ldm.__file__).resolve().parent.parent, sys.path)
    yield from health.settings(os.environ)
    yield health.caches(os.environ)
    yield health.memory()
    yield health.disk(Path())
    yield health.writing(outputs)
    if any(c.name == "torch" and c.found == "not installed" for c in checks):
        yield Check("self-test", "warn", "not run, because torch is missing", "mend torch first")
        return
    fits = health.pair(
        health.read_build("torch"), health.read_build("torchvision"), _requires("torchvision"), health.operators()
    )
    yield fits
    yield from health.devices()
    yield server_limits()
    if fits.state == "fail":
        yield Check("self-test", "warn", "not run, because torch and torchvision do not fit", "mend them first")
    else:
        yield self_test()


def self_test(steps: int = 4) -> Check:
    """One small picture from the model that ships: loads, computes finite numbers, and is not flat."""
    from ldm.store.find import shipped

    if "scenes" not in shipped():
        return Check("self-test", "warn", "not run: no model ships with this installation", "reinstall ldm")
    start = time.perf_counter()
    try:
        from pipelines.pipeline import Pipeline
        from pipelines.request import Request

        pipeline = Pipeline.load("scenes", device="cpu", dtype="float32")
        result = pipeline.results(Request(prompt="a red circle", steps=steps, seed=0))[0]
    except LdmError as error:
        return Check("self-test", "fail", error.what, error.fix)
    except ImportError as error:
        return Check("self-test", "fail", f"a library does not load: {error}", "reinstall ldm in a new environment")
    rgb = result.picture.rgb()
    seconds = time.perf_counter() - start
    if float(rgb.std()) < 0.01:
        return Check("self-test", "fail", "the picture is flat", "report it with the output of ldm doctor --json")
    height, width = rgb.shape[:2]
    return Check("self-test", "ok", f"a {width}x{height} picture in {steps} steps, {seconds:.1f} s with loading")


def server_limits() -> Check:
    """What `ldm serve` does for one caller at most."""
    from app.server.limits import Limits

    return Check("ldm serve", "ok", str(Limits()))


def _requirements() -> list[str]:
    return _requires("ldm")


def _requires(distribution: str) -> list[str]:
    try:
        return importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
