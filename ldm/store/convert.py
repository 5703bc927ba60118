"""Pickles to safetensors, for a file that the user trusts: in a process of its own, `weights_only`, without tokens.

The child gets a bare environment and an empty folder, and once torch is loaded an audit hook refuses sockets, processes
and the writing of any file but its output. It only hands over tensors under text names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.errors import Code, LdmError

_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
_SECONDS = 3600
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "string_to_param")
_DENIED = ("socket.", "subprocess.", "os.exec", "os.system", "os.fork", "os.spawn", "os.posix_spawn", "os.remove",
           "os.rename", "os.rmdir", "os.link", "os.symlink", "shutil.", "ctypes.dlopen", "webbrowser.")  # fmt: skip


def convert(path: str | Path, out: str | Path | None = None, *, trusted: bool = False) -> Path:
    """Writes `out` (default: see `safe_name`) and returns it; refused unless `trusted`."""
    from ldm.store.header import read_header
    from ldm.store.sniff import PICKLES, content_of, refuse_pickle, safe_name
    from ldm.store.write import staged

    path = Path(path)
    if not path.is_file():
        read_header(path)  # says what is wrong with it
    content = content_of(path)
    if content not in PICKLES:
        raise LdmError(
            Code.USAGE,
            f"{path} is not a pickle, so there is nothing to convert.",
            f"Its content is: {content.value}.",
            "Use it as it is, or fetch it again.",
        )
    if not trusted:
        refuse_pickle(path, content)
    goal = Path(out) if out is not None else safe_name(path)
    with staged(goal) as stage:
        _run(path, stage)
        read_header(stage)
    return goal


def _run(path: Path, stage: Path) -> None:
    """The child, and its answer as an error of ours."""
    package = str(Path(__file__).resolve().parent.parent.parent)
    environment = {k: v for k, v in os.environ.items() if k in _KEPT} | {"PYTHONPATH": package, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-s", "-P", "-m", "ldm.store.convert", str(path.resolve()), str(stage.resolve())]
        environment |= {"HOME": empty}
        try:
            done = subprocess.run(
                command, env=environment, cwd=empty, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise _failed(path, f"it took more than {_SECONDS} seconds") from None
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        said = next((line for line in reversed(lines) if line.startswith("ldm-convert: ")), "")
        raise _failed(path, said.removeprefix("ldm-convert: ") or f"the reader ended with status {done.returncode}")


def _failed(path: Path, why: str) -> LdmError:
    return LdmError(
        Code.REFUSED,
        f"{path} was not converted.",
        f"Its pickle holds more than tensors, or is damaged: {why}.",
        "Get the .safetensors of the same model from its author.",
    )


def _tensors(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Named tensors of nested dictionaries; the usual wrappers give no name of their own."""
    import torch

    if not isinstance(value, dict) or depth > 3:
        return
    for wrapper in _WRAPPERS:
        if isinstance(value.get(wrapper), dict) and depth == 0:
            yield from _tensors(value[wrapper], prefix, depth + 1)
            return
    for key, inner in value.items():
        if isinstance(inner, torch.Tensor) and isinstance(key, str):
            yield prefix + key, inner
        elif isinstance(key, str):
            yield from _tensors(inner, f"{prefix}{key}.", depth + 1)


def _child(source: Path, goal: Path) -> None:
    """Runs in the process of its own."""
    import torch

    from ldm.store.write import write_weights

    _guard(goal)
    try:
        with source.open("rb") as file:  # by its content: given a path, torch goes by the suffix
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise  # of our guard
    except Exception as error:
        raise ValueError(_refusal(error)) from None
    tensors = {name: tensor.detach() for name, tensor in _tensors(loaded)}
    if not tensors:
        raise ValueError("it holds no tensors under text names")
    told = {"ldm.converted_from": source.name}
    if isinstance(loaded, dict) and isinstance(loaded.get("name"), str):
        told["ldm.name"] = loaded["name"]
    write_weights(goal, tensors, told)


def _refusal(error: Exception) -> str:
    """Why a pickle was not read, in words of ours: torch's own advise to read it without care."""
    asked = re.search(r"GLOBAL ([\w.]*\w)", str(error))
    if asked:
        return f"it asks for the Python object {asked[1]}, and only tensors are read"
    if type(error).__name__ == "UnpicklingError":
        return "it uses instructions that a file of tensors does not need, or its bytes are not those of a pickle"
    return f"its bytes break off or contradict each other ({type(error).__name__})"


def _guard(goal: Path) -> None:
    """Audit hooks cannot be removed: sockets, processes and other files stay closed for the rest of this process."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if event.startswith(_DENIED) or (writes and str(arguments[0]) != str(goal)):
            raise PermissionError(f"{event} is not allowed while a pickle is read")

    sys.addaudithook(hook)


def main() -> None:
    try:
        _child(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # whatever the file provokes is told in one line, and the parent makes it an LdmError
        text = " ".join(str(error).split())[:300]
        said = text if isinstance(error, ValueError | PermissionError | LdmError) else f"{type(error).__name__}: {text}"
        sys.stderr.write(f"\nldm-convert: {json.dumps(said)[1:-1]}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
