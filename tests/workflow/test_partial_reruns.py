"""Changing one thing reruns exactly what depends on it: asked of Snakemake itself."""

import shutil

import pytest

pytestmark = pytest.mark.workflow

REPORT = {"compare": 1, "claims": 1, "figures": 1, "page": 1, "track": 1, "all": 1}


def rules(jobs) -> dict[str, int]:
    return {name: count for name, count in jobs.items() if " " not in name}


@pytest.fixture
def changing(finished):
    """The finished project; its files are put back afterwards, with their time stamps."""
    keep = {}
    for name in ("config", "src"):
        keep[name] = finished.folder.parent / f"kept-{name}"
        shutil.copytree(finished.folder / name, keep[name])
    yield finished
    for name, copy in keep.items():
        shutil.rmtree(finished.folder / name)
        shutil.move(copy, finished.folder / name)


def test_second_run_does_nothing(finished):
    assert finished.planned() == {}


def test_changed_hyperparameter_reruns_that_method(changing):
    changing.edit(
        "config/methods/distillation/pld.yaml",
        "hyperparameters: {}}\n  cifar100",
        "hyperparameters: {teacher_temperature: 2.0}}\n  cifar100",
    )
    jobs = changing.planned()
    assert rules(jobs) == {"student": 2, "evaluate": 2, **REPORT}
    assert jobs["student pld 0"] == jobs["student pld 1"] == 1


def test_changed_statement_reruns_that_method(changing):
    changing.edit("src/relent/methods/distillation/pld.py", '"pld": loss.mean()', '"pld": 1.0 * loss.mean()')
    jobs = changing.planned()
    assert rules(jobs) == {"student": 2, "evaluate": 2, **REPORT}
    assert jobs["student pld 0"] == jobs["student pld 1"] == 1


def test_changed_comment_and_docstring_rerun_nothing(changing):
    changing.edit("src/relent/methods/distillation/pld.py", '"""Trains with PLD;', '"""Trains by PLD;')
    path = changing.folder / "src/relent/methods/distillation/pld.py"
    path.write_text(path.read_text() + "\n# a comment\n")
    changing.edit("config/methods/distillation/pld.yaml", "title: List-wise", "# a comment\ntitle: List-wise")
    assert changing.planned() == {}


def test_changed_shared_function_reruns_what_reaches_it(changing):
    changing.edit(
        "src/relent/divergences/ranking.py", "    steps = left - chosen\n", "    steps = 1.0 * (left - chosen)\n"
    )
    jobs = changing.planned()
    assert rules(jobs) == {"student": 2, "evaluate": 2, **REPORT}
    assert jobs["student pld 0"] == 1


def test_changed_claim_rechecks_claims_alone(changing):
    changing.edit("config/methods/distillation/pld.yaml", "text: PLD beats cross-entropy.", "text: PLD wins.")
    assert rules(changing.planned()) == {"claims": 1, "page": 1, "track": 1, "all": 1}


def test_added_seed_trains_that_seed(changing):
    changing.config(methods=["cross_entropy", "knowledge_distillation", "pld"], seeds=[0, 1, 2])
    jobs = changing.planned()
    assert rules(jobs) == {"student": 3, "evaluate": 3, **REPORT}
    assert all(jobs[f"student {method} 2"] == 1 for method in ("cross_entropy", "knowledge_distillation", "pld"))


def test_added_method_trains_alone(changing):
    changing.config(methods=["cross_entropy", "knowledge_distillation", "pld", "nkd"], seeds=[0, 1])
    jobs = changing.planned()
    assert rules(jobs) == {"student": 2, "evaluate": 2, **REPORT}
    assert jobs["student nkd 0"] == jobs["student nkd 1"] == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scores.json", {"evaluate": 1, **REPORT}),
        ("weights.safetensors", {"student": 1, "evaluate": 1, **REPORT}),
    ],
)
def test_deleted_output_is_made_again(finished, name, expected):
    path = finished.run("pld", 1) / name
    kept = path.with_name(f"kept-{name}")
    path.rename(kept)
    try:
        jobs = finished.planned()
        assert rules(jobs) == expected
        assert jobs["evaluate pld 1"] == 1
    finally:
        kept.rename(path)


def test_changed_data_file_reruns_everything_that_reads_it(continued):
    import numpy as np
    import zarr

    labels = zarr.open_group(continued.folder / "data/patterns/smoke/dataset.zarr", mode="a")["labels"]
    labels[:2] = np.array([1, 1])
    assert rules(continued.planned()) == {"teacher": 1, "student": 6, "evaluate": 6, **REPORT}


def test_single_run_method_family_and_task_can_be_asked_for(finished):
    folder = finished.run("pld").relative_to(finished.folder)
    done = finished.snakemake("-n", "--forceall", f"{folder}/scores.json")
    assert "student" in done.stdout + done.stderr
    assert finished.planned("--config", "methods=nkd")["student nkd 1"] == 1
    assert rules(finished.planned("--forceall", "distillation"))["student"] == 6
    assert rules(finished.planned("--forceall", "patterns"))["page"] == 1
    assert rules(finished.planned("--forceall", "data")) == {"prepare": 1, "data": 1}
