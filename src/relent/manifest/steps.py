"""The code behind each step after training, and the check that a job runs the code that it was planned with."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from relent.errors import PlanError
from relent.manifest.fingerprint import fingerprint

TEMPLATES = Path(__file__).resolve().parents[1] / "compare" / "templates"


def step_roots(step: str, kind: str = "") -> tuple[str, ...]:
    """Modules that a step starts from: `evaluate`, `compare`, `claims`, `figures`, `page` or `overview`."""
    return {
        "evaluate": (f"relent.tasks.{kind}.evaluation", "relent.evaluate.run"),
        "compare": ("relent.compare.statistics", *([advice] if (advice := advice_module(kind)) else [])),
        "claims": ("relent.compare.claims",),
        "figures": (f"relent.tasks.{kind}.comparison",),
        "page": ("relent.compare.page",),
        "overview": ("relent.compare.overview", "relent.compare.overview_page"),
    }[step]


def advice_module(kind: str) -> str | None:
    """The module of a kind of tasks that adds sections of its own to the comparison page, if it has one."""
    name = f"relent.tasks.{kind}.advice"
    return name if kind and importlib.util.find_spec(name) else None


FILLED_IN = {
    "page": ("comparison.html.j2", "page.css", "sort.html"),
    "overview": ("overview.html.j2", "page.css", "overview.css", "sort.html"),
}
"""Templates of a step."""


def template_code(step: str) -> str:
    """Digest of the templates that a step fills in; empty where it has none."""
    if step not in FILLED_IN:
        return ""
    return hashlib.sha256(b"".join((TEMPLATES / name).read_bytes() for name in FILLED_IN[step])).hexdigest()[:16]


def step_code(step: str, kind: str = "") -> str:
    """Fingerprint of a step's code and templates."""
    return fingerprint(step_roots(step, kind)) + template_code(step)


def check_code(place: Path | str, planned: str | None, now: str) -> None:
    """Refuse to run other code than a job was planned with, so that versions do not mix within a comparison.

    Args:
        place: What the job would write, for the message.
        planned: Fingerprint when the job was planned; None when the command is given by hand.
        now: Fingerprint of the code as it is.

    Raises:
        PlanError: They differ.
    """
    if planned is not None and planned != now:
        raise PlanError(
            f"{place}: code changed after this job was planned (fingerprint {planned}, now {now}); nothing was "
            "written; start the workflow again to run everything with the new version"
        )
