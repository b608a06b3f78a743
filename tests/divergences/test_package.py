from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import relent.divergences as package


@pytest.mark.parametrize("module", list(package._MODULES))
def test_the_package_exports_what_its_modules_export(module: str) -> None:
    home = import_module(f"relent.divergences.{module}")
    assert sorted(package._MODULES[module]) == sorted(home.__all__)
    for name in home.__all__:
        assert getattr(package, name) is getattr(home, name)


def test_names_are_unique_and_unknown_ones_refused() -> None:
    assert len(set(package.__all__)) == len(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    assert not set(package.__all__) & set(package._MODULES)  # a function must not hide a module
    with pytest.raises(AttributeError, match="has no attribute 'kl'"):
        package.kl  # noqa: B018


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, relent.divergences; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
