"""Scores a policy: exactly, from its probability of every completion, or estimated from samples with standard errors.

Exact scores are means over the test prompts, each completion weighted by its probability. The optimum of a run's own
objective and its implicit reward are those of `relent.language.regulariser`, which the run's predictions hold; the
frontier of reward against KL is that of `relent.language.exact`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import zarr
from torch import Tensor

from relent.divergences.discrete import entropy, forward_kl, reverse_kl
from relent.errors import DataError
from relent.evaluate.run import Evaluation
from relent.figures import COLOURS, joined, plain
from relent.language.exact import (
    SequenceSpace,
    expected_distinct,
    expected_reward,
    frontier,
    log_normaliser,
    reward_at_kl,
)
from relent.language.regulariser import Regulariser
from relent.runspec import RunSpec
from relent.scores.calibration import expected_calibration_error
from relent.tasks.preference_alignment.data import (
    SIDES,
    BaseOutputs,
    ImagePairs,
    PreferenceTexts,
    read_base,
    read_texts,
)
from relent.tasks.preference_alignment.image_samples import (
    by_caption,
    draw_samples,
    judge_images,
    picture_rows,
    sampled_images,
    state_separation,
)
from relent.tasks.preference_alignment.laws import completion_rewards
from relent.tasks.preference_alignment.masks import draw_masks, evaluate_masks
from relent.tasks.preference_alignment.options import EvaluationOptions, data_options
from relent.tasks.preference_alignment.references import distances, read_references
from relent.tasks.preference_alignment.target import draw_estimates, evaluate_target, read_estimates
from relent.tasks.stored import open_predictions, read_array, training_costs

BINS = 10
BETAS = tuple(10 ** (exponent / 16) for exponent in range(-24, 33))
"""β of the points at which the optimum's frontier is stored: 0.03 to 100."""
TOLERANCE = 1e-5
"""How far a table's total probability may be from one."""
LARGEST = 10
"""Completions of a prompt that the table of examples shows."""


def evaluate(spec: RunSpec, folder: Path) -> Evaluation:
    """Score a run on the test prompts and pairs.

    Raises:
        DataError: Something that is read is missing or broken.
    """
    options = EvaluationOptions(**spec.evaluation_options)
    texts = read_texts(spec.inputs["data"], data_options(spec.data_options))
    base = read_base(spec.inputs["teacher"], texts, table=options.exact)
    place = folder / "predictions.zarr"
    root = open_predictions(folder, texts.checksum)
    regulariser = _own_regulariser(root, place)
    scores = pair_scores(root, place, base, regulariser) | training_costs(folder)
    settings: dict[str, Any] = {
        "beta": options.beta,
        "split": "test",
        "prompts": len(texts.items("test")),
        "module_mode": "eval",
    }
    pairs = base.pairs["test"]
    settings["test_pairs"] = len(pairs)
    mask_scores, mask_rows = evaluate_masks(folder, texts, pairs)
    scores |= mask_scores
    tables: dict[str, list[dict[str, Any]]] = {"masks": mask_rows} if mask_rows else {}
    divergence: Any = root.attrs["divergence"]
    if divergence is not None:
        tables["divergence"] = [divergence]
    if pairs.rewards is not None:
        margin = pairs.rewards[:, 0] - pairs.rewards[:, 1]
        settings["reward_preference_accuracy"] = float((margin > 0).double().mean())
        settings["reward_preference_nll"] = float(-torch.nn.functional.logsigmoid(margin).mean())
    if not options.exact:
        known = Evaluation(scores, tables, settings)
        if "samples" not in root:  # of a reward model
            return known
        if isinstance(texts, ImagePairs):
            return _of_images(root, place, options, known, texts, spec)
        return _estimated(root, place, options, known)
    table = _checked_table(torch.from_numpy(read_array(root, "table", place)).double(), place)
    reference, rewards = reference_and_rewards(texts, base, spec.inputs["teacher"])
    target_scores, target_settings = evaluate_target(folder, texts.checksum, table, reference)
    models = read_references(folder, texts.checksum)
    best = own_optimum(regulariser, {"base": reference} | models, rewards, texts.space, folder)
    scores |= exact_scores(table, reference, rewards, best, options) | distances(table, models) | target_scores
    settings |= target_settings | {
        "estimator": "enumeration",
        "completions": texts.space.size,
        "distinct_samples": options.distinct,
        "reference_reward": float(expected_reward(reference, rewards).mean()),
        "reference_entropy": float(entropy(reference).mean()),
    }
    tables |= {
        "frontier": [point._asdict() for point in frontier(reference, rewards, BETAS)],
        "prompts": _by_prompt(texts, table, reference, rewards),
        "completions": _likeliest(texts, table, reference, rewards),
    }
    return Evaluation(scores, tables, settings)


def _of_images(
    root: zarr.Group, place: Path, options: EvaluationOptions, known: Evaluation, texts: ImagePairs, spec: RunSpec
) -> Evaluation:
    """What sampled images tell beside that, and what those of the reference do."""
    folder = Path(spec.inputs["teacher"]) / "outputs.zarr"
    models = {"reference": (zarr.open_group(folder, mode="r"), folder), "policy": (root, place)}
    pictures, judged, separation = [], {}, {}
    for name, (group, path) in models.items():
        prompts, images, whole = sampled_images(group, path, texts)
        judged[name] = judge_images(prompts, images, whole, texts, spec.inputs["data"])
        pictures += picture_rows(name, prompts, images, texts)
        if "states" in group:
            separation[name] = {"alignment_quality_index": state_separation(group, path)}
    found = _estimated(root, place, options, known, judged["policy"])
    of_reference = {name: float(values.double().mean()) for name, values in judged["reference"].items()}
    of_reference |= separation["reference"]
    return Evaluation(
        found.scores | separation.get("policy", {}),
        found.tables | {"captions": by_caption(prompts, judged["policy"], texts), "pictures": pictures},
        found.settings | texts.judges | {f"reference_{name}": value for name, value in of_reference.items()},
    )


def _estimated(
    root: zarr.Group,
    place: Path,
    options: EvaluationOptions,
    known: Evaluation,
    judged: Mapping[str, Tensor] | None = None,
) -> Evaluation:
    """What samples tell beside what is known of the pairs."""
    estimates, errors = sample_scores(root, place, options.beta, judged)
    settings = known.settings | {"estimator": f"{options.samples} samples"}
    return Evaluation(known.scores | estimates, known.tables | {"standard_errors": [errors]}, settings)


def _own_regulariser(root: zarr.Group, place: Path) -> Regulariser | None:
    if "regulariser" not in root.attrs:
        raise DataError(f"{place}: does not say the regulariser of its run; train the run again")
    stored: Any = root.attrs["regulariser"]
    return Regulariser.of(stored)


def own_optimum(
    regulariser: Regulariser | None, models: Mapping[str, Tensor], rewards: Tensor, space: SequenceSpace, folder: Path
) -> Tensor | None:
    """log π*(y|x) of reward less the run's own penalty, (P, N) float64; None: it has none.

    Args:
        regulariser: The penalty.
        models: log-probabilities (P, N) of the models that a policy may be held to, by name.
        rewards: (P, N).
        space: The N completions.
        folder: Of the run, for the message.

    Raises:
        DataError: The run does not hold the model that its policy is held to.
    """
    if regulariser is None:
        return None
    if regulariser.reference not in models:
        raise DataError(
            f"{folder / 'references.zarr'}: has no {regulariser.reference!r}, which the run was held to; train it again"
        )
    return regulariser.optimum(models[regulariser.reference], rewards, space)


def _checked_table(table: Tensor, place: Path) -> Tensor:
    mass = table.logsumexp(-1)
    if not bool((mass.abs() < TOLERANCE).all()):
        raise DataError(
            f"{place}/table: probabilities of a prompt sum to exp({float(mass[mass.abs().argmax()]):.3g}), not 1"
        )
    return table


def reference_and_rewards(texts: PreferenceTexts, base: BaseOutputs, folder: str) -> tuple[Tensor, Tensor]:
    """log π_ref(y|x) and r(x, y) of all completions of the test prompts, (P, N) float64 each.

    Raises:
        DataError: The table is not one of probabilities.
    """
    assert base.table is not None
    return _checked_table(base.table, Path(folder) / "outputs.zarr"), completion_rewards(texts)


def exact_scores(
    table: Tensor, reference: Tensor, rewards: Tensor, best: Tensor | None, options: EvaluationOptions
) -> dict[str, float]:
    """Scores of a policy whose probability of every completion is known; means over the prompts.

    Args:
        table, reference: log π(y|x) and log π_ref(y|x), (P, N) float64.
        rewards: r(x, y), (P, N).
        best: log π*(y|x) of the run's own objective, (P, N), which the policy is set against; None: it has none.
        options: β of the task, whose objective is E_π[r] − β·KL(π ‖ π_ref) with the maximum β·log Z; and the number of
            samples of which the expected number of different ones is told.
    """
    kl = float(forward_kl(table, reference).mean())
    reward = float(expected_reward(table, rewards).mean())
    objective = reward - options.beta * kl
    scores = {
        "objective": objective,
        "regret": options.beta * float(log_normaliser(reference, rewards, options.beta).mean()) - objective,
        "expected_reward": reward,
        "kl_to_reference": kl,
        "kl_from_reference": float(reverse_kl(table, reference).mean()),
        "frontier_gap": reward_at_kl(reference, rewards, max(kl, 0.0)) - reward,
        "entropy": float(entropy(table).mean()),
        "distinct": float(expected_distinct(table, options.distinct).mean()),
    }
    if best is not None:
        scores["kl_to_optimum"] = float(forward_kl(table, best).mean())
        scores["kl_from_optimum"] = float(reverse_kl(table, best).mean())
    return scores


def pair_scores(root: zarr.Group, place: Path, base: BaseOutputs, regulariser: Regulariser | None) -> dict[str, float]:
    """How well log π(y|x) − log π_ref(y|x) tells the preferred completion of the test pairs.

    `preference_accuracy` is against the labels, `ranking_accuracy` against the rewards that they were drawn from, if
    any. σ of the difference of the run's implicit rewards (`PolicyMethod.implicit_rewards`, or the regulariser's) is a
    probability, and its calibration against the labels is told.
    """
    pairs = base.pairs["test"]
    policy = torch.stack([torch.from_numpy(read_array(root, f"pairs/{side}", place)) for side in SIDES], 1)
    ratio = policy.double() - pairs.reference.double().sum(-1)
    difference = ratio[:, 0] - ratio[:, 1]
    right = (difference > 0).double() + 0.5 * (difference == 0).double()
    scores = {"preference_accuracy": float(right.mean())}
    if pairs.rewards is not None:
        better = torch.sign(pairs.rewards[:, 0] - pairs.rewards[:, 1])
        agreeing = (torch.sign(difference) * better > 0).double() + 0.5 * (difference == 0).double()
        scores["ranking_accuracy"] = float(agreeing[better != 0].mean())
    implicit: Tensor | None = None
    if "pairs/implicit_rewards" in root:
        implicit = torch.from_numpy(read_array(root, "pairs/implicit_rewards", place)).double()
    elif regulariser is not None:
        implicit = regulariser.implicit_reward(ratio)
    if implicit is not None:
        logits = implicit[:, 0] - implicit[:, 1]
        scores["preference_nll"] = float(-torch.nn.functional.logsigmoid(logits).mean())
        confidence = torch.sigmoid(logits.abs())
        scores["preference_ece"] = float(expected_calibration_error(confidence, (logits > 0).double(), bins=BINS))
    return scores


def sample_scores(
    root: zarr.Group, place: Path, beta: float, judged: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    r"""Estimates from samples of the policy, and their standard errors.

    KL(π ‖ π_ref) = E_π[log π − log π_ref], entropy −E_π[log π] and, where there is a reward, reward and reward − β·KL
    are means over prompts of means over samples. Each standard error is of the samples, the prompts held fixed:
    √(Σ_p s_p²/n)/P. `judged` are more values of each sample, (N,).
    """

    def stored(name: str) -> Tensor:
        return torch.from_numpy(read_array(root, f"samples/{name}", place))

    prompt, policy, reference = (stored(name) for name in ("prompt", "log_probs", "reference"))
    per_prompt = int((prompt == prompt[0]).sum())
    values = {"kl_to_reference": policy - reference, "entropy": -policy, **(judged or {})}
    if "samples/rewards" in root:
        rewards = stored("rewards")
        values |= {"objective": rewards - beta * (policy - reference), "expected_reward": rewards}
    scores, errors = {}, {}
    for name, value in values.items():
        rows = value.double().reshape(-1, per_prompt)
        scores[name] = float(rows.mean())
        errors[name] = float((rows.var(1) / per_prompt).sum().sqrt() / len(rows))
    return scores, errors


def _by_prompt(texts: PreferenceTexts, table: Tensor, reference: Tensor, rewards: Tensor) -> list[dict[str, Any]]:
    columns = {
        "expected_reward": expected_reward(table, rewards),
        "reference_reward": expected_reward(reference, rewards),
        "kl_to_reference": forward_kl(table, reference),
        "entropy": entropy(table),
    }
    prompts = texts.items("test").tolist()
    return [
        {"prompt": _words(texts, texts.prompts[p])} | {name: float(values[row]) for name, values in columns.items()}
        for row, p in enumerate(prompts)
    ]


def _likeliest(texts: PreferenceTexts, table: Tensor, reference: Tensor, rewards: Tensor) -> list[dict[str, Any]]:
    """The likeliest completions of each test prompt."""
    tokens, lengths = texts.space.sequences(padding=texts.end)
    rows = []
    for row, prompt in enumerate(texts.items("test").tolist()):
        for number in table[row].topk(min(LARGEST, table.shape[1])).indices.tolist():
            rows.append(
                {
                    "prompt": _words(texts, texts.prompts[prompt]),
                    "completion": _words(texts, tokens[number, : lengths[number]].tolist()),
                    "probability": float(table[row, number].exp()),
                    "reference_probability": float(reference[row, number].exp()),
                    "reward": float(rewards[row, number]),
                }
            )
    return rows


def _words(texts: PreferenceTexts, tokens: list[int]) -> str:
    return " ".join(texts.words[token] for token in tokens)


# ---------------------------------------------------------------------------------------------------------- figures


def draw(spec: RunSpec, folder: Path, evaluation: Evaluation, into: Path) -> None:
    """Draw where the policy stands against the frontier, where that is known, and the masks and estimates of a run."""
    if "masks" in evaluation.tables:
        draw_masks(evaluation.tables["masks"], into / "masks.png")
    if estimates := read_estimates(folder):
        draw_estimates(estimates, into / "estimates.png")
    if "pictures" in evaluation.tables:
        draw_samples(evaluation.tables["pictures"], spec.method, into / "samples.png")
    if "frontier" not in evaluation.tables:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    draw_frontier(axes, evaluation.tables["frontier"])
    scores = evaluation.scores
    axes.plot(scores["kl_to_reference"], scores["expected_reward"], "o", color=COLOURS[1], label=spec.method)
    axes.set(xlabel="KL to the reference (nats)", ylabel="expected reward", title="Reward against KL, test prompts")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(into / "frontier.png", dpi=110)


def draw_frontier(axes: Any, rows: list[dict[str, Any]], over: Literal["kl", "entropy"] = "kl") -> None:
    """The exact optimum's reward over its KL or entropy, a line."""
    ordered = sorted(rows, key=lambda row: row["kl"])
    points = joined(np.array([[row[over], row["reward"]] for row in ordered]))
    axes.plot(*points.T, color="0.6", lw=2.2, label="optimum")
    plain(axes)
