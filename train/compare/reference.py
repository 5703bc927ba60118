"""What all cells are measured against: pictures of the data set, and who looks at them. Made once, then read."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.data.examples import open_source
from ldm.data.loader import Loader
from ldm.data.mixture import Mixture
from ldm.data.settings import DataSettings
from ldm.errors import Code, LdmError
from ldm.metrics.extractors import Extractor, by_classifier, by_clip, pixels
from ldm.metrics.inception import by_inception, check_inception
from ldm.metrics.measured import Reference, check_enough, check_varied, digest
from ldm.store.clip import load_clip, read_open_clip
from ldm.store.find import find_model
from ldm.store.weights import load_weights
from ldm.store.write import staged, write_weights
from train.compare.wish import Yardsticks
from train.config import RunFile
from train.opening import loader_of, processes_of
from train.run import forecasted, opened
from train.signals import Stop
from train.tasks.classifier import NoWordsError
from train.tasks.perceptual import open_classifier

log = logging.getLogger("train.compare")
TAUGHT = 128  # pictures of a step of the classifier, and of the families that take the most
CLASSIFIER, PICTURES, FACTS = "classifier", "pictures.safetensors", "data.json"


@dataclass(frozen=True)
class Pictures:
    """[m,3,H,W] uint8 of the training and held-out pictures; labels [m] of the former, and the names of the classes."""

    training: Tensor
    held_out: Tensor
    held_out_labels: Tensor | None
    labels: Tensor | None
    classes: tuple[str, ...]
    label_names: tuple[str, ...] = ()  # as the data set calls its classes

    @property
    def shares(self) -> Tensor | None:
        return None if self.labels is None else torch.bincount(self.labels, minlength=len(self.classes)).double()


def pictures_of(wish: Yardsticks) -> Pictures:
    """From the folder of the comparison, or from the data set, and then kept there."""
    path, facts = wish.out / PICTURES, wish.out / FACTS
    if not path.is_file():
        _keep(wish, path, facts)
    tensors = {name: t.clone() for name, t in load_weights(path).items()}
    told = json.loads(facts.read_text("utf-8"))
    return Pictures(
        tensors["training"], tensors["held_out"], tensors.get("held_out_labels"), tensors.get("labels"),
        tuple(told["classes"]), tuple(told["labels"]),
    )  # fmt: skip


def _keep(wish: Yardsticks, path: Path, facts: Path) -> None:
    loader = _loader(wish)
    training, held = _small(loader.look(wish.reference)), _small(loader.validation(wish.held_out))
    for what, some in (("training", training), ("held out", held)):
        check_enough(sum(len(b) for b in some), what)
    tensors = {"training": as_bytes(training), "held_out": as_bytes(held)}
    check_varied(tensors["training"])
    classes: Sequence[str] = ()
    if loader.source.labels and all(b.label is not None for b in [*training, *held]):
        classes = _names(loader.source.labels, training)
        tensors |= {"labels": _labels(training), "held_out_labels": _labels(held)}
    told = {
        "pictures": _pictures(loader),
        "classes": list(classes),
        "labels": list(loader.source.labels) if classes else [],
        "captions": any(any(b.text) for b in training),
        **loader.facts(),
    }
    if not facts.is_file():
        with staged(facts) as stage:
            stage.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    with staged(path) as stage:
        write_weights(stage, tensors, {})


def _pictures(loader: Loader) -> dict[str, Any]:
    """How many there are to train on, and the hash of the names of those held out."""
    names = (loader.source.name(int(i)) for i in loader.plan.validation)
    held = hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return {"training": len(loader.plan.training), "held out": held}


def check_unchanged(wish: Yardsticks, loader: Loader | None = None) -> None:
    """A data set that grew may give to training what others were measured on; `loader` is of a training on it."""
    facts = wish.out / FACTS
    if not facts.is_file():
        return
    before = json.loads(facts.read_text("utf-8")).get("pictures")
    now = _pictures(_loader(wish) if loader is None else loader)
    if before is not None and before != now:
        raise LdmError(
            Code.DIFFERENT,
            f"The pictures of {wish.data.get('path')} are not those that {wish.out} began with.",
            f"It had {before['training']:,} to train on, and has {now['training']:,}; or others are held out now.",
            "Choose another --out for the data set as it is.",
        )


def check_pictures(wish: Yardsticks) -> None:
    """Whether there are enough, where none have been kept yet."""
    if not (wish.out / PICTURES).is_file():
        _source(wish)


def captions_of(wish: Yardsticks, most: int = 10_000) -> list[str]:
    """Captions of training pictures, one each, in the order of the reference."""
    return [text for batch in _loader(wish).look(min(most, wish.reference)) for text in batch.text if text]


def _loader(wish: Yardsticks) -> Loader:
    file = RunFile(
        task={"type": "classifier"}, data=_data(wish), run={"out": wish.out / "none", "steps": 1, "batch": 1}
    )
    return loader_of(file, _source(wish), processes_of(file))


def _data(wish: Yardsticks) -> DataSettings:
    return DataSettings(**{"uncaptioned": "empty", **wish.section})


def _source(wish: Yardsticks) -> Mixture:
    source = open_source(_data(wish))
    if len(source) < (needed := wish.held_out + TAUGHT):
        raise LdmError(
            Code.USAGE,
            f"{source.title} has {len(source)} pictures, which are too few.",
            f"{needed} are needed: {wish.held_out} that nothing is trained on, and {TAUGHT} to train on at the least.",
            "Give more pictures, or keep fewer from training with --held-out (100 at the least).",
        )
    return source


def as_bytes(batches: Iterable[Batch]) -> Tensor:
    """uint8 [n,3,H,W], a batch at a time."""
    return torch.cat([bytes_of(b.image) for b in batches if b.image is not None])


def bytes_of(image: Tensor) -> Tensor:
    """From [-1,1], or bytes already."""
    return image if image.dtype == torch.uint8 else ((image + 1) * 127.5).round().to(torch.uint8)


def _small(batches: Iterable[Batch]) -> list[Batch]:
    """All of them with their pictures as bytes, which are a quarter of the numbers."""
    return [b if b.image is None else replace(b, image=bytes_of(b.image)) for b in batches]


def _labels(batches: Sequence[Batch]) -> Tensor:
    return torch.cat([b.label for b in batches if b.label is not None])


def _names(labels: Sequence[str], batches: Sequence[Batch]) -> list[str]:
    """A class is called by the word that its captions have and others have not; else as the data set calls it."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for batch in batches:
        assert batch.label is not None
        for text, label in zip(batch.text, batch.label.tolist(), strict=False):
            counts[label].update(set(text.lower().split()))
    names = []
    for place, name in enumerate(labels):
        own = counts[place]
        telling = [w for w, n in own.items() if all(counts[other][w] < 0.1 * n for other in counts if other != place)]
        names.append(max(telling, key=lambda w: own[w]) if telling and not str(name).isalpha() else str(name))
    return names


def check_judge(wish: Yardsticks) -> None:
    """Whether the network that is to look can be one, before anything is kept for it."""
    if wish.inception is not None:
        check_inception(wish.inception)
    if wish.clip is not None:
        read_open_clip(find_model(wish.clip))


def extractor_of(wish: Yardsticks, kept: Pictures, stop: Stop) -> Extractor:
    """Inception or a CLIP where the wish names one; else the lab's own classifier of caption words; else raw pixels."""
    if wish.inception is not None:
        return by_inception(wish.inception)
    if wish.clip is not None:
        return by_clip(load_clip(find_model(wish.clip)).eval(), wish.clip)
    captions = json.loads((wish.out / FACTS).read_text("utf-8"))["captions"]
    if not captions or not wish.classifier_steps:
        return pixels(wish.size)
    try:
        _train_classifier(wish, stop)
    except NoWordsError as error:
        log.warning("raw pixels are the features: %s", error.what)
        return pixels(wish.size)
    folder = wish.out / CLASSIFIER / "model"
    words = json.loads((folder / "config.json").read_text("utf-8"))["words"]
    places = {word: i for i, word in enumerate(words)}
    named = [places[name.lower()] for name in kept.classes if name.lower() in places]
    return by_classifier(open_classifier(folder).eval(), named if len(named) == len(kept.classes) > 1 else None)


def _train_classifier(wish: Yardsticks, stop: Stop) -> None:
    if not _classifier_is_there(wish):  # another process may be asking; only the first trains it
        log.info("training the classifier that looks at all samples: %s steps", f"{wish.classifier_steps:,}")
        with opened(_classifier_file(wish), stop=stop) as run:
            run.fit()


def _classifier_is_there(wish: Yardsticks) -> bool:
    return (wish.out / CLASSIFIER / "model").is_dir()


def _classifier_file(wish: Yardsticks) -> RunFile:
    return RunFile(
        task={"type": "classifier", "widths": [32, 64, 128]},
        data=DataSettings(**{"uncaptioned": "empty", "flip": 0.5, **wish.section}),
        optim={"lr": 2e-3, "warmup": 50, "ema": 0.99},
        run={"out": wish.out / CLASSIFIER, "steps": wish.classifier_steps, "batch": 128, "preview": 0, "evaluate": 500,
             "save": 500},
    )  # fmt: skip


def judge_seconds(wish: Yardsticks) -> float | None:
    """What is left of the classifier's training; 0 where another looks, None where it cannot be timed."""
    if wish.inception is not None or wish.clip is not None or not wish.classifier_steps or _classifier_is_there(wish):
        return 0.0
    try:
        return forecasted(_classifier_file(wish)).total_seconds
    except NoWordsError:
        return 0.0  # there is nothing that it could learn, so raw pixels are the features


def reference_of(wish: Yardsticks, kept: Pictures, extractor: Extractor) -> Reference:
    """What the extractor sees of the data set: looked at once, then kept beside the pictures."""
    path = wish.out / f"seen-{extractor.name.replace(' ', '-').replace('/', '-')}.safetensors"
    if path.is_file():
        seen = {name: t.clone() for name, t in load_weights(path).items()}
        return Reference.kept(extractor, seen, digest(kept.training))
    made = Reference.of(extractor, kept.training, kept.held_out, kept.shares)
    with suppress(LdmError), staged(path) as stage:  # another process may have been faster
        write_weights(stage, made.tensors(), {})
    return made
