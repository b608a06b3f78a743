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

from relent.errors import ConfigError, DataError
from relent.files import whole
from relent.language.embedders import Embedder
from relent.language.reward import NgramReward
from relent.methods.alignment.base import PolicyMethod
from relent.methods.base import Method
from relent.methods.config import MethodConfig
from relent.models.causal_lm import CausalLM, build_causal_lm
from relent.models.positionwise import PositionwiseLM
from relent.models.reward_network import LearnedReward, RewardNetwork
from relent.runspec import RunSpec
from relent.tasks.base import TrainingTask
from relent.tasks.preference_alignment.data import (
    SIDES,
    BaseOutputs,
    ImagePairs,
    OwnPairs,
    Pairs,
    PreferenceTexts,
    read_base,
    read_texts,
    write_pairs,
)
from relent.tasks.preference_alignment.laws import CompletionLaw, NetworkLaw
from relent.tasks.preference_alignment.options import EvaluationOptions, PreferenceData, data_options
from relent.tasks.preference_alignment.sampling import completion_states, draw_pairs, own_pairs
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

    def tokens_per_item(self, name: str) -> float:
        """Mean number of tokens in the loss of an item, of the rows that begin with `name`."""
        return float(self.tensors[f"{name}_loss"].sum(1).double().mean())


class PairRows(Dataset[Batch]):
    """Pairs whose rows are made when they are asked for, padded to the longest of a batch: for long completions."""

    def __init__(self, texts: PreferenceTexts, pairs: Pairs):
        self.texts, self.pairs = texts, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, positions: list[int]) -> Batch:
        return pair_tensors(self.texts, self.pairs.rows(torch.as_tensor(positions)))

    def tokens_per_item(self, name: str) -> float:
        """Mean number of tokens of the completions `name`."""
        return float(self.pairs.lengths[:, SIDES.index(name)].double().mean())


Items = Rows | PairRows


def _as_is(batch: Any) -> Any:
    return batch


def pair_tensors(texts: PreferenceTexts, pairs: Pairs) -> Batch:
    """What a batch of pairs holds: prompts, both completions, the base model's log-probabilities, rewards.

    `prompt_…`, `chosen_…` and `rejected_…` are the fields of a `TokenBatch`; `teacher_chosen` and `teacher_rejected`
    (N, L) stand at the places of their tokens; `rewards` is (N, 2), where there are any.
    """
    found = texts.prompt_batch(pairs.prompt.tolist()).tensors("prompt_") | {"prompt": pairs.prompt}
    if pairs.rewards is not None:
        found["rewards"] = pairs.rewards
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
        train, validation: Items.
        config: Hyperparameters (batch size, steps).
        seed: Seed of the run.
        start_batch: Batches seen before a resume.
    """

    def __init__(self, train: Items, validation: Items, config: MethodConfig, seed: int, start_batch: int):
        super().__init__()
        self.train, self.validation = train, validation
        self.config, self.seed, self.start_batch = config, seed, start_batch

    def tokens_per_item(self, name: str) -> float:
        """Mean number of tokens in the loss of an item of the training split, of the rows that begin with `name`."""
        return self.train.tokens_per_item(name)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the training split, a function of (seed, batch)."""
        sampler = StepBatchSampler.of_run(len(self.train), self.config, self.seed, self.start_batch, self.trainer)
        return DataLoader(self.train, batch_sampler=sampler, collate_fn=_as_is)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split, in order."""
        return rows_in_order(self.validation, self.config)


def rows_in_order(items: Items, config: MethodConfig) -> DataLoader[Batch]:
    """Batches without gradient; of long completions not more rows than a step of training takes at a time."""
    size = config.batch_size // config.accumulate if isinstance(items, PairRows) else VALIDATION_ROWS
    return DataLoader(items, batch_size=size, collate_fn=_as_is)


class Task(TrainingTask):
    """The base model (`teacher`) learns from the texts; policies start from it and learn from its labelled pairs."""

    def __init__(self, spec: RunSpec):
        super().__init__(spec)
        self.texts = read_texts(spec.inputs["data"], data_options(spec.data_options))
        self.evaluation = EvaluationOptions(**spec.evaluation_options)
        self.base: BaseOutputs | None = None
        if "teacher" in spec.inputs:
            self.base = read_base(spec.inputs["teacher"], self.texts)

    @property
    def reward(self) -> NgramReward | None:
        """The exact reward of rows of tokens: `TokenBatch` → (B,) float64; None: the pairs are the user's own."""
        return self.texts.reward if isinstance(self.texts.reward, NgramReward) else None

    def datamodule(self, config: MethodConfig, start_batch: int) -> PreferenceDataModule:
        train, validation = (self._items(split) for split in ("train", "validation"))
        return PreferenceDataModule(train, validation, config, self.spec.seed, start_batch)

    def _items(self, split: str) -> Items:
        if self.spec.role == "teacher":
            return Rows(self.texts.packed(split).tensors("text_"))
        pairs = self._base().pairs[split]
        return (
            PairRows(self.texts, pairs) if isinstance(self.texts, OwnPairs) else Rows(pair_tensors(self.texts, pairs))
        )

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
        # One that was read is in evaluation mode, in which `transformers` recomputes no activations.
        return network.train()

    def _built(self, options: dict[str, Any]) -> CausalLM:
        """A network for the tokens of the data.

        Raises:
            ConfigError: One that is read has other tokens, or too few places for the longest row.
        """
        texts = self.texts
        network = build_causal_lm(options, texts.vocabulary, max(texts.options.row, texts.row_length))
        if "path" in options:
            texts.check_model(options, network.vocabulary)
            places = getattr(network.model.config, "max_position_embeddings", None)
            if places is not None and places < texts.row_length:
                raise ConfigError(
                    f"{options['path']}: has {places} places, and prompts and completions have up to"
                    f" {texts.row_length} tokens; lower data.prompt_length or data.length",
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

    def learned_reward(self, name: str = "reward_model") -> LearnedReward:
        """A reward that a reward model has learnt, in the place of `reward`; rows of any device, (B,) float64.

        Args:
            name: The input whose weights it has: the method's variant says `reads: [reward_model]`.

        Raises:
            ConfigError: The stage has no such input.
        """
        if name not in self.spec.inputs:
            raise ConfigError(
                f"{self.spec.method}:{self.spec.variant} asks for a learnt reward and reads none; add `reads: [{name}]`"
                " to the variant",
                key=f"variants.{self.spec.variant}.reads",
            )
        network = RewardNetwork(self._built(self.spec.model_options))
        network.load_state_dict(self.weights(name))
        return LearnedReward(network)

    def embedder(self) -> Embedder:
        """What embeds prompts and completions of the data set, frozen.

        Raises:
            DataError: The data set holds none.
        """
        return self.texts.read_embedder(self.spec.inputs["data"]).requires_grad_(False)

    # ------------------------------------------------------------------------------------------ outputs

    def network_law(self, network: nn.Module) -> NetworkLaw:
        """The law of the completions of a network.

        Raises:
            TypeError: It is no language model.
        """
        if not isinstance(network, CausalLM | PositionwiseLM):
            raise TypeError(f"a preference-alignment method trains a CausalLM, got {type(network).__name__}")
        return NetworkLaw(network, self.texts, self.spec.seed)

    def write_outputs(self, module: Method, folder: Path) -> None:
        """The base model: `outputs.zarr` with pairs, reference and table. A run: `predictions.zarr`."""
        if self.spec.role == "teacher":
            self._write_base(self.network_law(module.network), folder)
        module.write_extras(folder)
        if not self.spec.final:
            return
        with whole(folder / "predictions.zarr") as temporary:
            root = zarr.create_group(store=temporary)
            root.attrs.update(data_checksum=self.texts.checksum, module_mode="eval", **_objective(module))
            law = module.completion_law() if isinstance(module, PolicyMethod) else self.network_law(module.network)
            pairs = self._base().pairs["test"]
            for side, name in enumerate(SIDES):
                values = law.log_probs(pairs.prompt, pairs.tokens[:, side], pairs.lengths[:, side])
                root.create_array(f"pairs/{name}", data=values.numpy())
            implicit = self._implicit_rewards(module)
            if implicit is not None:
                root.create_array("pairs/implicit_rewards", data=implicit.numpy())
            if self.evaluation.exact:
                root.create_array("table", data=law.table().numpy())
            elif law.can_be_sampled:
                reference = self.network_law(self.reference_network().to(module.device))
                self._write_samples(law, root, reference)
                if isinstance(law, NetworkLaw):
                    self._write_states(law, root, pairs)

    @torch.no_grad()
    def _implicit_rewards(self, module: Method) -> Tensor | None:
        """Of the test pairs, (N, 2) float64, by a method that has its own."""
        if not isinstance(module, PolicyMethod):
            return None
        found = []
        for batch in rows_in_order(self._items("test"), module.config):
            rewards = module.implicit_rewards({name: values.to(module.device) for name, values in batch.items()})
            if rewards is None:
                return None
            found.append(rewards.double().cpu())
        return torch.cat(found)

    def _pairs(self, base: CausalLM | PositionwiseLM, split: str) -> Pairs:
        """The user's own pairs, or pairs of completions that the base model gives."""
        texts, options = self.texts, self.texts.options
        if isinstance(texts, OwnPairs):
            return own_pairs(base, texts, split)
        assert isinstance(options, PreferenceData)
        count = options.pairs if split == "train" else options.held_out_pairs
        return draw_pairs(base, texts, split, count, self.spec.seed)

    def _write_base(self, law: NetworkLaw, folder: Path) -> None:
        with whole(folder / "outputs.zarr") as temporary:
            group = zarr.create_group(store=temporary)
            group.attrs.update(data_checksum=self.texts.checksum)
            for split in self.texts.splits:
                pairs = self._pairs(law.network, split)
                write_pairs(group, split, pairs)
            if isinstance(self.texts, ImagePairs):
                # Beside which the samples of policies are shown; the last split is the test.
                self._write_samples(law, group, law)
                self._write_states(law, group, pairs)
            if self.evaluation.exact:
                group.create_array("table", data=law.table().numpy())

    def _write_samples(self, law: CompletionLaw, root: zarr.Group, reference: CompletionLaw) -> None:
        """Completions of the test prompts with both models' log-probabilities, and rewards where there are any."""
        prompts = self.texts.items("test").repeat_interleave(self.evaluation.samples)
        tokens, lengths = law.sample(prompts)
        arrays = {
            "prompt": prompts,
            "tokens": tokens,
            "lengths": lengths,
            "log_probs": law.log_probs(prompts, tokens, lengths),
            "reference": reference.log_probs(prompts, tokens, lengths),
        }
        if self.reward is not None:
            arrays["rewards"] = self.reward(self.texts.completed(prompts.tolist(), tokens, lengths))
        for name, values in arrays.items():
            root.create_array(f"samples/{name}", data=values.numpy())

    def _write_states(self, law: NetworkLaw, root: zarr.Group, pairs: Pairs) -> None:
        """Mean states of a network over clean images of the test pairs, and over those that bear the mark."""
        if not isinstance(self.texts, ImagePairs):
            return
        marked = pairs.rows(self.texts.marked["test"])
        for side, name in enumerate(("safe", "unsafe")):
            rows = self.texts.completed(marked.prompt.tolist(), marked.tokens[:, side], marked.lengths[:, side])
            root.create_array(f"states/{name}", data=completion_states(law.network, self.texts, rows).numpy())

    def summary(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"data_checksum": self.texts.checksum}
        if self.texts.facts:
            facts["reward"] = self.texts.facts
        if self.base is not None:
            facts["training_pairs"] = len(self.base.pairs["train"])
        return facts


def _objective(module: Method) -> dict[str, Any]:
    """What the evaluation is told of a method's objective: `regulariser` and `divergence`, or None."""
    if not isinstance(module, PolicyMethod):
        return {"regulariser": None, "divergence": None}
    regulariser, divergence = module.regulariser(), module.objective_divergence()
    return {
        "regulariser": regulariser and regulariser.stored(),
        "divergence": divergence and divergence._asdict(),
    }
