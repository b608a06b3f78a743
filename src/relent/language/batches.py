"""Rows of tokens with the masks that belong to them: padded on either side, or several texts packed in a row.

A loss needs no mask of its own: the batch says which tokens are there (`attention`), which are predicted (`loss`),
which text a token is of (`segments`) and at which position of its text it stands (`positions`). What does not fit
together is refused when the batch is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

Side = Literal["left", "right"]
Tokens = Sequence[int]

__all__ = ["Side", "TokenBatch", "concatenate", "pack", "pad"]


@dataclass(frozen=True)
class TokenBatch:
    """B rows of L tokens.

    Attributes:
        ids: (B, L) int64 token ids; padding may be any id.
        attention: (B, L) bool, True where a token is, False where padding is.
        loss: (B, L) bool, True where a token is to be predicted from those before it: the completion of a prompt, every
            token of a text but its first.
        segments: (B, L) int64, 0 at padding, else the number of the text in its row, from 1, ascending.
        positions: (B, L) int64, position of a token in its text, from 0; 0 at padding.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes differ; padding stands between the tokens of a row; a token is in the loss that is padding or
            the first of its text, which nothing predicts; segments or positions are not as above.
    """

    ids: Tensor
    attention: Tensor
    loss: Tensor
    segments: Tensor
    positions: Tensor

    def __post_init__(self) -> None:
        if self.ids.ndim != 2:
            raise ValueError(f"ids must have shape (B, L), got {tuple(self.ids.shape)}")
        for name, dtype in (("ids", torch.int64), ("segments", torch.int64), ("positions", torch.int64)):
            _check(name, getattr(self, name), dtype, self.ids.shape)
        for name in ("attention", "loss"):
            _check(name, getattr(self, name), torch.bool, self.ids.shape)
        for wrong, message in self._faults():
            if bool(wrong.any()):
                row, column = (int(i) for i in wrong.nonzero()[0])
                raise ValueError(f"{message} (row {row}, column {column})")

    def _faults(self) -> list[tuple[Tensor, str]]:
        """What may be nowhere: (B, L) bool and the message."""
        here, segments, positions = self.attention, self.segments, self.positions
        before = torch.roll(here, 1, dims=1)
        before_segment, before_position = torch.roll(segments, 1, dims=1), torch.roll(positions, 1, dims=1)
        before[:, :1], before_segment[:, :1] = False, 0
        starts = here & (segments != before_segment)
        inner = here & ~starts
        first = torch.cumsum(here & ~before, 1)
        ascending = segments == torch.where(before, before_segment + 1, torch.ones_like(segments))
        return [
            (here & (first > 1), "padding stands between tokens; a row is padded on one side"),
            (~here & ((segments != 0) | (positions != 0)), "padding has a segment or a position; both must be 0"),
            (self.loss & ~here, "padding is in the loss"),
            (self.loss & starts, "the first token of a text is in the loss, but nothing before it predicts it"),
            (starts & ~ascending, "segments must count the texts of a row from 1"),
            (starts & (positions != 0), "the first token of a text must have position 0"),
            (inner & (positions != before_position + 1), "positions must count the tokens of a text"),
        ]

    @classmethod
    def of(cls, ids: Tensor, attention: Tensor, loss: Tensor) -> TokenBatch:
        """Rows of one text each: segments and positions follow from the attention.

        Args:
            ids: (B, L) int64.
            attention: (B, L) bool, or 0/1 integers.
            loss: (B, L) bool, or 0/1 integers.

        Raises:
            TypeError, ValueError: As the class says.
        """
        here = attention.bool()
        positions = (torch.cumsum(here, 1) - 1).clamp_min(0).masked_fill(~here, 0)
        return cls(ids, here, loss.bool(), here.long(), positions)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, tokens of each row without padding."""
        return self.attention.sum(1)

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one text."""
        return bool((self.segments > 1).any())

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The batch on a device."""
        return replace(self, **{name: values.to(device) for name, values in self.tensors().items()})

    def rows(self, index: Tensor | slice) -> TokenBatch:
        """Some of the rows."""
        return replace(self, **{name: values[index] for name, values in self.tensors().items()})

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The fields by name, as part of a batch that a data loader yields."""
        return {prefix + f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_tensors(cls, batch: Mapping[str, Tensor], prefix: str = "") -> TokenBatch:
        """The inverse of `tensors`.

        Raises:
            KeyError: A field is missing.
            TypeError, ValueError: As the class says.
        """
        return cls(**{f.name: batch[prefix + f.name] for f in fields(cls)})

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """What a `transformers` model takes as `attention_mask`.

        Returns:
            (B, L) int64 where rows hold one text; else (B, 1, L, L) of `dtype`, to be added to the attention scores: 0
            where the query (third dimension) may look, its lowest number where it may not. A token looks at itself and
            at earlier tokens of its own text; padding at itself, so that no row of scores is empty.
        """
        if not self.packed:
            return self.attention.long()
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        same = (self.segments[:, :, None] == self.segments[:, None, :]) & self.attention[:, None, :]
        itself = torch.eye(length, dtype=torch.bool, device=self.ids.device)
        allowed = (same & causal) | itself
        mask = torch.zeros(allowed.shape, dtype=dtype, device=self.ids.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def _check(name: str, values: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    if values.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {values.dtype}")
    if values.shape != shape:
        raise ValueError(f"{name} must have the shape of the ids {tuple(shape)}, got {tuple(values.shape)}")


def pad(
    prompts: Sequence[Tokens],
    completions: Sequence[Tokens] | None = None,
    *,
    padding: int,
    side: Side = "right",
    length: int | None = None,
) -> TokenBatch:
    """Rows of a prompt and, in the loss, its completion.

    Args:
        prompts: B lists of token ids, each of at least one: something must stand before the first predicted token.
        completions: B lists, possibly empty; None: prompts alone, as generation takes them.
        padding: Id that padding gets.
        side: Where padding goes: `right` for training, `left` for generation.
        length: L; default: the longest row.

    Raises:
        ValueError: A prompt is empty, the numbers of rows differ, or a row is longer than `length`.
    """
    completions = [()] * len(prompts) if completions is None else completions
    if len(prompts) != len(completions):
        raise ValueError(f"there are {len(prompts)} prompts and {len(completions)} completions")
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("every row needs a prompt of at least one token, such as the begin-of-text token")
    sizes = [len(p) + len(c) for p, c in zip(prompts, completions)]
    length = max(sizes) if length is None else length
    if max(sizes) > length:
        raise ValueError(f"a row has {max(sizes)} tokens, more than the length {length}; cut it before")
    ids = torch.full((len(prompts), length), padding, dtype=torch.int64)
    attention, loss = (torch.zeros(ids.shape, dtype=torch.bool) for _ in range(2))
    for row, (prompt, completion) in enumerate(zip(prompts, completions)):
        start = length - sizes[row] if side == "left" else 0
        end = start + sizes[row]
        ids[row, start:end] = torch.tensor([*prompt, *completion], dtype=torch.int64)
        attention[row, start:end] = True
        loss[row, start + len(prompt) : end] = True
    return TokenBatch.of(ids, attention, loss)


def pack(texts: Sequence[Tokens], length: int, *, padding: int) -> TokenBatch:
    """Texts side by side in rows, first come, first served; every token but the first of a text is in the loss.

    A text longer than a row is cut into pieces, each a text of its own; a piece of one token is dropped, for nothing
    predicts it.

    Args:
        texts: Lists of token ids.
        length: L, at least 2.
        padding: Id that padding gets, on the right.

    Raises:
        ValueError: `length` is below 2, or no text has two tokens.
    """
    if length < 2:
        raise ValueError(f"a row must hold at least 2 tokens, got length {length}")
    pieces = [text[start : start + length] for text in texts for start in range(0, len(text), length)]
    rows: list[list[Tokens]] = []
    room = 0
    for piece in pieces:
        if len(piece) < 2:
            continue
        if len(piece) > room:
            rows.append([])
            room = length
        rows[-1].append(piece)
        room -= len(piece)
    if not rows:
        raise ValueError("no text has two tokens or more: there is nothing to predict")
    ids = torch.full((len(rows), length), padding, dtype=torch.int64)
    segments, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, held in enumerate(rows):
        start = 0
        for number, piece in enumerate(held, start=1):
            part = slice(start, start + len(piece))
            ids[row, part] = torch.as_tensor(piece, dtype=torch.int64)
            segments[row, part], positions[row, part] = number, torch.arange(len(piece))
            start += len(piece)
    here = segments > 0
    return TokenBatch(ids, here, here & (positions > 0), segments, positions)


def concatenate(batches: Sequence[TokenBatch], padding: int) -> TokenBatch:
    """Rows of several batches below each other, padded on the right to the longest.

    Raises:
        ValueError: There is no batch.
    """
    if not batches:
        raise ValueError("there is no batch to concatenate")
    length = max(batch.ids.shape[1] for batch in batches)
    fill: dict[str, Any] = {"ids": padding, "attention": False, "loss": False}

    def widened(name: str) -> Tensor:
        parts = (batch.tensors()[name] for batch in batches)
        return torch.cat([torch.nn.functional.pad(p, (0, length - p.shape[1]), value=fill.get(name, 0)) for p in parts])

    return TokenBatch(**{f.name: widened(f.name) for f in fields(TokenBatch)})
