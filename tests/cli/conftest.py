"""A project of its own for the commands that look around: the real manifests, empty data and results."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relent.cli import cli
from relent.manifest import catalogue
from relent.manifest.yamlfile import Document

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_once: Callable[[Path], Document]) -> Iterator[Path]:
    """A folder with a copy of `config/`; the working directory of the test, and of no other user's profile."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.setattr(catalogue, "read_yaml", read_once)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    return tmp_path


@pytest.fixture
def relent(project: Path) -> Callable[..., Result]:
    """Run a command inside the project; its standard output is a pipe."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments)

    return run


@pytest.fixture
def relent_json(relent: Callable[..., Result]) -> Callable[..., Any]:
    """Run a command with `--json` and read what it prints."""

    def run(*arguments: str) -> Any:
        done = relent(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return run


@pytest.fixture
def loaded_modules(project: Path) -> Callable[..., set[str]]:
    """Run a command in a fresh interpreter; gives the top-level packages that it loaded."""

    def run(*arguments: str) -> set[str]:
        code = (
            "import sys, contextlib, io\nfrom relent.cli import main\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
            f"    main({list(arguments)!r})\n"
            "print(*{name.partition('.')[0] for name in sys.modules})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        return set(done.stdout.split())

    return run


def claim(method: str, name: str, verdict: str, **numbers: Any) -> dict[str, Any]:
    """An entry of a claims.json."""
    nothing = dict.fromkeys(("difference", "low", "high", "p_holm", "seeds_needed"))
    described = {"task": "images", "method": method, "id": name, "verdict": verdict, "reason": "", "seeds": 3}
    return described | {"confidence": 0.95, "unit": "", "digits": 3} | nothing | numbers


@pytest.fixture
def compared(project: Path) -> Path:
    """Results of a comparison of `images`: verdicts on PLD and two scores; gives its folder."""
    folder = project / "results" / "images"
    folder.mkdir(parents=True)
    entries = [
        claim("pld", "better_than_labels", "reproduced", difference=0.0312, low=0.0101, high=0.0523, p_holm=0.012),
        claim("pld", "better_than_kd", "inconclusive", difference=0.001, low=-0.02, high=0.022, seeds_needed=48),
        claim("pld", "carries_the_ranking", "reproduced"),
        claim("nkd", "better_than_kd", "not reproduced"),
        claim("pld", "no_longer_a_claim", "reproduced"),
    ]
    (folder / "claims.json").write_text(json.dumps(entries))
    metric = {"name": "accuracy", "title": "Accuracy", "unit": "", "digits": 4, "direction": "higher"}
    numbers = {"metric": "accuracy", "n": 3, "mean": 0.81234, "low": 0.8, "high": 0.82, "rank": 1, "verdict": "better"}
    numbers |= {"seeds_needed": None, "difference": {"mean": 0.0123, "low": 0.0101, "high": 0.0145}}
    undecided = {"mean": 0.7, "verdict": "not distinguishable", "seeds_needed": 12}
    table = [numbers | {"label": "pld"}, numbers | {"label": "pld:cifar100"} | undecided, numbers | {"label": "nkd"}]
    costs = {"pld": (30.0, 880.0), "pld:cifar100": (30.0, 880.0), "nkd": (20.0, 800.0), "cross_entropy": (20.0, 800.0)}
    comparison = {
        **{"scale": "laptop", "baseline": "knowledge_distillation", "primary_metric": "accuracy"},
        "answer": "pld has the best Accuracy",
        "metrics": [metric],
        "table": table,
        "methods": [
            {"label": label, "training_seconds": seconds, "peak_memory_mb": memory}
            for label, (seconds, memory) in costs.items()
        ],
    }
    (folder / "comparison.json").write_text(json.dumps(comparison))
    return folder


@pytest.fixture
def overviewed(compared: Path) -> Path:
    """The page of a group that holds `images`; gives its folder."""
    folder = compared.parent / "classification"
    folder.mkdir()
    entries = [
        {"label": "pld", "standing": "better", "sentence": "better on 1 of 1 task (images)"},
        {"label": "pld:cifar100", "standing": "open", "sentence": "not told apart from the baseline on 1 of 1 task"},
        {"label": "nkd", "standing": "better", "sentence": "another method's words"},
    ]
    overview = {"scale": "laptop", "reference": "nkd", "tasks": [{"name": "images"}]}
    overview["goals"] = [{"goal": "accuracy", "entries": entries}]
    (folder / "overview.json").write_text(json.dumps(overview))
    return folder
