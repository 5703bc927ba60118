"""An adapter written out again in another program's dialect, tensors untouched wherever that dialect can hold them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.errors import Code, LdmError
from ldm.models.adapters.adapter import COMPONENT, Adapter, Part, component_of
from ldm.models.adapters.keys import TEXT, TEXT_2, UNET, to_original
from ldm.version import __version__

Dialect = Literal["diffusers", "kohya", "kohya-xl", "peft"]
DIALECTS: tuple[Dialect, ...] = ("diffusers", "kohya", "kohya-xl", "peft")

ARCHITECTURES = {  # family -> ModelSpec architecture, kohya's version, native resolution
    "sd1": ("stable-diffusion-v1", "sd_v1", "512x512"),
    "sd2": ("stable-diffusion-v2-768-v", "sd_v2", "768x768"),
    "xl": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "1024x1024"),
}
_ORDER = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
_STALE = ("lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "format", COMPONENT)


def convert(
    adapter: Adapter,
    dialect: Dialect,
    *,
    fingerprint: str | None = None,
    family: str | None = None,
    base_name: str | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file that holds the same adapter in `dialect`.

    `fingerprint`, `family` and `base_name` tell of the base, if it is known.
    `kohya-xl` is kohya's dialect with the original block names, as its XL files have them.
    """
    if adapter.unknown:
        raise LdmError(
            Code.MODEL,
            f"{adapter.name}: {len(adapter.unknown)} of {adapter.total} tensors are not understood.",
            f"Converting would lose {', '.join(map(repr, adapter.unknown[:3]))}.",
            "Convert it with the program that trained it.",
        )
    made_for = family or adapter.base.family
    if dialect == "kohya-xl" and made_for is not None and not made_for.startswith("xl"):
        raise _unable(adapter, dialect, f"it was made for {made_for}, whose blocks have other names there")
    tensors: dict[str, Tensor] = {}
    pairs = [(component_of(part), part) for part in adapter.parts]
    names = {name for name, _ in pairs}
    two_towers = TEXT_2 in names or dialect == "kohya-xl" or made_for == "xl"
    if dialect == "peft" and len(names) > 1:
        raise _unable(adapter, "peft", f"it changes {' and '.join(sorted(names))}, and a peft file holds one network")
    for name, part in pairs:
        written = _kohya(adapter, name, part, dialect, two_towers) if dialect.startswith("kohya") else None
        tensors.update(written if written is not None else _dotted(adapter, name, part, dialect))
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    metadata = _metadata(adapter, pairs, tensors, fingerprint, made_for, base_name)
    if dialect == "peft":
        metadata[COMPONENT] = names.pop()
    if not dialect.startswith("kohya"):
        metadata["lora_adapter_metadata"] = json.dumps(
            _peft_config(pairs, prefixed=dialect == "diffusers"), sort_keys=True
        )
    return tensors, metadata


def _kohya(adapter: Adapter, component: str, part: Part, dialect: Dialect, two_towers: bool) -> dict[str, Tensor]:
    path = _with_text_model(component, part.path)
    if component == UNET and dialect == "kohya-xl":
        path = to_original(part.path) or path
    prefix = {UNET: "lora_unet_", TEXT: "lora_te1_" if two_towers else "lora_te_", TEXT_2: "lora_te2_"}[component]
    stem = prefix + path.replace(".", "_")
    names = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
    factors, alpha = (part.delta.factors, part.delta.alpha) if part.delta else ({}, None)
    if part.delta is not None and part.delta.kind == "lokr" and {"lokr_w1", "lokr_w2"} <= factors.keys():
        # without a product there is no rank in the file, and every reader takes the scale for 1
        factors, alpha = {**factors, "lokr_w1": factors["lokr_w1"] * part.delta.scale}, None
    tensors = {f"{stem}.{names.get(role, role)}": tensor for role, tensor in factors.items()}
    if part.delta and alpha is not None:
        tensors[f"{stem}.alpha"] = _kept(alpha, next(iter(factors.values())).dtype)
    if part.magnitude is not None:
        values = part.magnitude.values
        axes = [1] * (_axes(part) - 1)
        tensors[f"{stem}.dora_scale"] = values.reshape([1, -1, *axes[1:]] if part.magnitude.per_input else [-1, *axes])
    if part.bias is not None:
        if part.delta is not None and part.delta.kind == "lora":
            raise _unable(adapter, dialect, f"{part.path} has a LoRA bias, which kohya's keys do not name")
        tensors[f"{stem}.diff_b"] = part.bias
    return tensors


def _kept(alpha: float, dtype: torch.dtype) -> Tensor:
    """In the type of the factors, where that holds it exactly: 257 is 256 in bf16, and a strength of its own."""
    told = torch.tensor(alpha, dtype=dtype)
    return told if float(told) == alpha else torch.tensor(alpha, dtype=torch.float32)


def _dotted(adapter: Adapter, component: str, part: Part, dialect: Dialect) -> dict[str, Tensor]:
    if part.delta is None or part.delta.kind == "full" or (part.delta.kind != "lora" and dialect == "diffusers"):
        raise _unable(adapter, dialect, f"{part.path} is of the kind {part.kind}, which that dialect does not name")
    if part.magnitude is not None and (part.magnitude.per_input or part.kind != "dora"):
        raise _unable(
            adapter,
            dialect,
            f"{part.path} rescales input channels or a {part.delta.kind}, and peft only rows of a LoRA",
        )
    if dialect == "peft":  # transformers 5 has no text_model inside a plain CLIPTextModel
        stem = "base_model.model." + (part.path if component != TEXT_2 else _with_text_model(component, part.path))
    else:
        stem = f"{component}.{_with_text_model(component, part.path)}"
    if part.delta.kind != "lora":
        return {f"{stem}.{role}": tensor for role, tensor in part.delta.factors.items()}
    in_text = dialect == "diffusers" and component != UNET  # stock diffusers expects its older spelling there
    down, up = ("lora_linear_layer.down", "lora_linear_layer.up") if in_text else ("lora_A", "lora_B")
    factors = _without_core(part.delta.factors)
    tensors = {f"{stem}.{down}.weight": factors["down"], f"{stem}.{up}.weight": factors["up"]}
    if part.magnitude is not None:
        values = part.magnitude.values
        tensors[f"{stem}.lora_magnitude_vector"] = values if _axes(part) == 2 else values.reshape(1, -1, 1, 1)
    if part.bias is not None:
        tensors[f"{stem}.{up}.bias"] = part.bias / part.delta.scale
    return tensors


def _without_core(factors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """up . mid . down as up . down', because peft knows no core: down'[a,i,k] = mid[a,b,k] down[b,i]."""
    if "mid" not in factors:
        return factors
    mid, down = factors["mid"].float(), factors["down"].float().flatten(1)
    folded = torch.einsum("abxy,bi->aixy", mid, down).to(factors["down"].dtype)
    return {"down": folded, "up": factors["up"]}


def _with_text_model(component: str, path: str) -> str:
    return path if component == UNET or path.startswith("text_projection") else f"text_model.{path}"


def _axes(part: Part) -> int:
    """How many axes the changed weight has, as far as the factors tell."""
    return max(tensor.ndim for tensor in part.delta.factors.values()) if part.delta else 1


def _peft_config(pairs: list[tuple[str, Part]], prefixed: bool) -> dict[str, Any]:
    """The peft configuration of every component; layers that differ from the commonest rank and alpha are named."""
    whole: dict[str, Any] = {}
    for component in dict.fromkeys(name for name, _ in pairs):
        parts = [part for name, part in pairs if name == component and part.delta is not None]
        ranks = {part.path: part.delta.rank or 1 for part in parts if part.delta}
        alphas = {part.path: ranks[part.path] * part.delta.scale for part in parts if part.delta}
        alphas.update({part.path: part.delta.alpha for part in parts if part.delta and part.delta.alpha is not None})
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
        kind = parts[0].delta.kind if parts[0].delta else "lora"
        config: dict[str, Any] = {
            "peft_type": kind.upper(),
            "r": rank,
            "lora_alpha" if kind == "lora" else "alpha": alpha,
            "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
            "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
            "target_modules": sorted(ranks),
        }
        if kind == "lora":
            config["use_dora"] = any(part.magnitude is not None for part in parts)
            config["lora_bias"] = any(part.bias is not None for part in parts)
        whole.update({f"{component}.{key}" if prefixed else key: value for key, value in config.items()})
    return whole


def _metadata(
    adapter: Adapter,
    pairs: list[tuple[str, Part]],
    tensors: Mapping[str, Tensor],
    fingerprint: str | None,
    family: str | None,
    base_name: str | None,
) -> dict[str, str]:
    """The file's own metadata, with what kohya, ModelSpec and we ourselves look for."""
    metadata = {key: value for key, value in adapter.metadata.items() if key not in _STALE}
    ranks = Counter(part.delta.rank for _, part in pairs if part.delta and part.delta.rank)
    alphas = Counter(part.delta.alpha for _, part in pairs if part.delta and part.delta.alpha is not None)
    metadata.setdefault("ss_output_name", adapter.name)
    for key, counted in (("ss_network_dim", ranks), ("ss_network_alpha", alphas)):
        if counted:
            metadata.setdefault(key, f"{counted.most_common(1)[0][0]:g}")
    if family in ARCHITECTURES:
        architecture, version, resolution = ARCHITECTURES[family]
        metadata.setdefault("ss_base_model_version", version)
        metadata.setdefault("ss_v2", str(family == "sd2"))  # A1111 knows SD 2 by this alone
        for key, value in {
            "sai_model_spec": "1.0.1",
            "architecture": f"{architecture}/lora",
            "implementation": "diffusers",
            "title": adapter.name,
            "resolution": resolution,
        }.items():
            metadata.setdefault(f"modelspec.{key}", value)
    if base_name or fingerprint not in (None, adapter.base.fingerprint):  # the name of another one would mislead
        metadata.pop("ldm.base_name", None)
    if base_name:
        metadata["ldm.base_name"] = base_name
    if fingerprint or adapter.base.fingerprint:
        metadata["ldm.base_fingerprint"] = fingerprint or str(adapter.base.fingerprint)
    metadata["ldm.version"] = __version__
    digest = _body_hash(tensors)
    metadata["sshs_model_hash"] = digest
    if "modelspec.sai_model_spec" in metadata:
        metadata["modelspec.hash_sha256"] = f"0x{digest}"
    return metadata


def _body_hash(tensors: Mapping[str, Tensor]) -> str:
    """kohya's hash: sha256 of a safetensors file after its header, where tensors lie by type, then by name."""
    digest = hashlib.sha256()
    for key in sorted(tensors, key=lambda key: (_ORDER.index(tensors[key].dtype), key)):
        digest.update(tensors[key].cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unable(adapter: Adapter, dialect: str, why: str) -> LdmError:
    return LdmError(
        Code.USAGE,
        f"{adapter.name}: the dialect {dialect} cannot hold this adapter.",
        f"{why[0].upper()}{why[1:]}.",
        "Write it in another dialect (kohya holds every kind but LoRA biases; peft holds one network).",
    )
