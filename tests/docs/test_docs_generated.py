"""The generated pages and schemas are up to date, complete, and the schemas judge as the models do."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from relent.cli import cli
from relent.inform.generated import with_files
from relent.inform.reference import FILES, configuration_page
from relent.manifest.catalogue import Catalogue

ROOT = Path(__file__).resolve().parents[2]


def docs(*arguments: str):
    return CliRunner().invoke(cli, ["docs", *arguments])


def test_everything_is_up_to_date():
    done = docs("--check", "--root", str(ROOT))
    assert done.exit_code == 0, done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the pages are made from, and of the pages."""
    for name in ("config", "docs", "tests/plugins", "workflow/schemas"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_check_names_what_is_out_of_date_and_docs_mends_it(copy):
    manifest = copy / "config" / "methods" / "distillation" / "pld.yaml"
    manifest.write_text(manifest.read_text().replace("title: List-wise", "title: Ranked"))
    (copy / "workflow" / "schemas" / "task.schema.json").unlink()
    before = (copy / "docs" / "methods.md").read_text()
    done = docs("--check", "--root", str(copy))
    assert done.exit_code == 1
    assert "docs/methods.md is out of date" in done.stderr
    assert "workflow/schemas/task.schema.json is out of date" in done.stderr
    assert "docs/configuration.md" not in done.stderr
    assert (copy / "docs" / "methods.md").read_text() == before
    assert docs("--root", str(copy)).exit_code == 0
    assert "Ranked distillation" in (copy / "docs" / "methods.md").read_text()
    assert docs("--check", "--root", str(copy)).exit_code == 0


def test_the_example_is_the_tested_file(copy):
    toy = copy / "tests" / "plugins" / "toy" / "toy.py"
    toy.write_text(toy.read_text() + "\nADDED = 1\n")
    assert docs("--check", "--root", str(copy)).exit_code == 1
    docs("--root", str(copy))
    assert "ADDED = 1\n```" in (copy / "docs" / "adding_a_method.md").read_text()


def test_included_files_replace_only_their_block(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    page = "```python\nkept\n```\n<!-- file: a.py -->\n```python\nold\n```\n```sh\nkept\n```\n"
    expected = "```python\nkept\n```\n<!-- file: a.py -->\n```python\nx = 1\n```\n```sh\nkept\n```\n"
    assert with_files(tmp_path, page) == expected


def test_the_method_index_names_every_method_claim_and_difference():
    text = (ROOT / "docs" / "methods.md").read_text()
    for method in Catalogue.load(ROOT / "config").methods.values():
        assert f"\n### {method.name}\n" in text
        assert method.equation.strip() in text
        assert all(claim.text in text for claim in method.claims)
        assert all(difference.reason in text for difference in method.differences)
        assert all(f"`{variant}`" in text for variant in method.variants if len(method.variants) > 1)


def test_every_key_of_every_manifest_is_described():
    page = configuration_page()
    for model, _ in FILES.values():
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no description"
            assert f"| `{name}` |" in page


def manifests() -> list[tuple[str, Path]]:
    patterns = {
        "config": "config.yaml",
        "task": "tasks/*.yaml",
        "method": "methods/*/*.yaml",
        "source": "sources/*.yaml",
    }
    return [(name, path) for name, pattern in patterns.items() for path in sorted((ROOT / "config").glob(pattern))]


@pytest.mark.parametrize(("name", "path"), manifests(), ids=lambda value: getattr(value, "stem", value))
def test_schemas_accept_what_the_models_accept(name, path):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "workflow" / "schemas" / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    values = yaml.safe_load(path.read_text())
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values | {"misspelt": 1}, schema)
