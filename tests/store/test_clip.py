"""CLIP folders of others: read when they are sound, refused with a reason when they are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file

from ldm.errors import LdmError
from ldm.models.clip import prepare
from ldm.store.clip import load_clip
from tests.components import seeded

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": 20, "width": 40, "heads": 5, "layers": 2},
}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIP, Path]:
    """A folder as open_clip's own export writes it: weights and configuration, CLIP's tokenizer taken for granted."""
    folder = tmp_path_factory.mktemp("hub")
    with seeded(1):
        model = CLIP(**CONFIG).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    told = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    return model, folder


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quick_gelu": True},
        {"custom_text": True},
        {"vision_cfg": CONFIG["vision_cfg"] | {"norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}}},
        {"text_cfg": CONFIG["text_cfg"] | {"norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}}},
        {"vision_cfg": CONFIG["vision_cfg"] | {"mlp_ratio": 1.5, "final_ln_after_pool": True, "image_size": [24, 24]}},
        {"vision_cfg": CONFIG["vision_cfg"] | {"pos_embed_type": "sin_cos_2d"}},
    ],
)
def test_open_clips_own_folders_give_its_numbers(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = CONFIG | changes
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    with seeded(2):
        model = kind(**{k: v for k, v in config.items() if k != "custom_text"}).eval()
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    clip, texts = load_clip(tmp_path), ["a photo of a cat", "", "naïve 日本!"]
    ids = SimpleTokenizer(context_length=20)(texts)
    assert (clip.encode_text(texts) - model.encode_text(ids, normalize=True)).abs().max() <= 1e-5
    picture = torch.rand(2, 3, clip.side, clip.side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = model.encode_image(prepare(picture, clip.side, clip.mean, clip.std), normalize=True)
    assert (clip.encode_image(picture) - wanted).abs().max() <= 1e-5


def test_preparation_is_the_folders(theirs: tuple[CLIP, Path]) -> None:
    _, folder = theirs
    clip = load_clip(folder)
    assert (clip.mean, clip.std) == (tuple(MEAN), tuple(STD))
    assert clip.scale == pytest.approx(1 / 0.07, rel=1e-5)
    grey = torch.zeros(1, 3, 16, 16)
    found = prepare(grey, 16, clip.mean, clip.std)[0, :, 0, 0]
    assert found.tolist() == pytest.approx([(0.5 - m) / s for m, s in zip(MEAN, STD, strict=True)])


def test_the_middle_of_a_wide_picture_is_looked_at() -> None:
    wide = torch.full((1, 3, 20, 60), -1.0)
    wide[..., 20:40] = 1.0
    assert prepare(wide, 10, [0.5] * 3, [0.5] * 3).min() > 0.7


def _config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        told = json.loads((folder / "open_clip_config.json").read_text())
        change(told)
        (folder / "open_clip_config.json").write_text(json.dumps(told))

    return broken


def _tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        state = load_file(folder / "open_clip_model.safetensors")
        change(state)
        save_file(state, folder / "open_clip_model.safetensors")

    return broken


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "open_clip_config.json").unlink(), "not a CLIP folder"),
        (lambda f: (f / "open_clip_config.json").write_text("{"), "cannot be used"),
        (lambda f: (f / "open_clip_model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "open_clip_model.safetensors").write_bytes(b"<html>"), "safetensors"),
        (_config(lambda c: c.pop("model_cfg")), "does not describe a CLIP"),
        (_config(lambda c: c["model_cfg"].update(text_cfg=[])), "does not describe a CLIP"),
        (_config(lambda c: c["model_cfg"].pop("embed_dim")), "can be built"),
        (_config(lambda c: c["model_cfg"]["vision_cfg"].update(width="wide")), "can be built"),
        (_config(lambda c: c["model_cfg"]["vision_cfg"].update(head_width=0)), "can be built"),
        (_config(lambda c: c["model_cfg"]["vision_cfg"].update(image_size=[16, 32])), "not square"),
        (_config(lambda c: c["model_cfg"]["vision_cfg"].update(act_kwargs="x")), "can be built"),
        (_config(lambda c: c["model_cfg"]["vision_cfg"].update(width=64)), "does not fit"),
        (_config(lambda c: c["model_cfg"]["vision_cfg"].update(layers=10**9)), "does not fit"),
        (_config(lambda c: c["model_cfg"]["text_cfg"].update(hf_model_name="x")), "language model"),
        (_config(lambda c: c["model_cfg"]["text_cfg"].update(vocab_size=600)), "has no tokenizer"),
        (_config(lambda c: c["preprocess_cfg"].update(mean="grey")), "can be built"),
        (_tensors(lambda s: s.pop("visual.proj")), "image tower does not fit"),
        (_tensors(lambda s: s.update({"visual.more": torch.zeros(1)})), "image tower does not fit"),
        (_tensors(lambda s: s.pop("ln_final.bias")), "text tower does not fit"),
    ],
)
def test_a_damaged_folder_is_refused_in_words(
    theirs: tuple[CLIP, Path], tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    folder = shutil.copytree(theirs[1], tmp_path / "model")
    damage(folder)
    with pytest.raises(LdmError, match=words) as raised:
        load_clip(folder)
    assert raised.value.why
    assert raised.value.fix
