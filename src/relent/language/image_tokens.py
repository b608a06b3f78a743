"""Grey images as rows of tokens: squares of pixels, row by row, each replaced by the nearest patch of a codebook.

With patches of one pixel the tokens are grey levels. Patches stand in the order of their brightness, so that the
distance of two tokens means something, as a Wasserstein distance over ordered classes needs it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr
from scipy.cluster.vq import kmeans2
from torch import Tensor

from relent.errors import DataError
from relent.tasks.stored import read_array

__all__ = ["PATCHES", "ImageTokens", "fit_patches", "read_image_tokens"]

PATCHES = "patches"
"""Array of a data set that holds the codebook, (K, p, p) float32."""
FIRST = 1
"""Token of the darkest patch; the end of text is 0."""
FITTED = 40_000
"""Patches that the codebook is fitted to, at most."""
ROUNDS = 20
CHUNK = 65_536
"""Patches that are compared with the codebook at once."""


@dataclass(frozen=True)
class ImageTokens:
    """The codebook between images and tokens.

    Attributes:
        patches: (K, p, p) float32, brightness in [0, 1].
        side: S, pixels a side of an image, a multiple of p.
    """

    patches: Tensor
    side: int

    @property
    def patch(self) -> int:
        """p, pixels a side of a patch."""
        return int(self.patches.shape[1])

    @property
    def length(self) -> int:
        """Tokens of an image, (S/p)²."""
        return (self.side // self.patch) ** 2

    def encode(self, images: Tensor) -> Tensor:
        """Tokens of images (N, S, S) with brightness in [0, 1]: (N, (S/p)²) int64."""
        rows = _cut(images, self.patch).flatten(0, 1)
        book = self.patches.flatten(1).double()
        nearest = [torch.cdist(part.double(), book).argmin(1) for part in rows.split(CHUNK)]
        return torch.cat(nearest).reshape(len(images), self.length) + FIRST

    def decode(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images of the masked tokens of each row; what is missing, or no token of a patch, is dark.

        Args:
            tokens: (B, L).
            mask: (B, L) bool, the image's tokens, side by side; None: the first of the row.

        Returns:
            (B, S, S) float32.
        """
        place = torch.arange(self.length, device=tokens.device).expand(len(tokens), -1)
        if mask is not None:
            place = place + mask.int().argmax(1, keepdim=True)
        inside = place < tokens.shape[1]
        place = place.clamp(max=tokens.shape[1] - 1)
        if mask is not None:
            inside = inside & mask.gather(1, place)
        codes = tokens.gather(1, place) - FIRST
        inside = inside & (codes >= 0) & (codes < len(self.patches))
        found = torch.where(inside[..., None, None], self.patches.to(tokens.device)[codes.where(inside, 0)], 0.0)
        count = self.side // self.patch
        return found.unflatten(1, (count, count)).transpose(2, 3).reshape(len(tokens), self.side, self.side)


def _cut(images: Tensor, patch: int) -> Tensor:
    """Patches of images (N, S, S), row by row: (N, (S/p)², p²)."""
    squares = images.unfold(1, patch, patch).unfold(2, patch, patch)
    return squares.flatten(3).flatten(1, 2)


def fit_patches(images: Tensor, patch: int, count: int, seed: int) -> Tensor:
    """A codebook for images: even grey levels for patches of one pixel, else k-means, with a dark and a bright patch.

    Args:
        images: (N, S, S) with brightness in [0, 1].
        patch: p.
        count: K, at least 3.
        seed: Seed of the patches that are looked at, and of the first centres.

    Returns:
        (K, p, p) float32, the darkest first.

    Raises:
        DataError: The images have too few different patches.
    """
    if patch == 1:
        return torch.linspace(0, 1, count).reshape(-1, 1, 1)
    rng = np.random.default_rng(seed)
    rows = _cut(images, patch).flatten(0, 1).numpy()
    rows = rows[rows.max(1) > 0]
    rows = rows[rng.permutation(len(rows))[:FITTED]].astype(np.float64)
    different = len(np.unique(rows, axis=0))
    if different < count - 2:
        raise DataError(f"the images have {different} different patches; lower `codes` to at most {different + 2}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster stays where it is
        centres, _ = kmeans2(rows, count - 2, iter=ROUNDS, minit="++", rng=rng)
    dark, bright = np.zeros((1, patch**2)), np.ones((1, patch**2))
    found = np.concatenate([dark, centres[np.argsort(centres.mean(1), kind="stable")], bright])
    return torch.from_numpy(found).float().reshape(-1, patch, patch)


def read_image_tokens(folder: Path | str) -> ImageTokens:
    """The codebook that a data set holds.

    Raises:
        DataError: It holds none.
    """
    place = Path(folder) / "dataset.zarr"
    group = zarr.open_group(place, mode="r")
    if PATCHES not in group:
        raise DataError(f"{place}: holds no images as tokens; prepare the data of a task with images")
    side = group.attrs["side"]
    assert isinstance(side, int)
    return ImageTokens(torch.from_numpy(read_array(group, PATCHES, place)), side)
