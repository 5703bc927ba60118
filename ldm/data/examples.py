"""From the `data:` section to its examples: what lies at a path decides how it is read, unless `kind` says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ldm.data.drawn import Scenes
from ldm.data.folders import METADATA, Folder, open_folder
from ldm.data.listing import hash_file
from ldm.data.mixture import Mixture
from ldm.data.parquet import open_parquet
from ldm.data.settings import DataSettings, Part
from ldm.data.shards import find_shards, open_shards
from ldm.data.source import PICTURES, About, Source, listed
from ldm.errors import Code, LdmError

__all__ = ["About", "Source", "open_photos", "open_source"]

CHECKED = 100_000  # of a larger set, so many captions are looked at


def open_source(settings: DataSettings, hash_file: Callable[[Path], str] = hash_file) -> Mixture:
    """All examples of the section, also of a single path, as a mixture; `hash_file` gives the sha256 of a file."""
    parts = settings.parts
    sources = [_open(part, settings, hash_file) for part in parts]
    return Mixture(sources, [part.weight for part in parts], [part.repeats for part in parts])


def open_photos(photos: Path, size: int) -> Source:
    """All pictures of one subject in a folder. Folders in it are how somebody sorts photos, not what is to be seen on
    them, unless kohya's numbers say so."""
    if photos.is_file():
        what, why = f"{photos.name} is a file.", "The photos of a subject are the pictures in one folder."
        raise LdmError(Code.USAGE, what, why, "Put it into a folder of its own, and give that.")
    settings = DataSettings(path=str(photos.absolute()), size=size)
    source = open_source(settings)
    if source.labels and all(isinstance(part, Folder) for part in source.parts):
        return open_source(settings.model_copy(update={"kind": "folder"}))
    return source


def _open(part: Part, settings: DataSettings, hash_file: Callable[[Path], str]) -> Source:
    name = part.path or ""
    path = Path(name)
    kind = part.kind if part.kind != "auto" else _kind(name, path)
    if kind == "scenes":
        _check_where(part, name)
        return Scenes(part, settings.size)
    if kind == "shards":
        _check_where(part, name)
        return open_shards(find_shards(name), part, settings.index)
    if kind == "parquet":
        files = sorted(_visible(path, "*.parquet")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise _missing(name)
        return open_parquet(files, part, settings.memory, settings.index)
    if not path.exists():
        raise _missing(name)
    return open_folder(path, part, hash_file)


def _kind(name: str, path: Path) -> str:
    """By the name where nothing must be looked up, else by what the folder holds."""
    if name == "scenes":
        return "scenes"
    if path.is_dir():
        if any((path / table).is_file() for table in METADATA):
            return "folder"
        forms = (("*.tar", "shards"), ("*.parquet", "parquet"))
        found = [kind for form, kind in forms if any(_visible(path, form))]
        if found and (len(found) > 1 or any(p.name.lower().endswith(PICTURES) for p in _visible(path, "*"))):
            what = f"data.path {name!r} holds {' and '.join(found)}" + (" and pictures" if len(found) == 1 else "")
            why = "only one of them would be trained on"
            raise LdmError(Code.USAGE, what, why, "say which: data.kind: folder, shards or parquet; or move the others")
        return found[0] if found else "auto"
    if path.suffix == ".parquet":
        return "parquet"
    if path.suffix == ".tar" or ".tar." in path.name or path.suffix == ".tgz" or any(c in name for c in "{*"):
        return "shards"
    if path.is_file() and path.suffix not in (".jsonl", ".csv"):
        what = f"data.path {name!r} is neither a folder nor a file of examples"
        why = "files of examples are .parquet, .tar, .jsonl and .csv"
        raise LdmError(Code.USAGE, what, why, "give the folder that holds the pictures")
    return "auto"


def _visible(folder: Path, form: str) -> Iterator[Path]:
    """What a folder holds, but for hidden files such as those that systems put beside others."""
    return (path for path in folder.glob(form) if not path.name.startswith("."))


def _check_where(part: Part, name: str) -> None:
    if part.where:
        what, why = f"data.where does nothing for {name!r}", "it chooses rows of a table, and there is none"
        raise LdmError(Code.USAGE, what, why, "leave it out, or write a metadata.jsonl beside the pictures")


def _missing(name: str) -> LdmError:
    why, fix = "there is no such file or folder", "check the path for a spelling mistake"
    if Path(name).suffix == ".parquet":
        fix += ", or make such a table: ldm data prepare for emoji (docs/data.md), and any program for others"
    return LdmError(Code.FILE, f"data.path {name!r} is not there", why, fix)


def check_captions(source: Source, settings: DataSettings) -> None:
    """For a task that needs words: an error that says how many pictures have none. Drawn ones always have some."""
    if settings.uncaptioned == "empty":
        return
    for part in source.parts if isinstance(source, Mixture) else [source]:
        if not part.quick:
            _check_part(part)


def _check_part(source: Source) -> None:
    step = max(1, -(-len(source) // CHECKED))
    places = range(0, len(source), step)
    bare = [i for i in places if not _captioned(source, i)]
    if not bare:
        return
    looked = f"{len(bare)} of {len(places)} pictures" + (" looked at" if step > 1 else "")
    fix = (
        "write each caption into a .txt file beside its picture, give data.caption a template, "
        "or train with empty ones: data.uncaptioned=empty"
    )
    raise LdmError(Code.FILE, f"{source.title}: {looked} have no caption", listed([source.name(i) for i in bare]), fix)


def _captioned(source: Source, index: int) -> bool:
    """Also where the text cannot be read: such an example is left out of training, and told then."""
    try:
        return bool(source.about(index).captions)
    except LdmError as error:
        if error.code not in (Code.FILE, Code.REFUSED):
            raise
        return True
