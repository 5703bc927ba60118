"""What a trained family is asked for: samples, bits of held-out pictures, and pictures between two others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ldm.baselines.stored import Stored
from ldm.data.draws import Draws
from ldm.metrics.interval import around
from ldm.metrics.measured import digest
from ldm.metrics.pictures import unit
from ldm.metrics.protocol import Protocol
from train.compare.accuracy import accuracy_score
from train.compare.reference import Pictures
from train.signals import Stop

AT_ONCE = 50  # pictures drawn together, between looks at the clock
JUDGED = 256  # held-out pictures whose bits are told
BETWEEN = 8  # pictures of a row of interpolations


def asked_classes(stored: Stored) -> int:
    """How many classes it can be asked for; 0: it is told none."""
    return len(stored.classes) if stored.model.conditional else 0


def labels_for(stored: Stored, labels: Tensor | None, names: Sequence[str]) -> Tensor | None:
    """Labels of a data set as the model counts them, by name; -1, which is "any", where it knows no such class."""
    if labels is None or not asked_classes(stored):
        return None
    place = {name: i for i, name in enumerate(stored.classes)}
    return torch.tensor([place.get(name, -1) for name in names])[labels]


def asked_for(stored: Stored, kept: Pictures, count: int) -> Tensor | None:
    """[count] classes, each as often as the data set has it, in any beginning of them too; None where the model is
    told none."""
    if not (classes := asked_classes(stored)):
        return None
    shares = torch.full((classes,), 1 / classes, dtype=torch.float64)
    if (own := labels_for(stored, kept.labels, kept.label_names)) is not None and bool((own >= 0).any()):
        shares = torch.bincount(own[own >= 0], minlength=classes).double() / int((own >= 0).sum())
    asked, owed = list[int](), torch.zeros(classes, dtype=torch.float64)
    for _ in range(count):
        owed += shares
        asked.append(int(owed.argmax()))
        owed[asked[-1]] -= 1
    return torch.tensor(asked)


def drawn(
    stored: Stored,
    samples: int,
    cap: int,
    seed: int,
    stop: Stop,
    device: torch.device | str = "cpu",
    labels: Tensor | None = None,
) -> tuple[Tensor, float, int]:
    """[n,3,H,W] uint8, of `labels` [samples] where classes are asked for; the seconds it took; and how many of them
    held numbers that are none. As many as the cap allows, and one lot at least."""
    model = stored.model.to(device)
    made, broken, began = list[Tensor](), 0, time.monotonic()
    while (first := sum(map(len, made))) < samples:
        count = min(AT_ONCE, samples - first)
        label = None if labels is None else labels[first : first + count].to(device)
        lot = model.sample(count, label, torch.Generator().manual_seed(seed * 1_000_003 + first)).float().cpu()
        broken += int((~lot.isfinite()).flatten(1).any(1).sum())
        made.append(_bytes(lot))
        stop.check()
        if time.monotonic() - began > cap:
            break
    return torch.cat(made), time.monotonic() - began, broken


def bits(stored: Stored, kept: Pictures, stop: Stop, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Bits per dimension of held-out pictures, where the family tells them."""
    model = stored.model.to(device)
    if model.facts.likelihood == "none":
        return {}
    x, found = 2 * unit(kept.held_out[:JUDGED]) - 1, list[Tensor]()
    labels = labels_for(stored, kept.held_out_labels, kept.label_names)
    if asked_classes(stored) and (labels is None or bool((labels[:JUDGED] < 0).any())):
        return {"no_bits": "it is told a class of each picture, and those of the held-out ones are not known"}
    for start in range(0, len(x), 32):
        rows = slice(start, start + 32)
        places = torch.arange(start, min(start + 32, len(x))).to(device)
        label = None if labels is None else labels[:JUDGED][rows].to(device)
        draws = Draws(0, places, len(places), "likelihood")
        found.append(model.bits_per_dim(x[rows].to(device), label, draws).detach().cpu())
        stop.check()
    each = torch.cat(found).double()
    if not each.isfinite().all():
        return {"no_bits": f"the likelihood of {int((~each.isfinite()).sum())} of {len(each)} pictures is not finite"}
    estimate = around(float(each.mean()), float(each.std()) / len(each) ** 0.5)
    of = {"kind": model.facts.likelihood, "pictures": len(each), "reference": digest(kept.held_out[: len(each)])}
    return {"bits_per_dim": {**asdict(estimate), **of}}


def notes_of(told: Mapping[str, Any], broken: int) -> list[str]:
    """What went wrong, of what was told by `bits` and of as many samples as were `drawn`."""
    notes = [f"{broken} of {told['drawn']} samples held NaN or infinite numbers"] if broken else []
    return notes + ([told["no_bits"]] if "no_bits" in told else [])


@torch.no_grad()
def between(stored: Stored, kept: Pictures, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Pictures between two held-out ones of one class, along a line of latents, where the family has such."""
    model = stored.model.to(device)
    encode, decode = getattr(model, "encode", None), getattr(model, "decode", None)
    if encode is None or decode is None:
        return {}
    labels = labels_for(stored, kept.held_out_labels, kept.label_names)
    if labels is None and asked_classes(stored):
        return {}
    first = 0 if labels is None else int(labels[0])
    ends = [0, 1] if labels is None else (labels == first).nonzero().flatten()[:2].tolist()
    if first < 0:
        return {}
    told = None if labels is None else torch.tensor([first] * BETWEEN).to(device)
    x = (2 * unit(kept.held_out[ends]) - 1).to(device)
    z: Tensor = encode(x, None if told is None else told[: len(x)])
    if not z.is_floating_point() or len(z) < 2:  # codes have nothing between them
        return {}
    shares = torch.linspace(0, 1, BETWEEN).view(-1, *[1] * (z.ndim - 1)).to(device)
    return {"between": _bytes(decode((1 - shares) * z[:1] + shares * z[1:2], told).float().cpu())}


def named_by(stored: Stored, samples: Tensor, labels: Tensor | None, kept: Pictures, seed: int) -> dict[str, Any]:
    """What a classifier that has seen these samples alone, drawn for `labels`, knows of real pictures, where both have
    the same classes."""
    classes = asked_classes(stored)
    if labels is None or kept.held_out_labels is None or classes < 2 or len(samples) < 10 * classes:
        return {}
    truth = labels_for(stored, kept.held_out_labels, kept.label_names)
    assert truth is not None
    known = truth >= 0
    if not known.any():
        return {}
    shown = kept.held_out[known]
    score = accuracy_score(unit(samples), labels[: len(samples)], unit(shown), truth[known], classes, seed)
    by = Protocol("a classifier of the samples", "none", len(samples), len(shown), digest(kept.held_out[known]))
    return {"accuracy_score": {**asdict(score), "protocol": asdict(by)}}


def _bytes(x: Tensor) -> Tensor:
    """[-1,1] to uint8; what is no number is grey."""
    return ((torch.nan_to_num(x, 0.0, 1.0, -1.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
