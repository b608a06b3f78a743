"""Reads prepared texts, prompts and reward, or pairs; and what the base stage stores: the reference's probabilities.

Loads neither Lightning nor `transformers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from relent.data.options import ImagePairOptions
from relent.data.receipt import check_receipt, sha256
from relent.errors import ConfigError, DataError
from relent.language.batches import TokenBatch, pack, pad
from relent.language.embedders import Embedder
from relent.language.exact import SequenceSpace
from relent.language.image_tokens import ImageTokens, read_image_tokens
from relent.language.reward import NgramReward
from relent.language.sentences import SentenceEmbedder, read_word_vectors
from relent.language.tokenizers import model_tokenizer, token_digest
from relent.models.image_judges import read_joint_encoder
from relent.tasks.preference_alignment.options import DataOptions, PreferenceData
from relent.tasks.stored import read_array

SIDES = ("chosen", "rejected")
PAIR_ARRAYS = ("prompt", "tokens", "lengths", "rewards", "reference")


class NoReward:
    """Stands where there is no exact reward: the pairs are labelled and not scored."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Nothing.

        Raises:
            ConfigError: Always; says what can be done.
        """
        raise ConfigError(
            "these pairs have no exact reward; choose methods that learn from pairs, or a variant that reads a"
            " reward model"
        )


@dataclass(frozen=True)
class PreferenceTexts:
    """A data set in memory: `texts` and `prompts` are lists of token ids without the end of text, with their splits."""

    texts: list[list[int]]
    text_split: Tensor
    prompts: list[list[int]]
    prompt_counts: Tensor
    prompt_split: Tensor
    reward: NgramReward | NoReward
    words: list[str]
    vocabulary: int
    """V, number of tokens."""
    end: int
    splits: list[str]
    options: DataOptions
    tokenizer: str
    """SHA-256 of the tokeniser's file, or of its tokens and their ids."""
    checksum: str
    facts: dict[str, float]

    @property
    def space(self) -> SequenceSpace:
        """Every completion."""
        return SequenceSpace(self.vocabulary, self.options.length, self.end)

    @property
    def row_length(self) -> int:
        """Tokens of a row with the longest prompt and completion, the begin of text included."""
        return self.options.prompt_length + self.options.length

    def items(self, split: str, of: str = "prompt") -> Tensor:
        """Numbers of the prompts (or texts) of a split, ascending."""
        where = self.prompt_split if of == "prompt" else self.text_split
        return (where == self.splits.index(split)).nonzero().squeeze(-1)

    def context(self, prompt: int) -> list[int]:
        """What stands before a completion: the begin of text and the prompt's words."""
        return [self.end, *self.prompts[prompt]]

    def prompt_batch(self, prompts: Sequence[int]) -> TokenBatch:
        """Prompts as generation takes them, all of one width."""
        contexts = [self.context(int(p)) for p in prompts]
        return pad(contexts, padding=self.end, side="left", length=self._width(self.options.prompt_length))

    def completed(self, prompts: Sequence[int], tokens: Tensor, lengths: Tensor) -> TokenBatch:
        """Prompts with completions (B, L) in the loss, padded on the right."""
        rows = [row[:length].tolist() for row, length in zip(tokens, lengths)]
        contexts = [self.context(int(p)) for p in prompts]
        return pad(contexts, rows, padding=self.end, length=self._width(self.row_length))

    def _width(self, longest: int) -> int | None:
        """Tokens that rows are padded to; None: to the longest row of the batch."""
        return longest

    def packed(self, split: str) -> TokenBatch:
        """All texts of a split with begin and end of text, packed in rows of `options.row` tokens."""
        texts = [[self.end, *self.texts[i], self.end] for i in self.items(split, "text").tolist()]
        return pack(texts, self.options.row, padding=self.end)

    def read_embedder(self, folder: Path | str) -> Embedder:
        """What embeds prompts and completions, out of the data set's folder.

        Raises:
            DataError: The data set holds none.
        """
        return SentenceEmbedder(read_word_vectors(folder))

    def check_model(self, options: Mapping[str, Any], logits: int) -> None:
        """See that a model that is read means by its token ids what the data mean.

        Args:
            options: `path` and `revision` of the model.
            logits: Its number of logits.

        Raises:
            ConfigError: It has another tokeniser.
        """
        own = Path(options["path"]) / "tokenizer.json"
        if logits != self.vocabulary or not own.is_file() or sha256(own) != self.tokenizer:
            raise ConfigError(
                f"{options['path']}: has {logits} logits and another tokeniser than the data with their"
                f" {self.vocabulary} tokens; give a folder with the data set's tokenizer.json",
                key="model.path",
            )


@dataclass(frozen=True)
class OwnPairs(PreferenceTexts):
    """Pairs of the user's own, with the tokens of the model's tokeniser; the preferred completions are its texts.

    `prompts` are whole, with whatever the tokeniser puts before a text.
    """

    given: dict[str, tuple[Tensor, Tensor, Tensor]]
    """By split: number of the prompt (N,), completions (N, 2, L), the preferred one first, lengths (N, 2)."""

    def context(self, prompt: int) -> list[int]:
        return self.prompts[prompt]

    def _width(self, longest: int) -> int | None:
        return None

    def packed(self, split: str) -> TokenBatch:
        prompts, tokens, lengths = self.given[split]
        chosen = zip(prompts.tolist(), tokens[:, 0], lengths[:, 0])
        texts = [[*self.prompts[p], *row[:length].tolist()] for p, row, length in chosen]
        return pack(texts, self.options.row, padding=self.end)

    def check_model(self, options: Mapping[str, Any], logits: int) -> None:
        tokenizer = model_tokenizer(options["path"], options.get("revision", "main"), key="model.path")
        if token_digest(tokenizer) != self.tokenizer:
            raise ConfigError(
                f"{options['path']}: has another tokeniser than the one that the pairs were prepared with; set"
                " data.tokenizer to the model",
                key="model.path",
            )
        if logits < self.vocabulary:
            raise ConfigError(
                f"{options['path']}: has {logits} logits for {self.vocabulary} tokens; resize its embeddings",
                key="model.path",
            )


@dataclass(frozen=True)
class ImagePairs(OwnPairs):
    """Captions as prompts, images as completions, and pairs of images; `texts` are captioned images.

    The splits are of images: every caption is a prompt of each split.
    """

    images: ImageTokens
    marked: dict[str, Tensor]
    """By split: whether the mark is what is wrong with the other image of a pair, (N,) bool."""
    judges: dict[str, float]
    """How well the joint encoder and the judges of samples do on test images."""

    def items(self, split: str, of: str = "prompt") -> Tensor:
        return torch.arange(len(self.prompts)) if of == "prompt" else super().items(split, of)

    def packed(self, split: str) -> TokenBatch:
        return pack([self.texts[i] for i in self.items(split, "text").tolist()], self.options.row, padding=self.end)

    def read_embedder(self, folder: Path | str) -> Embedder:
        return read_joint_encoder(folder, self.vocabulary)

    def check_model(self, options: Mapping[str, Any], logits: int) -> None:
        PreferenceTexts.check_model(self, options, logits)

    @property
    def mark(self) -> int:
        """Pixels a side of the mark."""
        assert isinstance(self.options, ImagePairOptions)
        return self.options.mark

    def caption(self, prompt: int) -> str:
        """Words of a prompt."""
        return " ".join(self.words[token] for token in self.prompts[prompt] if token != self.end)


def read_texts(folder: Path | str, options: DataOptions) -> PreferenceTexts:
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

    if isinstance(options, ImagePairOptions):
        own = _own_pairs(tensor, attributes, options, receipt)
        return _image_pairs(own, tensor, attributes, read_image_tokens(folder))
    if not isinstance(options, PreferenceData):
        return _own_pairs(tensor, attributes, options, receipt)

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
        vocabulary=len(attributes["words"]),
        end=attributes["end"],
        splits=list(attributes["splits"]),
        options=options,
        tokenizer=attributes["tokenizer"],
        checksum=receipt["checksum"],
        facts=dict(attributes["reward"]),
    )


def _own_pairs(
    tensor: Callable[[str], Tensor], attributes: dict[str, Any], options: DataOptions, receipt: dict[str, Any]
) -> OwnPairs:
    def rows(name: str) -> list[Tensor]:
        return list(tensor(f"{name}/tokens").split(tensor(f"{name}/lengths").tolist()))

    prompts, of_pair = [row.tolist() for row in rows("prompts")], tensor("pairs/prompt")
    split, splits = tensor("prompts/split"), list(attributes["splits"])
    split_of_pair = tensor("pairs/split") if isinstance(options, ImagePairOptions) else split[of_pair]
    sides = [rows(f"pairs/{side}") for side in SIDES]
    lengths = torch.stack([torch.tensor([len(row) for row in side]) for side in sides], 1)
    given = {}
    for number, name in enumerate(splits):
        own = (split_of_pair == number).nonzero().squeeze(-1)
        tokens = torch.full((len(own), len(SIDES), options.length), attributes["end"], dtype=torch.int32)
        for row, pair in enumerate(own.tolist()):
            for side, completions in enumerate(sides):
                tokens[row, side, : lengths[pair, side]] = completions[pair]
        given[name] = (of_pair[own], tokens, lengths[own])
    return OwnPairs(
        texts=[],
        text_split=torch.empty(0),
        prompts=prompts,
        prompt_counts=tensor("prompts/counts"),
        prompt_split=split,
        reward=NoReward(),
        words=list(attributes.get("words", [])),
        vocabulary=attributes["vocabulary"],
        end=attributes["end"],
        splits=splits,
        options=options,
        tokenizer=attributes["tokenizer"],
        checksum=receipt["checksum"],
        facts={},
        given=given,
    )


def _image_pairs(
    own: OwnPairs, tensor: Callable[[str], Tensor], attributes: dict[str, Any], images: ImageTokens
) -> ImagePairs:
    texts = tensor("texts/tokens").split(tensor("texts/lengths").tolist())
    split, marked = tensor("pairs/split"), tensor("pairs/marked")
    known = {field.name: getattr(own, field.name) for field in fields(own)}
    return ImagePairs(
        **known
        | {
            "texts": [row.tolist() for row in texts],
            "text_split": tensor("texts/split"),
            "images": images,
            "marked": {name: marked[split == number] for number, name in enumerate(own.splits)},
            "judges": dict(attributes["judges"]),
        }
    )


@dataclass(frozen=True)
class Pairs:
    """Preference pairs of one split.

    Attributes:
        prompt: (N,) number of the prompt.
        tokens: (N, 2, L) completions, the preferred one first, padded with the end of text.
        lengths: (N, 2) tokens of each, the end counted.
        rewards: (N, 2) float64; None: the pairs are the user's own.
        reference: (N, 2, L) log-probabilities of the tokens under the base model, 0 after the end.
    """

    prompt: Tensor
    tokens: Tensor
    lengths: Tensor
    rewards: Tensor | None
    reference: Tensor

    def __len__(self) -> int:
        return len(self.prompt)

    def arrays(self) -> dict[str, Tensor]:
        """The attributes by name, without rewards where there are none."""
        return {name: getattr(self, name) for name in PAIR_ARRAYS if getattr(self, name) is not None}

    def rows(self, index: Tensor | slice) -> Pairs:
        """Some of the pairs."""
        return replace(self, **{name: values[index] for name, values in self.arrays().items()})


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

    def read(split: str, name: str) -> Tensor:
        return torch.from_numpy(read_array(group, f"{split}/{name}", place))

    if isinstance(texts, OwnPairs):
        pairs = {name: Pairs(*given, None, read(name, "reference")) for name, given in texts.given.items()}
    else:
        pairs = {split: Pairs(*(read(split, name) for name in PAIR_ARRAYS)) for split in texts.splits}
    stored = torch.from_numpy(read_array(group, "table", place)).double() if table else None
    return BaseOutputs(pairs, stored)


def write_pairs(group: zarr.Group, split: str, pairs: Pairs) -> None:
    """Store the pairs of a split; of the user's own pairs, which the data hold, the reference alone."""
    arrays = pairs.arrays() if pairs.rewards is not None else {"reference": pairs.reference}
    for name, values in arrays.items():
        group.create_array(f"{split}/{name}", data=np.ascontiguousarray(values.numpy()))
