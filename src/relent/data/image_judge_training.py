r"""Trains the networks that know captions and images: the frozen joint encoder, and the classifier that judges samples.

The encoder learns by the loss of CLIP (Radford et al., arXiv 2103.00020, figure 3): of M captions and an image of each,

    L = ½·(CE over captions of exp(τ)·⟨image_i, caption_j⟩ + CE over images of the same), the right one is i = j

with τ learnt from log(1/0.07) on, at most log 100. A batch holds each caption once, so that no wrong pair is a right
one by chance. Both networks see training images alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relent.models.image_judges import ImageTower, JointEncoder

IMAGES = 4
"""Images of each caption in a step of the encoder."""
BATCH = 64
"""Images in a step of the classifier."""
LEARNING_RATE = 2e-3


def contrastive_loss(images: Tensor, captions: Tensor, log_scale: Tensor) -> Tensor:
    """CLIP's loss of G groups, each with one image of every caption; a scalar in nats.

    Args:
        images: (G, M, D) of length 1, image i of caption i.
        captions: (M, D) of length 1.
        log_scale: τ, a scalar.
    """
    logits = log_scale.exp() * images @ captions.T
    right = torch.arange(len(captions), device=logits.device).expand(len(images), -1)
    return 0.5 * (F.cross_entropy(logits.transpose(1, 2), right) + F.cross_entropy(logits, right))


def train_encoder(
    encoder: JointEncoder, images: Tensor, caption: Tensor, captions: Tensor, steps: int, seed: int
) -> None:
    """Train in place.

    Args:
        encoder: The encoder.
        images: (N, S, S).
        caption: (N,) number of each one's caption; every caption has an image.
        captions: (M, L) token ids.
        steps: Optimiser steps.
        seed: Seed of the draws.
    """
    log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    generator = torch.Generator().manual_seed(seed)
    of_caption = [(caption == number).nonzero().squeeze(1) for number in range(len(captions))]
    for _ in _steps([*encoder.parameters(), log_scale], steps):
        drawn = [own[torch.randint(len(own), (IMAGES,), generator=generator)] for own in of_caption]
        found = encoder.images(images[torch.stack(drawn, 1).flatten()]).unflatten(0, (IMAGES, len(captions)))
        contrastive_loss(found, encoder.captions(captions), log_scale.clamp(max=math.log(100))).backward()


def train_judge(judge: ImageTower, images: Tensor, labels: Tensor, steps: int, seed: int) -> None:
    """Train the classifier in place, by cross-entropy.

    Args:
        judge: The classifier.
        images: (N, S, S).
        labels: (N,) classes.
        steps: Optimiser steps.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in _steps(list(judge.parameters()), steps):
        drawn = torch.randint(len(images), (BATCH,), generator=generator)
        F.cross_entropy(judge(images[drawn]), labels[drawn]).backward()


def _steps(parameters: list[nn.Parameter], steps: int) -> Iterator[None]:
    """Adam with a cosine schedule: each turn ends with a step on the gradients that the caller has made."""
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        yield
        optimizer.step()
        schedule.step()
