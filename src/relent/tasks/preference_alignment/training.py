"""Binds preference data and language models to a stage: packed texts for the base model, pairs for the students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import zarr
from lightning.pytorch import LightningDataModule
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from relent.data.receipt import sha256
from relent.errors import ConfigError, DataError
from relent.files import whole
from relent.methods.base import Method
from relent.methods.config import MethodConfig
from relent.models.causal_lm import CausalLM, build_causal_lm
from relent.runspec import RunSpec
from relent.tasks.base import TrainingTask
from relent.tasks.preference_alignment.data import (
    SIDES,
    BaseOutputs,
    Pairs,
    PreferenceTexts,
    read_base,
    read_texts,
    write_pairs,
)
from relent.tasks.preference_alignment.options import EvaluationOptions, PreferenceData
from relent.tasks.preference_alignment.sampling import completion_log_probs, draw_pairs, sampled_rows
from relent.train.sampling import StepBatchSampler

Batch = dict[str, Tensor]
VALIDATION_ROWS = 256


class Rows(Dataset[Batch]):
    """Items that are rows of tensors; a list of positions gives a batch at once, without collating."""

    def __init__(self, tensors: Batch):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitems__(self, positions: list[int]) -> Batch:
        index = torch.as_tensor(positions)
        return {name: values[index] for name, values in self.tensors.items()}


def _as_is(batch: Any) -> Any:
    return batch


def pair_tensors(texts: PreferenceTexts, pairs: Pairs) -> Batch:
    """What a batch of pairs holds: prompts, both completions, the base model's log-probabilities, rewards.

    `prompt_…`, `chosen_…` and `rejected_…` are the fields of a `TokenBatch`; `teacher_chosen` and `teacher_rejected`
    (N, L) stand at the places of their tokens; `rewards` is (N, 2).
    """
    found = texts.prompt_batch(pairs.prompt.tolist()).tensors("prompt_")
    found |= {"prompt": pairs.prompt, "rewards": pairs.rewards}
    inside = torch.arange(texts.options.length) < pairs.lengths[..., None]
    for side, name in enumerate(SIDES):
        batch = texts.completed(pairs.prompt.tolist(), pairs.tokens[:, side], pairs.lengths[:, side])
        reference = torch.zeros(batch.ids.shape, dtype=pairs.reference.dtype)
        reference[batch.loss] = pairs.reference[:, side][inside[:, side]]
        found |= batch.tensors(f"{name}_") | {f"teacher_{name}": reference}
    return found


class PreferenceDataModule(LightningDataModule):
    """Loaders of one stage.

    Args:
        train, validation: Tensors whose rows are items.
        config: Hyperparameters (batch size, steps).
        seed: Seed of the run.
        start_batch: Batches seen before a resume.
    """

    def __init__(self, train: Batch, validation: Batch, config: MethodConfig, seed: int, start_batch: int):
        super().__init__()
        self.train, self.validation = train, validation
        self.config, self.seed, self.start_batch = config, seed, start_batch

    def tokens_per_item(self, name: str) -> float:
        """Mean number of tokens in the loss of an item of the training split, of the rows that begin with `name`."""
        return float(self.train[f"{name}_loss"].sum(1).double().mean())

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the training split, a function of (seed, batch)."""
        items = Rows(self.train)
        sampler = StepBatchSampler.of_run(len(items), self.config, self.seed, self.start_batch, self.trainer)
        return DataLoader(items, batch_sampler=sampler, collate_fn=_as_is)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split, in order."""
        return DataLoader(Rows(self.validation), batch_size=VALIDATION_ROWS, collate_fn=_as_is)


class Task(TrainingTask):
    """The base model (`teacher`) learns from the texts; policies start from it and learn from its labelled pairs."""

    def __init__(self, spec: RunSpec):
        super().__init__(spec)
        self.texts = read_texts(spec.inputs["data"], PreferenceData(**spec.data_options))
        self.evaluation = EvaluationOptions(**spec.evaluation_options)
        self.base: BaseOutputs | None = None
        if "teacher" in spec.inputs:
            self.base = read_base(spec.inputs["teacher"], self.texts)

    @property
    def reward(self) -> Any:
        """The exact reward of rows of tokens: `TokenBatch` → (B,) float64."""
        return self.texts.reward

    def datamodule(self, config: MethodConfig, start_batch: int) -> PreferenceDataModule:
        if self.spec.role == "teacher":
            train, validation = (self.texts.packed(split).tensors("text_") for split in ("train", "validation"))
        else:
            pairs = self._base().pairs
            train, validation = (pair_tensors(self.texts, pairs[split]) for split in ("train", "validation"))
        return PreferenceDataModule(train, validation, config, self.spec.seed, start_batch)

    def _base(self) -> BaseOutputs:
        if self.base is None:
            raise DataError(
                f"stage {self.spec.stage!r} reads no base model; add 'teacher' to its inputs in the manifest"
            )
        return self.base

    def network(self) -> nn.Module:
        """A network from scratch for the base model; a policy with the base model's weights."""
        network = self._built(self.spec.model_options)
        if "teacher" in self.spec.inputs:
            network.load_base(self.weights("teacher"))
        return network

    def _built(self, options: dict[str, Any]) -> CausalLM:
        """A network for the tokens of the data.

        Raises:
            ConfigError: One that is read has other tokens.
        """
        texts, path = self.texts, options.get("path")
        network = build_causal_lm(options, len(texts.words), max(texts.options.row, texts.row_length))
        if path is not None:
            own = Path(path) / "tokenizer.json"
            if network.vocabulary != len(texts.words) or not own.is_file() or sha256(own) != texts.tokenizer:
                raise ConfigError(
                    f"{path}: has {network.vocabulary} logits and another tokeniser than the data with their"
                    f" {len(texts.words)} tokens; give a folder with the data set's tokenizer.json",
                    key="model.path",
                )
        return network

    def weights(self, stage: str) -> dict[str, Tensor]:
        """Weights of the network of an input stage (`teacher`, or an earlier stage of the method).

        Raises:
            DataError: They are missing.
        """
        path = Path(self.spec.inputs[stage]) / "weights.safetensors"
        if not path.is_file():
            raise DataError(f"{path}: does not exist; run the stage that makes it")
        mark = "network."
        return {name.removeprefix(mark): value for name, value in load_file(path).items() if name.startswith(mark)}

    def reference_network(self) -> CausalLM:
        """The base model, frozen, for methods that score what they sample; pairs have its stored log-probabilities."""
        options = {name: value for name, value in self.spec.model_options.items() if name != "lora"}
        network = self._built(options)
        network.load_base(self.weights("teacher"))
        return network.requires_grad_(False).eval()

    # ------------------------------------------------------------------------------------------ outputs

    def write_outputs(self, module: Method, folder: Path) -> None:
        """The base model: `outputs.zarr` with pairs, reference and table. A run: `predictions.zarr`."""
        if self.spec.role == "teacher":
            self._write_base(module, folder)
        module.write_extras(folder)
        if not self.spec.final:
            return
        with whole(folder / "predictions.zarr") as temporary:
            root = zarr.create_group(store=temporary)
            root.attrs.update(data_checksum=self.texts.checksum, module_mode="eval")
            policy = _policy(module)
            pairs = self._base().pairs["test"]
            for side, name in enumerate(SIDES):
                batch = self.texts.completed(pairs.prompt.tolist(), pairs.tokens[:, side], pairs.lengths[:, side])
                values = completion_log_probs(policy, self.texts, batch)
                root.create_array(f"pairs/{name}", data=values.double().sum(1).numpy())
            if self.evaluation.exact:
                root.create_array("table", data=self._table(policy))
            else:
                self._write_samples(policy, root)

    def _write_base(self, module: Method, folder: Path) -> None:
        policy, options = _policy(module), self.texts.options
        with whole(folder / "outputs.zarr") as temporary:
            group = zarr.create_group(store=temporary)
            group.attrs.update(data_checksum=self.texts.checksum)
            for split in self.texts.splits:
                count = options.pairs if split == "train" else options.held_out_pairs
                write_pairs(group, split, draw_pairs(policy, self.texts, split, count, self.spec.seed))
            if self.evaluation.exact:
                group.create_array("table", data=self._table(policy))

    def _table(self, policy: CausalLM) -> Any:
        """log π(y|x) of every completion of every test prompt, (P, N) float64."""
        device = str(next(policy.parameters()).device)
        space, prompts = self.texts.space, self.texts.items("test").tolist()
        return torch.stack([space.log_probs(policy, self.texts.context(p), device=device) for p in prompts]).numpy()

    def _write_samples(self, policy: CausalLM, root: zarr.Group) -> None:
        """Completions of the test prompts with rewards and both models' log-probabilities."""
        prompts = self.texts.items("test").repeat_interleave(self.evaluation.samples)
        tokens, lengths = sampled_rows(policy, self.texts, prompts, self.spec.seed, "evaluation")
        batch = self.texts.completed(prompts.tolist(), tokens, lengths)
        reference = self.reference_network().to(next(policy.parameters()).device)
        arrays = {
            "prompt": prompts,
            "tokens": tokens,
            "lengths": lengths,
            "rewards": self.texts.reward(batch),
            "log_probs": completion_log_probs(policy, self.texts, batch).double().sum(1),
            "reference": completion_log_probs(reference, self.texts, batch).double().sum(1),
        }
        for name, values in arrays.items():
            root.create_array(f"samples/{name}", data=values.numpy())

    def summary(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"data_checksum": self.texts.checksum, "reward": self.texts.facts}
        if self.base is not None:
            facts["training_pairs"] = len(self.base.pairs["train"])
        return facts


def _policy(module: Method) -> CausalLM:
    network = module.network
    if not isinstance(network, CausalLM):
        raise TypeError(f"a preference-alignment method trains a CausalLM, got {type(network).__name__}")
    return network
