"""Classification accuracy score (Ravuri & Vinyals 2019): a classifier that saw samples alone names real pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.metrics.interval import Estimate, share
from ldm.models.perceptual import SmallClassifier
from train.draws import Draws
from train.tasks.parts import seeded

STEPS, BATCH, RATE, WIDTHS = 300, 64, 2e-3, (16, 32, 64)


def accuracy_score(
    samples: Tensor, labels: Tensor, real: Tensor, truth: Tensor, classes: int, seed: int, steps: int = STEPS
) -> Estimate:
    """The share of real pictures [m,3,H,W] named right, of pictures in [0,1] and labels of int64. What samples of a
    class do not show, it cannot know."""
    with seeded(seed):
        net = SmallClassifier(classes, WIDTHS)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        draws = Draws(seed, torch.arange(step * BATCH, (step + 1) * BATCH), BATCH, "accuracy")
        rows = draws.below("row", len(samples))
        x = 2 * samples[rows] - 1
        x = torch.where((draws.uniform("flip") < 0.5)[:, None, None, None], x.flip(3), x)
        optimiser.zero_grad()
        F.cross_entropy(net.logits(x), labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        said = torch.cat([net.logits(2 * part - 1).argmax(1) for part in torch.split(real, 250)])
    return share(int((said == truth).sum()), len(truth))
