"""Text of manifests, plug-ins and captions stays text on the comparison page."""

from __future__ import annotations

import json
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import pytest

from relent.compare import command
from relent.compare.results import read_run

sys.path.append(str(Path(__file__).resolve().parents[1] / "compare"))
from synthetic_runs import PNG, make_method, make_task, write_run

EVIL = "</title></style></script><script>evil()</script><img src=x onerror=evil()>\"'><svg onload=evil()>"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.scripts, self.handlers, self.addresses = 0, [], []

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.handlers += [key for key, _ in attrs if key.startswith("on")]
        self.addresses += [value for key, value in attrs if key in ("src", "href", "action")]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A page all of whose texts are hostile."""

    def draw(results, into):
        (into / "a.png").write_bytes(PNG)
        return {"a.png": EVIL}

    monkeypatch.setattr(command.importlib, "import_module", lambda name: types.SimpleNamespace(draw=draw))
    metric = {"title": EVIL, "direction": "higher", "unit": EVIL, "description": EVIL}
    task = make_task(
        title=EVIL,
        summary=EVIL,
        notice=EVIL,
        tuning_budget=EVIL,
        metrics={"accuracy": metric},
        primary_metric="accuracy",
    )
    claims = [{"text": EVIL, "source": EVIL}]
    paper = {"title": EVIL, "authors": EVIL, "year": 2024}
    methods = {"pld": make_method("pld", claims, title=EVIL, paper=paper), "hinton": make_method("hinton", title=EVIL)}
    runs = []
    for name, offset in (("pld", 0.1), ("hinton", 0.0)):
        for seed in range(3):
            folder = write_run(tmp_path, name, seed, {"accuracy": 0.5 + offset + 0.01 * seed**2}, facts={"torch": EVIL})
            runs.append((folder, name))
    out = tmp_path / "images"
    comparison = command.run_compare(task, runs, 0.95, out, methods)
    assert [read_run(*run).label for run in runs].count("pld") == 3
    assert EVIL in json.dumps(comparison["title"], ensure_ascii=False).replace('\\"', '"')
    command.run_claims(task, methods, runs, 0.95, out)
    command.run_figures(task, runs, out)
    return command.run_page(out).read_text(encoding="utf-8")


def test_no_text_becomes_a_tag(page):
    tags = Tags()
    tags.feed(page)
    assert tags.scripts == 1, "the page's own, which sorts tables"
    assert tags.handlers == []
    assert all(address.startswith("data:") for address in tags.addresses)
    assert "<script>evil" not in page
    assert page.count("evil()") > 10
