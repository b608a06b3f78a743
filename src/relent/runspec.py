"""What one stage of one run is told: plain data, written into the run's `config.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunSpec:
    """One stage of one run.

    `settings` and `code` decide the result; paths, threads and the kind of device do not, so that a results tree can be
    copied elsewhere and a run on more threads is the same run. Precision and the number of processes do.
    """

    task: str
    kind: str
    method: str
    family: str
    variant: str
    scale: str
    seed: int
    stage: str
    final: bool
    """Whether this is the method's last stage, whose folder is the run."""
    implementation: str
    hyperparameters: dict[str, Any]
    data_options: dict[str, Any]
    model_options: dict[str, Any]
    evaluation_options: dict[str, Any]
    code: str
    """Fingerprint of the code of this stage."""
    upstream: dict[str, str] = field(default_factory=dict)
    """Plan of each input stage (teacher, earlier stage, start): a run is the same only if what it read is."""
    peer_options: dict[str, Any] = field(default_factory=dict)
    """Network options of the task's first teacher, where the stage trains a network of its size alongside."""
    execution: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    """Input name (`data`, `teacher`, an earlier stage, `start` for the run that a variant starts from) → folder."""
    output: str = ""

    @property
    def role(self) -> str:
        """Which part of the data and which network: `teacher` or `student`."""
        return "teacher" if self.stage == "teacher" else "student"

    @property
    def processes(self) -> int:
        """Number of processes that share the training."""
        return int(self.execution.get("devices", 1) * self.execution.get("nodes", 1))

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, apart from the code."""
        place = ("execution", "inputs", "output", "code")
        return {key: value for key, value in asdict(self).items() if key not in place} | {
            "implementation": self.implementation.rsplit("/", 1)[-1],
            "precision": self.execution.get("precision", "32-true"),
            "processes": self.processes,
        }

    def settings_json(self) -> str:
        """The settings as canonical JSON."""
        return json.dumps(self.settings(), sort_keys=True, ensure_ascii=False)

    def plan(self) -> str:
        """Digest of settings and code: 16 hexadecimal digits."""
        return hashlib.sha256(f"{self.settings_json()}\0{self.code}".encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The whole specification for `config.json`."""
        return asdict(self) | {"plan": self.plan()}
