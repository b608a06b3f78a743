"""Reads prepared texts, prompts and reward, and what the base stage stores: pairs and the reference's probabilities.

Loads neither Lightning nor `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from relent.data.receipt import check_receipt
from relent.errors import DataError
from relent.language.batches import TokenBatch, pack, pad
from relent.language.exact import SequenceSpace
from relent.language.reward import NgramReward
from relent.tasks.preference_alignment.options import PreferenceData
from relent.tasks.stored import read_array

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class PreferenceTexts:
    """A data set in memory: `texts` and `prompts` are lists of token ids without the end of text, with their splits."""

    texts: list[list[int]]
    text_split: Tensor
    prompts: list[list[int]]
    prompt_counts: Tensor
    prompt_split: Tensor
    reward: NgramReward
    words: list[str]
    end: int
    splits: list[str]
    options: PreferenceData
    tokenizer: str
    """SHA-256 of the tokeniser's file."""
    checksum: str
    facts: dict[str, float]

    @property
    def space(self) -> SequenceSpace:
        """Every completion."""
        return SequenceSpace(len(self.words), self.options.length, self.end)

    @property
    def row_length(self) -> int:
        """Tokens of a row with the longest prompt and completion, the begin of text included."""
        return 1 + self.options.prompt_words + self.options.length

    def items(self, split: str, of: str = "prompt") -> Tensor:
        """Numbers of the prompts (or texts) of a split, ascending."""
        where = self.prompt_split if of == "prompt" else self.text_split
        return (where == self.splits.index(split)).nonzero().squeeze(-1)

    def context(self, prompt: int) -> list[int]:
        """What stands before a completion: the begin of text and the prompt's words."""
        return [self.end, *self.prompts[prompt]]

    def prompt_batch(self, prompts: Sequence[int]) -> TokenBatch:
        """Prompts as generation takes them, all of one width."""
        width = 1 + self.options.prompt_words
        return pad([self.context(int(p)) for p in prompts], padding=self.end, side="left", length=width)

    def completed(self, prompts: Sequence[int], tokens: Tensor, lengths: Tensor) -> TokenBatch:
        """Prompts with completions (B, L) in the loss, padded on the right to `row_length`."""
        rows = [row[:length].tolist() for row, length in zip(tokens, lengths)]
        contexts = [self.context(int(p)) for p in prompts]
        return pad(contexts, rows, padding=self.end, length=self.row_length)

    def packed(self, split: str) -> TokenBatch:
        """All texts of a split with begin and end of text, packed in rows of `options.row` tokens."""
        texts = [[self.end, *self.texts[i], self.end] for i in self.items(split, "text").tolist()]
        return pack(texts, self.options.row, padding=self.end)


def read_texts(folder: Path | str, options: PreferenceData) -> PreferenceTexts:
    """Read a prepared data set.

    Raises:
        DataError: It is missing or incomplete.
    """
    receipt = check_receipt(folder)
    place = Path(folder) / "dataset.zarr"
    group = zarr.open_group(place, mode="r")
    attributes: dict[str, Any] = dict(group.attrs)

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(read_array(group, name, place))

    def lists(tokens: Tensor, lengths: Tensor) -> list[list[int]]:
        return [part.tolist() for part in tokens.split(lengths.tolist())]

    prompts, sizes = tensor("prompts/tokens"), tensor("prompts/lengths").tolist()
    reward = NgramReward(
        tensor("reward/unigram"), tensor("reward/bigram"), float(attributes["bias"]), attributes["end"]
    )
    return PreferenceTexts(
        texts=lists(tensor("texts/tokens"), tensor("texts/lengths")),
        text_split=tensor("texts/split"),
        prompts=[row[:size].tolist() for row, size in zip(prompts, sizes)],
        prompt_counts=tensor("prompts/counts"),
        prompt_split=tensor("prompts/split"),
        reward=reward,
        words=list(attributes["words"]),
        end=attributes["end"],
        splits=list(attributes["splits"]),
        options=options,
        tokenizer=attributes["tokenizer"],
        checksum=receipt["checksum"],
        facts=dict(attributes["reward"]),
    )


@dataclass(frozen=True)
class Pairs:
    """Preference pairs of one split.

    Attributes:
        prompt: (N,) number of the prompt.
        tokens: (N, 2, L) completions, the preferred one first, padded with the end of text.
        lengths: (N, 2) tokens of each, the end counted.
        rewards: (N, 2) float64.
        reference: (N, 2, L) log-probabilities of the tokens under the base model, 0 after the end.
    """

    prompt: Tensor
    tokens: Tensor
    lengths: Tensor
    rewards: Tensor
    reference: Tensor

    def __len__(self) -> int:
        return len(self.prompt)

    def arrays(self) -> dict[str, Tensor]:
        """The attributes by name."""
        return {name: getattr(self, name) for name in ("prompt", "tokens", "lengths", "rewards", "reference")}


@dataclass(frozen=True)
class BaseOutputs:
    """What the base stage stores: pairs by split and, where the space is enumerated, log π_ref(y|x), (P, N) float64."""

    pairs: dict[str, Pairs]
    table: Tensor | None


def read_base(folder: Path | str, texts: PreferenceTexts, *, table: bool = False) -> BaseOutputs:
    """Read the stored outputs of the base model.

    Args:
        folder: The teacher's folder.
        texts: The data set.
        table: Whether the table of all log-probabilities is read too.

    Raises:
        DataError: They are missing, incomplete, or of another data set.
    """
    place = Path(folder) / "outputs.zarr"
    if not place.is_dir():
        raise DataError(f"{place}: does not exist; train the base model first")
    group = zarr.open_group(place, mode="r")
    if group.attrs["data_checksum"] != texts.checksum:
        raise DataError(f"{place}: was made from another data set; train the base model again")
    names = ("prompt", "tokens", "lengths", "rewards", "reference")
    pairs = {
        split: Pairs(*(torch.from_numpy(read_array(group, f"{split}/{name}", place)) for name in names))
        for split in texts.splits
    }
    stored = torch.from_numpy(read_array(group, "table", place)).double() if table else None
    return BaseOutputs(pairs, stored)


def write_pairs(group: zarr.Group, split: str, pairs: Pairs) -> None:
    """Store the pairs of a split."""
    for name, values in pairs.arrays().items():
        group.create_array(f"{split}/{name}", data=np.ascontiguousarray(values.numpy()))
