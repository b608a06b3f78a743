"""Says in words what to use when, by fixed rules and from nothing but tests.

A method is named for a goal if its task's own comparison calls it better than the baseline on one task or more and
worse on none, or if it is worse on none and better on average over the tasks together (`relent.compare.together`). All
others are named as worse, as better here and worse there, or as not told apart, with the seeds that would decide;
nobody wins by a better mean. The rules see neither papers nor families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from relent.compare.words import enumerate_words, finer, number, p_value, seeds_in_words

Entry = Mapping[str, Any]
BANDS = ((0.9, "less than 0.9 times"), (1.1, "0.9 to 1.1 times"), (2.0, "1.1 to 2 times"), (5.0, "2 to 5 times"))
"""Upper ends of the bands in which relative costs are told; beyond the last: more than 5 times."""


def goal_advice(
    goal: str,
    metrics: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    together: Sequence[Mapping[str, Any]],
    methods: Sequence[Mapping[str, Any]],
    reference: str,
) -> dict[str, Any]:
    """What the comparisons say about one goal.

    Args:
        goal: Its name.
        metrics: Task → the metric that measures it there.
        rows: Rows of the group's table.
        together: Differences over the tasks together.
        methods: Methods of the group, with their costs.
        reference: The method in whose costs the others' are told.

    Returns:
        `goal`, `metrics`, `headline` and `lines` (sentences), and `entries`: for each method that has a baseline to be
        compared with, its `standing` (`better`, `mixed`, `worse`, `open`, `one seed`), its tasks by mark, what it is
        over the tasks `together` (or None), and all that as a `sentence`.
    """
    over = {entry["label"]: entry for entry in together}
    entries = []
    for method in methods:
        label = method["label"]
        own = [row for row in rows if row["label"] == label and goal in row["goals"] and row["verdict"]]
        if own:
            entries.append(_entry(label, own, over.get(label)))
    costs = {method["label"]: cost_in_words(method, reference) for method in methods}
    return {
        "goal": goal,
        "metrics": dict(metrics),
        "headline": _headline(entries),
        "lines": _lines(entries, costs),
        "entries": entries,
    }


def _entry(label: str, rows: Sequence[Mapping[str, Any]], together: Mapping[str, Any] | None) -> dict[str, Any]:
    better, worse, single = (
        [row["task"] for row in rows if row["verdict"] == mark] for mark in ("better", "worse", "one seed")
    )
    undecided = [row for row in rows if row["verdict"] == "not distinguishable"]
    undecided.sort(key=lambda row: (row["seeds_needed"] is None, row["seeds_needed"] or 0))
    average = together["verdict"] if together else ""
    entry = {
        "label": label,
        "standing": _standing(bool(better), bool(worse), average, bool(undecided)),
        "tasks": len(rows),
        "better": better,
        "worse": worse,
        "open": [{"task": row["task"], "seeds_needed": row["seeds_needed"]} for row in undecided],
        "one_seed": single,
        "together": dict(together) if together else None,
    }
    return entry | {"sentence": _sentence(entry)}


def _standing(better: bool, worse: bool, average: str, undecided: bool) -> str:
    for_it, against_it = better or average == "better", worse or average == "worse"
    if for_it or against_it:
        return "mixed" if for_it and against_it else "better" if for_it else "worse"
    return "open" if undecided else "one seed"


def _sentence(entry: Entry) -> str:
    """Where a method stands against the baselines of its tasks, in one sentence without its name."""
    parts = [
        f"{mark} on {len(entry[mark])} of {_tasks(entry['tasks'])} ({', '.join(entry[mark])})"
        for mark in ("better", "worse")
        if entry[mark]
    ]
    if entry["together"]:
        parts.append(_together(entry["together"]))
    if entry["open"]:
        few = entry["open"][0]
        where = f"{len(entry['open'])} of {_tasks(entry['tasks'])}"
        others = ", the others need as many or more" if len(entry["open"]) > 1 and few["seeds_needed"] else ""
        parts.append(
            f"not told apart from the baseline on {where}: {seeds_in_words(few['seeds_needed'])} would decide "
            f"{few['task']}{others}"
        )
    if entry["one_seed"]:
        parts.append(f"one seed on {', '.join(entry['one_seed'])}, which tells nothing")
    return "; ".join(parts)


def _together(found: Mapping[str, Any]) -> str:
    """A method over the tasks together."""
    digits, unit = finer(found["digits"]), f" {found['unit']}" if found["unit"] else ""
    plus = "+" if found["difference"] > 0 else ""
    value = f"{plus}{number(found['difference'], digits)}{unit}"
    span = f"interval {number(found['low'], digits)} to {number(found['high'], digits)}"
    mark = "not told apart from it" if found["verdict"] == "not distinguishable" else found["verdict"]
    data = f", on {found['strata']} independent data set{'s' if found['strata'] != 1 else ''}"
    alike = data if found["strata"] != len(found["tasks"]) else ""
    where = f"on average over the {_tasks(len(found['tasks']))} with baseline {found['baseline']}{alike},"
    return f"{where} {mark} ({found['title']} {value}, {span}, Holm p {p_value(found['p_holm'])})"


def _tasks(count: int) -> str:
    return f"{count} task{'s' if count != 1 else ''}"


def winners(entries: Sequence[Entry]) -> list[str]:
    """Methods that are better and nowhere worse, with the tasks on which they are."""
    return [f"{entry['label']} ({_where(entry, 'better')})" for entry in _of(entries, "better")]


def _where(entry: Entry, mark: str) -> str:
    """On how many tasks, and whether on average."""
    parts = [f"{len(entry[mark])} of {_tasks(entry['tasks'])}"] if entry[mark] else []
    if entry["together"] and entry["together"]["verdict"] == mark:
        parts.append(f"on average over {len(entry['together']['tasks'])}")
    return ", ".join(parts)


def _headline(entries: Sequence[Entry]) -> str:
    named = winners(entries)
    if named:
        return f"Better than the baseline, and nowhere worse: {enumerate_words(named)}"
    if not entries:
        return "No method was compared with a baseline"
    if all(entry["standing"] == "one seed" for entry in entries):
        return "One seed was run, which tells nothing"
    return "No method was told to be better than the baseline and nowhere worse: nothing measured here speaks for any"


def _of(entries: Sequence[Entry], standing: str) -> list[Entry]:
    """Entries of a standing: most tasks with a mark first, open ones by the fewest seeds."""
    found = [entry for entry in entries if entry["standing"] == standing]
    if standing == "open":
        return sorted(found, key=lambda e: (e["open"][0]["seeds_needed"] is None, e["open"][0]["seeds_needed"] or 0))
    return sorted(found, key=lambda e: (-len(e["better"]), -len(e["worse"])))


def _lines(entries: Sequence[Entry], costs: Mapping[str, str]) -> list[str]:
    """The sentences under a goal's headline: winners with their cost, then the others by standing."""
    lines = [f"{e['label']}: {e['sentence']}. {costs[e['label']]}" for e in _of(entries, "better")]
    lines += [f"{e['label']}, as it depends: {e['sentence']}" for e in _of(entries, "mixed")]
    worse = [f"{e['label']} ({_where(e, 'worse')})" for e in _of(entries, "worse")]
    if worse:
        lines.append(f"Worse than the baseline, and nowhere better: {enumerate_words(worse)}")
    undecided = _of(entries, "open")
    if undecided:
        told = [f"{e['label']} ({e['open'][0]['task']}, {_few(e['open'][0]['seeds_needed'])})" for e in undecided]
        lines.append(
            "Not told apart from the baseline; in brackets the task on which the fewest seeds would decide, and how "
            f"many: {enumerate_words(told)}"
        )
    single = [e["label"] for e in _of(entries, "one seed")]
    if single and len(single) < len(entries):
        lines.append(f"Run with one seed alone: {enumerate_words(single)}")
    return lines


def _few(seeds: int | None) -> str:
    return seeds_in_words(seeds).removeprefix("about ").replace(" seeds", "")


def cost_in_words(method: Mapping[str, Any], reference: str) -> str:
    """Training time and memory of a method over the reference's."""
    time, memory = method["time"], method["memory"]
    if time is None:
        return f"Its cost relative to {reference} is not known"
    spread = f" ({time['low']:.2g} to {time['high']:.2g} over tasks)" if time["tasks"] > 1 else ""
    told = f"Training takes {time['middle']:.2f} times as long as {reference}'s{spread}"
    return told + (f", memory {memory['middle']:.2f} times" if memory is not None else "")


def cost_bands(overview: Mapping[str, Any]) -> list[str]:
    """Methods by how long their training takes over the reference's, the quickest first; then who needs more memory."""
    known = [m for m in overview["methods"] if m["time"] and m["label"] != overview["reference"]]
    lines, low = [], -1.0
    for high, name in (*BANDS, (float("inf"), "more than 5 times")):
        members = sorted((m["time"]["middle"], m["label"]) for m in known if low < m["time"]["middle"] <= high)
        if members:
            lines.append(f"{name}: {enumerate_words([f'{label} ({ratio:.2f})' for ratio, label in members])}")
        low = high
    heavy = [m for m in known if m["memory"] and m["memory"]["middle"] > BANDS[1][0]]
    if heavy:
        heavy.sort(key=lambda m: -m["memory"]["middle"])
        named = enumerate_words([f"{m['label']} ({m['memory']['middle']:.2f})" for m in heavy])
        lines.append(f"more than {BANDS[1][0]} times the memory: {named}")
    return lines


def overall_answer(goals: Sequence[Mapping[str, Any]]) -> str:
    """The answer of a group in one line: for each goal who was told to be better, if anybody was."""
    said = [f"{goal['goal']}: {enumerate_words(winners(goal['entries']) or ['no method'])}" for goal in goals]
    return f"better than the baseline and nowhere worse for {'; for '.join(said)}"
