"""What pseudo-subclasses know of hidden classes: score, table and figures, from a stage's output."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from sklearn.metrics import mutual_info_score

from relent.compare.results import read_run
from relent.data.receipt import write_receipt
from relent.errors import DataError
from relent.evaluate.run import evaluate_run
from relent.files import read_json
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.runspec import RunSpec
from relent.tasks.classification.comparison import draw
from relent.tasks.classification.data import read_data
from relent.tasks.classification.subclasses import evaluate_subclasses, share_matrices
from relent.train.stage import run_stage
from synthetic_patterns import write_patterns

CLASSES, HIDDEN, EACH = 2, 6, 40


@pytest.fixture(scope="module")
def lelp(shared_catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """LELP on two classes that hide six; not to be changed."""
    root = tmp_path_factory.mktemp("lelp")
    dataset = write_patterns(root / "data" / "patterns" / "smoke", classes=HIDDEN, each=EACH)
    group = zarr.open_group(dataset / "dataset.zarr", mode="r+")
    shown = group["labels"][...]
    group["labels"][...] = shown % CLASSES
    group.create_array("shown", data=shown)
    group.attrs.update(classes=["even", "odd"], shown=[f"kind {number}" for number in range(HIDDEN)])
    write_receipt(dataset, title="patterns", counts=read_json(dataset / "receipt.json")["counts"])
    layout = Layout(str(root / "data"), f"{root}/teachers", f"{root}/results")
    catalogue = replace(shared_catalogue, layout=layout)
    run_stage(catalogue.teacher_spec("patterns", "wide", "smoke"))
    run = Run("patterns", "lelp", "default", "smoke", 0)
    for stage in catalogue.methods["lelp"].stages:
        spec = catalogue.stage_spec(run, stage)
        few = spec.hyperparameters | {"subclasses": 3}
        run_stage(replace(spec, hyperparameters=few))
    evaluate_run(Path(spec.output))
    return spec


def test_the_score_is_the_information_of_label_and_likeliest_subclass(lelp):
    folder, data = Path(lelp.output), zarr.open_group(Path(lelp.inputs["data"]) / "dataset.zarr", mode="r")
    shares = zarr.open_group(folder / "stages" / "subclasses" / "subclasses.zarr", mode="r")["shares"][...]
    labels, shown, split = (data[name][...] for name in ("labels", "shown", "split"))
    test = split == 3
    likeliest = np.array([row[label].argmax() for row, label in zip(shares, labels)])
    written = read_json(folder / "scores.json")
    names = [f"{label}/{subclass}" for label, subclass in zip(labels[test], likeliest[test])]
    expected = mutual_info_score(names, shown[test])
    assert written["scores"]["subclass_information"] == pytest.approx(expected, abs=1e-12)
    ends = [written["settings"][f"subclass_information_{end}"] for end in ("floor", "ceiling")]
    assert ends == pytest.approx([math.log(2), math.log(6)], abs=1e-12)
    assert ends[0] - 1e-12 <= expected <= ends[1] + 1e-12
    for row in written["tables"]["subclasses"]:
        number = int(row["shown"].removeprefix("kind "))
        own = likeliest[test & (shown == number)]
        assert row["class"] == ["even", "odd"][number % 2]
        assert row["share"] == pytest.approx((own == row["subclass"] - 1).mean())


def test_figures_of_run_and_comparison_show_them(lelp, tmp_path):
    folder = Path(lelp.output)
    assert (folder / "figures" / "subclasses.png").stat().st_size > 10_000
    one = read_run(folder, "lelp")
    plain = replace(one, label="pld", tables={k: v for k, v in one.tables.items() if k != "subclasses"})
    captions = draw([one, replace(one, label="lelp:s2"), plain], tmp_path)
    assert "numbers of the subclasses mean nothing" in captions["subclasses.png"]
    assert (tmp_path / "subclasses.png").stat().st_size > 10_000
    assert "subclasses.png" not in draw([plain], tmp_path)


def test_matrices_hold_every_share_and_order_subclasses_by_what_they_show(lelp):
    rows = read_json(Path(lelp.output) / "scores.json")["tables"]["subclasses"]
    matrices = share_matrices(rows)
    assert list(matrices) == ["even", "odd"]
    for name, (shown, subclasses, matrix) in matrices.items():
        assert matrix.shape == (3, 3)
        np.testing.assert_allclose(matrix.sum(1), 1)
        for (row, column), share in np.ndenumerate(matrix):
            wanted = (name, shown[row], subclasses[column])
            assert [r["share"] for r in rows if (r["class"], r["shown"], r["subclass"]) == wanted] == [share]
        centres = (matrix * np.arange(3)[:, None]).sum(0) / matrix.sum(0).clip(1e-12)
        assert (np.diff(centres) >= 0).all()


def test_subclasses_of_another_data_set_are_refused(lelp, tmp_path):
    shutil.copytree(lelp.output, tmp_path / "run")
    group = zarr.open_group(tmp_path / "run" / "stages" / "subclasses" / "subclasses.zarr", mode="r+")
    group.attrs["data_checksum"] = "0" * 64
    with pytest.raises(DataError, match="another data set; train the run again"):
        evaluate_run(tmp_path / "run")


@pytest.mark.parametrize("shown", ["the labels", "nothing"])
def test_where_labels_hide_nothing_there_is_no_score(lelp, shown):
    data = read_data(lelp.inputs["data"])
    data = replace(data, shown=data.labels if shown == "the labels" else None)
    assert evaluate_subclasses(Path(lelp.output), data, lelp.inputs["data"], data.items("test")) == ({}, [], {})
