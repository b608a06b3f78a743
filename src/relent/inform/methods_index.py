"""The method index: every method's paper, equation, variants, differences, claims and settings, from the manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from relent.inform.facts import method_facts
from relent.inform.findings import Findings
from relent.inform.hyperparameters import recipe
from relent.inform.markdown import code, table
from relent.inform.pages import (
    allowed_in_words,
    changes_in_words,
    paper_in_short,
    recipe_cells,
    settings_in_words,
    test_in_words,
    value_in_words,
)
from relent.manifest.catalogue import Catalogue

Facts = Mapping[str, Any]

INTRODUCTION = """\
# Method index

<!-- Made by `relent docs` from config/methods/ and the methods' Config classes; change those, not this page. -->

For each method: its paper and objective, what is the paper's and what is ours, its variants, where paper and official
code differ, the claims that are checked, and its settings with their sources. `relent show NAME` prints the same with
the verdicts and scores of the runs on this machine.
"""


def methods_page(catalogue: Catalogue) -> str:
    """docs/methods.md."""
    entries: list[Facts] = [method_facts(catalogue, method, Findings()) for method in catalogue.methods.values()]
    families: dict[str, list[Facts]] = {}
    for entry in entries:
        families.setdefault(entry["family"], []).append(entry)
    lines = [*INTRODUCTION.split("\n"), *_index(families)]
    for family, members in families.items():
        lines += [f"## Family {family}", ""]
        for entry in members:
            lines += _method(entry)
    lines += ["## Recipes of the tasks", "", _RECIPES, ""]
    for task in catalogue.tasks.values():
        lines += [f"### {task.name}", "", *table(*recipe_cells(recipe(task)))]
    return "\n".join(lines).rstrip() + "\n"


_RECIPES = (
    "What all methods of a task share, by scale; settings that no scale changes have the defaults of the "
    "[configuration reference](configuration.md#the-shared-recipe)."
)


def _index(families: Mapping[str, Sequence[Facts]]) -> list[str]:
    rows = [
        (f"[{m['name']}](#{m['name']})", family, m["title"], _cited(m), ", ".join(m["tasks"]), _count(m["claims"]))
        for family, members in families.items()
        for m in members
    ]
    return table(("method", "family", "title", "paper", "tasks", "claims"), rows)


def _count(items: Sequence[Any]) -> str:
    return str(len(items)) if items else ""


def _cited(facts: Facts) -> str:
    paper = facts["paper"]
    if not paper:
        return "baseline" if facts["baseline"] else ""
    link = f"[{paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})" if paper["arxiv"] else paper["title"]
    return f"{link} ({paper['year']})"


def _method(facts: Facts) -> list[str]:
    lines = [f"### {facts['name']}", "", f"**{facts['title']}.** {facts['summary']}", ""]
    if facts["equation"]:
        lines += ["```text", facts["equation"].strip(), "```", ""]
    lines += [f"- {line}" for line in _about(facts)] + [""]
    if len(facts["variants"]) > 1 or facts["variants"][0]["hyperparameters"]:
        variants = [_variant(facts, variant) for variant in facts["variants"]]
        lines += table(("variant", "what is different", "settings"), variants)
    if facts["hyperparameters"]:
        settings = [_hyperparameter(h) for h in facts["hyperparameters"]]
        lines += table(("hyperparameter", "default", "changed to", "allowed", "what it is", "source"), settings)
    lines += _own_recipe(facts)
    for difference in facts["differences"]:
        lines += _difference(difference)
    if facts["claims"]:
        lines += table(("claim", "what it says", "checked as", "source"), [_claim(claim) for claim in facts["claims"]])
    return lines


def _about(facts: Facts) -> list[str]:
    paper = facts["paper"]
    lines = []
    if paper:
        said = ", ".join(filter(None, [paper["authors"], paper_in_short(paper)]))
        lines.append(f"Paper: {paper['title']}. {said}.")
        lines.append(f"Official code: {paper['code'] or 'none named'}.")
    if facts["provenance"]:
        lines.append(f"Provenance: {facts['provenance'].strip()}")
    stages = "; ".join(f"{s['name']} ({', '.join(s['inputs'])})" for s in facts["stages"])
    lines.append(f"Stages and what they read: {stages}.")
    if facts["deterministic"]:
        lines.append("Seeds change nothing: it is run once.")
    if facts["trains_teachers"]:
        lines.append(f"Trains the teachers {', '.join(facts['trains_teachers'])}.")
    lines.append(f"Module: `{facts['implementation']}`.")
    return lines


def _variant(facts: Facts, variant: Facts) -> tuple[str, str, str]:
    mark = " (default)" if variant["name"] == facts["default_variant"] else ""
    return code(variant["name"]) + mark, variant["title"], settings_in_words(variant["hyperparameters"])


def _hyperparameter(facts: Facts) -> tuple[str, str, str, str, str, str]:
    default = code(value_in_words(facts["default"]))
    changes = changes_in_words(facts["changes"])
    return code(facts["name"]), default, changes, allowed_in_words(facts), facts["description"], facts["source"]


def _own_recipe(facts: Facts) -> list[str]:
    """What the method's manifest changes in the shared recipe."""
    rows = [(code(c["name"]), value_in_words(c["value"]), c["scale"]) for c in facts["recipe_changes"]]
    return table(("recipe setting", "changed to", "at scale"), rows) if rows else []


def _difference(facts: Facts) -> list[str]:
    default = facts["default"]
    return [
        f"**Paper and code differ: {facts['what']}.**",
        "",
        f"- paper{' (default)' if default == 'paper' else ''}: {facts['paper']}",
        f"- code{' (default)' if default == 'code' else ''}: {facts['code']}",
        f"- why: {facts['reason']}",
        "",
    ]


def _claim(claim: Facts) -> tuple[str, str, str, str]:
    return code(claim["id"]), claim["text"], test_in_words(claim), claim["source"]
