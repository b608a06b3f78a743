"""A method in a folder outside the package goes through the whole DAG and is found in the comparison."""

import csv
import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.workflow

TOY = Path(__file__).resolve().parents[1] / "plugins" / "toy"


def test_plugin_goes_through_the_whole_dag(continued):
    """It is added to a comparison whose other runs are there already."""
    shutil.copytree(TOY, continued.folder / "mine")
    continued.config(methods=["knowledge_distillation", "toy"], seeds=[0, 1], plugins=["mine"])
    continued.snakemake("--quiet", "all")
    with (continued.folder / "results/patterns/comparison.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert any("toy" in row.values() for row in rows)
    claims = json.loads((continued.folder / "results/patterns/claims.json").read_text())
    assert {claim["method"] for claim in claims} >= {"toy"}
    assert "toy" in (continued.folder / "results/patterns/comparison.html").read_text()
    assert continued.planned() == {}
    path = continued.folder / "mine" / "toy.py"
    path.write_text(path.read_text() + "\nEXTRA = 1\n")
    jobs = continued.planned()
    assert jobs["student toy 0"] == 1
    assert "student knowledge_distillation 0" not in jobs
