"""`sampling.json`: what suits a model stands where a user says nothing, and what is wrong in it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.errors import LdmError
from ldm.store.sampling import Suited, read_sampling


def test_what_a_file_says_becomes_fields_of_a_request(tmp_path: Path) -> None:
    (tmp_path / "sampling.json").write_text('{"steps": 4, "solver": "lcm", "guidance": 1.0}')
    (tmp_path / "lora.safetensors").write_bytes(b"")
    wanted = {"steps": 4, "solver": "lcm", "guidance": {"scale": 1.0}}
    assert read_sampling(tmp_path).request_fields() == wanted
    assert read_sampling(tmp_path / "lora.safetensors").request_fields() == wanted


def test_where_there_is_none_nothing_is_said(tmp_path: Path) -> None:
    assert read_sampling(tmp_path) == Suited() and Suited().request_fields() == {}


@pytest.mark.parametrize("text", ['{"step": 4}', '{"steps": 0}', '{"guidance": "much"}', "[4]", "{"])
def test_what_is_wrong_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "sampling.json").write_text(text)
    with pytest.raises(LdmError, match=r"sampling\.json"):
        read_sampling(tmp_path)
