r"""SinKD: Sinkhorn distance between the outputs of student and teacher over a mini-batch.

Cui et al., "Sinkhorn Distance Minimization for Knowledge Distillation", arXiv 2402.17110 (LREC-COLING 2024):

    p = softmax(s/τ_S), q = softmax(t/τ_S)                      rows of the batch
    W_ij = Σ_c |p_ic − q_jc|,  P = Sinkhorn(exp(−W/ε)), 20 iterations, marginals of ones
    L_SD = κ·Σ_ij P_ij W_ij
    L = (1 − α)·CE(y, s) + α·H(softmax(t/τ), softmax(s/τ)) + β·L_SD

Each iteration normalises the rows and then the columns; the gradient goes through all of them. The total mass is the
batch size B, so L_SD grows with B. The logit term is a soft cross-entropy without the factor τ²: its value is not zero
at a perfect match.

As the official code (`2018cx/SinKD`) computes it, with one exception: its GLUE loop adds the Sinkhorn term only under
a flag left over from another project, so that with its own scripts the term is built and never added. Here it is added,
as the paper says. Its temperature argument has no effect there; τ_S is 2. The sample-wise form is the paper's first;
its concrete cost, |p_i − q_j| between the classes of one sample, is a reconstruction.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from relent.divergences.discrete import cross_entropy
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.divergences.transport import batch_wise_cost, sample_wise_cost, sinkhorn_loss
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput


class Config(MethodConfig):
    """Hyperparameters of SinKD."""

    alpha: float = hyperparameter(
        0.8, "α, weight of the logit term; the labels get 1 − α.", source="official code, default", ge=0, le=1
    )
    temperature: float = hyperparameter(
        2.0, "τ of the logit term.", source="official code, default and SST-2", gt=0, le=100
    )
    anneal: bool = hyperparameter(
        False, "Lower τ linearly to 1 over the epochs.", source="official code, `kd_anneal` (MNLI, QQP, MRPC)"
    )
    beta: float = hyperparameter(0.8, "β, weight of the Sinkhorn term.", source="official scripts", ge=0, le=10_000)
    kappa: float = hyperparameter(1e-3, "κ, inner factor of the Sinkhorn term.", source="official code, GLUE", gt=0)
    form: Literal["batch", "sample"] = hyperparameter(
        "batch", "Rows of the batch against each other, or the classes of one sample.", source="paper; `sample` is ours"
    )
    sinkhorn_temperature: float = hyperparameter(
        2.0, "τ_S of the probabilities that are transported.", source="official code", gt=0, le=100
    )
    epsilon: float = hyperparameter(0.1, "ε, entropic regularisation.", source="official code", gt=0, le=100)
    iterations: int = hyperparameter(20, "Sinkhorn iterations.", source="official code", ge=1, le=10_000)
    detach_plan: bool = hyperparameter(
        False, "Hold the plan constant in the gradient.", source="official code goes through the iterations"
    )
    mean_over_batch: bool = hyperparameter(
        False, "Divide the batch form by B, so that its weight does not grow with the batch.", source="ours"
    )


def sinkhorn_distance(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    form: Literal["batch", "sample"] = "batch",
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    detach_plan: bool = False,
) -> Tensor:
    """⟨P, W⟩ of a batch, without κ.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.
        form: `batch`: one transport of B rows to B rows, of mass B, summed. `sample`: one transport of C classes to C
            classes, of mass C, for each sample; mean over samples.
        temperature: τ_S.
        epsilon: ε.
        iterations: Row and column normalisations.
        detach_plan: Hold the plan constant.

    Returns:
        A scalar: in [0, 2B] for `batch`.
    """
    student = tempered_log_probs(student_logits, temperature).exp()
    teacher = tempered_log_probs(teacher_logits.detach(), temperature).exp()
    cost = batch_wise_cost(student, teacher) if form == "batch" else sample_wise_cost(student, teacher)
    values = sinkhorn_loss(
        cost,
        cost.new_ones(cost.shape[-1]),
        cost.new_ones(cost.shape[-1]),
        epsilon=epsilon,
        value="cost",
        gradient="envelope" if detach_plan else "unrolled",
        max_iterations=iterations,
        tolerance=0.0,
    )
    return values.mean()


class SinKD(ClassifierMethod):
    """Trains with labels, soft labels and the Sinkhorn term; with α = β = 0 it is cross-entropy."""

    config: Config
    baseline_limit = ("cross_entropy", {"alpha": 0.0, "beta": 0.0})

    def temperature(self) -> float:
        """τ of the logit term in this epoch."""
        highest = self.config.temperature
        if not self.config.anneal or self.epochs == 1:
            return highest
        return highest + (1 - highest) * min(1.0, self.epoch / (self.epochs - 1))

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, student, teacher = self.config, output.logits, batch["teacher_logits"].detach()
        labels = label_cross_entropy(batch["label"], tempered_log_probs(student), reduction="mean")
        temperature = self.temperature()
        soft = cross_entropy(
            tempered_log_probs(teacher, temperature), tempered_log_probs(student, temperature), reduction="mean"
        )
        terms = {"cross_entropy": (1 - config.alpha) * labels, "soft_labels": config.alpha * soft}
        if config.beta == 0:
            return terms
        distance = sinkhorn_distance(
            student,
            teacher,
            form=config.form,
            temperature=config.sinkhorn_temperature,
            epsilon=config.epsilon,
            iterations=config.iterations,
            detach_plan=config.detach_plan,
        )
        if config.mean_over_batch and config.form == "batch":
            distance = distance / len(student)
        return terms | {"sinkhorn": config.beta * config.kappa * distance}
