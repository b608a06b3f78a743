"""What is measured with the trained network at hand, and stored for the evaluation: attacks, sharpness, geometry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relent.attacks import PixelBox, projected_gradient_attack
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.base import Method
from relent.scores.sharpness import sam_sharpness, top_hessian_eigenvalue
from relent.tasks.classification.data import ClassificationData
from relent.tasks.classification.options import Attack
from relent.train.sampling import derive_seed

SHARPNESS_ITEMS = 512
MANY_CLASSES = 1000
"""With more classes than that, the rank and the log-probability of the label are stored in place of all logits."""


def label_summaries(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`rank` of the label (1 is best; ties count against it) and its `log_prob`, (N,) each, of logits (N, C)."""
    own = logits.gather(1, labels[:, None])
    rank = (logits >= own).sum(1)
    log_prob = tempered_log_probs(logits).gather(1, labels[:, None])[:, 0]
    return {"rank": rank.to(torch.int32), "log_prob": log_prob.float()}


def attacked_logits(module: Method, data: ClassificationData, items: Tensor, attack: Attack, seed: int) -> Tensor:
    """Logits (N, C) on attacked images; of several restarts the one with the largest loss counts."""
    box, network = PixelBox(*data.pixel_range), module.network
    torch.manual_seed(derive_seed("attack", seed))
    kept = []
    for part in torch.split(items, 256):
        labels = data.labels[part].to(module.device)
        inputs = data.inputs[part].to(module.device)

        def loss(x: Tensor, labels: Tensor = labels) -> Tensor:
            return label_cross_entropy(labels, tempered_log_probs(network(x).logits))

        worst, largest = network(inputs).logits, torch.full_like(labels, -torch.inf, dtype=inputs.dtype)
        for _ in range(attack.restarts):
            perturbed = projected_gradient_attack(
                loss,
                inputs,
                box,
                norm=attack.norm,
                radius=attack.radius,
                steps=attack.steps,
                step_size=attack.step_size,
            )
            logits = network(perturbed).logits
            losses = label_cross_entropy(labels, tempered_log_probs(logits))
            worst = torch.where((losses > largest)[:, None], logits, worst)
            largest = torch.maximum(losses, largest)
        kept.append(worst.float().cpu())
    return torch.cat(kept)


def sharpness(module: Method, data: ClassificationData, items: Tensor) -> dict[str, float]:
    """Largest Hessian eigenvalue and SAM-sharpness of the cross-entropy on the first training items, eval mode."""
    chosen = items[:SHARPNESS_ITEMS]
    inputs, labels = data.inputs[chosen].to(module.device), data.labels[chosen].to(module.device)
    parameters = [p for p in module.network.parameters() if p.requires_grad]

    def loss() -> Tensor:
        logits = module.network(inputs).logits
        return label_cross_entropy(labels, tempered_log_probs(logits), reduction="mean")

    return {
        "top_eigenvalue": top_hessian_eigenvalue(loss, parameters),
        "sam_sharpness": sam_sharpness(loss, parameters),
    }


def head_weight(module: Method) -> Tensor | None:
    """Class vectors (C, D) of the output layer, where there is one vector a class."""
    weight: Any = getattr(getattr(module.network, "classifier", None), "weight", None)
    return weight.detach().float().cpu() if isinstance(weight, Tensor) else None
