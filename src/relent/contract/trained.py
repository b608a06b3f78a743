"""Checks of whole, short trainings: seeds, resume, baseline limit, evaluation.

A method may name its limit as a class attribute, `baseline_limit = ("cross_entropy", {"alpha": 1.0})`: with these
hyperparameters it must end with the weights of that baseline, bit for bit (weights that the baseline lacks aside).
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from relent.contract.result import CheckResult, failed, not_applicable, passed
from relent.contract.subject import (
    CHECKPOINT_EVERY,
    DIES_AFTER_BATCH,
    STEPS,
    Subject,
    differing,
    stored_outputs,
    weights,
)
from relent.evaluate.run import evaluate_run
from relent.methods.config import MethodConfig
from relent.train.stage import load_module, run_stage


def check_seeds(subject: Subject) -> list[CheckResult]:
    """The same seed gives the same bits, another seed other ones."""
    folders = [subject.trained(place) for place in ("first", "again")]
    first, again = (weights(folder) for folder in folders)
    wrong = sorted({*differing(first, again), *differing(again, first)})
    if stored_outputs(folders[0]) != stored_outputs(folders[1]):
        wrong.append("the predictions")
    same = passed("same seed", f"{len(first)} weight tensors and the predictions equal, bit for bit")
    if wrong:
        same = failed(
            "same seed",
            f"two trainings with one seed differ in {wrong[0]}",
            "draw every random number from torch's global generator inside the step; no numpy, no `random`, no clock",
        )
    if subject.method.deterministic or not first:
        return [same, not_applicable("other seed", "the manifest says that seeds change nothing")]
    other = weights(subject.trained("other", seed=1))
    if not differing(first, other):
        advice = "do not seed inside the method; or set `deterministic: true` in the manifest"
        return [same, failed("other seed", "seed 1 ends with the weights of seed 0", advice)]
    return [same, passed("other seed", "seed 1 ends with other weights")]


class Killed(Exception):
    """Stands for whatever ends a run in the middle."""


class Dies(Callback):
    """Ends a training before batch `batches`, counted from zero and from its start or resume."""

    def __init__(self, batches: int):
        self.left = batches

    def on_train_batch_start(self, *_: Any) -> None:
        if not self.left:
            raise Killed
        self.left -= 1


def check_resume(subject: Subject) -> CheckResult:
    """Every stage dies once after its first checkpoint and ends, resumed, with the bits of an uninterrupted run."""
    expected = weights(subject.trained("first"))
    trained = False
    for spec in subject.specs("resumed").values():
        if spec.hyperparameters["max_steps"]:
            trained = True
            subject.prepare_inputs(spec)
            with suppress(Killed):
                run_stage(spec, callbacks=[Dies(DIES_AFTER_BATCH * spec.hyperparameters["accumulate"])])
        subject.train(spec)
    if not trained:
        return not_applicable("resume", "nothing is trained")
    wrong = differing(expected, weights(Path(spec.output)))
    if wrong:
        return failed(
            "resume",
            f"a run killed after step {DIES_AFTER_BATCH} and resumed ends with other weights ({wrong[0]})",
            "keep every state that a step reads in parameters, buffers or the optimiser, so that checkpoints hold it",
        )
    detail = (
        f"killed after step {DIES_AFTER_BATCH} of {STEPS}, resumed at {CHECKPOINT_EVERY}: weights equal, bit for bit"
    )
    return passed("resume", detail)


def check_baseline_limit(subject: Subject) -> CheckResult:
    """With the hyperparameters of its limit the method ends with the baseline's weights."""
    name = "baseline limit"
    module, _, class_name = subject.method.implementation.partition(":")
    limit = getattr(getattr(load_module(module), class_name), "baseline_limit", None)
    if limit is None:
        return not_applicable(name, "the class names no baseline_limit")
    baseline, values = limit
    if baseline not in subject.catalogue.methods:
        return failed(name, f"there is no method {baseline!r}", "name a method of the catalogue in baseline_limit")
    final = list(subject.specs("limit").values())[-1].hyperparameters
    recipe = {key: value for key, value in final.items() if key in MethodConfig.model_fields}
    expected = weights(subject.trained("baseline", method=baseline, hyperparameters=recipe))
    wrong = differing(expected, weights(subject.trained("limit", hyperparameters=values)))
    settings = ", ".join(f"{key} = {value}" for key, value in values.items())
    if wrong:
        return failed(
            name,
            f"at {settings} the weights after {STEPS} steps are not those of {baseline} ({wrong[0]})",
            "check weights and signs of the terms; a term of weight zero must add an exact zero, and no random draw",
        )
    return passed(name, f"at {settings} it is {baseline}, bit for bit, after {STEPS} steps")


def check_evaluation(subject: Subject) -> CheckResult:
    """The run's scores are finite, are metrics of the task, and hold the primary one and those of the claims on it."""
    folder = subject.trained("first")
    inputs = {"data": subject.catalogue.layout.dataset(subject.task.name, subject.scale)}
    if subject.task.teachers:
        inputs["teacher"] = subject.teacher(next(iter(subject.task.teachers)))
    scores = evaluate_run(folder, inputs).scores
    here = [c for c in subject.method.claims if not c.tasks or subject.task.name in c.tasks]
    here = [c for c in here if (c.variant or subject.method.default_variant) == subject.variant]
    claimed = {c.metric for c in here if c.metric in subject.task.metrics}
    missing = sorted(({subject.task.primary_metric} | claimed) - set(scores))
    if missing:
        advice = f"let relent.tasks.{subject.task.kind}.evaluation compute it, or claim another metric"
        return failed("evaluation", f"no score {', '.join(missing)}", advice)
    unlisted = sorted(set(scores) - set(subject.task.metrics))
    if unlisted:
        advice = f"list it under metrics of the task {subject.task.name}, with a title, or do not compute it"
        return failed("evaluation", f"the task does not list the score {', '.join(unlisted)}", advice)
    infinite = [key for key, value in scores.items() if not math.isfinite(value)]
    if infinite:
        return failed("evaluation", f"{infinite[0]} is not finite", "see that the predictions are finite")
    absent = [key for key in subject.task.metrics if key not in scores]
    return passed("evaluation", f"{len(scores)} scores, finite" + (f"; without {', '.join(absent)}" if absent else ""))
