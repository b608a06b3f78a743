"""Tokenisers: a model's own, or a small one made by a rule and kept as one file, `tokenizer.json`.

A tokeniser is part of the data: its file lies in the data set's folder, whose receipt holds its SHA-256. Everything
here is deterministic: the same texts give the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from relent.data.receipt import sha256
from relent.errors import ConfigError, DataError

__all__ = [
    "END",
    "UNKNOWN",
    "byte_level_bpe",
    "model_tokenizer",
    "read_tokenizer",
    "token_digest",
    "word_level",
    "word_level_of",
    "write_tokenizer",
]

END = "<end>"
"""Stands before and after every text, id 0."""
UNKNOWN = "<unknown>"
"""Any other word, id 1, where a tokeniser cannot spell it."""


def word_level(texts: Iterable[str], size: int) -> Tokenizer:
    """Lower-case words and marks, the most frequent of the texts.

    Args:
        texts: What it is made from.
        size: V, the end of text and the unknown word included.

    Raises:
        ValueError: `size` is below 3.
    """
    if size < 3:
        raise ValueError(f"a vocabulary needs the end of text, the unknown word and one word, got size {size}")
    tokenizer = _words(Tokenizer(models.WordLevel({END: 0, UNKNOWN: 1}, unk_token=UNKNOWN)))
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=[END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def word_level_of(words: Sequence[str]) -> Tokenizer:
    """A tokeniser of given words, numbered from 1 in their order after the end of text; it knows no other word.

    Texts must be filtered to these words before: another one is refused by `encode`.

    Raises:
        ValueError: A word stands twice or is that for the end of text.
    """
    if len({END, *words}) != len(words) + 1:
        raise ValueError(f"words must differ from each other and from {END}")
    vocabulary = {word: number for number, word in enumerate([END, *words])}
    tokenizer = _words(Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN)))
    tokenizer.add_special_tokens([END])
    return tokenizer


def _words(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def byte_level_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level byte-pair encoding as GPT-2's: spells any text.

    Args:
        texts: What it is made from.
        size: V, at least 257: the bytes and the end of text.

    Raises:
        ValueError: `size` is below 257.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2.
    """
    if size < 257:
        raise ValueError(f"byte-level encoding needs the 256 bytes and the end of text, got size {size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> str:
    """Write `tokenizer.json` and return its SHA-256."""
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return sha256(path)


def read_tokenizer(folder: Path | str, checksum: str | None = None) -> Tokenizer:
    """Read the `tokenizer.json` of a data set, or of a model's folder.

    Args:
        folder: Where it lies.
        checksum: SHA-256 that it must have: token ids of another tokeniser mean other words.

    Raises:
        DataError: There is none, or it is another one.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path}: does not exist; give a folder with a tokeniser of the `tokenizers` library")
    if checksum is not None and sha256(path) != checksum:
        raise DataError(f"{path}: is not the tokeniser that the token ids were made with; prepare the data again")
    return Tokenizer.from_file(str(path))


def model_tokenizer(place: str, revision: str = "main", key: str = "data.tokenizer") -> Any:
    """The tokeniser of a `transformers` model.

    Args:
        place: Folder, or hub name that is in the local cache.
        revision: Commit or branch of a hub name.
        key: Option that named it, for the error.

    Raises:
        ConfigError: There is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, revision=revision, local_files_only=True)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        advice = "" if Path(place).is_dir() else "; jobs do not download: fetch it before (`hf download NAME`)"
        raise ConfigError(f"{place}: holds no tokeniser ({first}){advice}", key=key) from None


def token_digest(tokenizer: Any) -> str:
    """SHA-256 of the tokens of a `transformers` tokeniser and their ids: what ids mean."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
