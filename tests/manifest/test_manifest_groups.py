"""Groups of comparisons in the configuration: what is wrong is told with its place; what restrictions leave."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from relent.errors import ConfigError
from relent.manifest.catalogue import Catalogue
from relent.manifest.groups import check_groups
from relent.manifest.models import Config
from relent.manifest.yamlfile import parse, read_yaml
from relent.project import Project

CONFIG = Path(__file__).resolve().parents[2] / "config"
COMPARED = {"images": ["cross_entropy", "pld"], "text_few": ["cross_entropy", "knowledge_distillation"]}
GROUP = {
    "title": "Which objective?",
    "tasks": list(COMPARED),
    "goals": {"accuracy": ["accuracy"], "calibration": ["ece", "nll"]},
}


@pytest.fixture(scope="module")
def own() -> Catalogue:
    return Catalogue.load(CONFIG)


def written(folder: Path, name: str = "which", more: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A configuration file with one group, neither of whose comparisons is in the main job."""
    comparisons = [{"task": task, "methods": methods, "main": False} for task, methods in COMPARED.items()]
    comparisons.append({"task": "images_cnn", "methods": ["cross_entropy"]})
    path = folder / "config.yaml"
    content = {"comparisons": comparisons, "groups": {name: GROUP | changes}, **(more or {})}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def checked(own: Catalogue, path: Path) -> None:
    document = read_yaml(path)
    check_groups(parse(Config, document), own, document)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["images", "text_fwe"]}, "groups.which.tasks.1: no task 'text_fwe' (did you mean 'text_few'?)"),
        ({"tasks": ["images", "images"]}, "groups.which.tasks.1: task 'images' stands twice; keep one"),
        ({"tasks": ["words"]}, "groups.which.tasks.0: task 'words' has no comparison; add one under comparisons"),
        ({"tasks": []}, "groups.which.tasks: "),
        ({"reference": "cros_entropy"}, "groups.which.reference: no method 'cros_entropy' (did you mean 'cross_entr"),
        ({"goals": {}}, "groups.which.goals: "),
        ({"goals": {"good": []}}, "groups.which.goals.good: has no metric; name one"),
        (
            {"goals": {"good": ["acuracy"]}},
            "goals.good.0: no task of the group reports 'acuracy' (did you mean 'accurac",
        ),
        ({"goals": {"good": ["ece", "ece"]}}, "groups.which.goals.good.1: metric 'ece' stands twice; keep one"),
        ({"goals": {"good": ["class_overlap"]}}, "goals.good.0: 'class_overlap' of task 'images' has no direction"),
        ({"goals": {" good": ["ece"]}}, "groups.which.goals"),
        ({"task": ["images"]}, "groups.which.task: unknown key (did you mean 'tasks'?)"),
        ({"title": ""}, "groups.which.title: "),
    ],
)
def test_a_wrong_group_is_refused(own: Catalogue, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        checked(own, path)
    assert str(error.value).startswith(f"{path}:")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "what"), [("images", "a task"), ("distillation", "a family"), ("overview", "a rule"), ("data", "a rule")]
)
def test_a_taken_name_is_refused(own: Catalogue, tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(ConfigError, match=f"groups.{name}: '{name}' is taken: it is {what} of the workflow"):
        checked(own, written(tmp_path, name))


def test_targets_of_a_group_and_of_the_main_job(tmp_path: Path) -> None:
    project = Project.load(file=written(tmp_path), manifests=CONFIG)
    assert project.groups() == {"which": ["images", "text_few"]}
    assert project.group_targets("which") == [
        "results/which/overview.html",
        "results/images/comparison.html",
        "results/text_few/comparison.html",
    ]
    assert "results/text_few/claims.json" in project.overview_inputs("which")
    assert "results/which/overview.html" not in project.targets()
    everything = written(tmp_path, more={"tasks": ["images", "text_few"]})
    assert "results/which/overview.html" in Project.load(file=everything, manifests=CONFIG).targets()


def test_a_restricted_job_leaves_a_smaller_group_out_of_the_main_job(tmp_path: Path) -> None:
    """A page of part of the tasks must not take the place of the whole one unless it is asked for."""
    one = Project.load({"tasks": "images"}, written(tmp_path), CONFIG)
    assert one.groups() == {"which": ["images"]}
    assert "results/which/overview.html" not in one.targets()
    assert '"tasks":["images"]' in one.overview_json("which").replace(" ", "")
    assert one.tracked_groups() == []
    assert Project.load({"tasks": "images_cnn"}, written(tmp_path), CONFIG).groups() == {}


def test_a_group_is_tracked_once_its_page_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project = Project.load(file=written(tmp_path), manifests=CONFIG)
    assert project.tracked_groups() == []
    page = Path(project.overview("which"))
    page.parent.mkdir(parents=True)
    page.touch()
    assert project.tracked_groups() == ["which"]
