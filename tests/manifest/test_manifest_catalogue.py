"""The project's own catalogue: which runs a configuration means, what they get, and that planning loads no torch."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from relent.errors import ConfigError
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.models import Config
from relent.manifest.yamlfile import parse, read_yaml

CONFIG = Path(__file__).resolve().parents[2] / "config"


@pytest.fixture(scope="module")
def own() -> Catalogue:
    return Catalogue.load(CONFIG)


def asked(own: Catalogue, **changes) -> list[Run]:
    document = read_yaml(CONFIG / "config.yaml")
    document.data.update(changes)
    return [run for comparison in own.comparisons(parse(Config, document)) for run in comparison.runs]


def test_main_job_has_every_method_and_seed_and_runs_deterministic_ones_once(own: Catalogue) -> None:
    runs = asked(own)
    counts = Counter((run.task, run.method) for run in runs)
    assert counts["images", "pld"] == counts["weather_storm", "fuxi_ens"] == 3
    assert counts["weather_storm", "persistence"] == counts["weather_twin", "climatology"] == 1


@pytest.mark.parametrize(
    ("changes", "methods"),
    [
        ({"methods": "nkd"}, {"nkd"}),
        ({"methods": "pld,fuxi_ens"}, {"pld", "fuxi_ens"}),
        (
            {"tasks": "images_few", "family": "distillation"},
            {"cross_entropy", "knowledge_distillation", "sinkd", "dkd", "lelp"},
        ),
        ({"tasks": ["weather_isentropic"], "methods": ["vae_l1_kl"]}, {"vae_l1_kl"}),
    ],
)
def test_a_job_can_be_restricted(own: Catalogue, changes: dict, methods: set[str]) -> None:
    assert {run.method for run in asked(own, **changes)} == methods


def test_a_family_means_its_methods_that_fit_the_task(own: Catalogue) -> None:
    weather = {method.name for method in own.methods.values() if method.family == "weather"}
    runs = asked(own, tasks="weather_isentropic", methods="family:weather")
    assert {run.method for run in runs} == weather - {"perfect_ensemble"}


def test_a_restriction_that_leaves_nothing_is_refused(own: Catalogue) -> None:
    with pytest.raises(ConfigError, match="nothing is left to run"):
        asked(own, tasks="images", methods="fuxi_ens")


def test_settings_come_in_layers(own: Catalogue) -> None:
    values = {v: own.stage_spec(Run("images", "pld", v, "laptop", 0)).hyperparameters for v in ("default", "cifar100")}
    assert values["default"]["teacher_temperature"] == 1.0  # the paper's, from the Config
    assert values["cifar100"]["teacher_temperature"] == 4.0  # the variant's
    assert values["default"]["max_steps"] == own.tasks["images"].scales["laptop"].training["max_steps"]  # the task's
    teacher = own.teacher_spec("images", "convnet", "laptop").hyperparameters
    assert teacher["batch_size"] == own.tasks["images"].teachers["convnet"].training["laptop"]["batch_size"]


def test_a_students_plan_depends_on_its_teachers(own: Catalogue) -> None:
    spec = own.stage_spec(Run("images", "nkd", "default", "laptop", 0))
    assert spec.upstream["teacher"] == own.teacher_spec("images", "convnet", "laptop").plan()
    assert own.stage_spec(Run("images", "cross_entropy", "default", "laptop", 0)).upstream == {}


def test_planning_loads_neither_torch_nor_lightning() -> None:
    program = (
        "import sys; from relent.project import Project; Project.load(file='config/config.yaml').targets();"
        "print(sorted({'torch', 'lightning', 'transformers', 'mlflow', 'zarr'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CONFIG.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
