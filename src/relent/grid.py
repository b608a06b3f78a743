"""How the borders of a grid meet."""

from __future__ import annotations

from enum import StrEnum


class Topology(StrEnum):
    """What lies beyond the border of a latitude–longitude grid or of a tile of it."""

    regional = "regional"
    """Unknown: no border meets another. Every tile that is smaller than the grid is regional."""
    globe = "globe"
    """Columns go around; rows end at the poles."""
    torus = "torus"
    """Rows and columns both go around (idealised flow on a doubly periodic plane)."""

    @property
    def wraps_columns(self) -> bool:
        """Whether the last column is a neighbour of the first."""
        return self is not Topology.regional

    @property
    def wraps_rows(self) -> bool:
        """Whether the last row is a neighbour of the first."""
        return self is Topology.torus

    def of_tile(self, *, all_rows: bool, all_columns: bool) -> Topology:
        """Topology of a tile that has all rows or all columns of the grid, or not."""
        if not (all_columns and self.wraps_columns):
            return Topology.regional
        return Topology.torus if all_rows and self.wraps_rows else Topology.globe
