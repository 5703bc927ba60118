"""CLIP folders: written so that open_clip, transformers and the rest of this project read them; read from open_clip's.

open_clip_model.safetensors  open_clip_config.json     both towers and the scale, for open_clip and for going on
text_encoder/  tokenizer/                              CLIPTextModel; its file holds the projection as well
image_encoder/  feature_extractor/                     CLIPVisionModelWithProjection
tokenizer.json  tokenizer_config.json                  once more, where open_clip looks for them
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.clip import Clip
from ldm.models.clip_tokenizer import ClipTokenizer
from ldm.models.nets.text import ProjectedTextTower
from ldm.models.open_clip_config import check_fits, image_facts, side_of, text_facts
from ldm.models.open_clip_image import open_clip_image_model
from ldm.models.open_clip_text import open_clip_text_model
from ldm.models.tokenizer import CLIPS_OWN, clip_tokenizer
from ldm.store.find import OPEN_CLIP
from ldm.store.header import printable
from ldm.store.shards import read_json
from ldm.store.tokenizers import tokenizer_at
from ldm.store.weights import Weights, load_weights
from ldm.store.write import staged, write_weights

WEIGHTS, CONFIG = "open_clip_model.safetensors", OPEN_CLIP
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that OpenAI's CLIP learned from; everybody's default
STD = (0.26862954, 0.26130258, 0.27577711)
_HERE = "local-dir"  # told to open_clip, which then takes the tokenizer of the folder itself
_TEXT = ("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
         "max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id",
         "attention_dropout")  # fmt: skip
_IMAGE = ("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
          "num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout",
          "model_type")  # fmt: skip


@dataclass(frozen=True, eq=False)
class OpenClip:
    """A CLIP in open_clip's terms: `config` is its constructor call, mean and std [3] prepare pictures in [0,1]."""

    config: dict[str, Any]
    tokenizer: ClipTokenizer
    state: Mapping[str, Tensor]
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


def read_open_clip(folder: Path) -> OpenClip:
    """A folder that open_clip or `save_clip` wrote; its weights stay mapped."""
    if not (folder / CONFIG).is_file():
        raise LdmError(
            Code.FILE,
            f"{folder} is not a CLIP folder.",
            f"It has no {CONFIG}.",
            "Point to the model/ folder of a CLIP run, or to a folder that open_clip has written.",
        )
    told = read_json(folder / CONFIG, 1_000_000)
    config, preprocess = told.get("model_cfg"), told.get("preprocess_cfg") or {}
    if not isinstance(config, dict) or not all(
        isinstance(config.get(part), dict) for part in ("vision_cfg", "text_cfg")
    ):
        raise LdmError(
            Code.FILE,
            f"{folder / CONFIG} does not describe a CLIP.",
            "It has no model_cfg with vision_cfg and text_cfg.",
            "Restore the file of the original model.",
        )
    with _understood(folder):
        check_fits(config, str(folder))
        mean, std = (tuple(map(float, preprocess.get(key) or like)) for key, like in (("mean", MEAN), ("std", STD)))
    return OpenClip(config, _tokenizer(folder, config), _weights(folder), mean, std)


def load_clip(folder: str | Path) -> Clip:
    """Both towers of a folder, in fp32 on the CPU, to measure with: `encode_image`, `encode_text`, `states`."""
    made = read_open_clip(Path(folder))
    with _understood(Path(folder)):
        text, image = towers(made)
    scale = float(made.state["logit_scale"].float().exp()) if "logit_scale" in made.state else 100.0
    return Clip(text.float(), image.float(), made.tokenizer, made.mean, made.std, scale)


def towers(made: OpenClip) -> tuple[ProjectedTextTower, Any]:
    """The towers as transformers has them, with open_clip's numbers to rounding."""
    words = made.tokenizer
    ids: dict[str, Any] = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    text = {n: t for n, t in made.state.items() if not n.startswith("visual.")}
    return (
        open_clip_text_model(text, **text_facts(made.config), **ids),
        open_clip_image_model(made.state, **image_facts(made.config)),
    )


def save_clip(made: OpenClip, folder: Path) -> None:
    """All of it into a new folder, complete or not at all."""
    text, image = towers(made)
    own_words = made.config["text_cfg"].get("vocab_size", CLIPS_OWN) != CLIPS_OWN
    config = {**made.config, "text_cfg": {k: v for k, v in made.config["text_cfg"].items() if k != "hf_tokenizer_name"}}
    if own_words:
        config["text_cfg"]["hf_tokenizer_name"] = _HERE
    look = {"mean": made.mean, "std": made.std, "interpolation": "bicubic", "resize_mode": "shortest"}
    with staged(folder) as stage:
        stage.mkdir()
        write_weights(stage / WEIGHTS, made.state)
        _write(stage / CONFIG, {"model_cfg": config, "preprocess_cfg": look})
        for name, tower, keys in (("text_encoder", text, _TEXT), ("image_encoder", image, _IMAGE)):
            (stage / name).mkdir()
            write_weights(stage / name / "model.safetensors", tower.state_dict())
            values = {key: getattr(tower.config, key) for key in keys}
            if name == "text_encoder":
                values["model_type"] = "clip_text_model"
            # What a pipeline wants is the text tower without its projection; both classes of transformers read this.
            kind = "CLIPTextModel" if name == "text_encoder" else type(tower).__name__
            _write(stage / name / "config.json", {**values, "architectures": [kind]})
        write_tokenizer(made.tokenizer, stage / "tokenizer")
        for name in ("tokenizer.json", "tokenizer_config.json") if own_words else ():
            (stage / name).write_bytes((stage / "tokenizer" / name).read_bytes())
        (stage / "feature_extractor").mkdir()
        _write(stage / "feature_extractor" / "preprocessor_config.json", _extractor(made))


@contextmanager
def _understood(folder: Path) -> Iterator[None]:
    """A configuration that says something impossible is the user's to mend, whatever kind of error it ends in."""
    try:
        yield
    except LdmError:
        raise
    except Exception as error:
        raise LdmError(
            Code.MODEL,
            f"{folder / CONFIG} does not describe a model that can be built.",
            f"{type(error).__name__}: {printable(str(error), 200)}.",
            "Restore the file of the original model.",
        ) from error


def write_tokenizer(tokenizer: ClipTokenizer, folder: Path) -> None:
    """A tokenizer into a new folder."""
    folder.mkdir(parents=True)
    tokenizer.save(folder)


def _extractor(made: OpenClip) -> dict[str, Any]:
    """The preparation of pictures, as `CLIPImageProcessor` reads it."""
    side = side_of(made.config)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,  # cubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": made.mean,
        "image_std": made.std,
    }


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> ClipTokenizer:
    for place in (folder / "tokenizer", folder):
        if any((place / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            return tokenizer_at(place)
    text = config["text_cfg"]
    if text.get("vocab_size", CLIPS_OWN) != CLIPS_OWN or text.get("hf_tokenizer_name"):
        raise LdmError(
            Code.FILE,
            f"{folder} has no tokenizer.",
            f"There is no tokenizer.json, and its {text.get('vocab_size', CLIPS_OWN)} entries are not CLIP's own.",
            "Put the tokenizer of the model into its folder tokenizer/.",
        )
    return clip_tokenizer(pad_token="!")


def _weights(folder: Path) -> Weights:
    for name in (WEIGHTS, "open_clip_pytorch_model.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            return load_weights(folder / name)
    raise LdmError(
        Code.FILE,
        f"{folder} holds no weights.",
        f"There is no {WEIGHTS}; pickles (.bin, .pt) are not read.",
        "Fetch the safetensors file of the model.",
    )


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
