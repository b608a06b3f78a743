"""Regions of a grid as weights of its points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from relent.errors import ConfigError
from relent.grid import Topology
from relent.scores.spatial import latitude_weights


@dataclass(frozen=True)
class Region:
    """A box in degrees; from `west` eastwards to `east`, so that a box with west > east crosses the date line."""

    name: str
    south: float = -90.0
    north: float = 90.0
    west: float = -180.0
    east: float = 180.0

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read `NAME=SOUTH,NORTH,WEST,EAST` (or `NAME=SOUTH,NORTH`, all around).

        Raises:
            ConfigError: It is written otherwise, or south is not below north.
        """
        name, _, box = text.partition("=")
        try:
            numbers = [float(value) for value in box.split(",")]
            region = cls(name.strip(), *numbers) if len(numbers) in (2, 4) else None
        except ValueError:
            region = None
        if region is None or not region.name or region.south >= region.north:
            raise ConfigError(
                f"{text!r} is no region; write NAME=SOUTH,NORTH,WEST,EAST in degrees, such as europe=35,75,-12.5,42.5"
            )
        return region

    def mask(self, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
        """(H, W): which points lie inside."""
        rows = (latitude >= self.south) & (latitude <= self.north)
        width = (self.east - self.west) % 360 or 360.0
        columns = (longitude - self.west) % 360 <= width
        return rows[:, None] & columns


GLOBE = (
    Region("globe"),
    Region("northern extratropics", 20, 90),
    Region("tropics", -20, 20),
    Region("southern extratropics", -90, -20),
)


def region_weights(
    regions: Sequence[Region] | None, latitude: np.ndarray, longitude: np.ndarray, topology: Topology
) -> dict[str, np.ndarray]:
    """Weights (H, W) of each region: cos(latitude), zero outside; equal on a torus, which has no latitude.

    Args:
        regions: None: globe, extratropics and tropics of a globe, else the domain. The first is the one of summaries.

    Raises:
        ConfigError: No grid point with weight lies in a region.
    """
    if regions is None:
        regions = GLOBE if topology is Topology.globe else (Region("domain"),)
    rows = np.ones(len(latitude))
    if topology is not Topology.torus:
        rows = latitude_weights(torch.tensor(latitude)).numpy()
    found = {}
    for region in regions:
        mask = np.ones((len(latitude), len(longitude)), bool)
        if topology is not Topology.torus:
            mask = region.mask(latitude, longitude)
        weights = rows[:, None] * mask
        if not weights.sum() > 0:
            raise ConfigError(
                f"region {region.name!r} has no grid point: the grid spans {latitude.min():g}..{latitude.max():g}° N, "
                f"{longitude.min():g}..{longitude.max():g}° E"
            )
        found[region.name] = weights
    return found
