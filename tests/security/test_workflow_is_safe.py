"""Through the real Snakefile: odd folder names, and configurations that try to run something."""

from __future__ import annotations

import pytest

from workflow.conftest import TASK, SmallProject

pytestmark = pytest.mark.workflow

ODD = """it's "my" {} $(touch made) ; `touch made` & | > x"""


def test_folders_with_spaces_quotes_and_shell_signs(tmp_path):
    """One run with data, teacher, training, evaluation, figures and tracking, in folders with every sign of a shell."""
    # MLflow writes the working directory into SQL as it is: a single quote there is its error.
    project = SmallProject(tmp_path / ODD.replace("'", "").format("project"))
    folders = {name: ODD.format(name) for name in ("data", "teachers", "results")}
    project.config(methods=["cross_entropy"], seeds=[0], **folders, tracking={"artifacts": ODD.format("artifacts")})
    project.snakemake()
    folder = project.folder / folders["results"] / "patterns"
    for name in ("comparison.html", "comparison.csv", "claims.json", "cross_entropy/default/smoke/seed0/scores.json"):
        assert (folder / name).is_file()
    assert (project.folder / folders["results"] / "tracking.json").is_file()
    assert not list(tmp_path.rglob("made"))
    assert project.planned() == {}


def refused(project: SmallProject, *arguments: str) -> str:
    """The one line with which Snakemake refuses, before any job."""
    done = project.snakemake("-n", *arguments, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("relent: ")]
    assert not list(project.folder.rglob("made"))
    return line


def test_a_configuration_or_manifest_that_runs_something_is_refused(project_folder):
    project = project_folder
    config = project.folder / "config/config.yaml"
    kept = config.read_text()
    config.write_text(f"__use_yte__: true\n__definitions__:\n  - open('made', 'w')\n{kept}")
    assert "config.yaml:1: __use_yte__: unknown key" in refused(project)
    config.write_text(f"{kept}plugins: !!python/object/apply:os.system ['touch made']\n")
    assert "is not valid YAML: could not determine a constructor" in refused(project)
    config.write_text(f'{kept}results: "a\\nb"\n')
    assert "characters that do not show" in refused(project)
    config.write_text(kept)
    assert "a folder's path may not hold braces" in refused(project, "--config", "results='a{task}'")
    assert "may not begin with '-'" in refused(project, "--config", "results=-rf")
    project.write("config/tasks/patterns.yaml", TASK | {"data_module": "os"})
    assert "patterns.yaml:" in refused(project)
    project.write("config/tasks/patterns.yaml", TASK | {"name": "../patterns"})
    assert "patterns.yaml:1: name: " in refused(project)


@pytest.fixture
def project_folder(tmp_path):
    return SmallProject(tmp_path)
