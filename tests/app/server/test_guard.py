"""Who may speak, how much and how long: F16 to F19 of the fault table, over real sockets."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from app.server.guard import HEADERS, LOOPBACK, Doors, hostname, is_loopback
from app.server.limits import Limits
from tests.app.server.conftest import QUICK, Open, listened

pytestmark = pytest.mark.loopback
TOKEN = "0123456789abcdef"
BAD_NAMES = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a@localhost", "[::2]", "0.0.0.0")


@pytest.fixture
def closed(open_service: Open) -> Iterator[httpx.Client]:
    """A server with a token."""
    with open_service() as service, listened(service, Doors(frozenset(LOOPBACK), TOKEN)) as http:
        yield http


def routes(http: httpx.Client, **more: Any) -> Iterator[tuple[str, str]]:
    """Every method and address that the server tells of, and those that it does not."""
    for path, verbs in http.get("/openapi.json", **more).json()["paths"].items():
        for verb in verbs:
            yield verb.upper(), path.replace("{job}", "0" * 32).replace("{place}", "0")
    yield from (("GET", path) for path in ("/docs", "/openapi.json", "/nothing"))


def test_with_a_token_nothing_but_health_answers_without_it(closed: httpx.Client) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    all_of_them = list(routes(closed, headers=bearer))
    assert len(all_of_them) > 12
    wrong = [
        {}, {"authorization": ""}, {"authorization": "Bearer"}, {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Bearer {TOKEN}x"}, {"authorization": TOKEN}, {"authorization": "Basic !"},
        {"authorization": "Basic " + base64.b64encode(b"me:other").decode()}, {"cookie": f"token={TOKEN}"},
    ]  # fmt: skip
    for verb, path in all_of_them:
        for headers in wrong:
            answer = closed.request(verb, path, headers=headers)
            assert answer.status_code == (200 if path == "/healthz" else 401), (verb, path, headers)
        assert path == "/healthz" or "Basic" in answer.headers["www-authenticate"]
    assert closed.get(f"/v1/jobs?token={TOKEN}").status_code == 401
    for told in (f"Bearer {TOKEN}", f"bearer  {TOKEN}", "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()):
        assert closed.get("/v1/jobs", headers={"authorization": told}).status_code == 200, told


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "file://"},
        {"origin": "http://[x"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        *({"host": name} for name in BAD_NAMES),
        {"origin": "http://evil.example", "host": "evil.example"},
    ],
)
def test_pages_of_other_sites_and_rebound_names_are_refused(http: httpx.Client, headers: dict[str, str]) -> None:
    for verb, path in routes(http):
        answer = http.request(verb, path, headers=headers)
        assert answer.status_code in (400, 403, 421), (verb, path)
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_this_page_and_other_programs_may_speak(http: httpx.Client) -> None:
    own = f"{http.base_url.host}:{http.base_url.port}"
    for headers in ({}, {"origin": f"http://{own}", "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}):
        assert http.get("/v1/jobs", headers=headers).status_code == 200
    assert http.get("/v1/jobs", headers={"host": f"localhost:{http.base_url.port}"}).status_code == 200
    preflight = http.options("/v1/jobs", headers={"access-control-request-method": "POST"})
    assert preflight.status_code == 405 and not any("access-control" in name for name in preflight.headers)


def test_every_answer_tells_browsers_to_be_careful(http: httpx.Client) -> None:
    answers = [http.request(verb, path) for verb, path in routes(http)]
    answers.append(http.get("/v1/jobs", headers={"host": "evil.example"}))
    for answer in answers:
        assert all(answer.headers[name] == value for name, value in HEADERS.items()), answer.request.url
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("host", "name"),
    [("localhost", "localhost"), ("LOCALHOST:80", "localhost"), ("[::1]:80", "::1"), ("localhost.", "localhost"),
     ("a@localhost", ""), ("localhost/x", ""), ("[::1", ""), ("", "")],
)  # fmt: skip
def test_the_name_in_a_host_header(host: str, name: str) -> None:
    assert hostname(host) == name


def test_loopback_is_this_machine_alone() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.9.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "")))


def test_a_server_for_others_answers_to_addresses_and_to_its_own_names_alone() -> None:
    doors = Doors(frozenset({"mine.example"}), TOKEN, addresses=True)
    assert all(doors._ours(name) for name in ("mine.example", "192.168.0.7", "fe80::1"))
    assert not any(doors._ours(name) for name in ("evil.example", "192.168.0.7.evil.example", ""))


def said(http: httpx.Client, data: bytes, seconds: float = 30) -> bytes:
    """What the server answers to bytes, until it closes the connection or is silent for so long."""
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=seconds) as raw:
        raw.sendall(data)
        answer = b""
        while chunk := raw.recv(1 << 16):
            answer += chunk
        return answer


POST = b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def test_a_body_that_is_too_large_is_refused_before_it_comes(http: httpx.Client) -> None:
    """F18: by what its head says, with nothing of it sent."""
    answer = said(http, POST + b"content-length: 1000000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413") and b"16 MB" in answer
    assert said(http, POST + b"content-length: 99999999999999999999999999\r\n\r\n").split()[1] in (b"400", b"413")
    assert said(http, POST + b"content-length: -1\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_an_endless_body_is_cut_off(http: httpx.Client) -> None:
    """F18: it is not buffered beyond the limit."""
    sent, chunk = 0, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=30) as raw:
        raw.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        with pytest.raises(OSError):
            while sent < 1 << 30:
                raw.sendall(chunk)
                sent += len(chunk)
    assert sent < 48 << 20  # the limit, and what lies in the buffers of the system
    assert http.get("/healthz").status_code == 200


def test_a_form_of_thousands_of_parts_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/jobs", files=[("image", b"1")] * 2000)
    assert answer.status_code == 422 and "Too many files" in answer.text
    assert http.get("/healthz").status_code == 200


def test_who_is_slow_is_closed_and_others_are_served(open_service: Open) -> None:
    """F17: heads that dribble, connections on which nothing comes, bodies that stall."""
    limits = Limits(header_seconds=1.0, idle_seconds=1.0, body_seconds=1.0)
    with open_service(limits) as service, listened(service) as http, ExitStack() as stack:
        where = (http.base_url.host, http.base_url.port)
        http.headers["connection"] = "close"  # this one asks at its leisure, and would be called slow as well
        raws = [stack.enter_context(socket.create_connection(where, timeout=60)) for _ in range(70)]
        dribbling, stalled = raws[:50], raws[60:]
        for raw in stalled:  # large ones, of which few are taken in at a time
            raw.sendall(POST + b"content-length: 4000000\r\n\r\n{")
        assert http.post("/v1/jobs", json=QUICK).status_code == 202  # before those have been given up
        began, open_ones = time.monotonic(), set(dribbling)
        while open_ones and time.monotonic() - began < 30:
            for raw in list(open_ones):
                try:
                    raw.sendall(b"G")
                except OSError:
                    open_ones.discard(raw)
            assert http.get("/healthz").status_code == 200
            time.sleep(0.05)
        assert not open_ones
        ends = list[bytes]()
        for raw in raws[50:]:
            try:
                ends.append(raw.recv(1 << 16))
            except OSError:
                ends.append(b"")
        assert all(end == b"" for end in ends[:10])
        assert all(end.startswith(b"HTTP/1.1 408") for end in ends[10:]), ends[10:]
        assert http.post("/v1/jobs", json=QUICK).status_code == 202


def test_who_reads_nothing_is_not_written_to_for_ever(open_service: Open) -> None:
    """Answers pile up on a connection whose other side asks, and never reads."""
    limits = Limits(header_seconds=1.0, idle_seconds=1.0, body_seconds=1.0)
    with open_service(limits) as service, listened(service) as http:
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.settimeout(30)
            raw.connect((http.base_url.host, http.base_url.port))
            asked, until = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 200, time.monotonic() + 60
            with pytest.raises(OSError):
                while time.monotonic() < until:
                    raw.sendall(asked)
                    time.sleep(0.05)
                    raw.getpeername()
        assert http.get("/healthz").status_code == 200


def test_a_connection_that_is_kept_is_closed_when_nothing_more_comes(open_service: Open) -> None:
    with open_service(Limits(idle_seconds=1.0, header_seconds=1.0)) as service, listened(service) as http:
        answer = said(http, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        late = said(http, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /v1")  # the next one never comes
        assert late.count(b"HTTP/1.1") == 1


def test_no_more_connections_than_allowed(open_service: Open) -> None:
    with open_service(Limits(connections=4)) as service, listened(service) as http, ExitStack() as stack:
        where = (http.base_url.host, http.base_url.port)
        raws = [stack.enter_context(socket.create_connection(where, timeout=30)) for _ in range(8)]
        assert [raw.recv(1) for raw in raws[4:]] == [b""] * 4
        raws[0].close()
        raws[1].sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert raws[1].recv(15).startswith(b"HTTP/1.1 200")


def test_the_second_answer_of_a_connection_comes_as_fast_as_the_first(http: httpx.Client) -> None:
    """The other side says that it has a head 40 ms late, where one answer follows another; nothing waits for that."""

    def median(keep: bool) -> float:
        spent = list[float]()
        for _ in range(31):
            began = time.perf_counter()
            http.get("/healthz", headers={} if keep else {"connection": "close"})
            spent.append(time.perf_counter() - began)
        return sorted(spent)[15]

    assert median(keep=True) < 5 * median(keep=False)


def test_websockets_are_not_spoken(http: httpx.Client) -> None:
    upgrade = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AA==\r\n"
    answer = said(http, b"GET /v1/jobs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + upgrade + b"\r\n")
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4")) and b"101" not in answer[:20]
