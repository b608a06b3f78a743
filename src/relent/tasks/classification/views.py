"""Augmented views: every image has V augmented forms, made anew where they are needed, and an epoch shows one of them.

View v of item i is a pure function of (the data's augmentation seed, i, v): the same for the teacher and for every
student. Which view epoch e shows is a pure function of (the run's seed, i, e). Nothing depends on batches, processes or
what was drawn before, so that a resumed run sees what an uninterrupted one sees, and a teacher's outputs on all views
of all items, stored once, are those on the very pixels that a student learns from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from relent.tasks.classification.data import middle
from relent.tasks.classification.options import Augmentation
from relent.train.sampling import derive_seed

Words = NDArray[np.uint64]

# What a draw is for: draws of different purpose are independent.
_ROW, _COLUMN, _FLIP, _RADIUS, _ANGLE, _AREA, _ASPECT = range(7)


def hashed(seed: int, *parts: Words) -> Words:
    """64 bits that are a pure function of a seed and of numbers that broadcast against each other.

    Each number is taken up by a round of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
    Generators", 2014), which is a bijection of 64 bits.
    """
    state = np.array([seed], dtype=np.uint64)
    for part in parts:
        state = (state ^ part) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def uniform(seed: int, *parts: Words) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 bits, arguments as of `hashed`."""
    return (hashed(seed, *parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def words(values: Tensor) -> Words:
    """Non-negative integers as unsigned ones."""
    return values.numpy().astype(np.uint64)


@dataclass(frozen=True)
class Views:
    """The views of a data set.

    Args:
        options: How images are augmented.
        pixel_range: Standardised values of black and white.
        size: Side of the images that a network sees; 0: that of the images that are given.
    """

    options: Augmentation
    pixel_range: tuple[float, float]
    size: int = 0

    def shown(self, seed: int, items: Tensor, epoch: int) -> Tensor:
        """Which view of items (B,) an epoch of a run with this seed shows: (B,), uniform in 0 … V − 1."""
        drawn = uniform(derive_seed("shown", seed), words(items), np.array([epoch], dtype=np.uint64))
        return torch.from_numpy((drawn * self.options.views).astype(np.int64))

    def of(self, images: Tensor, items: Tensor, views: Tensor) -> Tensor:
        """Views of images.

        Args:
            images: The images of the items as they are, standardised, (B, channels, H, W).
            items: Their indices in the data set, (B,).
            views: Which view of each, (B,).

        Returns:
            Augmented images of the same shape and dtype (or of side `size`, the middle part where no crop is drawn).
        """
        drawn = (words(items), words(views))
        if self.options.least_area:
            images = self._resized_crops(images, *drawn)
        moved = middle(self._moved(images, *drawn), self.size or images.shape[2])
        return self._noisy(moved, *drawn) if self.options.noise else moved

    def _resized_crops(self, images: Tensor, items: Words, views: Words) -> Tensor:
        """Random crops of random area and aspect ratio, resized (Szegedy et al., arXiv 1409.4842, section 6).

        The area is uniform between its smallest share and 1, the aspect ratio log-uniform between 3/4 and 4/3 and cut
        so that the crop fits; the place is uniform.
        """
        height, width = images.shape[2:]
        parts = []
        for purpose in (_AREA, _ASPECT, _ROW, _COLUMN):
            number = np.array([purpose], dtype=np.uint64)
            parts.append(uniform(derive_seed("crops", self.options.seed), items[:, None], views[:, None], number)[:, 0])
        area = (self.options.least_area + (1 - self.options.least_area) * parts[0]) * height * width
        aspect = np.exp((2 * parts[1] - 1) * np.log(4 / 3))
        wide = np.clip(np.rint(np.sqrt(area * aspect)), 1, width).astype(int)
        high = np.clip(np.rint(np.sqrt(area / aspect)), 1, height).astype(int)
        top = (parts[2] * (height - high + 1)).astype(int)
        left = (parts[3] * (width - wide + 1)).astype(int)
        side = self.size or height
        resized = [
            functional.interpolate(
                image[None, :, t : t + h, a : a + w], (side, side), mode="bilinear", antialias=True, align_corners=False
            )
            for image, t, h, a, w in zip(images, top, high, left, wide)
        ]
        return torch.cat(resized)

    def _moved(self, images: Tensor, items: Words, views: Words) -> Tensor:
        """Shifted and mirrored."""
        options, (count, channels, height, width) = self.options, images.shape

        def draw(purpose: int, choices: int) -> Tensor:
            drawn = uniform(derive_seed("views", options.seed), items, views, np.array([purpose], dtype=np.uint64))
            return torch.from_numpy((drawn * choices).astype(np.int64))[:, None]

        span = 2 * options.shift + 1
        rows = torch.arange(height) + draw(_ROW, span) - options.shift
        columns = torch.arange(width) + draw(_COLUMN, span) - options.shift
        if options.flip:
            columns = torch.where(draw(_FLIP, 2) == 1, columns.flip(1), columns)
        outside = (rows != rows.clamp(0, height - 1))[:, :, None] | (columns != columns.clamp(0, width - 1))[:, None, :]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        moved = images.gather(2, rows[:, None, :, None].expand(count, channels, height, width))
        moved = moved.gather(3, columns[:, None, None, :].expand(count, channels, height, width))
        return moved.masked_fill(outside[:, None], self.pixel_range[0]) if options.border == "black" else moved

    def _noisy(self, images: Tensor, items: Words, views: Words) -> Tensor:
        """With Gaussian noise (Box and Muller), within the range of pixels."""
        black, white = self.pixel_range
        pixels = np.arange(images[0].numel(), dtype=np.uint64)
        seed, parts = derive_seed("views", self.options.seed), (items[:, None], views[:, None], pixels)
        radius = np.sqrt(-2 * np.log1p(-uniform(seed, *parts, np.array([_RADIUS], dtype=np.uint64))))
        angle = 2 * np.pi * uniform(seed, *parts, np.array([_ANGLE], dtype=np.uint64))
        noise = torch.from_numpy(radius * np.cos(angle)).to(images).reshape(images.shape)
        return (images + self.options.noise * (white - black) * noise).clamp(black, white)
