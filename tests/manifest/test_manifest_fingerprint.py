"""Fingerprints follow statements, not words, and reach what a module imports."""

from pathlib import Path

import pytest

from relent.errors import ConfigError
from relent.manifest import fingerprint as fp


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `relent` of four modules: a imports b, b imports c relatively, d stands alone."""
    folder = tmp_path / "relent"
    (folder / "sub").mkdir(parents=True)
    for name, text in {
        "__init__.py": '"""Package."""\n',
        "sub/__init__.py": "",
        "a.py": '"""A."""\nfrom relent import b\n\n\ndef f():\n    """Doc."""\n    return b.x  # why\n',
        "b.py": "from relent.sub import c\n\nx = c.y\n",
        "sub/c.py": "from .. import b as _b\n\ny = 1\n",
        "d.py": "z = 1\n",
    }.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(fp, "PACKAGE_ROOT", tmp_path)
    return folder


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_reaches_imports_parents_and_cycles(package: Path) -> None:
    assert set(fp.reached(["relent.a"])) == {"relent", "relent.a", "relent.b", "relent.sub", "relent.sub.c"}
    assert set(fp.reached(["relent.d"])) == {"relent", "relent.d"}


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("a.py", "# why", "# wherefore", False),
        ("a.py", '"""Doc."""', '"""Another."""', False),
        ("a.py", "return b.x", "return  b.x", False),
        ("a.py", "return b.x", "return -b.x", True),
        ("sub/c.py", "y = 1", "y = 2", True),
        ("d.py", "z = 1", "z = 2", False),
    ],
)
def test_changes_with_statements_that_are_reached(package: Path, file: str, old: str, new: str, changes: bool) -> None:
    before = fp.fingerprint(["relent.a"])
    change(package / file, old, new)
    assert (fp.fingerprint(["relent.a"]) != before) == changes


def test_a_file_outside_the_package_counts(package: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("from relent import d\n")
    before = fp.fingerprint([str(plugin)])
    change(package / "d.py", "z = 1", "z = 3")
    assert fp.fingerprint([str(plugin)]) != before
    assert fp.fingerprint([str(plugin)]) == fp.fingerprint([str(plugin)])


def test_what_cannot_be_read_is_named(package: Path) -> None:
    with pytest.raises(ConfigError, match="not in the package"):
        fp.fingerprint(["relent.nowhere"])
    with pytest.raises(ConfigError, match="does not exist"):
        fp.fingerprint(["gone.py"])
    (package / "d.py").write_text("z = (\n")
    with pytest.raises(ConfigError, match=r"d\.py:1: is no valid Python"):
        fp.fingerprint(["relent.d"])
