"""The page of a report: from what a run's folder tells to HTML. Every word that comes from outside is escaped."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from train.folder import flat
from train.report import Story
from train.report_curves import Series, number, plot
from train.report_style import SCRIPT, STYLE

TASKS = {
    "autoencoder": "Autoencoder",
    "classifier": "Classifier of words",
    "clip": "CLIP, both towers",
    "diffusion": "Latent diffusion",
    "controlnet": "ControlNet",
    "decoder": "Tiny decoder",
    "distill": "Few-step student",
    "lora": "Adapter",
    "inversion": "A new word",
}


def page(story: Story) -> str:
    """The whole document."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{_safe(story.name)}: a run</title><style>{STYLE}</style>",
        _head(story),
        _tiles(story),
        _previews(story),
        _curves(story),
        f"<div class=pair>{_data(story)}{_machine(story)}</div>",
        _timing(story),
        _config(story),
        _foot(story),
        f"<script>{SCRIPT}</script></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _head(story: Story) -> str:
    kind = TASKS.get(story.file.task.type, "") if story.file is not None else ""
    share = 100 * story.step / story.steps if story.steps else 0
    done = " done" if story.ended else ""
    badge = "finished" if story.ended else "under way" if story.step else "not begun"
    return (
        f"<header><p class=kind>{_safe(kind or 'A run')}</p>"
        f"<h1>{_safe(story.name)}<span class='badge{done}'>{badge}</span></h1>"
        f"<div class='way{done}' role=img aria-label='{share:.0f} % done'>"
        f"<i style='width:{share:.1f}%'></i></div></header>"
    )


def _tiles(story: Story) -> str:
    """The figures that everybody looks for first."""
    tiles = [("Step", f"{story.step:,}", f"of {story.steps:,}")]
    for name in story.losses[:1]:
        points = story.figures[name]
        last = [y for _, y in points[-max(1, len(points) // 30) :]]
        tiles.append(("Loss", number(sum(last) / len(last)), f"from {number(points[0][1])}"))
    if held := story.validation.get("loss"):
        step, best = min(held, key=lambda point: point[1])
        tiles.append(("Validation loss", number(held[-1][1]), f"best {number(best)} at {step:,.0f}"))
    if paces := story.figures.get("seconds"):
        each = sorted(y for _, y in paces)[len(paces) // 2]
        tiles.append(("A step", span(each), f"{_rate(story, each)}"))
    total = sum(story.spent.values())
    tiles.append(("Time", span(total), _left(story)))
    tiles.append(("Skipped updates", f"{story.skipped:,}", "not finite" if story.skipped else "all finite"))
    return (
        "<div class=tiles>"
        + "".join(
            f"<div class=tile><span>{_safe(name)}</span><b>{_safe(value)}</b><em>{_safe(more)}</em></div>"
            for name, value, more in tiles
        )
        + "</div>"
    )


def _previews(story: Story) -> str:
    """One picture for each kind of preview, the latest first; a slider over all steps that have one."""
    if not story.previews:
        return ""
    steps = sorted({step for files in story.previews.values() for step in files})
    views = []
    for name, files in story.previews.items():
        last = max(files)
        told = {str(step): quote(path) for step, path in sorted(files.items())}
        views.append(
            f"<figure class=view data-files='{html.escape(json.dumps(told), quote=True)}'>"
            f"<img src='{html.escape(quote(files[last]), quote=True)}' alt='{_safe(name)} at step {last}' loading=lazy>"
            f"<figcaption><b>{_safe(name.replace('_', ' '))}</b><em>step {last:,}</em></figcaption></figure>"
        )
    slider = (
        f"<div class=slide hidden><label for=step>Step <b>{steps[-1]:,}</b></label>"
        f"<input id=step type=range min=0 max={len(steps) - 1} value={len(steps) - 1} "
        f"aria-valuetext='step {steps[-1]}'></div>"
        f"<script id=steps type=application/json>{json.dumps(steps)}</script>"
        if len(steps) > 1
        else ""
    )
    return f"<section><h2>Previews</h2>{slider}<div class=views>{''.join(views)}</div></section>"


def _curves(story: Story) -> str:
    """The loss large, with the validation loss on it; everything else small."""
    if not story.figures and not story.validation:
        return "<section><h2>Curves</h2><p>Nothing is logged yet.</p></section>"
    main = [Series("training", story.figures[name], "a") for name in story.losses[:1]]
    if points := story.validation.get("loss"):
        main.append(Series("validation", points, "b", noisy=False))
    first = story.losses[0].rpartition("/")[0] if story.losses else ""
    small, told = [], {"loss"}
    for name in story.losses[1:]:
        small.append(plot(_title(name, first), [Series("", story.figures[name])], positive=True))
    rest = [n for n in story.figures if n not in (*story.losses, "lr", "seconds")]
    for name in sorted(rest, key=lambda n: n.rpartition("/")[2] == "norm"):
        phase, _, base = name.rpartition("/")
        both = [Series("", story.figures[name])]
        if phase == first and base in story.validation:
            both.append(Series("validation", story.validation[base], "b", noisy=False))
            told.add(base)
        small.append(plot(_title(name, first), both, positive=True))
    for name in story.validation:
        if name not in told:
            small.append(plot(name.replace("_", " "), [Series("validation", story.validation[name], "b", noisy=False)]))
    if rates := story.figures.get("lr"):
        small.append(plot("Learning rate", [Series("", rates, "c", noisy=False)]))
    if seconds := story.figures.get("seconds"):
        small.append(plot("Seconds a step", [Series("", seconds, "c")]))
    return (
        f"<section><h2>Curves</h2>{plot('Loss', main, tall=True, positive=True)}"
        f"<div class=plots>{''.join(small)}</div></section>"
    )


def _title(name: str, first: str) -> str:
    """`critic/norm` in words; the first phase, which most runs have alone, is not named."""
    phase, _, base = name.rpartition("/")
    words = "norm of the gradient" if base == "norm" else base.replace("_", " ")
    return words if phase == first else f"{phase}: {words}"


def _data(story: Story) -> str:
    facts = dict(story.starts[-1].get("data") or {}) if story.starts else {}
    rows: dict[str, Any] = {}
    if story.file is not None:
        data = story.file.data
        rows["pictures from"] = data.path or ", ".join(part.path or "" for part in data.parts)
    rows |= {
        "for training": _count(facts.get("training")),
        "kept for validation": _count(facts.get("validation")),
        "steps in an epoch": number(epoch) if isinstance(epoch := facts.get("steps_an_epoch"), int | float) else None,
        "epochs done": _epochs(story, facts),
        "sizes": ", ".join(f"{size} ({count:,})" for size, count in _dict(facts.get("sizes")).items()),
    }
    if story.file is not None:
        rows["examples a step"] = f"{story.file.run.batch:,}"
    return f"<section><h2>Data</h2>{_table(rows.items())}</section>"


def _machine(story: Story) -> str:
    last = story.starts[-1] if story.starts else {}
    found = _dict(last.get("machine"))
    counts = _dict(last.get("parameters"))
    rows: dict[str, Any] = {
        "device": found.get("device"),
        "processor": found.get("processor"),
        "threads": f"{found['threads']} of {found['cores']} cores" if {"threads", "cores"} <= found.keys() else None,
        "processes": last.get("processes") if last.get("processes") != 1 else None,
        "precision": story.file.run.precision if story.file is not None else None,
        "versions": ", ".join(f"{name} {found[name]}" for name in ("ldm", "torch", "python") if name in found),
        "parameters": ", ".join(f"{name} {number(count)}" for name, count in counts.items()),
    }
    return f"<section><h2>Machine</h2>{_table(rows.items())}</section>"


def _timing(story: Story) -> str:
    """Each start of the run, and what the time went into."""
    if not story.starts:
        return ""
    total = sum(story.spent.values()) or 1.0
    shares = ", ".join(
        f"{name} {span(value)} ({100 * value / total:.0f} %)" for name, value in story.spent.items() if value
    )
    rows = "".join(
        f"<tr><td>{_clock(start['time'])}</td><td>{start['step']:,}</td><td>{_safe(_place(start))}</td></tr>"
        for start in story.starts
    )
    return (
        f"<section><h2>Timing</h2><p>{_safe(shares) or 'Nothing is measured yet.'}</p>"
        f"<div class=wide><table class=times>"
        f"<tr><th>started</th><th>at step</th><th>on</th></tr>{rows}</table></div></section>"
    )


def _config(story: Story) -> str:
    """What the run file sets, and in full below."""
    if not story.config:
        return ""
    rows: Iterable[tuple[str, Any]] = ()
    if story.file is not None:
        rows = ((key, _shown(value)) for key, value in flat(story.file, without_defaults=True).items())
    return (
        f"<section><h2>Configuration</h2>{_table(rows)}<details><summary>config.yaml with every default</summary>"
        f"<pre>{_safe(story.config)}</pre></details></section>"
    )


def _foot(story: Story) -> str:
    when = f" Last line of the log: {_clock(story.time)}." if story.time else ""
    return f"<footer>Made from the run folder alone, by <code>ldm train</code>.{when}</footer>"


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    told = "".join(
        f"<tr><th>{_safe(key)}</th><td>{_safe(value)}</td></tr>" for key, value in rows if value not in (None, "")
    )
    return f"<table>{told}</table>" if told else ""


def span(seconds: float) -> str:
    """A time in the unit in which it is said: 0.041 s is 41 ms."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _rate(story: Story, each: float) -> str:
    if story.file is None or each <= 0:
        return ""
    return f"{number(float(f'{story.file.run.batch / each:.3g}'))} examples/s"


def _left(story: Story) -> str:
    points = story.figures.get("seconds")
    if story.ended or not points or story.step >= story.steps:
        return "in all"
    each = sum(story.spent.values()) / max(1, story.step)
    return f"{span(each * (story.steps - story.step))} left"


def _epochs(story: Story, facts: Mapping[str, Any]) -> str | None:
    steps = facts.get("steps_an_epoch")
    return f"{story.step / steps:.3g}" if isinstance(steps, int | float) and steps > 0 else None


def _place(start: Mapping[str, Any]) -> str:
    found = _dict(start.get("machine"))
    return str(found.get("device") or found.get("processor") or "")


def _count(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _dict(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def _safe(value: Any) -> str:
    return html.escape(str(value), quote=True)
