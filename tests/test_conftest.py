"""The guard of the suite, and the tiny components, do what the other tests rely on."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from network_guard import NetworkRefusedError

from tests import components


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def ask_own_machine() -> int:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
        client.request("GET", "/")
        return client.getresponse().status
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
        lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80)),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
        lambda: socket.getaddrinfo("example.org", 443),
        lambda: socket.gethostbyname("example.org"),
        ask_own_machine,
    ],
)
def test_nothing_reaches_a_network(reach: object, no_network: Path) -> None:
    with pytest.raises(NetworkRefusedError, match="tests reach no network"):
        reach()  # type: ignore[operator]
    assert no_network.read_text().count("\n") == 1
    no_network.unlink()


def test_a_child_process_is_guarded_too(no_network: Path) -> None:
    code = "import socket, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('example.org', 80)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode and "tests reach no network" in child.stderr
    assert no_network.read_text() == "socket.getaddrinfo example.org\n"
    no_network.unlink()


@pytest.mark.loopback
def test_a_marked_test_reaches_this_machine_only(no_network: Path) -> None:
    assert ask_own_machine() == 204
    with pytest.raises(NetworkRefusedError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    no_network.unlink()


def test_unix_sockets_stay_open(tmp_path: Path) -> None:
    server, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.listen()
    client.connect(str(tmp_path / "s"))


def test_one_thread() -> None:
    assert torch.get_num_threads() == 1


def test_components_come_from_their_seed_and_leave_the_random_state() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b = components.unet(), components.unet()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(next(a.parameters()), next(components.unet(seed=2).parameters()))


def test_words_are_tokens_and_unknown_text_is_bytes() -> None:
    words = components.tokenizer()
    assert len(words("a red square on the cat").input_ids) == 2 + 6
    assert len(words("zq").input_ids) == 2 + 2
    assert words.eos_token_id == len(words) - 1  # CLIP finds the pooled state by the greatest id


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_tiny_folder_loads_and_listens_to_its_prompt(kind: str, request: pytest.FixtureRequest) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(request.getfixturevalue(f"tiny_{kind}"))
    pipeline.set_progress_bar_config(disable=True)
    pictures = [
        pipeline(
            prompt=prompt,
            num_inference_steps=2,
            height=components.PIXELS,
            width=components.PIXELS,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        for prompt in ("a red square", "a blue circle")
    ]
    assert pictures[0].shape == (1, 3, components.PIXELS, components.PIXELS)
    assert float((pictures[0] - pictures[1]).abs().max()) > 1e-2


def test_the_controlnet_acts(unet: object, controlnet: torch.nn.Module) -> None:
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, components.TEXT)
    hints = torch.zeros(2, 3, 16, 16)
    hints[1] = 1.0
    with torch.no_grad():
        outputs = [controlnet(x, t, text, controlnet_cond=h[None], return_dict=False) for h in hints]
    assert float((outputs[0][1] - outputs[1][1]).abs().max()) > 1e-2
