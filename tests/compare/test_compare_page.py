from __future__ import annotations

import base64
import itertools
import json
import re
import types
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_runs import PNG, make_method, make_task, write_run

from relent.compare import command, plots
from relent.compare.page import count, seconds
from relent.compare.results import RunResult
from relent.compare.statistics import compare
from relent.compare.words import best_in_words, enumerate_words, number, open_in_words, p_value, seeds_in_words
from relent.errors import DataError
from relent.files import read_json


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "action")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def folder(runs: list[RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A comparison's folder, made by the commands in the order of the workflow."""

    def draw(results: list[RunResult], into: Path) -> dict[str, str]:
        (into / "reliability.png").write_bytes(PNG)
        return {"reliability.png": f"Reliability <of> {len(results)} runs"}

    monkeypatch.setattr(command.importlib, "import_module", lambda name: types.SimpleNamespace(draw=draw))
    claims = [{"text": "PLD <b>wins</b>"}, {"direction": "lower"}, {"baseline": "absent"}, {"baseline": "nkd"}]
    methods = {"pld": make_method("pld", claims), "hinton": make_method("hinton")}
    task = make_task(notice="No evidence & only a demonstration. More about it.")
    labelled = [(run.folder, run.label) for run in runs]
    out = tmp_path / "images"
    command.run_compare(task, labelled, 0.95, out, methods)
    command.run_claims(task, methods, labelled, 0.95, out)
    command.run_figures(task, labelled, out)
    command.run_page(out)
    return out


def test_page_is_self_contained_and_well_formed(folder: Path) -> None:
    html = (folder / "comparison.html").read_text()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert parser.addresses
    assert all(address.startswith("data:") for address in parser.addresses)
    assert "http" not in html
    assert "url(" not in html
    assert base64.b64encode(PNG).decode() in html


def test_page_holds_every_method_verdict_and_setting(folder: Path) -> None:
    html = (folder / "comparison.html").read_text()
    comparison, claims = read_json(folder / "comparison.json"), read_json(folder / "claims.json")
    assert all(f">{m['label']}<" in html for m in comparison["methods"])
    assert {c["verdict"] for c in claims} == {"reproduced", "not reproduced", "inconclusive", "not checked"}
    chips = re.findall(r'<span class="chip [a-z-]+">([a-z ]+)</span>', html)
    assert chips == [claim["verdict"] for claim in claims]
    assert comparison["answer"] in html
    for text in ("None: published settings.", "c0ffee", "2.13.0", "the last step&#39;s", "snakemake --profile", "nats"):
        assert text in html
    assert all(run["folder"] in html and run["plan"] in html for run in comparison["runs"])


def test_page_says_how_many_seeds_would_decide_what_is_open(folder: Path) -> None:
    html = (folder / "comparison.html").read_text()
    comparison = read_json(folder / "comparison.json")
    tied = next(e for e in comparison["ranking"] if e["label"] == "nkd")
    assert tied["tied"]
    assert f"<td>{tied['seeds_needed']}</td>" in html


def test_what_is_open_against_the_baseline_is_named_with_its_seeds(runs: list[RunResult], tmp_path: Path) -> None:
    comparison = compare(make_task(), runs, 0.9999, tmp_path)
    rows = {r["label"]: r for r in comparison["table"] if r["metric"] == "accuracy"}
    told = open_in_words(comparison)
    assert told.startswith("Not told apart from hinton, with the seeds that would decide it if difference and spread")
    for label in ("pld", "nkd", "smoothing"):
        assert rows[label]["verdict"] == "not distinguishable"
        assert f"{label} ({seeds_in_words(rows[label]['seeds_needed'])})" in told
    assert open_in_words(compare(make_task(), runs, 0.6, tmp_path)) == ""


def test_seeds_in_words() -> None:
    said = [seeds_in_words(n) for n in (None, 12, 10_000)]
    assert said == ["no number of seeds", "about 12 seeds", "10\u202f000 seeds or more"]


def test_page_escapes_what_manifests_say(folder: Path) -> None:
    html = (folder / "comparison.html").read_text()
    assert "PLD &lt;b&gt;wins&lt;/b&gt;" in html
    assert "No evidence &amp; only a demonstration. More about it." in html
    assert "Reliability &lt;of&gt; 13 runs" in html


def test_a_metric_that_a_method_lacks_is_a_dash(folder: Path) -> None:
    html = (folder / "comparison.html").read_text()
    row = html.split('<td data-value="chance">')[1].split("</tr>")[0]
    assert row.count('<td data-value="">–</td>') == 2


def test_one_seed_makes_a_page_without_intervals(runs: list[RunResult], tmp_path: Path) -> None:
    labelled = [(run.folder, run.label) for run in runs if run.seed == 0]
    out = tmp_path / "one"
    command.run_compare(make_task(), labelled, 0.95, out)
    command.run_claims(make_task(), {"pld": make_method("pld", [{}])}, labelled, 0.95, out)
    (out / "figures").mkdir()
    (out / "figures" / "captions.json").write_text("{}")
    html = command.run_page(out).read_text()
    assert "no interval" in html
    assert "inconclusive" in html
    assert "None" not in html.replace("None: published settings.", "")


def test_figures_are_replaced_as_a_whole(folder: Path, runs: list[RunResult], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "figures" / "stale.png").write_bytes(PNG)
    labelled = [(run.folder, run.label) for run in runs]
    command.run_figures(make_task(), labelled, folder)
    assert sorted(p.name for p in (folder / "figures").iterdir()) == ["captions.json", "reliability.png"]

    def forgets(results: list[RunResult], into: Path) -> dict[str, str]:
        return {"absent.png": "never drawn"}

    monkeypatch.setattr(command.importlib, "import_module", lambda name: types.SimpleNamespace(draw=forgets))
    with pytest.raises(DataError, match=r"absent\.png"):
        command.run_figures(make_task(), labelled, folder)
    assert (folder / "figures" / "reliability.png").is_file()


def test_a_missing_figure_or_input_is_named(folder: Path) -> None:
    (folder / "figures" / "reliability.png").unlink()
    with pytest.raises(DataError, match=r"reliability\.png"):
        command.run_page(folder)
    (folder / "claims.json").unlink()
    with pytest.raises(DataError, match=r"claims\.json: does not exist"):
        command.run_page(folder)


def test_scores_of_an_earlier_training_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, "pld", 0, {"accuracy": 0.5})
    scores = json.loads((run / "scores.json").read_text())
    (run / "scores.json").write_text(json.dumps(scores | {"plan": "0" * 16}))
    with pytest.raises(DataError, match="belongs to an earlier training"):
        command.run_compare(make_task(), [(run, "pld")], 0.95, tmp_path)


def test_words_hold_the_notice(folder: Path) -> None:
    said = best_in_words(read_json(folder / "comparison.json"))
    assert said.startswith("images: pld has the best Accuracy (")
    assert said.endswith("(No evidence & only a demonstration.)")


def test_numbers_for_people() -> None:
    assert [number(x, 3) for x in (0.12345, -0.5, 0.0, 1e-5, None)] == ["0.123", "−0.500", "0.000", "1.0e−05", "–"]
    assert [p_value(p) for p in (0.0503, 1e-9, 1.0, None)] == ["0.0503", "<0.001", "1", "–"]
    assert [seconds(s) for s in (0.25, 61.0, 300.0, 9000.0, None)] == ["0.2 s", "61 s", "5 min", "2.5 h", "–"]
    assert [count(n) for n in (1234567, 12, None)] == ["1\u202f234\u202f567", "12", "–"]
    assert [enumerate_words(list(n)) for n in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.013, 0.002), (2e5, 7e5), (1e-9, 2e-9)])
def test_ticks_are_round_evenly_spaced_and_inside(low: float, high: float) -> None:
    found = plots.ticks(low, high)
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert 2 <= len(found) <= 7
    assert low - 1e-9 * (high - low) <= found[0]
    assert found[-1] <= high + 1e-9 * (high - low)
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)


def test_a_far_outlier_is_left_beyond_the_axis() -> None:
    metric = {"title": "Accuracy", "unit": "", "direction": "higher"}
    near = [plots.Mark(f"m{i}", "", 0.80 + 0.02 * i, 0.79, 0.88, "plain") for i in range(4)]
    far = plots.Mark("chance", "0.100", 0.1, None, None, "plain")
    svg = plots._svg([*near, far], metric, "t", None)
    assert svg.count('<circle class="mean"') == 4
    assert svg.count('<path class="mean"') == 1
    assert ">0.100<" in svg
    assert "<path" not in plots._svg(near, metric, "t", None)
