"""One Pipeline for every mode: load a model once, run any number of requests."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.diffusion.level import Kind
from ldm.diffusion.schedule import SPACINGS, Spacing
from ldm.diffusion.solver import SOLVERS
from ldm.errors import Code, LdmError
from ldm.images import Picture
from ldm.models.autoencoder import Autoencoder
from ldm.models.latent import Network
from ldm.models.preview import Preview, TinyPreview
from ldm.models.text import TextEncoder, Tower
from ldm.models.unet import UNet
from ldm.store.describe import describe
from ldm.store.find import TINY_DECODER, find_model
from ldm.store.parts import Parts, load_controlnet, load_parts, load_vae
from ldm.store.shards import read_json
from pipelines.adapting import Adapting, check_tags
from pipelines.conditions import chunks_needed
from pipelines.device import Offload, pick_device, pick_dtype, place
from pipelines.fit import check_control, check_refiner, check_request, check_size, folder_stamp
from pipelines.jobs import batches, jobs
from pipelines.making import Making, guidance_of
from pipelines.recipe import ModelId
from pipelines.request import Request
from pipelines.steps import Result, Step
from pipelines.suited import request_of, settled

# The stock default of SD 1.x (PNDM) averages raw outputs and does not fit the loop; DPM++ 2M needs fewer steps anyway.
DEFAULT_SOLVERS = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-a",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpm++ 2m",
    "DPMSolverSinglestepScheduler": "dpm++ single",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "deis",
    "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
}


# A network whose calls are shared by runs that go on together and for which `alike` is equal: ldm.models.gathering.
Sharing = Callable[[Network, Hashable], Network]


@dataclass(frozen=True, eq=False)
class Model:
    """The networks of one checkpoint, wrapped for the loop."""

    parts: Parts
    network: UNet
    vae: Autoencoder
    text: TextEncoder
    zero_null: bool  # a missing negative prompt is zeros (stock XL), not the encoded ""

    @classmethod
    def of(cls, parts: Parts) -> Model:
        towers = [Tower(model, tokenizer) for tokenizer, model in parts.towers]
        xl = getattr(parts.unet.config, "addition_embed_type", None) == "text_time"
        text = TextEncoder(towers, layer="penultimate" if xl else "last", final_norm=not xl)
        return cls(
            parts, UNet(parts.unet, parts.prediction, reads_once=True), Autoencoder(parts.vae), text, zeroes_null(parts)
        )


def zeroes_null(parts: Parts) -> bool:
    """Whether a missing negative prompt is zeros: as the model's index says, else as stock XL does."""
    index = parts.source / "model_index.json"
    told = read_json(index).get("force_zeros_for_empty_prompt") if index.is_file() else None
    return parts.family == "xl" if told is None else bool(told)


class Pipeline:
    """`load` a checkpoint, `run` requests: yields steps; call it for a list of PIL images."""

    def __init__(self, parts: Parts, device: str = "auto", dtype: str = "auto", offload: Offload = "none") -> None:
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.offload = offload
        self.model = Model.of(parts)
        self.vae_source: str | None = None
        self.adapting = Adapting(parts, self.model.text)
        self.sharing: Sharing = lambda network, alike: network
        self._controls: dict[str, tuple[object, nn.Module]] = {}
        self._refiners: dict[str, Model] = {}
        self._preview: Preview | TinyPreview | None = None
        self._identities: dict[str, ModelId] = {}

    @classmethod
    def load(
        cls,
        where: str | Path,
        *,
        vae: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offload: Offload = "none",
        prediction: Kind | None = None,
    ) -> Pipeline:
        """A model folder, a single file, or the name of a shipped model. Nothing is downloaded."""
        chosen = pick_dtype(dtype, pick_device(device))
        pipeline = cls(load_parts(where, dtype=chosen, vae=vae, prediction=prediction), device, dtype, offload)
        pipeline.vae_source = None if vae is None else str(vae)
        return pipeline

    def __call__(self, request: Request | str, **fields: Any) -> list[Image.Image]:
        """The finished pictures of a request (or of a prompt and the fields of one) as PIL images."""
        if not isinstance(request, Request):
            request = self.request(request, **fields)
        return [pil(r.picture) for r in self.results(request)]

    def request(self, prompt: str, **fields: Any) -> Request:
        """What is asked for, with the settings that suit the model and its adapters where nothing is said. A `Request`
        made by hand holds what it says, and plain defaults."""
        text = prompt if isinstance(prompt, str) else ""  # what else it may be is refused below
        return request_of(prompt, settled(self.model.parts.source, text, fields))

    def results(self, request: Request) -> list[Result]:
        """The finished pictures of a request with their recipes."""
        return [result for step in self.run(request) for result in step.done]

    def size(self, request: Request) -> tuple[int, int]:
        """Width and height of the latent work: as asked, else what the model was trained on."""
        side = int(self.model.network.config.sample_size) * self.model.vae.factor
        return request.width or side, request.height or side

    def solver_name(self, request: Request) -> str:
        if request.solver != "auto":
            return request.solver
        if self.model_for(request).network.kind == "flow":
            return "flow-euler"
        scheduler = self.model.parts.scheduler
        name = DEFAULT_SOLVERS.get(scheduler.get("_class_name", ""), "dpm++ 2m")
        wished = "sigmas" if request.sigmas is not None else request.spacing
        if wished in SPACINGS and wished not in SOLVERS[name].spacings:  # the user chose it, and no solver
            name = "dpm++ 2m"
        return "dpm++ 2m sde" if name == "dpm++ 2m" and "sde" in scheduler.get("algorithm_type", "") else name

    def spacing(self, request: Request) -> Spacing | Literal["auto"]:
        """The spacing asked for; an unknown name is an error."""
        if request.spacing != "auto" and request.spacing not in SPACINGS:
            raise LdmError(
                Code.USAGE,
                f"spacing {request.spacing!r} is unknown",
                "it is not in the table of spacings",
                f"Choose one of: auto, {', '.join(SPACINGS)}.",
            )
        return request.spacing  # type: ignore[return-value]

    def run(self, request: Request) -> Iterator[Step]:
        """The steps of a request; the pictures come with the steps that finish them. Stop iterating to cancel."""
        self.check(request)
        all_jobs = jobs(request)
        check_tags(request, (tag for job in all_jobs for tag in job.loras))
        size = 1 if request.exact else request.batch
        guided = guidance_of(request.guidance, self.model.network).needs_null
        for group in batches(all_jobs, len(all_jobs), lambda job: job.loras):
            acting = self.adapting.use(request, group[0].loras)
            # padding to a longer neighbour would change a picture, so only prompts of equal length share a call
            for batch in batches(group, size, chunks_needed(self.model.text, request, guided)):
                pictures = (batch[0].index, batch[-1].index + 1)
                yield Step("prepare", 0, 0, pictures, len(all_jobs), notes=(*self.model.parts.notes, *acting.notes))
                yield from Making(self, request, batch, len(all_jobs), acting).steps()

    def check(self, request: Request) -> None:
        """Refuse what does not fit this model, before anything is computed."""
        model = self.model_for(request)
        if request.exact and (self.device.type != "cpu" or self.dtype != torch.float32):
            raise LdmError(
                Code.USAGE,
                f"exact does not work on {self.device} in {str(self.dtype).removeprefix('torch.')}",
                "bit-equal pictures are promised in float32 on the CPU only",
                "Use device cpu and dtype float32, or leave exact out.",
            )
        check_size(self.size(request), model.vae.factor)
        check_request(model.parts, model.network.kind, request)

    def model_for(self, request: Request) -> Model:
        """The model; its output read as the request says, if it says so."""
        if request.prediction in (None, self.model.network.kind):
            return self.model
        return replace(self.model, network=self.model.network.meaning(request.prediction))

    def controlnets(self, request: Request) -> list[nn.Module]:
        """The networks of the request's controls; read again only if their files changed."""
        found = []
        for use in request.controls:
            path = find_model(self._beside(use.model))
            key = (str(path), folder_stamp(path))
            if self._controls.get(use.model, (None, None))[0] != key:
                network = load_controlnet(path, dtype=self.dtype).eval()
                check_control(self.model.network, network, use.model)
                self._controls[use.model] = (key, network)
            found.append(self._controls[use.model][1])
        return found

    def identity(self, where: str) -> ModelId:
        """Name and fingerprint of an autoencoder or a control, read from its headers once."""
        if where not in self._identities:
            path = find_model(self._beside(where))
            self._identities[where] = ModelId(name=where, fingerprint=describe(path).fingerprint)
        return self._identities[where]

    def refiner(self, request: Request) -> Model | None:
        """The refiner that the request names, loaded once."""
        if request.refiner is None:
            return None
        if request.refiner not in self._refiners:
            refiner = Model.of(load_parts(request.refiner, dtype=self.dtype))
            check_refiner(self.model.network, refiner.network, (self.model.vae, refiner.vae), request.refiner)
            self._refiners[request.refiner] = refiner
        refiner = self._refiners[request.refiner]
        check_request(refiner.parts, refiner.network.kind, request)
        return refiner

    def beside(self) -> Iterator[nn.Module]:
        """What was loaded beside the model so far: controls and refiners."""
        yield from (network for _, network in self._controls.values())
        for refiner in self._refiners.values():
            yield from (refiner.parts.unet, refiner.parts.vae, *(tower for _, tower in refiner.parts.towers))

    def preview(self, clean: Tensor) -> list[np.ndarray]:
        """Rough pictures of latents: by the model's tiny decoder, else by a linear map fitted to its autoencoder."""
        if self._preview is None:
            folder = self.model.parts.source / TINY_DECODER
            if self.vae_source is None and folder.is_dir():
                tiny = Autoencoder(load_vae(folder, self.dtype)[0])
                self._preview = TinyPreview(place(tiny, self.device))
            else:
                self._preview = Preview.fit(place(self.model.vae, self.device))
        return self._preview(clean)

    def _beside(self, name: str) -> str:
        """A control that lies in the model folder by its short name: "edges" for `controlnet-edges`."""
        for folder in (self.model.parts.source / f"controlnet-{name}", self.model.parts.source / name):
            if "/" not in name and folder.is_dir():
                return str(folder)
        return name


def pil(picture: Picture) -> Image.Image:
    """A picture for other libraries: 8 bit, with alpha where there is one."""
    pixels = picture.pixels if picture.pixels.dtype == np.uint8 else (picture.pixels // 257).astype(np.uint8)
    planes = [pixels[..., c] for c in range(pixels.shape[2])]
    if picture.alpha is not None:
        planes = [*(planes if len(planes) == 3 else planes * 3)]
        planes.append(picture.alpha if picture.alpha.dtype == np.uint8 else (picture.alpha // 257).astype(np.uint8))
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[len(planes)]
    return Image.fromarray(planes[0] if mode == "L" else np.stack(planes, axis=-1), mode)
