"""Digits without a network: each is four squares of seven pixels out of six drawings, with a little noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from relent.data import image_preferences

EACH = 30
OPTIONS: dict[str, Any] = {
    "side": 14,
    "patch": 7,
    "codes": 8,
    "mark": 7,
    "pairs": 120,
    "held_out_pairs": 40,
    "judge_steps": 60,
}


def draw_digits(each: int = EACH, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 28, 28) and digits; the first image of each digit stands twice."""
    rng = np.random.default_rng(seed)
    squares = (rng.random((6, 7, 7)) < 0.5).astype(float)
    squares[0] *= 0.2  # the upper left corner is dark
    labels = np.repeat(np.arange(10), each)
    parts = np.stack([np.zeros(10, int), 1 + np.arange(10) % 5, 1 + np.arange(10) // 2, 1 + (np.arange(10) + 2) % 5])
    upper, lower = (np.concatenate([squares[part] for part in pair], 2) for pair in (parts[:2], parts[2:]))
    images = np.concatenate([upper, lower], 1)[labels] + rng.normal(scale=0.05, size=(len(labels), 14, 14))
    images[1::each] = images[::each]
    return (255 * images.clip(0, 1)).round().astype(np.uint8).repeat(2, 1).repeat(2, 2), labels


def prepare(out: Path, seed: int = 0, each: int = EACH, **changes: Any) -> Path:
    """Prepare a data set of such digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_preferences, "read_mnist", lambda _: draw_digits(each))
        out.mkdir(parents=True)
        image_preferences.prepare({"mnist_5k": out}, out, OPTIONS | changes, seed)
    return out
