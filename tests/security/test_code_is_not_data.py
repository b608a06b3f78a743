"""Nothing that is read can run code: how the source reads files, and what hostile files do."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
import torch

from relent.errors import CheckpointError, ConfigError
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.yamlfile import DEEPEST, read_yaml
from relent.train.stage import run_stage

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
UNPICKLES = {
    "pickle.load",
    "pickle.loads",
    "joblib.load",
    "dill.load",
    "dill.loads",
    "pandas.read_pickle",
    "pd.read_pickle",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
}


class Evil:
    """What a pickle can do: call anything when it is read."""

    def __init__(self, made: Path):
        self.made = made

    def __reduce__(self):
        return (Path.touch, (self.made,))


def calls(path: Path) -> list[tuple[str, dict[str, ast.expr], str]]:
    """Dotted name, keywords and place of each call in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg or "**": keyword.value for keyword in node.keywords}
            found.append((ast.unparse(node.func), keywords, f"{path.relative_to(ROOT)}:{node.lineno}"))
    return found


def test_no_source_unpickles_or_calls_a_shell():
    for path in SOURCES:
        for name, keywords, place in calls(path):
            assert name not in UNPICKLES, place
            assert ast.unparse(keywords.get("shell", ast.Constant(False))) == "False", place
            if name == "torch.load":
                assert ast.unparse(keywords["weights_only"]) == "True", place
            if name in ("np.load", "numpy.load"):
                assert ast.unparse(keywords.get("allow_pickle", ast.Constant(False))) == "False", place
            if name.endswith(("trainer.fit", "load_from_checkpoint")) and "ckpt_path" in keywords:
                assert ast.unparse(keywords["weights_only"]) == "True", place


def test_the_one_unpickler_and_the_one_yaml_loader_are_restricted():
    bases = {"Unpickler": [], "Loader": []}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                for base in map(ast.unparse, node.bases):
                    for ending, found in bases.items():
                        if base.endswith(ending):
                            found.append((path.relative_to(ROOT / "src" / "relent").as_posix(), base))
    assert bases["Unpickler"] == [("data/images.py", "pickle.Unpickler")]
    assert bases["Loader"] == [("manifest/yamlfile.py", "yaml.SafeLoader")]


def test_weights_are_written_as_safetensors_alone():
    for path in SOURCES:
        for name, _, place in calls(path):
            assert name != "torch.save" or path.parts[-2:] == ("train", "checkpoints.py"), place


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_checkpoint_that_calls_something_is_refused_before_it_runs(catalogue: Catalogue, tmp_path, form):
    spec = catalogue.stage_spec(Run("patterns", "cross_entropy", "default", "smoke", 0))
    made = tmp_path / "made"
    planted = Path(spec.output, "checkpoints", spec.plan(), "last.ckpt")
    planted.parent.mkdir(parents=True)
    content = {"relent": {"plan": spec.plan(), "batches": 4, "step": 4, "seconds": 0.0}, "evil": Evil(made)}
    if form == "torch":
        torch.save(content, planted)
    else:
        planted.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"last\.ckpt: is no whole Relent checkpoint") as error:
        run_stage(spec)
    assert "\n" not in str(error.value)
    assert not made.exists()
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        run_stage(spec, resume=planted)
    assert not made.exists()


TAGS = {
    "object": "!!python/object/apply:pathlib.Path.touch [made]",
    "module": "!!python/module:os",
    "name": "!!python/name:os.system",
    "tuple": "!!python/tuple [1, 2]",
    "own": "!evil {}",
}


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_that_makes_objects_is_refused_with_file_and_line(tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "task.yaml"
    file.write_text(f"name: task\ntitle: fine\nsummary: {TAGS[tag]}\n")
    with pytest.raises(
        ConfigError, match=r"task\.yaml:3: is not valid YAML: could not determine a constructor"
    ) as error:
        read_yaml(file)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [file]


def test_yaml_that_grows_without_bound_is_refused(tmp_path):
    file = tmp_path / "task.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="holds more than 100,000 values"):
        read_yaml(file)
    file.write_text("a: &a\n  b: *a\n")
    with pytest.raises(ConfigError, match="an alias holds itself"):
        read_yaml(file)
    for depth in (DEEPEST + 10, 5000):
        file.write_text("a: " + "[" * depth + "]" * depth)
        with pytest.raises(ConfigError, match="nested more than"):
            read_yaml(file)


@pytest.mark.parametrize("value", ["!!timestamp never", "!!int many", "!!int ''", "!!float no", "!!bool 7"])
def test_yaml_values_that_cannot_be_made_are_one_clear_line(tmp_path, value):
    file = tmp_path / "task.yaml"
    file.write_text(f"b: 1\na: {value}\n")
    with pytest.raises(ConfigError, match=r"^[^\n]*task\.yaml:2: is not valid YAML: is no \w+$"):
        read_yaml(file)
