"""Runs that die, code that changes under a waiting job, and input that is wrong: one clear line before any job."""

import pytest
import yaml

from relent.errors import RelentError
from relent.manifest import fingerprint
from relent.project import Project

from .conftest import TASK

pytestmark = pytest.mark.workflow


def test_job_refuses_another_plan_than_its_own(finished):
    """A source file that was edited while a job waited: the job stops before it writes."""
    done = finished.relent(
        "train",
        "patterns",
        "pld",
        "--scale",
        "smoke",
        "--seed",
        "7",
        "--plan",
        "0123456789abcdef",
        "--results",
        "fresh",
    )
    assert done.returncode == 1
    assert "changed after this job was planned" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (finished.folder / "fresh").exists()


def set_key(path, keys, value):
    document = yaml.safe_load(path.read_text())
    target = document
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


CONFIG, METHOD, MANIFEST = "config/config.yaml", "config/methods/distillation/pld.yaml", "config/tasks/patterns.yaml"
WRONG = {
    "unknown method": (CONFIG, ("comparisons", 0, "methods"), ["pdl"], "no method 'pdl' (did you mean 'pld'?)"),
    "unknown task": (CONFIG, ("comparisons", 0, "task"), "pattern", "no task 'pattern' (did you mean 'patterns'?)"),
    "unknown variant": (CONFIG, ("comparisons", 0, "methods"), ["pld:cifar"], "did you mean 'cifar100'?"),
    "unknown scale": (CONFIG, ("scale",), "huge", "'smoke', 'laptop' or 'cluster'"),
    "scale that the task lacks": (CONFIG, ("scale",), "cluster", "has no scale 'cluster'; it has smoke"),
    "unknown key": (CONFIG, ("sedes",), [1], "unknown key (did you mean 'seeds'?)"),
    "negative seed": (CONFIG, ("seeds",), [-1], "a seed is a whole number"),
    "seed twice": (CONFIG, ("seeds",), [1, 1], "a seed stands twice"),
    "wrong type": (CONFIG, ("confidence",), "high", "valid number"),
    "wrong hyperparameter type": (
        METHOD,
        ("variants", "default", "hyperparameters"),
        {"teacher_temperature": "warm"},
        "teacher_temperature",
    ),
    "negative hyperparameter": (
        METHOD,
        ("variants", "default", "hyperparameters"),
        {"teacher_temperature": -1},
        "greater than 0",
    ),
    "absurd hyperparameter": (
        METHOD,
        ("hyperparameters",),
        {"smoke": {"learning_rate": 1e6}},
        "less than or equal to 10",
    ),
    "unknown hyperparameter": (
        METHOD,
        ("hyperparameters",),
        {"smoke": {"teacher_temprature": 1}},
        "unknown hyperparameter 'teacher_temprature' (did you mean 'teacher_temperature'?)",
    ),
    "input nobody makes": (
        METHOD,
        ("stages", "student", "inputs"),
        ["data", "oracle"],
        "reads 'oracle', which nobody makes",
    ),
    "teacher the task lacks": (METHOD, ("stages", "student", "inputs"), ["data", "teacher:tall"], "no teacher 'tall'"),
    "duplicate name": (METHOD, ("name",), "nkd", "is 'nkd' but the file is pld.yaml"),
    "missing module": (METHOD, ("implementation",), "relent.methods.distillation.pdl:PLD", "does not exist"),
    "missing class": (METHOD, ("implementation",), "relent.methods.distillation.pld:PLQ", "did you mean 'PLD'?"),
    "claim on a metric that is not": (METHOD, ("claims", 0, "metric"), "acuracy", "did you mean 'accuracy'?"),
    "baseline that is not": (MANIFEST, ("baseline",), "hinton", "no method 'hinton'"),
    "path outside": (METHOD, ("name",), "../pld", "pattern"),
}


@pytest.fixture
def wrong(finished, request):
    """The finished project with one wrong value; put back afterwards."""
    name, keys, value, message = WRONG[request.param]
    path = finished.folder / name
    kept = path.read_text()
    set_key(path, keys, value)
    yield finished, name, message
    path.write_text(kept)


@pytest.mark.parametrize("wrong", WRONG, indirect=True)
def test_wrong_input_is_one_clear_line(wrong, monkeypatch):
    project, _, message = wrong
    monkeypatch.setattr(fingerprint, "PACKAGE_ROOT", project.folder / "src")
    with pytest.raises(RelentError) as error:
        Project.load(file=project.folder / CONFIG)
    text = str(error.value)
    assert message in text
    assert ".yaml" in text
    assert "\n" not in text


@pytest.mark.parametrize("wrong", ["unknown method", "absurd hyperparameter"], indirect=True)
def test_snakemake_prints_that_line_before_any_job(wrong):
    project, name, message = wrong
    done = project.snakemake(check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("relent: ")]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert name.split("/")[-1] in lines[0]
    assert "Traceback" not in done.stderr


def test_broken_data_is_found_before_any_job(taught):
    folder = taught.folder / "data/patterns/smoke/dataset.zarr/inputs/c"
    chunks = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = chunks[0].read_bytes()
    chunks[0].write_bytes(kept[:100])
    done = taught.snakemake(check=False)
    assert "cannot be decoded" in done.stderr
    chunks[0].unlink()
    done = taught.snakemake(check=False)
    assert "a chunk is missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (taught.folder / "results").exists()


def test_teacher_with_other_classes_is_refused(taught):
    outputs = taught.folder / "teachers/patterns/wide/smoke/outputs.zarr/zarr.json"
    outputs.write_text(outputs.read_text().replace('"class 3"', '"class 3", "class 4"'))
    done = taught.relent("train", "patterns", "knowledge_distillation", "--scale", "smoke")
    assert done.returncode == 1
    assert "the teacher knows 5 classes" in done.stderr
    assert "Traceback" not in done.stderr


def test_nan_in_a_teachers_output_is_refused(taught):
    import zarr

    logits = zarr.open_group(taught.folder / "teachers/patterns/wide/smoke/outputs.zarr", mode="a")["logits"]
    logits[3, 1] = float("nan")
    done = taught.relent("train", "patterns", "knowledge_distillation", "--scale", "smoke")
    assert done.returncode == 1
    assert "outputs.zarr/logits: holds NaN" in done.stderr


def test_unwritable_results_folder_is_refused(project):
    (project.folder / "locked").write_text("a file, not a folder")
    done = project.snakemake("--config", "results=locked/results", check=False)
    assert done.returncode != 0
    assert "relent: " in done.stderr
    assert "Traceback" not in done.stderr


def test_tracking_server_that_is_away_fails_its_rule_alone(continued):
    page, receipt = (continued.folder / "results" / name for name in ("patterns/comparison.html", "tracking.json"))
    page.unlink()
    receipt.unlink()
    continued.config(methods=["cross_entropy"], seeds=[0], tracking={"uri": "http://user:secret@127.0.0.1:9/"})
    done = continued.snakemake("--keep-going", check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "127.0.0.1:9" in output
    assert "secret" not in output
    assert page.is_file()
    assert not receipt.exists()


def test_task_manifest_of_these_tests_is_valid():
    from relent.manifest.models import Task

    assert Task.model_validate(TASK).name == "patterns"
