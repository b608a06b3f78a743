r"""Z-loss: a loss of the target's standardised score, unchanged by shift and scale of the outputs.

de Brébisson and Vincent, "The Z-loss: a shift and scale invariant classification loss belonging to the Spherical
Family", arXiv 1604.08859. For the outputs o of one item, D classes,

    μ = Σ o/D,  σ² = Σ o²/D − μ²,  z = (o − μ)/σ,   L = softplus(a·(b − z_y))/a

A loss of the spherical family depends on o only through Σ o, Σ o² and o_y: the exact gradient step of a linear output
layer then costs O(d²) for features of width d, whatever the number of classes (arXiv 1412.7091, 1511.05042):
`FactoredOutputLayer`. The others of the family that the paper compares with: the squared error, the log-Taylor-softmax
and the log-spherical-softmax.

With `output_layer: factored` the output layer is trained that way, by plain SGD at a rate of its own in float64, and no
outputs are formed in training; the other layers get the exact gradient and the task's optimiser. Momentum or Adam of
the output layer would touch every row, so that `dense` trains another path to the same loss.

The formulas of loss, gradient and factored layer agree with the released code (`pascal20100/factored_output_layer`),
which has a = 1, b = 0 and a sum over the batch; the mean is taken here. The values of a and b in the paper were not
found: they are chosen on validation. No probabilities come out of the Z-loss; predictions are rankings. It is not the
"z-loss" of language models, a penalty on the log-partition function.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput

VARIANCE_EPSILON = 1e-12
FOLD_ROWS = 8192
"""Class vectors that are multiplied out at once."""


class Config(MethodConfig):
    """Hyperparameters of the spherical losses."""

    loss: Literal["z", "taylor_softmax", "spherical_softmax", "squared_error"] = hyperparameter(
        "z", "Which loss of the spherical family.", source="paper"
    )
    a: float = hyperparameter(0.3, "a, sharpness of the softplus.", source="ours; tuned in the paper", gt=0, le=1000)
    b: float = hyperparameter(
        0.5,
        "b, where the softplus bends, in units of √(D − 1), the largest z-score.",
        source="ours; tuned in the paper",
    )
    epsilon: float = hyperparameter(0.1, "ε of the log-spherical-softmax.", source="ours; tuned in the paper", gt=0)
    output_layer: Literal["dense", "factored"] = hyperparameter(
        "dense", "All outputs and the task's optimiser, or the exact factored SGD step (Z-loss alone).", source="paper"
    )
    output_rate: float = hyperparameter(
        1.0,
        "Peak learning rate of the factored layer, on the mean loss.",
        source="ours; 0.01 on the sum in the code",
        gt=0,
    )

    @model_validator(mode="after")
    def _factored(self) -> Config:
        if self.output_layer == "factored" and (self.loss != "z" or self.accumulate > 1):
            raise ValueError("output_layer 'factored' goes with loss 'z' and accumulate 1")
        return self


def z_loss(outputs: Tensor, labels: Tensor, a: float = 1.0, b: float = 0.0) -> Tensor:
    """Z-loss of each item.

    Args:
        outputs: o, (B, D), D at least 3: with two classes the gradient is zero almost everywhere.
        labels: (B,).
        a: Sharpness, positive.
        b: Where the softplus bends, in z-scores.

    Returns:
        (B,), at least softplus(a (b − √(D − 1)))/a.
    """
    mean = outputs.mean(-1, keepdim=True)
    centred = outputs - mean
    # Two passes: Σ o²/D − μ² cancels.
    deviation = (centred.square().mean(-1) + VARIANCE_EPSILON).sqrt()
    z = centred.gather(-1, labels.unsqueeze(-1)).squeeze(-1) / deviation
    return F.softplus(a * (b - z)) / a


def taylor_softmax_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """−log(t(o_y)/Σ t(o)), t(o) = 1 + o + o²/2, of each item: (B, D), (B,) → (B,)."""
    values = ((outputs + 1).square() + 1) / 2
    return values.sum(-1).log() - values.gather(-1, labels.unsqueeze(-1)).squeeze(-1).log()


def spherical_softmax_loss(outputs: Tensor, labels: Tensor, epsilon: float = 0.1) -> Tensor:
    """−log((o_y² + ε)/Σ (o² + ε)) of each item: (B, D), (B,) → (B,)."""
    values = outputs.square() + epsilon
    return values.sum(-1).log() - values.gather(-1, labels.unsqueeze(-1)).squeeze(-1).log()


def squared_error_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """‖o − onehot(y)‖² of each item: (B, D), (B,) → (B,)."""
    target = outputs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return outputs.square().sum(-1) - 2 * target + 1


def z_loss_from_sums(total: Tensor, squares: Tensor, target: Tensor, classes: int, a: float, b: float) -> Tensor:
    """Z-loss of each item from Σ o, Σ o² and o_y, all (B,), best in float64: the variance is their difference."""
    mean = total / classes
    deviation = ((squares / classes - mean.square()).clamp_min(0) + VARIANCE_EPSILON).sqrt()
    return F.softplus(a * (b - (target - mean) / deviation)) / a


class FactoredOutputLayer(nn.Module):
    r"""A linear output layer o = W h without bias whose exact SGD step under a spherical loss never forms o.

    W = V U + 1 ωᵀ with V (D, d), U (d, d), ω (d). Kept beside: s̄ = Wᵀ1 and Q = WᵀW, so that Σ o = s̄·h, Σ o² = hᵀQh
    and o_y = w_y·h. With the derivatives α by Σ o, ½β by Σ o² and γ by o_y, the SGD step of rate η on a batch is

        W ← W A + 1 cᵀ + E R,   A = I − η Σ_b β_b h_b h_bᵀ,  c = −η Σ_b α_b h_b,  row b of R = −η γ_b h_bᵀ

    with E picking the rows y_b: U ← U A, ω ← A ω + c, V_{y_b} ← V_{y_b} + R_b U⁻¹, at O(B d² + d³) for a batch of B,
    whatever the number of classes. Called in evaluation mode it forms the outputs; in training mode it forms none.

    Args:
        weight: W, (D, d); float64 keeps the factors exact over many steps.
        fold_every: Updates after which V becomes W again, U the identity and ω zero, at O(D d²), before U grows badly
            conditioned.

    Source: arXiv 1412.7091, section 3, and arXiv 1604.08859; there for one item after the other, here for a batch.
    """

    u: Tensor
    u_inverse: Tensor
    v: Tensor
    omega: Tensor
    column_sums: Tensor
    gram: Tensor
    updates: Tensor

    def __init__(self, weight: Tensor, fold_every: int = 1000):
        super().__init__()
        self.fold_every, (self.classes, self.in_features) = fold_every, weight.shape
        for name in ("v", "omega", "u", "u_inverse"):
            self.register_buffer(name, None)
        self.register_buffer("column_sums", weight.sum(0))
        self.register_buffer("gram", weight.T @ weight)
        self.register_buffer("updates", torch.tensor(0))
        self._start(weight.clone())

    def _start(self, weight: Tensor) -> None:
        self.v, self.omega = weight, torch.zeros_like(weight[0])
        self.u = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        self.u_inverse = self.u.clone()

    def fold(self) -> None:
        """V becomes W, U the identity, ω zero: O(D d²), in place."""
        for block in self.v.split(FOLD_ROWS):
            block.copy_(block @ self.u + self.omega)
        self._start(self.v)

    def forward(self, features: Tensor) -> Tensor:
        """Outputs (B, D) of features (B, d); (B, 0) in training mode."""
        if self.training:
            return features.new_empty(len(features), 0)
        return features @ self.weight.to(features).T

    @property
    def weight(self) -> Tensor:
        """W, (D, d), multiplied out: O(D d²)."""
        return self.v @ self.u + self.omega

    def rows(self, labels: Tensor) -> Tensor:
        """w_y of labels (B,): (B, d)."""
        return self.v[labels] @ self.u + self.omega

    def sums(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σ o, Σ o² and o_y of features (B, d) and labels (B,): three (B,), in O(B d²)."""
        squares = (features @ self.gram * features).sum(-1)
        return features @ self.column_sums, squares, (self.rows(labels) * features).sum(-1)

    def step(self, features: Tensor, labels: Tensor, gradients: tuple[Tensor, Tensor, Tensor], rate: float) -> Tensor:
        """Gradient by the features, then one SGD step of W.

        Args:
            features: h, (B, d).
            labels: (B,).
            gradients: Derivatives of the batch's loss by each item's Σ o, Σ o² and o_y, (B,) each.
            rate: η.

        Returns:
            ∂L/∂h, (B, d), at the weights before the step.
        """
        by_total, by_squares, by_target = gradients
        rows = self.rows(labels)
        by_features = by_total[:, None] * self.column_sums + 2 * by_squares[:, None] * (features @ self.gram)
        by_features = by_features + by_target[:, None] * rows

        identity = torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
        scale = identity - 2 * rate * (features.T * by_squares) @ features
        shift = -rate * by_total @ features
        added = -rate * by_target[:, None] * features
        self._update_sums(scale, shift, added, rows, labels)
        self.u = self.u @ scale
        self.u_inverse = torch.linalg.solve(scale, self.u_inverse)
        self.omega = scale @ self.omega + shift
        self.v.index_add_(0, labels, added @ self.u_inverse)
        self.updates += 1
        if self.updates % self.fold_every == 0:
            self.fold()
        return by_features

    def _update_sums(self, scale: Tensor, shift: Tensor, added: Tensor, rows: Tensor, labels: Tensor) -> None:
        """s̄ and Q of W A + 1 cᵀ + E R."""
        scaled_sums = scale @ self.column_sums
        cross = torch.outer(scaled_sums, shift)
        changed_rows = rows @ scale + shift
        same = (labels[:, None] == labels).to(added)
        mixed = changed_rows.T @ added
        self.gram = scale @ self.gram @ scale + cross + cross.T + self.classes * torch.outer(shift, shift)
        self.gram = self.gram + mixed + mixed.T + added.T @ same @ added
        self.column_sums = scaled_sums + self.classes * shift + added.sum(0)

    def z_loss_step(self, features: Tensor, labels: Tensor, a: float, b: float, rate: float) -> tuple[Tensor, Tensor]:
        """One training step by the mean Z-loss of a batch: the loss, and its gradient by the features (B, d)."""
        sums = [values.detach().requires_grad_() for values in self.sums(features, labels)]
        with torch.enable_grad():
            loss = z_loss_from_sums(sums[0], sums[1], sums[2], self.classes, a, b).mean()
            by_total, by_squares, by_target = torch.autograd.grad(loss, sums)
        return loss.detach(), self.step(features, labels, (by_total, by_squares, by_target), rate)


class SphericalLoss(ClassifierMethod):
    """Trains with a loss of the spherical family and an output layer without bias."""

    config: Config

    def setup_method(self) -> None:
        """Put an output layer without bias in the place of the network's; random, for equal outputs have no z-score."""
        layer = nn.Linear(self.feature_width, self.classes, bias=False)
        factored = self.config.output_layer == "factored"
        self.network.classifier = FactoredOutputLayer(layer.weight.detach().double()) if factored else layer

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config, outputs, labels = self.config, output.logits, batch["label"]
        b = config.b * (self.classes - 1) ** 0.5
        layer = self.network.classifier
        if isinstance(layer, FactoredOutputLayer):
            features = output.features.double()
            rate = config.output_rate * self.learning_rate_factor(self.global_step)
            value, by_features = layer.z_loss_step(features.detach(), labels, config.a, b, rate)
            # Of the value of the loss, with its gradient by the features.
            passed_on = (features * by_features).sum()
            loss = value + passed_on - passed_on.detach()
        elif config.loss == "z":
            loss = z_loss(outputs, labels, config.a, b).mean()
        elif config.loss == "taylor_softmax":
            loss = taylor_softmax_loss(outputs, labels).mean()
        elif config.loss == "spherical_softmax":
            loss = spherical_softmax_loss(outputs, labels, config.epsilon).mean()
        else:
            loss = squared_error_loss(outputs, labels).mean()
        return {config.loss: loss}

    def on_train_end(self) -> None:
        """Multiply the factors out: the trained network is an ordinary one."""
        layer = self.network.classifier
        if isinstance(layer, FactoredOutputLayer):
            plain = nn.Linear(layer.in_features, layer.classes, bias=False, device=layer.v.device)
            plain.weight.data.copy_(layer.weight)
            self.network.classifier = plain
