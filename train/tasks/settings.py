"""The `task:` section of a run file: one record for each kind of task. Light: nothing heavy is imported here.

A path that is a folder means "these weights"; a `.json` file means "this architecture, with new random weights".
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ldm.config import Strict

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Critic(Strict):
    """The PatchGAN of an autoencoder. It starts late, and only once the reconstruction is good enough to be judged."""

    weight: Weight = 0.5  # times the adaptive weight |grad reconstruction| / |grad critic| at the decoder's last layer
    start: Share = 0.5  # not before this share of the run
    guard: float = Field(0.15, gt=0)  # and not before the average L1 error is below this
    ramp: Share = 0.02  # of the run, in which its pull grows from 0 once it is let in
    rate: float = Field(1.0, gt=0)
    channels: int = Field(64, gt=0)
    layers: int = Field(3, gt=0)


class AutoencoderSettings(Strict):
    """Pictures to latents and back: `AutoencoderKL`, or `VQModel` where the architecture says so."""

    type: Literal["autoencoder"]
    vae: Path
    l1: Weight = 1.0
    l2: Weight = 0.0
    gradients: Weight = 0.0  # L1 of the differences between neighbouring pixels: sharp edges from few steps
    kl: Weight = 1e-6  # of the nats of a picture's latent, divided by the picture's 3 H W numbers
    commit: Weight = 0.25  # of a VQ model
    revive: float = Field(0.03, ge=0)  # a code used less than this share of its fair part is moved onto data; 0: never
    perceptual: Weight = 0.0
    perceptual_net: Path | None = None  # folder of our CLIP, of a small classifier trained here, or an LPIPS file
    critic: Critic | None = None
    recolour: Share = 0.0  # share of pictures shown in random colours, for sets of few colours


class ClassifierSettings(Strict):
    """A small network that learns which words belong to a picture; its features serve as a perceptual measure."""

    type: Literal["classifier"]
    words: int = Field(256, gt=1)  # at most so many, the commonest of the captions
    widths: list[Annotated[int, Field(gt=0, le=4096)]] = Field([32, 64, 128], min_length=1, max_length=8)


class ClipSettings(Strict):
    """Both towers of CLIP from nothing, or from weights, with open_clip's loss."""

    type: Literal["clip"]
    model: str  # a name of open_clip (ViT-B-32), a .json in its format, or a folder of weights
    tokenizer: Path | Literal["clip"] | None = None  # a folder, CLIP's own, or None: made from the data set's captions
    vocabulary: int = Field(4096, gt=514)  # its greatest size, when it is made; 514 are bytes and ends
    loss: Literal["clip", "siglip"] = "clip"
    merge_equal: bool = True  # equal captions of a batch are right answers of each other, not wrong ones


class Noise(Strict):
    """Which noise levels are trained, and what the network is asked for."""

    kind: Literal["epsilon", "v_prediction", "flow"] = "v_prediction"
    schedule: Literal["linear", "scaled_linear", "cosine", "flow"] = "scaled_linear"
    zero_snr: bool = False
    times: Literal["uniform", "logit_normal", "power"] = "uniform"
    mean: float = 0.0  # of the logit, with times: logit_normal
    spread: float = Field(1.0, gt=0)
    power: float = Field(1.0, gt=0)  # t = T u^power: below 1 prefers high noise
    weighting: Literal["none", "min_snr"] = "none"
    gamma: float = Field(5.0, gt=0)
    floor: Weight = 0.0  # least weight of min_snr: above 0 the highest noise counts too, where places are decided
    offset: Weight = 0.0  # noise of one value a channel, added (dark and bright pictures)
    shift: float = Field(1.0, gt=0)  # of a flow: above 1 for larger pictures; training and sampling lean to high noise
    bound: Weight = 0.0  # of the variational bound (0.001 in the paper): the U-Net then also learns variances

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """What excludes what, said before anything is loaded."""
        if (self.kind == "flow") != (self.schedule == "flow"):
            raise ValueError(f"kind {self.kind} does not fit schedule {self.schedule}; flow needs both to be flow")
        if self.zero_snr and self.kind != "v_prediction":
            raise ValueError(f"zero_snr needs kind v_prediction, not {self.kind}")
        if self.floor and self.weighting != "min_snr":
            raise ValueError("floor is the least weight of weighting min_snr, and does nothing without it; set it to 0")
        if self.floor and self.kind == "epsilon":
            raise ValueError("floor does not go with kind epsilon, where the weight would be floor / SNR; set it to 0")
        if self.floor > self.gamma:
            raise ValueError(f"floor {self.floor} is above gamma {self.gamma}, the greatest weight")
        if self.zero_snr and self.weighting == "min_snr" and not self.floor:
            raise ValueError(
                "min_snr gives no weight to the level without signal, which zero_snr adds and sampling begins at; "
                "set floor, to 0.1 for example, or weighting to none"
            )
        if self.bound and self.kind == "flow":
            raise ValueError("bound is defined for schedules of betas, not for a flow; set it to 0")
        if self.shift != 1.0 and self.kind != "flow":
            raise ValueError(f"shift is for kind flow, not {self.kind}; set it to 1")
        return self


class DiffusionSettings(Strict):
    """A U-Net in latent space, told by a text tower."""

    type: Literal["diffusion"]
    unet: Path
    vae: Path
    text: Path  # a folder with text_encoder and tokenizer, or a .json for a new tower (trained along)
    train_text: bool = False
    tokenizer: Path | Literal["clip"] | None = None  # None: the text folder's own, or made from the captions
    vocabulary: int = Field(4096, gt=514)  # its greatest size, when it is made
    drop_caption: Share = 0.1
    levels: int = Field(1, gt=0)  # noise levels for each picture and caption of a batch
    inpaint: bool = False  # 9 channels: mask and masked picture beside the latent
    noise: Noise = Noise()


class ControlSettings(Strict):
    """A ControlNet on a frozen model; hints are made from the pictures (`data.hint`) or lie beside them."""

    type: Literal["controlnet"]
    model: Path  # the whole model (diffusers layout)
    controlnet: Path | None = None  # weights, a .json, or None: the U-Net's own down path
    drop_caption: Share = 0.5
    vary: bool = True  # hints thicker, broken, or a pixel aside in part of the examples
    noise: Noise | None = None  # None: as the model was trained


class DecoderSettings(Strict):
    """A tiny autoencoder (`AutoencoderTiny`) for previews, taught by the large one."""

    type: Literal["decoder"]
    vae: Path
    decoder: Path | None = None  # an architecture or weights; None: a small one that fits the autoencoder
    l1: Weight = 1.0
    gradients: Weight = 0.5  # as of an autoencoder
    encoder: Weight = 1.0  # squared error of the tiny encoder's latents
    critic: Critic | None = None


class DistillSettings(Strict):
    """A few-step student of a model: guidance distilled into the network, then latent consistency."""

    type: Literal["distill"]
    model: Path
    method: Literal["guidance", "consistency"] = "consistency"
    rank: int | None = Field(None, gt=0)  # the student is a LoRA of this rank; None: a whole U-Net
    guidance: tuple[float, float] = (2.0, 8.0)  # the range of scales that the teacher runs at
    skip: int = Field(20, gt=0)  # consistency: the teacher's solver steps over this many times, or the next that fits
    huber: float = Field(1e-3, gt=0)
    ema: float = Field(0.95, ge=0, lt=1)  # of the target network

    @model_validator(mode="after")
    def _range(self) -> Self:
        if not 1 <= self.guidance[0] <= self.guidance[1]:
            raise ValueError(f"guidance {self.guidance} is no range: two rising numbers of at least 1 are needed")
        return self


class SubjectSettings(Strict):
    """What all ways to teach a model a subject have in common; class pictures are a part of `data.mix`."""

    model: Path  # the whole model: a folder, a single file, or a name
    token: str = ""  # the words that stand for the subject in the captions; also the trigger phrase of what is saved
    begin: str = ""  # learned vectors begin as these words: the kind of thing that is learned
    preserve: bool = False  # pictures without the token in their caption: the model's own answer is the aim
    preserve_weight: float = Field(1.0, gt=0)  # of those pictures in the loss
    drop_caption: Share = 0.0
    levels: int = Field(1, gt=0)  # noise levels for each picture and caption of a batch
    noise: Noise | None = None  # None: as the model was trained
    licence: str = ""  # of what is saved, for its metadata

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if self.preserve and not self.token:
            raise ValueError("preserve tells pictures of the subject from others by the token: name it")
        return self


class LoraSettings(SubjectSettings):
    """An adapter of a model: LoRA and its relatives, in the U-Net and in the text towers; with `vectors` a new word as
    well, which is learned first (pivotal tuning)."""

    type: Literal["lora"]
    kind: Literal["lora", "loha", "lokr"] = "lora"
    rank: int = Field(16, gt=0, le=4096)
    alpha: float | None = Field(None, gt=0)  # the change is multiplied by alpha / rank; None: the rank
    convolutions: bool = True  # those of the residual blocks as well
    layers: tuple[str, ...] = ()  # ends of layer names in the U-Net, instead of the usual ones
    text: bool = False  # the text towers as well
    text_rate: float = Field(0.5, gt=0)  # their share of the learning rate
    dora: bool = False  # lengths of the rows apart from their directions (Liu 2024)
    rslora: bool = False  # alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023)
    up_rate: float = Field(1.0, gt=0)  # the second factor's share of the learning rate; 16 is LoRA+ (Hayou 2024)
    vectors: int = Field(0, ge=0, le=75)  # of the learned word; 0: none
    words_first: Share = 0.3  # the share of the run in which the word alone is learned
    word_rate: float = Field(5.0, gt=0)  # its share of the learning rate

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, idle in (("dora", False), ("rslora", False), ("up_rate", 1.0)):
            if self.kind != "lora" and getattr(self, name) != idle:
                raise ValueError(f"{name} belongs to kind lora, and does nothing with {self.kind}; leave it out")
        if self.vectors and not (self.token and self.begin):
            raise ValueError("vectors are those of a new word: name it with token, and what it begins as with begin")
        if not self.vectors and self.begin:
            raise ValueError("begin is what learned vectors begin as; set vectors, or leave it out")
        return self


class InversionSettings(SubjectSettings):
    """Textual inversion: the vectors of a new word; all weights stay as they are."""

    type: Literal["inversion"]
    vectors: int = Field(4, gt=0, le=75)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not (self.token and self.begin):
            raise ValueError("name the new word with token, and what it begins as with begin")
        if self.preserve:
            raise ValueError(
                "preserve does nothing with inversion: captions without the new word are read as before; leave it out"
            )
        return self


class FamilySettings(Strict):
    """A rival family of generative models, in pixels; `options` are the family's own."""

    type: Literal["family"]
    family: str
    options: dict[str, Any] = Field(default_factory=dict)
    conditional: bool = True  # told the classes of the data set, where it has some


TaskSettings = Annotated[
    AutoencoderSettings
    | ClassifierSettings
    | ClipSettings
    | DiffusionSettings
    | ControlSettings
    | DecoderSettings
    | DistillSettings
    | LoraSettings
    | InversionSettings
    | FamilySettings,
    Field(discriminator="type"),
]
