"""The doctor finds what is known to break, says how to mend it, and gives no secret away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app import health
from app.doctor import self_test
from app.health import Build

CPU, CUDA = Build("2.15.0", "cpu"), Build("2.15.0", "cu132")
VISION_CPU, VISION_CUDA = Build("0.29.2", "cpu"), Build("0.29.2", "cu132")
NEEDS = ["numpy", "torch>=2.14.0"]
NMS = "operator torchvision::nms does not exist"


@pytest.mark.parametrize(
    ("torch", "torchvision", "needs", "failure", "words", "fix"),
    [
        (
            CPU,
            VISION_CUDA,
            NEEDS,
            NMS,
            "builds that do not fit",
            "torch torchvision --index-url https://download.pytorch.org/whl/cpu",
        ),
        (CUDA, VISION_CPU, NEEDS, None, "builds that do not fit", "/whl/cu132"),
        (Build("2.15.0", "cu126"), VISION_CUDA, NEEDS, NMS, "builds that do not fit", "/whl/cu126"),
        (
            Build("2.10.0", ""),
            Build("0.29.2", ""),
            NEEDS,
            None,
            "which needs torch>=2.14.0",
            "reinstall torch torchvision",
        ),
        (CPU, VISION_CPU, NEEDS, NMS, NMS, "--force-reinstall"),
        (None, VISION_CPU, NEEDS, None, "torch is missing", "pip install torch"),
        (CPU, None, [], None, "torchvision is missing", "pip install torchvision"),
    ],
)
def test_a_torch_and_torchvision_that_do_not_fit_are_found(
    torch: Build | None, torchvision: Build | None, needs: list[str], failure: str | None, words: str, fix: str
) -> None:
    check = health.pair(torch, torchvision, needs, failure)
    assert check.state == "fail" and words in check.found
    assert check.fix is not None and check.fix.startswith("run pip install") and fix in check.fix


@pytest.mark.parametrize(
    ("torch", "torchvision"), [(CPU, VISION_CPU), (CUDA, VISION_CUDA), (Build("2.15.0", ""), Build("0.29.2", ""))]
)
def test_a_pair_that_fits_is_fine(torch: Build, torchvision: Build) -> None:
    assert health.pair(torch, torchvision, NEEDS, None).state == "ok"


def test_a_build_is_read_without_importing_it(tmp_path: Path) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "version.py").write_text("raise SystemExit\n__version__: str = '2.15.0+cu132'\ncuda = '13.2'\n")
    assert health.read_build("torch", [str(tmp_path)]) == CUDA
    assert health.read_build("torchvision", [str(tmp_path)]) is None


def test_the_pair_of_this_environment_is_read_and_works() -> None:
    torch, torchvision = health.read_build("torch"), health.read_build("torchvision")
    assert torch is not None and torchvision is not None
    assert health.pair(torch, torchvision, NEEDS, health.operators()).state == "ok"


def test_missing_and_old_packages_are_named_with_the_command(tmp_path: Path) -> None:
    for name, version in (("Pillow", "11.0"), ("torch", "2.15.0")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    needs = ["pillow<13,>=12.3", "torch>=2.10", "open-clip-torch>=3.3", "pytest>=9; extra == 'dev'"]
    checks = {c.name: c for c in health.versions(needs, health.distributions([str(tmp_path)]))}
    assert checks["torch"].state == "ok" and "pytest" not in checks
    assert checks["pillow"].state == "fail" and "11.0" in checks["pillow"].found
    assert checks["open-clip-torch"].fix == "run pip install 'open-clip-torch>=3.3'"


@pytest.mark.parametrize("kind", ["package", "module"])
@pytest.mark.parametrize("name", ["train", "pipelines", "app"])
def test_a_foreign_package_that_comes_first_is_found(name: str, kind: str, tmp_path: Path, root: Path) -> None:
    if kind == "package":
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    else:
        (tmp_path / f"{name}.py").touch()
    check = health.shadows(root, [str(tmp_path), str(root)])
    assert check.state == "fail" and name in check.found and check.fix is not None and "rename" in check.fix
    assert health.shadows(root, [str(root), str(tmp_path)]).state == "ok"


def test_a_folder_that_cannot_be_written_is_found_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = health.writing(tmp_path / "file")
    assert check.state == "fail" and "cannot be written" in check.found
    assert health.writing(tmp_path / "outputs").state == "ok"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_little_memory_and_disk_are_warnings() -> None:
    assert health.memory(needed=10**6).state == "warn" and health.disk(Path(), needed=10**9).state == "warn"
    assert health.memory(needed=0).state == "ok"


def test_secrets_are_named_and_never_shown() -> None:
    secrets = dict.fromkeys(health.PRIVATE, "s3cret-value")
    found = [*health.settings({**secrets, "HF_HUB_OFFLINE": "1"}), health.caches({"HF_HOME": "models"})]
    told = " ".join(c.found for c in found)
    assert "s3cret" not in told and "HF_TOKEN is set" in told and "HF_HUB_OFFLINE=1" in told


def test_cached_models_are_counted(tmp_path: Path) -> None:
    for name in ("models--a--b", "models--c--d", "datasets--e--f"):
        (tmp_path / "hub" / name).mkdir(parents=True)
    assert health.caches({"HF_HOME": str(tmp_path)}).found.endswith("hub, 2 models")


def doctor(folder: Path, **environment: str) -> tuple[int, dict[str, dict[str, str]], str]:
    code = "import sys; from app.doctor import run; sys.exit(run(json=True))"
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
    )
    report = json.loads(child.stdout.splitlines()[-1])
    return child.returncode, {c["name"]: c for c in report["checks"]}, child.stdout + child.stderr


def test_a_sound_installation_passes_offline_without_telling_secrets(tmp_path: Path) -> None:
    status, checks, told = doctor(tmp_path, HF_TOKEN="hf_s3cret", HTTPS_PROXY="http://user:s3cret@host:1")
    assert status == 0, told
    assert checks["self-test"]["state"] == "ok" and "32x32" in checks["self-test"]["found"]
    assert "s3cret" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torture
def test_a_broken_torchvision_is_told_with_its_remedy_instead_of_a_traceback(tmp_path: Path) -> None:
    package = tmp_path / "broken" / "torchvision"
    package.mkdir(parents=True)
    (package / "version.py").write_text("__version__ = '0.29.2+cu132'\n")
    (package / "__init__.py").write_text(f"raise RuntimeError({NMS!r})\n")
    path = os.pathsep.join([str(tmp_path / "broken"), os.environ["PYTHONPATH"]])
    status, checks, told = doctor(tmp_path, PYTHONPATH=path)
    assert status == 8 and "Traceback" not in told
    assert checks["torch + torchvision"]["state"] == "fail"
    assert "pip install --upgrade --force-reinstall torch torchvision" in checks["torch + torchvision"]["fix"]
    assert checks["self-test"]["state"] == "warn"


def test_the_self_test_reports_what_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ldm.store import find

    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "model_index.json").write_text("{")
    monkeypatch.setattr(find, "_PRETRAINED", tmp_path)
    check = self_test()
    assert check.state == "fail" and check.fix
