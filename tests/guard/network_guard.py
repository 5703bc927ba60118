"""The socket guard: no test, and no process that a test starts, reaches a network.

An audit hook sees every connect, send and name lookup of Python, whoever makes it. `LDM_TEST_NETWORK=loopback` allows
this machine. What is refused raises, and is also written to the file `LDM_TEST_NETWORK_LOG`, so that swallowing the
error does not hide it. `tests/conftest.py` imports it, and puts its folder on the path of child processes.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path
from typing import Any

LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")


class NetworkRefusedError(RuntimeError):
    """Not an OSError: code that retries or forgives network errors must not forgive this one."""


def target(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The host that an audit event wants to reach; None: it leads to no network."""
    if event in SENDS:
        address = arguments[1]  # not a tuple: connected already, or AF_UNIX
        return str(address[0]) if isinstance(address, tuple) else None
    if event in LOOKUPS:
        host = arguments[0]
        if isinstance(host, tuple):
            host = host[0]
        if isinstance(host, bytes):
            host = host.decode("ascii", "replace")
        return str(host) if host else None  # no host: the wildcard address, asked for before a bind
    return None


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    host = target(event, arguments)
    if host is None or (os.environ.get("LDM_TEST_NETWORK") == "loopback" and is_loopback(host)):
        return
    log = os.environ.get("LDM_TEST_NETWORK_LOG")
    if log:
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{event} {host}\n")
    raise NetworkRefusedError(f"{event} to {host}: tests reach no network (mark `loopback`: this machine only)")


if os.environ.get("LDM_TEST_NETWORK"):
    sys.addaudithook(watch)
