"""Ray clusters: joined at their address, or begun on this machine; nothing is reported to anybody, no dashboard."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ldm.errors import Code, LdmError
from ldm.extras import install

LOCAL = "local"  # a cluster of this machine's own, that ends with the command
PATIENCE = 5.0  # seconds until an address has answered; Ray itself would try for two minutes
TOKEN, MODE = "`ray get-auth-token --generate`", "RAY_AUTH_MODE=token"
OWN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a call after the end begins a cluster
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "GRPC_VERBOSITY": "ERROR",
}
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def needed() -> Any:
    """Ray, or how to install it."""
    os.environ |= OWN
    try:
        import ray
    except ImportError as error:
        raise missing(error) from error
    return ray


def missing(error: ImportError) -> LdmError:
    what, why = "--ray cannot be used.", f"{error.name or 'Ray'} is not installed."
    return LdmError(Code.USAGE, what, why, f"Run {install('ray')}.")


def environment(cpus: int) -> dict[str, str]:
    """Of a process that works for us: the program lies where it does here, and it has so many threads."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": str(cpus)}


@contextmanager
def joined(where: str, cpus: int) -> Iterator[Any]:
    """Ray, connected to "auto", an address or a cluster of this machine's own. Our signals stay ours."""
    ray = needed()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        _check(where)
        ray.init(
            address=None if where == LOCAL else where,
            runtime_env={"env_vars": environment(cpus)},
            log_to_driver=False,
            include_dashboard=False,
            logging_level="ERROR",
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        what, why = f"No Ray cluster answers at {where!r}.", f"{str(error).splitlines()[0].rstrip('.')}."
        fix = f"Start one ({TOKEN}, then `ray start --head`), or write --ray local. If it asks for a token: {MODE}."
        raise LdmError(Code.USAGE, what, why, fix) from error
    finally:
        _restore(before)
    try:
        if _answers_anybody(ray.get_runtime_context().gcs_address):
            why = "whoever reaches it on the network runs what they like on its machines"
            fix = f"End it, run {TOKEN} on one of them, copy ~/.ray/auth_token to all, and start it again."
            typer.echo(f"warning: this Ray cluster asks for no token: {why}. {fix}", err=True)
        yield ray
    finally:
        ray.shutdown()


def _answers_anybody(address: str) -> bool:
    """Whether a cluster answers without a token. What Ray itself says (its mode) is ours, not that of the cluster."""
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=PATIENCE)
        except grpc.RpcError:
            return False
    return True


def _check(where: str) -> None:
    """Whether anything listens at an address."""
    host, colon, port = where.rpartition(":")
    if "://" in where:
        raise ValueError("It is the address of a client. Start this on a machine of the cluster, with --ray auto")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), min(int(port), 65535)), PATIENCE).close()


def _restore(before: Mapping[int, Any]) -> None:
    try:
        for number, handler in before.items():
            signal.signal(number, handler)
    except ValueError:  # not the main thread, where Ray has changed nothing
        return


def room(nodes: Sequence[Mapping[str, Any]], cpus: int) -> tuple[int, bool]:
    """How many processes of so many processors fit into a cluster, and whether each has a card of its own: where there
    are cards, only machines that have some are counted."""
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    cards = any(one.get("GPU", 0) >= 1 for one in machines)
    each = (min(int(one.get("CPU", 0)) // cpus, int(one.get("GPU", 0)) if cards else 1 << 30) for one in machines)
    return sum(each), cards
