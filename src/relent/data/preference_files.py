"""Preference pairs out of files: prompts with a preferred completion and another one, as TRL's trainers read them.

A row has the columns `prompt`, `chosen` and `rejected`: three texts, or three lists of messages (`role`, `content`)
that the tokeniser's chat template turns into text. Files are JSON lines or parquet. Pairs are split by prompt: no
prompt of the test is trained on. Token ids are those of the model's own tokeniser, or of a small byte-level one that
is trained on the pairs.

A completion ends with the end of text. Its tokens are those that follow the prompt's when both are tokenised together;
where the prompt's tokens change with what follows, it is tokenised alone, so that a policy is trained on the prompt
that it is sampled from. (TRL cuts the prompt where the two begin to differ.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from relent.data.options import PairFileOptions, checked
from relent.data.receipt import write_receipt
from relent.data.sentiment import FILE, Rated, read
from relent.data.texts import split_by_group
from relent.errors import ConfigError, DataError
from relent.files import whole
from relent.language.tokenizers import END, byte_level_bpe, model_tokenizer, token_digest

COLUMNS = ("prompt", "chosen", "rejected")
SPLITS = ("train", "validation", "test")
BEGINNING = 2
"""Words of an example's prompt."""
LEAST_DIFFERENCE = 1.0
"""Of the mean ratings (−4 to 4) of an example's texts."""
FORM = "give the columns prompt, chosen and rejected, all three texts or all three lists of messages (role, content)"

Row = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------- reading


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a file, each with its place for messages (file and line), their form checked.

    Raises:
        DataError: A line is no JSON object, a column is missing, or a value is neither text nor messages.
    """
    rows = _json_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path)
    for place, row in rows:
        _check_row(place, row)
        yield place, row


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                place = f"{path}:{number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{place}: is no JSON ({error}); write one object a line") from None
                if not isinstance(row, dict):
                    raise DataError(f"{place}: is no object but {type(row).__name__}; {FORM}")
                yield place, row
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error})") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
        missing = [column for column in COLUMNS if column not in table.schema_arrow.names]
        if missing:
            names = ", ".join(table.schema_arrow.names)
            raise DataError(f"{path}: {missing[0]}: there is no such column ({names}); {FORM}")
        number = 0
        for batch in table.iter_batches(columns=list(COLUMNS)):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({error})") from None


def _check_row(place: str, row: Row) -> None:
    forms = set()
    for column in COLUMNS:
        value = row.get(column)
        if value is None:
            advice = "; a common beginning of chosen and rejected belongs into it" if column == "prompt" else ""
            raise DataError(f"{place}: {column}: is missing; {FORM}{advice}")
        if not isinstance(value, str) and not _are_messages(value):
            raise DataError(f"{place}: {column}: is neither a text nor a list of messages (role, content)")
        forms.add(type(value))
    if len(forms) > 1:
        raise DataError(f"{place}: mixes texts and messages; {FORM}")


def _are_messages(value: Any) -> bool:
    def is_message(part: Any) -> bool:
        return isinstance(part, dict) and all(isinstance(part.get(key), str) for key in ("role", "content"))

    return isinstance(value, list) and bool(value) and all(map(is_message, value))


# ------------------------------------------------------------------------------------------------------- tokenising


@dataclass(frozen=True)
class Tokeniser:
    """Turns rows into token ids.

    Args:
        tokenizer: A `transformers` tokeniser.
        options: Longest prompt and completion.

    Raises:
        ConfigError: The tokeniser has no end of text.
    """

    tokenizer: Any
    options: PairFileOptions

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(
                f"{self.options.tokenizer}: has no end-of-text token (eos_token), without which no completion ends",
                key="data.tokenizer",
            )

    @property
    def end(self) -> int:
        """The end of text."""
        return int(self.tokenizer.eos_token_id)

    def __call__(self, place: str, row: Row) -> tuple[list[int], list[int], list[int]]:
        """Prompt, preferred and other completion, not cut.

        Raises:
            DataError: The prompt has no token, or the chat template does not take the messages.
        """
        special = isinstance(row["prompt"], str)
        prompt, *completions = self._texts(place, row)
        ids = self.tokenizer(prompt, add_special_tokens=special)["input_ids"]
        if special and len(ids) > 1 and ids[-1] == self.end:
            ids = ids[:-1]  # some tokenisers end every text
        if not ids:
            raise DataError(f"{place}: prompt: is empty, and the tokeniser puts no begin of text before it")
        chosen, rejected = (self._completion(prompt, ids, text, special) for text in completions)
        return ids, chosen, rejected

    def _completion(self, prompt: str, ids: list[int], text: str, special: bool) -> list[int]:
        both = self.tokenizer(prompt + text, add_special_tokens=special)["input_ids"]
        found = (
            both[len(ids) :] if both[: len(ids)] == ids else self.tokenizer(text, add_special_tokens=False)["input_ids"]
        )
        return [*found[: found.index(self.end) if self.end in found else None], self.end]

    def _texts(self, place: str, row: Row) -> list[str]:
        if isinstance(row["prompt"], str):
            return [row[column] for column in COLUMNS]
        if not self.tokenizer.chat_template:
            raise DataError(
                f"{place}: holds messages, but the tokeniser has no chat template; give one that has, or texts"
            )
        try:
            prompt = self.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            both = [self.tokenizer.apply_chat_template(row["prompt"] + row[c], tokenize=False) for c in COLUMNS[1:]]
        except Exception as error:  # templates raise what they like
            raise DataError(f"{place}: the chat template refuses the messages ({error})") from None
        for column, text in zip(COLUMNS[1:], both):
            if not text.startswith(prompt):
                raise DataError(
                    f"{place}: {column}: the chat template writes the prompt otherwise where an answer follows;"
                    " give texts"
                )
        return [prompt, *(text[len(prompt) :] for text in both)]


def trained_tokenizer(texts: Sequence[str], size: int) -> Any:
    """A byte-level tokeniser of `size` tokens that puts its one special token before and after a text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_bpe(texts, size)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


# --------------------------------------------------------------------------------------------------------- examples


def example_rows(rated: Sequence[Rated], count: int, seed: int) -> list[Row]:
    """Pairs of rated texts that begin with the same words: the better rated rest is the preferred completion.

    Args:
        rated: Rated texts.
        count: Pairs.
        seed: Of the choice among all.

    Raises:
        DataError: There are fewer.
    """
    by_beginning: dict[tuple[str, ...], list[Rated]] = {}
    for item in sorted({item.words: item for item in rated}.values(), key=lambda item: (item.mean, item.words)):
        if len(item.words) > BEGINNING:
            by_beginning.setdefault(item.words[:BEGINNING], []).append(item)
    found = []
    for beginning, items in sorted(by_beginning.items()):
        for worse, better in zip(items[: len(items) // 2], reversed(items)):
            if better.mean - worse.mean >= LEAST_DIFFERENCE:
                rests = (" " + " ".join(item.words[BEGINNING:]) for item in (better, worse))
                found.append(dict(zip(COLUMNS, (" ".join(beginning), *rests))))
    if len(found) < count:
        raise DataError(f"the rated texts make {len(found)} pairs; lower `ratings` to at most {len(found)}")
    chosen = np.random.default_rng(seed).permutation(len(found))[:count]
    return [found[number] for number in np.sort(chosen)]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write JSON lines."""
    with whole(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- preparing


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write prompts and pairs as token ids, their splits, and the tokeniser.

    Args:
        sources: Folder of the source `vader_ratings`, where `ratings` are asked for.
        out: Folder to write into.
        options: `relent.data.options.PairFileOptions`.
        seed: Seed of the splits.

    Raises:
        ConfigError: There is no such file or tokeniser.
        DataError: A row is not as it should be (file and line are named), or there are too few prompts.
    """
    chosen = checked(PairFileOptions, options)
    path, files = Path(chosen.path or out / "pairs.jsonl"), chosen.files()
    if chosen.ratings is not None:
        write_rows(path, example_rows(read(Path(sources["vader_ratings"]) / FILE), chosen.ratings, seed))
        files = [path]
    if not files:
        raise ConfigError(
            f"{path}: holds no pairs; give a .jsonl or .parquet file, or a folder with such files", key="data.path"
        )
    rows = [row for file in files for row in read_rows(file)]
    tokenise = Tokeniser(_tokenizer(chosen, rows), chosen)
    pairs, counts = _tokenised(tokenise, rows)
    prompts, of_pair = _numbered([prompt for prompt, _, _ in pairs])
    if len(prompts) < len(SPLITS):
        raise DataError(f"{path}: has {len(prompts)} different prompt(s), too few to split; each split needs one")
    shares = {"train": 1 - chosen.validation - chosen.test, "validation": chosen.validation}
    split = split_by_group(np.arange(len(prompts)), shares, SPLITS, seed)
    absent = [name for number, name in enumerate(SPLITS) if not (split == number).any()]
    if absent:
        raise DataError(f"{path}: {len(prompts)} prompts leave none for {absent[0]}; raise data.{absent[0]}")
    write_pair_arrays(out, prompts, of_pair, split, pairs)
    tokenise.tokenizer.save_pretrained(out / "tokenizer")
    zarr.open_group(out / "dataset.zarr").attrs.update(
        splits=list(SPLITS),
        end=tokenise.end,
        vocabulary=len(tokenise.tokenizer),
        tokenizer=token_digest(tokenise.tokenizer),
    )
    counts |= {f"{name} pairs": int((split[of_pair] == number).sum()) for number, name in enumerate(SPLITS)}
    print(f"{path}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()), flush=True)
    title = f"Preference pairs of {path.name}"
    write_receipt(out, counts=dict(counts), title=title, options=chosen.model_dump(mode="json"), seed=seed)


def _tokenizer(options: PairFileOptions, rows: Sequence[tuple[str, Row]]) -> Any:
    if options.tokenizer is not None:
        return model_tokenizer(options.tokenizer, options.revision)
    for place, row in rows:
        if not isinstance(row["prompt"], str):
            raise DataError(f"{place}: holds messages, which need a tokeniser with a chat template; set data.tokenizer")
    assert options.vocabulary is not None
    return trained_tokenizer([row["prompt"] + row[c] for _, row in rows for c in COLUMNS[1:]], options.vocabulary)


def _tokenised(
    tokenise: Tokeniser, rows: Sequence[tuple[str, Row]]
) -> tuple[list[tuple[list[int], list[int], list[int]]], Counter[str]]:
    """Token ids of all rows, cut to their lengths, without pairs of equal completions; what was cut, and left out."""
    options, counts = tokenise.options, Counter[str]()
    found = []
    for place, row in rows:
        prompt, *completions = tokenise(place, row)
        counts["prompts cut"] += len(prompt) > options.prompt_length
        counts["completions cut"] += sum(len(ids) > options.length for ids in completions)
        chosen, rejected = (ids[: options.length] for ids in completions)
        if chosen == rejected:
            counts["pairs of equal completions left out"] += 1
            continue
        found.append((prompt[-options.prompt_length :], chosen, rejected))
    return found, counts


def _numbered(prompts: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], NDArray[np.int64]]:
    """Different prompts in the order of their first pair, and the number of each pair's."""
    numbers: dict[tuple[int, ...], int] = {}
    of_pair = np.array([numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts], dtype=np.int64)
    return list(numbers), of_pair


def write_pair_arrays(
    out: Path,
    prompts: Sequence[Sequence[int]],
    of_pair: NDArray[np.int64],
    split: NDArray[np.int8],
    pairs: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]],
) -> None:
    """Begin `dataset.zarr`: prompts with their splits, and pairs.

    Args:
        out: Folder of the data set.
        prompts: P token lists.
        of_pair: (N,) number of each pair's prompt.
        split: (P,) index into `SPLITS`.
        pairs: N prompts, preferred and other completions; the prompts are not written again.
    """
    arrays: dict[str, NDArray[Any]] = {
        **ragged("prompts", prompts),
        "prompts/counts": np.bincount(of_pair, minlength=len(prompts)),
        "prompts/split": split,
        "pairs/prompt": of_pair,
        **ragged("pairs/chosen", [chosen for _, chosen, _ in pairs]),
        **ragged("pairs/rejected", [rejected for _, _, rejected in pairs]),
    }
    group = zarr.create_group(store=out / "dataset.zarr")
    for name, values in arrays.items():
        group.create_array(name, data=values, chunks=(min(len(values), 2**20),))


def ragged(name: str, rows: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int32]]:
    """Arrays `NAME/tokens` and `NAME/lengths`: rows of different lengths, one after the other."""
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    return {f"{name}/tokens": np.concatenate([np.asarray(row, np.int32) for row in rows]), f"{name}/lengths": lengths}
