"""The outcome of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    `check` is its name, with the stage where a method has several; `detail` says what was seen; `advice`, of a check
    that failed, says what to do.
    """

    check: str
    outcome: Outcome
    detail: str
    advice: str = ""


def passed(check: str, detail: str) -> CheckResult:
    """A check that was kept."""
    return CheckResult(check, "pass", detail)


def failed(check: str, detail: str, advice: str) -> CheckResult:
    """A check that was not kept, and what to do about it."""
    return CheckResult(check, "fail", detail, advice)


def not_applicable(check: str, detail: str) -> CheckResult:
    """A check that means nothing for this method, and why."""
    return CheckResult(check, "not applicable", detail)
