r"""LELP: pseudo-subclasses from linear projections of the teacher's features, for tasks of few classes.

Loo, Iliopoulos, Hu, Vee, "Linear Projections of Teacher Embeddings for Few-Class Distillation", arXiv 2409.20449. With
h the teacher's penultimate feature, W its output weights and u its logits:

    h̃ = (I − W⁺W)·h                                         what the logits do not see
    per class c: μ_c, the top S principal directions V_c of h̃ over its training items, U_c = Q_c V_c (Q_c a rotation)
    g_c·(x) = softmax( U_c (h̃ − μ_c) / (β·s_c) ),  s_c² the mean variance of the S coordinates
    q_{c,s} = p_c·g_{c,s},  p = softmax(u/τ)
    L = τ²·KL( q ‖ softmax(v/τ) ) over the S·C outputs v of the student (α = 0: no labels)

A class is scored by the sum of its subclasses, at temperature 1. All coordinates are computed for every class of every
item: taking the true class alone would leak the label.

Independent summaries of the paper state the principal directions by class, the null space, the random rotation, the
tempered softmax over coordinates, S·C outputs, the one KL and α = 0; the displayed equations and code were not read.
The centring, the division by s_c and the joint form q = p·g are a reconstruction. The stage `subclasses` computes the
projections and can be looked at: `subclasses.zarr` holds g of every item.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import zarr
from safetensors.torch import load_file
from torch import Tensor, nn

from relent.divergences.discrete import forward_kl
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.errors import ConfigError
from relent.files import whole
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig, hyperparameter
from relent.models.classifiers import ClassifierOutput
from relent.train.sampling import derive_seed


class Config(MethodConfig):
    """Hyperparameters of LELP."""

    subclasses: int = hyperparameter(
        5, "S, subclasses of a class.", source="ours; searched in the paper", ge=1, le=1000
    )
    subclass_temperature: float = hyperparameter(
        1.0, "β, of the softmax over coordinates.", source="ours; searched in the paper", gt=0, le=1000
    )
    temperature: float = hyperparameter(2.0, "τ.", source="ours; searched in the paper", gt=0, le=100)
    alpha: float = hyperparameter(0.0, "α, weight of the labels; the rest is distillation.", source="paper", ge=0, le=1)
    directions: Literal["principal", "random"] = hyperparameter(
        "principal", "Principal directions, or random orthonormal ones.", source="paper; `random` is its ablation"
    )
    null_space: bool = hyperparameter(True, "Project onto what the logits do not see first.", source="paper")
    rotate: bool = hyperparameter(True, "Rotate the directions at random.", source="paper")
    standardise: bool = hyperparameter(True, "Divide coordinates by s_c.", source="ours: makes β free of scale")


class Projections(NamedTuple):
    """What turns a feature into coordinates: `directions` (C, S, D), `centres` (C, D) and `scales` (C,)."""

    directions: Tensor
    centres: Tensor
    scales: Tensor

    def log_shares(self, features: Tensor, subclass_temperature: float) -> Tensor:
        """log g of features (N, D): (N, C, S), every class of every item."""
        centred = features.unsqueeze(1) - self.centres
        coordinates = torch.einsum("ncd,csd->ncs", centred, self.directions)
        return tempered_log_probs(coordinates / self.scales[:, None], subclass_temperature)


def null_space_projector(weight: Tensor) -> Tensor:
    """I − W⁺W of W (C, D): (D, D)."""
    return torch.eye(weight.shape[1], dtype=weight.dtype) - torch.linalg.pinv(weight) @ weight


def principal_directions(features: Tensor, count: int) -> Tensor:
    """Top principal directions (count, D) of features (N, D), each with its largest entry positive.

    Raises:
        ValueError: There are fewer than `count` directions with variance.
    """
    centred = features - features.mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    rank = int((values > values.max().clamp_min(1e-30) * 1e-6).sum())
    if rank < count:
        raise ValueError(f"{len(features)} items have {rank} directions with variance, {count} subclasses need {count}")
    chosen = directions[:count]
    signs = chosen.gather(1, chosen.abs().argmax(1, keepdim=True)).sign()
    return chosen * signs


def random_rotation(size: int, generator: torch.Generator) -> Tensor:
    """A rotation or reflection (size, size), uniform over all (Haar), float64."""
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()


def project(features: Tensor, labels: Tensor, weight: Tensor, config: Config, seed: int) -> Projections:
    """Projections of every class.

    Args:
        features: h of the training items, (N, D).
        labels: (N,).
        weight: W of the teacher's output layer, (C, D).
        config: Hyperparameters.
        seed: Of rotations and random directions.

    Raises:
        ValueError: A class has too few items or directions for S subclasses; names it.
    """
    features, weight = features.double(), weight.double()
    projector = null_space_projector(weight) if config.null_space else torch.eye(weight.shape[1]).double()
    seen, count = features @ projector, config.subclasses
    generator = torch.Generator().manual_seed(seed)
    directions, centres, scales = [], [], []
    for label in range(len(weight)):
        own = seen[labels == label]
        try:
            chosen = principal_directions(own, count)
        except ValueError as error:
            raise ValueError(f"class {label}: {error}") from None
        if config.directions == "random":
            chosen = torch.linalg.qr(projector @ torch.randn(len(projector), count, generator=generator).double())[0].T
        if config.rotate:
            chosen = random_rotation(count, generator) @ chosen
        coordinates = (own - own.mean(0)) @ chosen.T
        deviation = coordinates.var(0, correction=0).mean().sqrt().clamp_min(1e-12)
        directions.append(chosen @ projector)
        centres.append(own.mean(0))
        scales.append(deviation if config.standardise else torch.ones(()).double())
    return Projections(torch.stack(directions), torch.stack(centres), torch.stack(scales))


def subclass_log_targets(log_shares: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """log q = log p_c + log g_{c,s}, (N, C·S), from log g (N, C, S) and u (N, C)."""
    log_class = tempered_log_probs(teacher_logits, temperature)
    return (log_class.unsqueeze(-1) + log_shares).flatten(1)


def class_logits(subclass_logits: Tensor, classes: int) -> Tensor:
    """Log of the summed probabilities of a class, up to a constant: (N, C·S) → (N, C)."""
    return subclass_logits.unflatten(1, (classes, -1)).logsumexp(-1)


class SubclassHead(nn.Module):
    """Output layer with S·C outputs v; gives class logits and keeps v of the last call."""

    def __init__(self, in_features: int, classes: int, subclasses: int):
        super().__init__()
        self.in_features, self.classes = in_features, classes
        self.linear = nn.Linear(in_features, classes * subclasses)
        self.outputs = torch.empty(0)

    def forward(self, features: Tensor) -> Tensor:
        """Class logits (B, C) of features (B, D)."""
        self.outputs = self.linear(features)
        return class_logits(self.outputs, self.classes)


class LELP(ClassifierMethod):
    """Computes the subclasses (stage `subclasses`), then trains a student on them."""

    config: Config
    directions: Tensor
    centres: Tensor
    scales: Tensor

    def setup_method(self) -> None:
        """The first stage needs no network; the student has S outputs a class."""
        width = self.task.teacher["features"].shape[1]  # type: ignore[attr-defined]
        count = self.config.subclasses
        self.register_buffer("directions", torch.zeros(self.classes, count, width))
        self.register_buffer("centres", torch.zeros(self.classes, width))
        self.register_buffer("scales", torch.ones(self.classes))
        if self.spec.stage == "subclasses":
            self.network = nn.Identity()
        else:
            self.network.classifier = SubclassHead(self.feature_width, self.classes, count)

    @property
    def projections(self) -> Projections:
        """Projections of every class."""
        return Projections(self.directions, self.centres, self.scales)

    def prepare(self, datamodule: Any) -> None:
        """Compute the projections from the training items, or read them."""
        super().prepare(datamodule)
        if self.spec.stage == "subclasses":
            items = datamodule.data.items(datamodule.split)
            weight = self._teacher_weight()
            seed = derive_seed("subclasses", self.spec.seed)
            try:
                found = project(
                    datamodule.teacher["features"][items], datamodule.data.labels[items], weight, self.config, seed
                )
            except ValueError as error:
                raise ConfigError(f"{error}; ask for fewer", key="subclasses") from None
        else:
            stored = load_file(Path(self.spec.inputs["subclasses"]) / "weights.safetensors")
            found = Projections(stored["directions"], stored["centres"], stored["scales"])
        for name, value in found._asdict().items():
            getattr(self, name).copy_(value)

    def _teacher_weight(self) -> Tensor:
        """W of the teacher's output layer."""
        path = Path(self.spec.inputs["teacher"]) / "weights.safetensors"
        weights = load_file(path)
        if "network.classifier.weight" not in weights:
            raise ConfigError("LELP needs a teacher with a linear output layer", file=path)
        return weights["network.classifier.weight"]

    def terms(self, output: ClassifierOutput, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        log_shares = self.projections.log_shares(batch["teacher_features"].detach(), config.subclass_temperature)
        target = subclass_log_targets(log_shares, batch["teacher_logits"].detach(), config.temperature)
        head: SubclassHead = self.network.classifier  # type: ignore[assignment]
        approx = tempered_log_probs(head.outputs, config.temperature)
        distilled = config.temperature**2 * forward_kl(target, approx, reduction="mean")
        hard = label_cross_entropy(batch["label"], tempered_log_probs(output.logits), reduction="mean")
        return {"cross_entropy": config.alpha * hard, "subclasses": (1 - config.alpha) * distilled}

    def write_extras(self, folder: Path) -> None:
        """`subclasses.zarr` of the first stage: g of every item, (N, C, S), and the labels."""
        if self.spec.stage != "subclasses":
            return
        task: Any = self.task
        with torch.no_grad(), whole(folder / "subclasses.zarr") as temporary:
            shares = self.projections.log_shares(
                task.teacher["features"].to(self.centres), self.config.subclass_temperature
            ).exp()
            group = zarr.create_group(store=temporary)
            group.create_array("shares", data=shares.cpu().numpy())
            group.create_array("labels", data=task.data.labels.numpy())
            group.attrs.update(classes=task.data.classes, data_checksum=task.data.checksum)
