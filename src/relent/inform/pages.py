"""The pages of `relent list`, `relent show` and `relent doctor`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from relent.compare.words import finer, number, seeds_in_words
from relent.inform.text import Page

if TYPE_CHECKING:
    from relent.inform.doctor import Examination

Facts = Mapping[str, Any]


def value_in_words(value: Any) -> str:
    """A value as one writes it in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def settings_in_words(values: Mapping[str, Any]) -> str:
    """`name 1, other 2`."""
    return ", ".join(f"{name} {value_in_words(value)}" for name, value in values.items())


def paper_in_short(facts: Facts) -> str:
    """Year and arXiv id."""
    arxiv = f"arXiv {facts['arxiv']}" if facts["arxiv"] else ""
    return ", ".join(filter(None, [str(facts["year"] or ""), arxiv]))


# ------------------------------------------------------------------------------------------------ relent list


def list_page(facts: Facts, page: Page | None = None) -> None:
    """Methods by family, then tasks."""
    page = page or Page()
    columns = ("method", "title", "paper", "variants", "for tasks of kind", "claims")
    families: dict[str, list[Facts]] = {}
    for method in facts["methods"]:
        families.setdefault(method["family"], []).append(method)
    page.title(f"{len(facts['methods'])} methods", "`relent show NAME` tells all about one")
    for family, members in families.items():
        page.heading(family)
        rows = [
            (m["name"], m["title"], paper_in_short(m), _some(m["variants"]), ", ".join(m["tasks"]), m["claims"])
            for m in members
        ]
        page.table(columns, rows)
    page.heading("tasks")
    rows = [
        (t["name"], t["title"], t["kind"], ", ".join(t["scales"]), t["primary_metric"], f"{t['methods']} methods")
        for t in facts["tasks"]
    ]
    page.table(("task", "title", "kind", "scales", "ranked by", "fitting"), rows)


# ------------------------------------------------------------------------------------------------ relent show


def method_page(facts: Facts, page: Page | None = None) -> None:
    """All about a method."""
    page = page or Page()
    paper = facts["paper"] or dict.fromkeys(("title", "authors", "year", "arxiv", "code"), "")
    page.title(facts["name"], facts["title"])
    page.pairs(
        [
            ("family", facts["family"] + (" (a baseline)" if facts["baseline"] else "")),
            ("paper", paper["title"]),
            ("", ", ".join(filter(None, [paper["authors"], paper_in_short(paper)]))),
            ("official code", paper["code"] or ("none named" if facts["paper"] else "")),
            ("tasks", ", ".join(facts["tasks"]) or f"none here; for kind {', '.join(facts['kinds'])}"),
            ("seeds", "change nothing: it is run once" if facts["deterministic"] else ""),
            ("trains teachers", ", ".join(facts["trains_teachers"])),
            ("here", f"{facts['implementation']}, {facts['manifest']}"),
        ]
    )
    for heading in ("summary", "equation", "provenance"):
        if facts[heading]:
            page.heading(heading)
            page.paragraph(facts[heading])
    page.heading("stages")
    page.table(("stage", "reads", "does"), [(s["name"], ", ".join(s["inputs"]), s["title"]) for s in facts["stages"]])
    page.heading("variants")
    page.table(("variant", "what is different", "settings"), [_variant(facts, v) for v in facts["variants"]])
    _hyperparameters(page, facts)
    _differences(page, facts["differences"])
    _claims(page, facts["claims"])
    _measured(page, facts)
    _results(page, facts["results"])
    _commands(page, facts["commands"])


def _variant(facts: Facts, variant: Facts) -> tuple[str, str, str]:
    mark = "the default. " if variant["name"] == facts["default_variant"] else ""
    return variant["name"], f"{mark}{variant['title']}".strip(), settings_in_words(variant["hyperparameters"])


def changes_in_words(changes: Sequence[Facts]) -> str:
    """`3 (cluster)`."""
    return "; ".join(f"{value_in_words(change['value'])} ({change['place']})" for change in changes)


def _hyperparameters(page: Page, facts: Facts) -> None:
    if facts["hyperparameters"]:
        page.heading("hyperparameters of its own")
        rows = [
            (h["name"], value_in_words(h["default"]), changes_in_words(h["changes"]), *_told(h))
            for h in facts["hyperparameters"]
        ]
        page.table(("name", "default", "changed to", "allowed", "what it is", "source of the default"), rows)
    for task, rows in facts["recipes"].items():
        page.heading(f"recipe on {task}, shared by all its methods")
        page.table(*recipe_cells(rows))


def recipe_cells(rows: Sequence[Facts]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and cells of a recipe: one column a scale."""
    scales = [key for key in rows[0] if key not in ("name", "description")] if rows else []
    cells = [(row["name"], *(value_in_words(row[scale]) for scale in scales), row["description"]) for row in rows]
    return ("setting", *scales, "what it is"), cells


def _told(hyperparameter: Facts) -> tuple[str, str, str]:
    return allowed_in_words(hyperparameter), hyperparameter["description"], hyperparameter["source"]


def allowed_in_words(hyperparameter: Facts) -> str:
    """Type and bounds: `number, > 0, ≤ 100`."""
    return ", ".join(filter(None, [hyperparameter["type"], hyperparameter["bounds"]]))


def _differences(page: Page, differences: Sequence[Facts]) -> None:
    if not differences:
        return
    page.heading("where paper and official code differ")
    for difference in differences:
        page.paragraph(difference["what"])
        marks = {difference["default"]: " (default here)"}
        page.paragraph(f"paper{marks.get('paper', '')}: {difference['paper']}", indent=4, hanging=2)
        page.paragraph(f"code{marks.get('code', '')}: {difference['code']}", indent=4, hanging=2)
        page.paragraph(f"why: {difference['reason']}", indent=4, hanging=2)


def _claims(page: Page, claims: Sequence[Facts]) -> None:
    if not claims:
        return
    page.heading("claims")
    for claim in claims:
        page.paragraph(f"{claim['id']}: {claim['text']}")
        page.paragraph(" · ".join(filter(None, [test_in_words(claim), claim["source"]])), indent=4, hanging=2)
        for entry in claim["verdicts"]:
            page.paragraph(f"→ {verdict_in_words(entry)}", indent=4, hanging=2)
        if not claim["verdicts"]:
            page.paragraph("→ not run", indent=4)


def test_in_words(claim: Facts) -> str:
    """How a claim is checked: `superiority: accuracy higher than cross_entropy`."""
    kind, margin = claim["kind"].replace("_", "-"), f", margin {claim['margin']:g}" if claim["margin"] else ""
    return f"{kind}: {claim['metric']} {claim['direction']} than {claim['baseline']}{margin}"


def verdict_in_words(entry: Facts) -> str:
    """Task, verdict and the numbers behind it."""
    digits, unit = finer(entry["digits"]), f" {entry['unit']}" if entry["unit"] else ""
    parts = [f"{entry['task']}: {entry['verdict']}"]
    if entry["difference"] is not None:
        parts.append(f"difference {number(entry['difference'], digits)}{unit}")
    if entry["low"] is not None:
        low, high = number(entry["low"], digits), number(entry["high"], digits)
        parts.append(f"{100 * entry['confidence']:g} % interval {low} to {high}")
    if entry["p_holm"] is not None:
        parts.append(f"Holm-corrected p {entry['p_holm']:.2g}")
    if entry["seeds"]:
        parts.append(f"{entry['seeds']} seed{'s' if entry['seeds'] > 1 else ''}")
    if entry["seeds_needed"]:
        parts.append(f"{seeds_in_words(entry['seeds_needed'])} would decide it")
    return ", ".join(parts) + (f" ({entry['reason']})" if entry["reason"] else "")


def _measured(page: Page, facts: Facts) -> None:
    """The score that ranks each task, what it costs, and what to use when; or that nothing was run."""
    rows = [result for result in facts["results"] if result["primary"]]
    missing = [task for task in facts["tasks"] if task not in {row["task"] for row in rows}]
    page.heading("measured")
    if not rows:
        page.paragraph("Nothing: it is in no finished comparison here, so that nothing can be said about it.")
        return
    columns = ("task", "method", "score", "mean", "interval", "difference", "its interval", "against the baseline")
    cells = [_primary(row, several=len({r["label"] for r in rows}) > 1) for row in rows]
    page.table((*columns, "training time", "memory"), cells)
    if missing:
        page.paragraph(f"Not run on {', '.join(missing)}.")
    _advice(page, facts["advice"])


def _primary(row: Facts, several: bool) -> tuple[str, ...]:
    mean, interval, *_ = _score(row)
    difference, span = _difference(row)
    missing = "is the baseline" if row["label"] == row["baseline"] else f"{row['baseline']} was not run"
    verdict = f"{row['verdict']} ({row['baseline']})" if row["verdict"] else missing
    if row["seeds_needed"]:
        verdict += f"; {seeds_in_words(row['seeds_needed'])} would decide"
    costs = row["costs"]
    relative = [f"{costs[c]:.2f} × {costs['reference']}" if c in costs else "" for c in ("time", "memory")]
    name = row["label"] if several else ""
    return (f"{row['task']} ({row['scale']})", name, row["title"], mean, interval, difference, span, verdict, *relative)


def _difference(row: Facts) -> tuple[str, str]:
    """Paired difference to the baseline, and its interval."""
    found, digits = row["difference"], finer(row["digits"])
    if not found:
        return "", ""
    plus = "+" if found["mean"] > 0 else ""
    span = "" if found["low"] is None else f"{number(found['low'], digits)} to {number(found['high'], digits)}"
    return plus + number(found["mean"], digits), span


def _advice(page: Page, advice: Sequence[Facts]) -> None:
    several = len({entry["label"] for entry in advice}) > 1
    for group in dict.fromkeys(entry["group"] for entry in advice):
        mine = [entry for entry in advice if entry["group"] == group]
        page.heading(f"what to use when: {group}, scale {mine[0]['scale']}")
        for entry in mine:
            name = f", {entry['label']}" if several else ""
            page.paragraph(f"{entry['goal']}{name}: {entry['sentence']}", hanging=2)


def _results(page: Page, results: Sequence[Facts]) -> None:
    for task in dict.fromkeys(result["task"] for result in results):
        rows = [r for r in results if r["task"] == task]
        page.heading(f"measured on {task} at scale {rows[0]['scale']}, all scores")
        several = len({row["label"] for row in rows}) > 1
        cells = [
            (r["label"] if several else "", r["title"], *_score(r), *_difference(r), r["verdict"] or "") for r in rows
        ]
        against = f"against {rows[0]['baseline']}"
        columns = ("method", "score", "mean", "interval", "seeds", "rank", "difference", "its interval", against)
        page.table(columns, cells)


def _score(result: Facts) -> tuple[str, str, str, str]:
    digits, unit = result["digits"], f" {result['unit']}" if result["unit"] else ""
    low, high = number(result["low"], digits), number(result["high"], digits)
    interval = f"{low} to {high}" if result["low"] is not None else ""
    return f"{number(result['mean'], digits)}{unit}", interval, str(result["n"]), str(result["rank"] or "")


def _commands(page: Page, commands: Sequence[Facts]) -> None:
    if commands:
        page.heading("commands")
        page.table(("command", "what it does"), [(c["command"], c["does"]) for c in commands])


def task_page(facts: Facts, page: Page | None = None) -> None:
    """All about a task."""
    page = page or Page()
    page.title(facts["name"], facts["title"])
    page.pairs([("kind", facts["kind"]), ("baseline", facts["baseline"]), ("here", facts["manifest"])])
    texts = (("what is done", "summary"), ("know first", "notice"), ("tuning", "tuning_budget"), ("result", "answer"))
    for heading, key in texts:
        if facts[key]:
            page.heading(heading)
            page.paragraph(facts[key])
    page.heading(f"data, prepared by {facts['data_module']}")
    sources = [(s["name"], s["title"], f"{s['package']} {s['version']}", s["licence"]) for s in facts["sources"]]
    page.table(("source", "what it is", "package", "licence"), sources)
    page.heading(f"metrics, ranked by {facts['primary_metric']}; weights evaluated: {facts['checkpoint_rule']}")
    metrics = [(m["name"], m["unit"], m["direction"] or "", m["description"]) for m in facts["metrics"]]
    page.table(("metric", "unit", "better", "what it is"), metrics)
    if facts["teachers"]:
        page.heading("teachers")
        teachers = [(t["name"], t["method"], t["title"], _by_scale(t["model"])) for t in facts["teachers"]]
        page.table(("teacher", "trained by", "what it is", "network"), teachers)
    page.heading("scales")
    scales = [(scale, *_scale(settings)) for scale, settings in facts["scales"].items()]
    page.table(("scale", "network", "data", "evaluation", "execution", "a job asks for"), scales)
    page.heading("recipe, shared by all methods")
    page.table(*recipe_cells(facts["recipe"]))
    page.heading("methods that fit")
    page.table(("method", "title", "claims"), [(m["name"], m["title"], m["claims"]) for m in facts["methods"]])
    _commands(page, facts["commands"])


def _by_scale(values: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{scale}: {settings_in_words(options)}" for scale, options in values.items())


def _scale(settings: Facts) -> tuple[str, str, str, str, str]:
    execution, asked = settings["execution"], settings["resources"]
    needs = f"{asked['threads']} threads, {asked['mem_mb']} MB, {asked['runtime']} min"
    return (
        settings_in_words(settings["model"]),
        settings_in_words(settings["data"]),
        settings_in_words(settings["evaluation"]),
        f"{execution['accelerator']}, {execution['precision']}",
        needs + (f", {asked['gpus']} GPU" if asked["gpus"] else ""),
    )


# ---------------------------------------------------------------------------------------------- relent doctor


def doctor_page(examination: Examination, page: Page | None = None) -> None:
    """What there is, and last what is missing."""
    page = page or Page()
    facts = examination.facts
    page.title("relent doctor")
    page.pairs([*_machine(facts), *_services(facts), *_project(facts)])
    headings = {"broken": "broken", "missing": "missing", "note": "good to know"}
    for severity, heading in headings.items():
        found = [finding for finding in examination.findings if finding.severity == severity]
        if found:
            page.heading(heading)
        for finding in found:
            page.paragraph(f"· {finding.what}", hanging=2)
            page.paragraph(f"→ {finding.remedy}", indent=4, hanging=2)
    page.heading("verdict")
    if not examination.sound:
        page.paragraph("The main job cannot run before what is broken is mended.")
    else:
        data = examination.facts["data"]
        missing = "missing" in (*data["sources"].values(), *data["datasets"].values())
        alone = " It gets the missing data by itself, and needs a network for that." if missing else ""
        page.paragraph(f"The main job can run: `make run`, or `snakemake`.{alone}")


def _machine(facts: Facts) -> list[tuple[str, str]]:
    hardware, software = facts["hardware"], facts["software"]
    memory = f"{hardware['memory_available_gib']} of {hardware['memory_gib']} GiB free"
    cuda = f"built for CUDA {software['torch_cuda']}" if software["torch_cuda"] else "CPU build"
    gpus = "; ".join(f"{gpu['name']}, {gpu['memory']}, driver {gpu['driver']}" for gpu in facts["gpus"])
    others = ", ".join(f"{name} {software[name]}" for name in ("relent", "snakemake", "lightning", "mlflow"))
    return [
        ("cores", f"{hardware['cores']} usable ({hardware['system']})"),
        ("memory", memory if hardware["memory_gib"] else "unknown"),
        ("disk", f"{hardware['disk_free_gib']} GiB free here"),
        ("Python", f"{software['python']}, {others}"),
        ("torch", f"{software['torch']}, {cuda}" if software["torch"] else "not installed"),
        ("GPU", gpus or "none (nvidia-smi names none); the laptop scale needs none"),
    ]


def _services(facts: Facts) -> list[tuple[str, str]]:
    slurm = facts["slurm"]
    there = [name for name, found in slurm["commands"].items() if found]
    partitions = ", ".join(f"{p['partition']} ({p['nodes']} nodes, {p['gres']})" for p in slurm["partitions"])
    return [
        ("SLURM", f"{slurm['version']}: {', '.join(there)}" if there else "none here; needed on a cluster alone"),
        ("partitions", partitions),
        ("profile slurm", slurm["profile"] or "not registered"),
    ]


def _project(facts: Facts) -> list[tuple[str, str]]:
    if "tracking" not in facts:
        return []
    tracking = facts["tracking"]
    if "reachable" in tracking:
        state = "answers" if tracking["reachable"] else "does not answer"
    else:
        state = f"{tracking.get('runs', 0)} runs" if tracking["exists"] else "made by the first run"
    data = {**facts["data"]["sources"], **facts["data"]["datasets"]}
    folders = [f"{name}{'' if writable else ' (NOT writable)'}" for name, writable in facts["folders"].items()]
    return [
        ("tracking", f"{tracking['address']} ({state})"),
        ("data", ", ".join(f"{name} {state}" for name, state in data.items())),
        ("writable", ", ".join(folders)),
    ]


MOST_VARIANTS = 5
"""Variants that the list of methods names; `relent show` tells all."""


def _some(variants: list[str]) -> str:
    more = len(variants) - MOST_VARIANTS
    return ", ".join(variants[:MOST_VARIANTS]) + (f" and {more} more" if more > 0 else "")
