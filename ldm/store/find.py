"""Where a model is: a path, the name of a shipped one, or a hub id fetched before. Nothing is downloaded here."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ldm.config import maker
from ldm.errors import Code, LdmError
from ldm.store.header import printable

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
MAX_BESIDE = 2_000  # entries of a folder that are looked at for a name like the one that is missing
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # in a folder as peft writes it
TINY_DECODER = "tiny-decoder"  # in the folder of a model: an AutoencoderTiny that was taught the same latents
OPEN_CLIP = "open_clip_config.json"  # in the folder of both towers of a CLIP
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # in a folder as diffusers writes it, and as the task lora does
_SUFFIXES = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf"})
_PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"


def shipped() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(p.name for p in _PRETRAINED.iterdir() if (p / "model_index.json").is_file())


def shipped_beside() -> list[str]:
    """The names of what ships beside models in folders of its own: controls, CLIPs, decoders."""
    whole = set(shipped())
    return sorted(p.name for p in _PRETRAINED.iterdir() if p.name not in whole and any(p.glob("*config.json")))


def controls_inside() -> dict[str, Path]:
    """The controls that come inside shipped models, by their short names: "edges" for `controlnet-edges`."""
    folders = [p for name in shipped() for p in (_PRETRAINED / name).glob("controlnet-*") if p.is_dir()]
    return {p.name.removeprefix("controlnet-"): p for p in sorted(folders)}


def shipped_controls() -> list[str]:
    """The names by which a control inside a shipped model is asked for: "edges" and "controlnet-edges"."""
    return sorted({name for short in controls_inside() for name in (short, f"controlnet-{short}")})


def shipped_adapters() -> dict[str, Path]:
    """The adapters that ship, each in a folder of its own name: "emoji-fast" is emoji-fast/emoji-fast.safetensors."""
    files = ((p.name, p / f"{p.name}.safetensors") for p in sorted(_PRETRAINED.iterdir()))
    return {name: file for name, file in files if file.is_file()}


def whose(name: str) -> str | None:
    """The shipped model that what ships beside it belongs to, and is called after: "emoji" of "emoji-fast"."""
    return max((model for model in shipped() if name.startswith(f"{model}-")), key=len, default=None)


def find_adapter(path: str | Path) -> Path:
    """An adapter that is there: a file, a folder of peft's, or the file in a folder of diffusers' or of one file; else
    the name of a shipped one is its file."""
    path = Path(path).expanduser()
    with contextlib.suppress(OSError, ValueError):  # a name that the system itself refuses is no path
        if path.is_file() or (path / PEFT_WEIGHTS).is_file():
            return path
        inside = sorted(path.glob("*.safetensors"))
        if (own := path / LORA_WEIGHTS) in inside or len(inside) == 1:
            return own if own in inside else inside[0]
    return shipped_adapters().get(str(path), path)


def find_tagged(name: str, folder: Path | Mapping[str, Path] | None) -> Path:
    """The file of a `<lora:name:weight>` tag: in the given folder, else in `$LDM_HOME/loras` or `loras/` here; or one
    that ships. Where files are given by name, no folder is looked into."""
    home = os.environ.get("LDM_HOME")
    known: list[str] = []
    if isinstance(folder, Mapping):
        if name in folder:
            return folder[name]
        known, folders = [*folder], []
    else:
        folders = [folder] if folder else [*([Path(home) / "loras"] if home else []), Path("loras")]
    for place in folders:
        files = {p.stem: p for p in sorted(place.glob("*.safetensors"))} if place.is_dir() else {}
        if name in files:
            return files[name]
        known += files
    if name in (ours := shipped_adapters()):
        return ours[name]
    known += ours
    near = difflib.get_close_matches(name, known, 1)
    raise LdmError(
        Code.FILE,
        f"adapter {name!r} of the prompt's <lora:...> tag was not found",
        f"looked for {name}.safetensors in {', '.join(str(f) for f in folders) or 'what was given by name'}",
        f"Write <lora:{near[0]}:...>."
        if near
        else "Put the file there, name its folder with --lora-folder, or give the file with --lora.",
    )


def adapter_file(path: str | Path) -> Path:
    """The weights of an adapter: a file, what a shipped adapter's name stands for, or those in a folder of peft's."""
    path = find_adapter(path)
    return path / PEFT_WEIGHTS if path.is_dir() else path


def peft_config(file: Path) -> Path | None:
    """What peft wrote beside the weights of an adapter: the strength of the adapter is in it alone."""
    config = file.with_name(PEFT_CONFIG)
    return config if file.name == PEFT_WEIGHTS and config.is_file() else None


def ranker_of(model: Path) -> str | None:
    """The name of the CLIP that ships beside a shipped model: "emoji-clip" for "emoji"."""
    name = f"{model.name}-clip"
    return name if model.parent == _PRETRAINED and (_PRETRAINED / name).is_dir() else None


def find_model(where: str) -> Path:
    """The folder or file of a model; an error lists what there is."""
    if not where.strip():
        raise LdmError(
            Code.USAGE,
            "The name of a model is empty.",
            f"A path, what ships ({', '.join(_ours()) or 'nothing'}) or a fetched hub id is needed.",
            "Give a name, or leave the option out.",
        )
    path = Path(where).expanduser()
    with contextlib.suppress(OSError, ValueError):  # a name that the system itself refuses is no path
        if path.exists() and (_may_be_model(path) or not _ships(where)):  # any folder called emoji hides no model
            _refuse_run(path)
            return path
    if _ships(where):
        return _PRETRAINED / where
    if HUB_ID.fullmatch(where) and (found := fetched(where)) is not None:
        return found
    if where in shipped_adapters():
        fix = f"Give it with --lora {where}; ldm adapter inspect {where} shows it."
        raise LdmError(
            Code.MODEL, f"'{where}' is an adapter.", "It changes the weights of a model, and is none itself.", fix
        )
    if where in shipped_controls():
        home = controls_inside()[where.removeprefix("controlnet-")].parent.name
        why = "It lies in that model, and fits no other."
        raise LdmError(Code.MODEL, f"'{where}' is a control of {home}.", why, f"Use it with --model {home}.")
    names = ", ".join(_ours()) or "none"
    pulled = ", ".join(fetched_ids()) or "none"
    raise LdmError(
        Code.FILE,
        f"The model '{printable(where)}' was not found.",
        f"It is no path here, nothing that ships ({names}) and no fetched hub id ({pulled}).",
        _nearest(where, path),
    )


def _ours() -> list[str]:
    return [*shipped(), *shipped_beside(), *shipped_adapters()]


def _ships(name: str) -> bool:
    return name in (*shipped(), *shipped_beside())


def _refuse_run(path: Path) -> None:
    """A run's folder is no model; the model of a run lies in it."""
    model, own = path / "model", (path / "model_index.json", path / "config.json", path / "unet")
    if model.is_dir() and (path / "config.yaml").is_file() and not any(part.exists() for part in own):
        raise LdmError(Code.MODEL, f"{path} is the folder of a run.", "Its model lies in it.", f"Write {model}.")


def _nearest(where: str, path: Path) -> str:
    """What to do about a name that is not there: a name like it, a hub id to fetch, or the path to check."""
    if path.name == "model" and (run := maker(path.parent)) is not None:
        return f"Run `ldm train {run}` first, which makes it."
    beside: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        beside = [str(path.parent / p.name) for p in sorted(path.parent.iterdir())[:MAX_BESIDE] if _may_be_model(p)]
    if near := difflib.get_close_matches(where, [*_ours(), *fetched_ids(), *beside], n=1, cutoff=0.7):
        return f"Use {printable(near[0])} if that is what you mean."
    a_path = path.suffix.lower() in _SUFFIXES or path.parent.is_dir()
    if HUB_ID.fullmatch(where) and not a_path:
        return f"Run `ldm models pull {where}`, or use one of those names."
    return "Check the path, or use one of those names."


def _may_be_model(path: Path) -> bool:
    told = ("config.json", "model_index.json", OPEN_CLIP, "unet/config.json")
    return path.suffix.lower() in _SUFFIXES or any((path / name).is_file() for name in told)


def fetched(repo: str) -> Path | None:
    """The snapshot of a hub id in the local cache, `main` before other revisions; None if it was never fetched.

    Read from the cache's own layout: the library's offline call refuses a snapshot that leaves files out on purpose.
    """
    base = _cache() / f"models--{repo.replace('/', '--')}"
    refs = sorted((p for p in (base / "refs").glob("*") if p.is_file()), key=lambda p: (p.name != "main", p.name))
    for ref in refs:
        commit = ref.read_text(encoding="ascii", errors="replace").strip()
        if re.fullmatch(r"[0-9a-f]{40}", commit) and (base / "snapshots" / commit).is_dir():
            return base / "snapshots" / commit
    return None


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def fetched_ids() -> list[str]:
    """The hub ids in the local cache."""
    cache = _cache()
    if not cache.is_dir():
        return []
    return sorted(
        p.name.removeprefix("models--").replace("--", "/", 1)
        for p in cache.glob("models--*")
        if (p / "snapshots").is_dir()
    )
