"""Family and prediction type of a model, from shapes, configs and metadata alone; each answer carries its reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ldm.errors import Code, LdmError

if TYPE_CHECKING:  # describing a file needs no torch
    from ldm.diffusion.level import Kind

Family = Literal["sd1", "sd2", "xl", "xl-refiner", "own"]
KINDS = ("epsilon", "v_prediction", "sample", "flow")

Shapes = Mapping[str, tuple[int, ...]]
_SD_CHANNELS = (320, 640, 1280, 1280)
SET_IT = "set it by hand with --prediction epsilon or v_prediction if pictures come out grey or noisy"


@dataclass(frozen=True)
class Facts:
    """What tells the families apart: widths of a U-Net."""

    width: int  # channels of the first level
    text: int  # width of the text it attends to
    channels: int  # input channels: 4, or 9 with mask and masked picture
    added: int | None  # width of the added embedding (XL: pooled text and time ids), None without

    def __str__(self) -> str:
        added = "no added embedding" if self.added is None else f"an added embedding {self.added} wide"
        return f"first level {self.width} wide, text {self.text} wide, {self.channels} input channels, {added}"


def facts_of_config(config: Mapping[str, Any]) -> Facts:
    """From unet/config.json."""
    text = config.get("cross_attention_dim") or 1280
    added = (
        config.get("projection_class_embeddings_input_dim")
        if config.get("addition_embed_type") == "text_time"
        else None
    )
    widths = config.get("block_out_channels") or _SD_CHANNELS
    return Facts(
        int(widths[0]), int(text if isinstance(text, int) else max(text)), int(config.get("in_channels") or 4), added
    )


def facts_of_shapes(shapes: Shapes) -> Facts | None:
    """From tensor names and shapes, in the diffusers or the original layout; None if this is no such U-Net."""
    prefix = "model.diffusion_model."
    first = (
        shapes.get("conv_in.weight")
        or shapes.get(f"{prefix}input_blocks.0.0.weight")
        or shapes.get("input_blocks.0.0.weight")
    )
    text = [s[1] for n, s in shapes.items() if n.endswith(".attn2.to_k.weight") and len(s) == 2]
    added = (
        shapes.get("add_embedding.linear_1.weight")
        or shapes.get(f"{prefix}label_emb.0.0.weight")
        or shapes.get("label_emb.0.0.weight")
    )
    if first is None or len(first) != 4 or not text:
        return None
    return Facts(first[0], text[0], first[1], added[1] if added and len(added) == 2 else None)


def family_of(facts: Facts, towers: int | None = None) -> Family:
    """The family of a U-Net: by what it is given, and for the two without added embedding by their known sizes."""
    if facts.added is not None:
        if facts.width == 384 and facts.text == 1280:
            return "xl-refiner"
        return "xl-refiner" if towers == 1 else "xl"
    if facts.width == 320:
        known: dict[int, Family] = {768: "sd1", 1024: "sd2"}
        return known.get(facts.text, "own")
    return "own"


def prediction_of_scheduler(config: Mapping[str, Any]) -> tuple[Kind, str]:
    """From scheduler_config.json."""
    name = str(config.get("_class_name", ""))
    if name.startswith("FlowMatch"):
        return "flow", f"scheduler_config.json names {name}"
    kind = config.get("prediction_type")
    if kind is None:
        return "epsilon", "scheduler_config.json names no prediction_type, which means epsilon"
    if kind not in KINDS:
        raise LdmError(
            Code.MODEL,
            f"scheduler_config.json asks for the prediction type '{kind}'.",
            f"Known types are {', '.join(KINDS)}.",
            "Set it by hand with --prediction.",
        )
    found: Kind = kind
    return found, f"scheduler_config.json says prediction_type {kind}"


def prediction_of_file(
    family: Family, names: Collection[str], metadata: Mapping[str, str], source: str
) -> tuple[Kind, str, bool]:
    """Of a single file: (prediction, reason, zero terminal SNR). Shapes cannot tell; marks, metadata and custom can.

    In order: `modelspec.prediction_type`, the marker tensors `v_pred` and `ztsnr`, the file's own title, and for SD 2
    the rule that files named 768-v (and those without a "base" in their title) predict v.
    """
    ztsnr = "ztsnr" in names or metadata.get("ldm.zero_snr") == "true"
    said = metadata.get("modelspec.prediction_type", "").lower()
    marks: dict[str, Kind] = {"v": "v_prediction", "v_prediction": "v_prediction", "v-prediction": "v_prediction",
                              "epsilon": "epsilon", "eps": "epsilon", "sample": "sample", "flow": "flow"}  # fmt: skip
    if said in marks:
        return marks[said], f"the file's metadata says modelspec.prediction_type {said}", ztsnr
    if "v_pred" in names:
        return "v_prediction", "the file holds the marker tensor v_pred", ztsnr
    title = f"{metadata.get('modelspec.title', '')} {source}".lower()
    if any(word in title for word in ("v-pred", "vpred", "v_pred", "768-v", "768v")):
        return "v_prediction", f"the title or file name says v-prediction; {SET_IT}", ztsnr
    if family == "sd2":
        if any(word in title for word in ("base", "inpaint", "512", "depth", "turbo")):
            return (
                "epsilon",
                f"an SD 2 file whose name says base, inpainting, depth or 512 predicts epsilon; {SET_IT}",
                ztsnr,
            )
        return "v_prediction", f"nothing in the file tells; SD 2 at 768 px predicts v; {SET_IT}", ztsnr
    return "epsilon", f"nothing in the file says otherwise, and the {family} family predicts epsilon; {SET_IT}", ztsnr
