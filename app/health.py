"""The checks of `ldm doctor`: each looks at one thing and says ok, warn or fail, with what mends it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

State = Literal["ok", "warn", "fail"]
PACKAGES = ("ldm", "pipelines", "train", "app")
GIB = 2**30
# Named with their value: they hold none of the user's secrets.
SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DIFFUSERS_DISABLE_REMOTE_CODE")
# Named as set or not set: they may hold tokens, passwords or host names.
PRIVATE = ("HF_TOKEN", "HF_ENDPOINT", "WANDB_API_KEY", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    state: State
    found: str
    fix: str | None = None


def versions(requirements: Iterable[str], installed: Mapping[str, str]) -> list[Check]:
    """Each core dependency: there, and not older than its floor."""
    checks = [Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for text in requirements:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        name, have = need.name, installed.get(_plain(need.name))
        if have is None:
            checks.append(Check(name, "fail", "not installed", f"run pip install '{name}{need.specifier}'"))
        elif not need.specifier.contains(have, prereleases=True):
            fix = f"run pip install --upgrade '{name}{need.specifier}'"
            checks.append(Check(name, "fail", f"{have}, needed is {need.specifier}", fix))
        else:
            checks.append(Check(name, "ok", have))
    return checks


def distributions(path: Sequence[str] | None = None) -> dict[str, str]:
    """Name -> version of what is installed (first on the path wins, as for imports)."""
    found: dict[str, str] = {}
    for dist in importlib.metadata.distributions(path=list(sys.path if path is None else path)):
        found.setdefault(_plain(dist.metadata["Name"] or ""), dist.version)
    return found


@dataclass(frozen=True)
class Build:
    """What a wheel of torch or torchvision says about itself, read from its files: importing a broken one fails."""

    version: str
    tag: str  # "cpu", "cu132", "rocm6.4", or "" where wheels of the platform carry none

    @property
    def kind(self) -> str:
        return re.sub(r"[\d.]+$", "", self.tag)


def read_build(package: str, path: Sequence[str] | None = None) -> Build | None:
    """The version and build of a package, from its `version.py`; nothing is imported."""
    for entry in sys.path if path is None else path:
        file = Path(entry or ".") / package / "version.py"
        if file.is_file():
            written = re.search(r"__version__\s*(?::\s*\w+\s*)?=\s*['\"]([^'\"]+)", file.read_text("utf-8", "replace"))
            if written:
                version, _, tag = written[1].partition("+")
                return Build(version, tag)
    return None


def pair(torch: Build | None, torchvision: Build | None, needs: Iterable[str], failure: str | None) -> Check:
    """Whether torch and torchvision fit: same build, a version that torchvision asks for, and its operators load.

    The well-known broken pair is a CPU torch beside the CUDA build of torchvision (or the other way round): importing
    transformers then ends with "operator torchvision::nms does not exist".
    """
    name = "torch + torchvision"
    if torch is None or torchvision is None:
        missing = "torch" if torch is None else "torchvision"
        return Check(name, "fail", f"{missing} is missing", f"run pip install {missing}")
    wanted = next((Requirement(n) for n in needs if Requirement(n).name == "torch"), None)
    told = f"torch {_told(torch)}, torchvision {_told(torchvision)}"
    if torch.tag and torchvision.tag and torch.tag != torchvision.tag:
        return Check(name, "fail", f"{told}: builds that do not fit each other", reinstall(torch))
    if wanted is not None and not wanted.specifier.contains(Version(torch.version), prereleases=True):
        return Check(name, "fail", f"{told}, which needs torch{wanted.specifier}", reinstall(torch))
    if failure is not None:
        return Check(name, "fail", f"{told}: {failure}", reinstall(torch))
    return Check(name, "ok", f"{told}, operators load")


def reinstall(torch: Build) -> str:
    """The command that gives a pair of one build."""
    index = f" --index-url https://download.pytorch.org/whl/{torch.tag}" if torch.tag else ""
    return f"run pip install --upgrade --force-reinstall torch torchvision{index}"


def operators() -> str | None:
    """Why torchvision's compiled operators do not load; None if they do."""
    import torch

    try:
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (RuntimeError, ImportError, OSError, AttributeError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return None


def devices() -> list[Check]:
    """What can compute: graphics cards with their memory, and the processor."""
    import torch

    checks = []
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        checks.append(Check(f"cuda:{i}", "ok", f"{card.name}, {card.total_memory / GIB:.1f} GiB"))
    if torch.backends.mps.is_available():
        checks.append(Check("mps", "ok", "Apple graphics"))
    return [*checks, Check("cpu", "ok", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")]


def memory(needed: float = 2.0) -> Check:
    """Free and total main memory; less than `needed` GiB free is too little for a Stable Diffusion model."""
    import psutil

    state = psutil.virtual_memory()
    found = f"{state.available / GIB:.1f} of {state.total / GIB:.1f} GiB free"
    if state.available < needed * GIB:
        return Check("memory", "warn", found, "close other programs, or use --dtype float16 and --offload")
    return Check("memory", "ok", found)


def disk(folder: Path, needed: float = 1.0) -> Check:
    """Free space where pictures go."""
    free = shutil.disk_usage(folder).free / GIB
    if free < needed:
        return Check("disk", "warn", f"{free:.1f} GiB free here", "free some space, or work in another folder")
    return Check("disk", "ok", f"{free:.1f} GiB free here")


def caches(environment: Mapping[str, str]) -> Check:
    """Where fetched models lie, and how many there are."""
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(environment.get("HF_HUB_CACHE") or home / "hub")
    count = sum(1 for p in hub.glob("models--*")) if hub.is_dir() else 0
    shown = str(hub).replace(str(Path.home()), "~")  # the name of the user is nobody's business
    return Check("model cache", "ok", f"{shown}, {count} model{'' if count == 1 else 's'}")


def settings(environment: Mapping[str, str]) -> list[Check]:
    """Offline and privacy switches by value; everything that may hold a secret only as set or not."""
    shown = [f"{name}={environment[name][:20]}" for name in SWITCHES if name in environment]
    kept = [f"{name} is set" for name in PRIVATE if environment.get(name)]
    return [
        Check("switches", "ok", ", ".join(shown) or "none"),
        Check("private settings", "ok", ", ".join(kept) or "none"),
    ]


def shadows(root: Path, path: Sequence[str]) -> Check:
    """Whether a foreign package or file of one of our four names comes before ours on the import path."""
    for name in PACKAGES:
        for entry in path:
            folder = Path(entry or ".").resolve()
            here = next((p for p in (folder / name / "__init__.py", folder / f"{name}.py") if p.is_file()), None)
            if here is None:
                continue
            if here.resolve() != (root / name / "__init__.py").resolve():
                fix = f"rename {here.parent if here.name == '__init__.py' else here}, or run ldm from another folder"
                return Check("packages", "fail", f"{name} is not ours: {here} comes first", fix)
            break
    return Check("packages", "ok", f"{', '.join(PACKAGES)} are ours")


def writing(folder: Path) -> Check:
    """Whether pictures can be written: a file is made, synced, renamed and removed again."""
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-", delete=False) as file:
            file.write(b"ldm")
            file.flush()
            os.fsync(file.fileno())
        done = Path(file.name).replace(f"{file.name}.done")
        done.unlink()
        if not existed:
            folder.rmdir()
    except OSError as error:
        why = error.strerror or str(error)
        return Check(
            "writing", "fail", f"{folder}/ cannot be written: {why}", f"allow writing to {folder}/, or use --out"
        )
    return Check("writing", "ok", f"{folder}/ can be written")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _told(build: Build) -> str:
    return f"{build.version} ({build.tag})" if build.tag else build.version
