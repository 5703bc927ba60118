"""Opens what a perceptual loss looks with: our CLIP's image tower, a small classifier, or a file of LPIPS weights."""

from __future__ import annotations

from pathlib import Path

from ldm.errors import Code, LdmError
from ldm.models.lpips import lpips
from ldm.models.perceptual import ClipFeatures, Perceptual, SmallClassifier
from ldm.store.clip import CONFIG, load_clip
from ldm.store.find import find_model
from ldm.store.folder import read_config
from ldm.store.weights import load_weights
from train.tasks.parts import frozen

WEIGHTS = "model.safetensors"


def open_perceptual(path: Path) -> Perceptual:
    """The measure that a folder or file holds, frozen."""
    if path.suffix == ".safetensors":
        weights = load_weights(path)
        net = lpips({name: weights[name] for name in weights}, str(path))
    else:
        folder = find_model(str(path))
        net = Perceptual(_clip(folder) if (folder / CONFIG).is_file() else open_classifier(folder))
    frozen(net)
    return net


def _clip(folder: Path) -> ClipFeatures:
    clip = load_clip(folder)
    return ClipFeatures(clip.image, clip.mean, clip.std)


def open_classifier(folder: Path) -> SmallClassifier:
    """A small classifier that a task of that name has written."""
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    classes, widths = config.get("classes"), config.get("widths")
    right = config.get("_class_name") == "SmallClassifier" and isinstance(classes, int) and isinstance(widths, list)
    if not right or not all(isinstance(w, int) and 0 < w <= 4096 for w in widths or ()) or len(widths or ()) > 8:
        raise LdmError(
            Code.MODEL,
            f"task.perceptual_net={folder} is nothing to look with.",
            f"It is neither a CLIP folder ({CONFIG}) nor one of a small classifier (config.json).",
            "Name the model/ folder of a run of task clip or classifier, or a .safetensors file of LPIPS weights.",
        )
    assert isinstance(classes, int) and isinstance(widths, list)
    weights = load_weights(folder / WEIGHTS)
    net = SmallClassifier(classes, widths)
    wanted = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    if wanted != dict(weights.shapes):
        differ = sorted(n for n in wanted.keys() | weights.shapes.keys() if wanted.get(n) != weights.shapes.get(n))
        raise LdmError(
            Code.MODEL,
            f"{folder} does not fit its configuration: {len(differ)} tensors differ.",
            f"First differences: {', '.join(differ[:5])}.",
            "Use weights and configuration of one and the same run.",
        )
    net.load_state_dict({name: weights[name].clone() for name in weights})
    return net
