"""What every test may rely on: no network, one thread, no caches of the user, tiny real models (`components.py`)."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# Before anything imports torch or huggingface_hub, and inherited by the processes that tests start.
_home = tempfile.TemporaryDirectory(prefix="ldm-tests-")
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HOME": f"{_home.name}/hf",
    "LDM_HOME": f"{_home.name}/ldm",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "LDM_TEST_NETWORK": "none",
    "LDM_TEST_NETWORK_LOG": f"{_home.name}/network.log",
    "PYTHONPATH": os.pathsep.join([str(TESTS / "guard"), *filter(None, [os.environ.get("PYTHONPATH")])]),
}
for _name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(_name, None)  # the guard alone keeps the suite offline

# A shell has a command in the background ignore Ctrl-C, and what is ignored is inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.insert(0, str(TESTS / "guard"))
import network_guard  # noqa: E402, F401  (installs the hook; needs the environment above)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: which addresses this test may reach."""
    Path(os.environ["LDM_TEST_NETWORK_LOG"]).unlink(missing_ok=True)
    os.environ["LDM_TEST_NETWORK"] = "loopback" if item.get_closest_marker("loopback") else "none"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With LDM_TORTURE=1, whoever asks for the greater counts is a torture test too."""
    for item in items:
        if os.environ.get("LDM_TORTURE") == "1" and "torture" in getattr(item, "fixturenames", ()):
            item.add_marker("torture")


@pytest.fixture(autouse=True)
def no_network() -> Iterator[Path]:
    """A refused connect, send or name lookup fails the test, also when its error was swallowed or a child made it."""
    log = Path(os.environ["LDM_TEST_NETWORK_LOG"])
    yield log
    if log.exists():
        pytest.fail(f"the network was asked for: {log.read_text()}")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests that change the number of threads do not change it for others."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def torture() -> int:
    """By how much `make torture` multiplies the counts of a test that asks for this; 1 in the ordinary suite."""
    return 20 if os.environ.get("LDM_TORTURE") == "1" else 1


# Modules: a new one for every test, which may change it.


@pytest.fixture
def unet() -> UNet2DConditionModel:
    from tests import components

    return components.unet()


@pytest.fixture
def unet9() -> UNet2DConditionModel:
    from tests import components

    return components.unet(9)


@pytest.fixture
def unet_xl() -> UNet2DConditionModel:
    from tests import components

    return components.unet_xl()


@pytest.fixture
def vae() -> AutoencoderKL:
    from tests import components

    return components.vae()


@pytest.fixture
def text_tower() -> CLIPTextModel:
    from tests import components

    return components.text_tower()


@pytest.fixture
def tokenizer() -> CLIPTokenizer:
    from tests import components

    return components.tokenizer()


@pytest.fixture
def controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    from tests import components

    return components.controlnet(unet)


# Folders in the diffusers layout, written by stock code once per process. Read only: copy one before changing it.


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import components

    return components.save(components.sd1(), tmp_path_factory.mktemp("models") / "sd1")


@pytest.fixture(scope="session")
def tiny_inpaint9(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import components

    return components.save(components.sd1_inpaint(), tmp_path_factory.mktemp("models") / "inpaint9")


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import components

    return components.save(components.xl(), tmp_path_factory.mktemp("models") / "xl")


@pytest.fixture(scope="session")
def tiny_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import components

    return components.save(components.xl_refiner(), tmp_path_factory.mktemp("models") / "refiner")


@pytest.fixture(scope="session")
def tiny_controlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet for `tiny_sd1`."""
    from tests import components

    folder = tmp_path_factory.mktemp("models") / "controlnet"
    components.controlnet(components.unet()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quick_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped scenes, drawn in two steps where nothing else is asked for: what is drawn matters little."""
    from ldm.store.find import find_model

    folder = tmp_path_factory.mktemp("models") / "scenes"
    shutil.copytree(find_model("scenes"), folder)
    (folder / "sampling.json").write_text('{"steps": 2}', "utf-8")
    return folder
