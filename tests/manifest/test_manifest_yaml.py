"""YAML with lines: what is wrong is told with file, line and key."""

from pathlib import Path

import pytest

from relent.errors import ConfigError
from relent.manifest.models import Config
from relent.manifest.yamlfile import parse, read_yaml


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_lines_of_nested_keys_and_numbers(tmp_path: Path) -> None:
    document = read_yaml(written(tmp_path, "a:\n  b: 1e-3\n  c: [1, {d: 2}]\ne: -4.5E2\n"))
    assert document.data == {"a": {"b": 0.001, "c": [1, {"d": 2}]}, "e": -450.0}
    assert document.line(("a", "b")) == 2
    assert document.line(("a", "c", 1, "d")) == 3
    assert document.line(("a", "c", 7)) == 3
    assert document.line(("nowhere",)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"config\.yaml:3: a: stands twice"),
        ("a:\n  b: 1\n  b: 2\n", r"config\.yaml:3: a\.b: stands twice"),
        ("a: [1\nb: 2\n", r"config\.yaml:2: is not valid YAML"),
        ("- 1\n- 2\n", "must hold keys and values, not a list"),
        ("a: !!python/object:os.system {}\n", "is not valid YAML"),
    ],
)
def test_wrong_yaml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "comparisons:\n  - task: images\n    methods: []\n",
            r":3: comparisons\.0\.methods: list should have at least 1",
        ),
        ("comparisons:\n  - task: images\n    metods: [pld]\n", r"metods: unknown key \(did you mean 'methods'\?\)"),
        ("scale: huge\ncomparisons:\n  - {task: a, methods: [b]}\n", r":1: scale: input should be 'smoke'"),
        (
            "comparisons:\n  - {task: a, methods: [b]}\n  - {task: a, methods: [c]}\n",
            "task 'a' stands in two comparisons",
        ),
        ("scale: smoke\n", "comparisons: is missing and has no default"),
    ],
)
def test_errors_of_a_model_name_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Config, read_yaml(written(tmp_path, text)))
