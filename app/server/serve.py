"""`ldm serve`: the server on its address, until it is stopped."""

from __future__ import annotations

import logging
import os
import socket
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread

import typer
import uvicorn

from app.server.crew import RayCrew, Wanted, cluster
from app.server.guard import LOOPBACK, Doors, hostname, is_loopback
from app.server.limits import Limits
from app.server.protocol import patient
from app.server.service import Service, opened
from app.server.web import guarded
from ldm.errors import Code, LdmError

TOKEN = "LDM_TOKEN"  # in the environment: a command line is seen by every user of a machine
LEAST_TOKEN = 16  # characters
COMPARISONS = Path("runs/compare")  # where `ldm compare` writes by itself
GOODBYE_SECONDS = 5  # that answers under way may take when the server ends


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    host: str
    port: int
    out: Path
    token_file: Path | None
    names: Sequence[str]
    models: Path | None
    adapters: Path | None
    compare: Path | None
    memory: float | None  # bytes
    device: str
    dtype: str
    limits: Limits
    ray: Wanted | None = None  # replicas, in the place of a worker in this process
    browser: bool = False  # whether the page is to be opened


def serve(asked: Asked) -> int:
    doors = doors_of(asked)
    check_device(asked)
    for folder, option in ((asked.models, "--models"), (asked.adapters, "--adapters"), (asked.compare, "--compare")):
        if folder is not None and not folder.is_dir():
            raise LdmError(Code.FILE, f"{option}: {folder} is no folder.", "It is not there.", "Check the path.")
    with (
        listening(asked.host, asked.port) as own,
        cluster(asked.ray) as place,
        opened(
            asked.out,
            asked.limits,
            models=asked.models,
            adapters=asked.adapters,
            compare=asked.compare or COMPARISONS,
            memory=asked.memory,
            device=asked.device,
            dtype=asked.dtype,
            replicas=None if place is None else partial(RayCrew, place),
        ) as service,
    ):
        logging.getLogger("diffusers").setLevel(logging.ERROR)  # it warns about what we do on purpose
        host, port = own.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"http://{shown}:{port} (documentation at /docs); pictures in {asked.out}; Ctrl-C ends it", err=True)
        if asked.browser:  # a server on every address is reached on this one as well
            where = shown if is_loopback(asked.host) else "127.0.0.1"
            Thread(target=webbrowser.open, args=(f"http://{where}:{port}",), daemon=True).start()
        uvicorn.Server(configured(service, doors, early=True)).run([own])
    return 0


def check_device(asked: Asked) -> None:
    """A device that is not there is said at once; torch is not asked about what is always there, nor about the
    machines of a cluster."""
    if (asked.device, asked.dtype) == ("auto", "auto") or asked.ray is not None:
        return
    from pipelines.device import pick_device, pick_dtype

    pick_dtype(asked.dtype, pick_device(asked.device))


def configured(service: Service, doors: Doors, early: bool = False) -> uvicorn.Config:
    """The web server: patient only within the limits, and silent about itself."""
    return uvicorn.Config(
        guarded(service, doors, early),
        http=patient(service.limits),
        loop="asyncio",  # the same one, whatever else is installed
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=round(service.limits.idle_seconds),
        timeout_graceful_shutdown=GOODBYE_SECONDS,
    )


def doors_of(asked: Asked) -> Doors:
    """Loopback by default; any other address needs a token."""
    token = token_of(asked.token_file)
    local = is_loopback(asked.host)
    if not local and token is None:
        raise LdmError(
            Code.USAGE,
            f"--host {asked.host} needs a token.",
            "Everybody who reaches that address could use this machine and see its pictures.",
            f"Set {TOKEN} to a long random word, or name a file that holds one: --token-file FILE.",
        )
    names = {*LOOPBACK, asked.host.lower(), *(hostname(name) for name in asked.names)}
    if not local:
        names.add(socket.gethostname().lower())
    return Doors(frozenset(names), token, addresses=not local)


def token_of(file: Path | None) -> str | None:
    """From a file, else from the environment."""
    try:
        token = os.environ.get(TOKEN) if file is None else file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = f"{getattr(error, 'strerror', None) or 'It is no text'}."
        raise LdmError(Code.FILE, "--token-file cannot be read.", why, "Name a text file with one line.") from error
    if not token:
        if file is not None:
            raise LdmError(
                Code.USAGE, "--token-file is empty.", "It holds no token.", "Write a long random word there."
            )
        return None
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        why = f"It has {len(token)} characters, of which some may be no letters, digits or signs."
        fix = f"Use {LEAST_TOKEN} or more plain characters, such as of `openssl rand -hex 16`."
        raise LdmError(Code.USAGE, "The token is not long and plain.", why, fix)
    return token


def listening(host: str, port: int) -> socket.socket:
    """The socket, bound now: a port that is taken is said before anything is begun."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        taken = "in use" in (error.strerror or "")
        what = f"{host}:{port} cannot be listened on."
        fix = "Choose another --port, or end the other program." if taken else "Choose another --host or --port."
        why = f"The system says: {error.strerror or error}."
        raise LdmError(Code.BUSY if taken else Code.USAGE, what, why, fix) from error
