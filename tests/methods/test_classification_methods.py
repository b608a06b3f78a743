"""Every classification method keeps the contract: seeds, exact resume, its baseline at weight zero, finite losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from relent.contract.check import check_method
from relent.manifest.catalogue import Catalogue

METHODS = (
    *("sinkd", "dkd", "dist", "fitnet", "nd_loss", "deep_mutual_learning", "bd_kd", "lelp"),
    *("opl", "harmonic", "z_loss", "sam", "saf", "mesa", "pgd_at", "trades", "done_at"),
)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name: str, catalogue: Catalogue, tmp_path: Path):
    found = check_method(catalogue, name, "patterns", tmp_path / name)
    broken = [f"{result.name}: {result.detail}" for result in found if result.status == "failed"]
    assert not broken
