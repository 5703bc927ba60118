"""What is left of learning a subject: adapters under the names of diffusers (or peft) and of kohya, and a new word.

Their headers name the base, what was trained on, and the words that call the subject.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from ldm.models.adapters import Adapter, Dialect, convert, parse_adapter
from ldm.models.adapters.convert import ARCHITECTURES
from ldm.models.prompt import says
from ldm.store.find import LORA_WEIGHTS
from ldm.store.parts import Parts
from ldm.store.write import staged, write_peft, write_weights
from ldm.version import __version__
from train.task import Setting
from train.tasks.learned import Learned
from train.tasks.lora import ATTENTION, Weights, config_of, factors, told
from train.tasks.settings import InversionSettings, LoraSettings

KOHYA, PEFT, WORD = "kohya.safetensors", "peft", "learned_embeds.safetensors"
MOST_CAPTIONS = 10_000  # that are counted for the header


def save_subject(
    folder: Path,
    parts: Parts,
    settings: LoraSettings | InversionSettings,
    setting: Setting,
    weights: Mapping[str, Weights],
    learned: Learned | None,
) -> None:
    """A folder with all files, complete or not at all."""
    name = setting.name or f"{parts.name}-subject"
    about = header(parts, settings, setting, name)
    with staged(folder) as stage:
        stage.mkdir(parents=True)
        if isinstance(settings, LoraSettings) and (learned is None or _changes(weights)):
            _save_adapter(stage, parts, settings, weights, about, name)
        if learned is not None:
            embedding = learned.embedding(name, parts.family)
            own = {key: value for key, value in about.items() if not key.startswith("ss_network")}
            own["modelspec.architecture"] = f"{ARCHITECTURES.get(parts.family, ('ldm',))[0]}/textual-inversion"
            write_weights(stage / WORD, embedding.tensors(), own | {"ldm.token": learned.token})


def _save_adapter(
    stage: Path, parts: Parts, settings: LoraSettings, weights: Mapping[str, Weights], about: dict[str, str], name: str
) -> None:
    """diffusers has no names for LoHa and LoKr: they go to a peft folder for each network instead."""
    adapter = _adapter(settings, weights, about, name)
    base = {"fingerprint": parts.fingerprint, "family": parts.family}
    write_weights(stage / KOHYA, *convert(adapter, _kohya(parts), **base))
    if settings.kind == "lora":
        write_weights(stage / LORA_WEIGHTS, *convert(adapter, "diffusers", **base))
        return
    for component, held in weights.items():
        one = _adapter(settings, {component: held}, about, name)
        write_peft(stage / PEFT / component, *convert(one, "peft", **base))


def _changes(weights: Mapping[str, Weights]) -> bool:
    """Whether an adapter does anything yet: while the word alone is learned it does not, and no loader takes it.

    Each kind begins with a factor of zeros: that of the second matrix, or of the first block (LoKr)."""
    starts = ("/lora_B/", "/hada_w2_b/", "/lokr_w1/", "/lokr_w1_a/")
    own = [p for held in weights.values() for name, p in held.named_parameters() if any(s in name for s in starts)]
    return any(bool(p.detach().count_nonzero()) for p in own)


def _kohya(parts: Parts) -> Dialect:
    """kohya's own files for XL have the names of the original code, which exist for its two layers a block."""
    return "kohya-xl" if parts.family == "xl" and parts.unet.config.layers_per_block == 2 else "kohya"


def _adapter(settings: LoraSettings, weights: Mapping[str, Weights], about: Mapping[str, str], name: str) -> Adapter:
    tensors = {key: tensor for component, held in weights.items() for key, tensor in factors(component, held).items()}
    said = told(config_of(settings, ATTENTION))
    peft = {f"{component}.{key}": value for component in weights for key, value in said.items()}
    return parse_adapter(tensors, {**about, "lora_adapter_metadata": json.dumps(peft)}, name)


def _module(settings: LoraSettings | InversionSettings) -> dict[str, str]:
    """Which code of kohya's world would have trained it."""
    if isinstance(settings, InversionSettings):
        return {}
    if settings.kind == "lora":
        return {"ss_network_module": "networks.lora"}
    return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": settings.kind})}


def header(parts: Parts, settings: LoraSettings | InversionSettings, setting: Setting, name: str) -> dict[str, str]:
    """ModelSpec and kohya's `ss_*`, as far as they are known before a file's own tensors are."""
    ours = (text for text in setting.captions() if says(text, settings.token))  # a prior's prompts call nothing
    captions = Counter(islice(ours, MOST_CAPTIONS))
    about = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.resolution": f"{setting.size}x{setting.size}",
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "modelspec.trigger_phrase": settings.token,
        "modelspec.license": settings.licence,
        "modelspec.architecture": "" if parts.family != "own" else "ldm/lora",
        "ss_output_name": name,
        "ss_resolution": f"({setting.size}, {setting.size})",
        "ss_max_train_steps": str(setting.steps),
        "ss_seed": str(setting.seed),
        "ss_sd_model_name": parts.name,
        "ss_tag_frequency": json.dumps({"img": dict(captions.most_common())}, ensure_ascii=False),
        **_module(settings),
        "ldm.base_fingerprint": parts.fingerprint,
        "ldm.base_family": parts.family,
        "ldm.base_name": parts.name,
        "ldm.version": __version__,
    }
    return {key: value for key, value in about.items() if value}
