"""Pairs out of files: both forms, both formats, the tokens that are made of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.data.options import PairFileOptions
from relent.data.preference_files import Tokeniser, example_rows, prepare, read_rows, trained_tokenizer, write_rows
from relent.data.receipt import check_receipt
from relent.data.sentiment import Rated
from relent.errors import ConfigError, DataError
from relent.language.tokenizers import model_tokenizer, token_digest

ROW = {"prompt": "Say", "chosen": " yes please", "rejected": " no"}
TEXTS = ["Say yes please", "Say no", "user: hello assistant: good day"] * 4
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return trained_tokenizer(TEXTS, 280)


@pytest.fixture(scope="module")
def chat():
    found = trained_tokenizer(TEXTS, 280)
    found.chat_template = TEMPLATE
    return found


def options(**changes: Any) -> PairFileOptions:
    return PairFileOptions(**({"path": "pairs.jsonl", "vocabulary": 280} | changes))


def many(count: int = 40) -> list[dict[str, str]]:
    """Pairs of which two share a prompt."""
    return [{"prompt": f"Say {n // 2}", "chosen": f" yes {n}", "rejected": f" no {n}"} for n in range(count)]


def prepared(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    write_rows(tmp_path / "pairs.jsonl", rows)
    out = tmp_path / "data"
    out.mkdir()
    prepare(
        {}, out, {"path": str(tmp_path / "pairs.jsonl"), "vocabulary": 280, "validation": 0.2, "test": 0.2} | changes
    )
    return out


def lists(group: zarr.Group, name: str) -> list[list[int]]:
    ends = np.cumsum(group[f"{name}/lengths"][...])
    return [part.tolist() for part in np.split(group[f"{name}/tokens"][...], ends[:-1])]


# ------------------------------------------------------------------------------------------------------- what is read


def test_both_formats_hold_the_same_rows(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [ROW, ROW])
    pandas.DataFrame([ROW, ROW]).to_parquet(tmp_path / "pairs.parquet")
    found = [[row for _, row in read_rows(tmp_path / f"pairs.{kind}")] for kind in ("jsonl", "parquet")]
    assert found == [[ROW, ROW], [ROW, ROW]]


def test_messages_are_read_from_both_formats(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "hello"}],
        "chosen": [{"role": "assistant", "content": "good day"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    write_rows(tmp_path / "pairs.jsonl", [row])
    pandas.DataFrame([row]).to_parquet(tmp_path / "pairs.parquet")
    for kind in ("jsonl", "parquet"):
        assert [found for _, found in read_rows(tmp_path / f"pairs.{kind}")] == [row]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"pairs.jsonl:2: is no JSON"),
        ("[1]", r"pairs.jsonl:2: is no object but list"),
        (json.dumps({"chosen": "a", "rejected": "b"}), r"pairs.jsonl:2: prompt: is missing; .*common beginning"),
        (json.dumps({"prompt": "a", "chosen": "b"}), r"pairs.jsonl:2: rejected: is missing; give the columns"),
        (json.dumps(ROW | {"chosen": 3}), r"pairs.jsonl:2: chosen: is neither a text nor a list of messages"),
        (json.dumps(ROW | {"chosen": [{"role": "user"}]}), r"pairs.jsonl:2: chosen: is neither"),
        (
            json.dumps(ROW | {"chosen": [{"role": "assistant", "content": "b"}]}),
            r"pairs.jsonl:2: mixes texts and messages",
        ),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_key(tmp_path, line, message):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / "pairs.jsonl"))


def test_a_broken_parquet_file_is_named(tmp_path):
    path = tmp_path / "pairs.parquet"
    pandas.DataFrame([{"prompt": "a", "chosen": "b"}]).to_parquet(path)
    with pytest.raises(DataError, match=r"pairs.parquet: rejected: there is no such column \(prompt, chosen\)"):
        list(read_rows(path))
    pandas.DataFrame([ROW, ROW | {"chosen": None}]).to_parquet(path)
    with pytest.raises(DataError, match=r"pairs.parquet: row 2: chosen: is missing"):
        list(read_rows(path))
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"pairs.parquet: cannot be read as parquet"):
        list(read_rows(path))


def test_nothing_to_read_is_told_before_anything_else(tmp_path):
    with pytest.raises(ConfigError, match=r"data.path: .*nowhere.jsonl: holds no pairs; give a .jsonl"):
        prepare({}, tmp_path, {"path": str(tmp_path / "nowhere.jsonl"), "vocabulary": 280})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratings": 30}, "one of `path`"),
        ({"tokenizer": "somewhere"}, "one of `tokenizer`"),
        ({"validation": 0.5, "test": 0.5}, "less than 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)


# --------------------------------------------------------------------------------------------------------- tokens


@settings(max_examples=40, deadline=None)
@given(prompt=st.text(max_size=12), chosen=st.text(max_size=12), rejected=st.text(max_size=12))
def test_prompt_and_completion_decode_to_the_texts_and_the_prompt_stands_alone(tokenizer, prompt, chosen, rejected):
    """A policy is sampled from the prompt's own tokens, whatever follows it in the file."""
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    found = Tokeniser(tokenizer, options())("here", row)
    assert found[0] == tokenizer(prompt)["input_ids"]
    for ids, text in zip(found[1:], (chosen, rejected)):
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-1]) == text


def test_a_completion_has_the_tokens_that_it_has_after_the_prompt(tokenizer):
    found = Tokeniser(tokenizer, options())("here", ROW)
    assert found[0] + found[1] == [*tokenizer("Say yes please")["input_ids"], tokenizer.eos_token_id]


def test_messages_become_the_text_of_the_chat_template(chat):
    row = {
        "prompt": [{"role": "user", "content": "hello"}],
        "chosen": [{"role": "assistant", "content": "good day"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    prompt, chosen, rejected = Tokeniser(chat, options())("here", row)
    assert chat.decode(prompt) == "user: hello<end>assistant: "
    assert chat.decode(chosen) == "good day<end>"
    assert chat.decode(rejected) == "no<end>"
    assert chosen.count(chat.eos_token_id) == 1


def test_a_template_may_end_every_message(chat):
    """The end of the prompt's message is none of the completion."""
    row = {column: [{"role": "user", "content": text}] for column, text in ROW.items()}
    chat.chat_template = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
    found = [chat.decode(ids) for ids in Tokeniser(chat, options())("here", row)]
    assert found == ["Say<end>", " yes please<end>", " no<end>"]


def test_messages_that_no_template_takes_are_refused(tokenizer, chat, tmp_path):
    row = {column: [{"role": "user", "content": "x"}] for column in ("prompt", "chosen", "rejected")}
    with pytest.raises(DataError, match="here: holds messages, but the tokeniser has no chat template"):
        Tokeniser(tokenizer, options())("here", row)
    chat.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"here: the chat template refuses the messages \(roles must alternate"):
        Tokeniser(chat, options())("here", row)
    chat.chat_template = "{{ messages | length }} {% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="here: chosen: the chat template writes the prompt otherwise"):
        Tokeniser(chat, options())("here", row)
    write_rows(tmp_path / "pairs.jsonl", [row])
    with pytest.raises(DataError, match=r"pairs.jsonl:1: holds messages, which need .* set data.tokenizer"):
        prepare({}, tmp_path, {"path": str(tmp_path / "pairs.jsonl"), "vocabulary": 280})


def test_tokenisers_that_cannot_be_had_or_have_no_end_are_refused(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"data.tokenizer: .*nothing: holds no tokeniser"):
        model_tokenizer(str(tmp_path / "nothing"))
    endless = trained_tokenizer(TEXTS, 280)
    endless.eos_token = None
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        Tokeniser(endless, options(tokenizer="mine", vocabulary=None))


# ------------------------------------------------------------------------------------------------------ what is written


def test_the_data_set_holds_every_pair_once_and_no_prompt_in_two_splits(tmp_path):
    out = prepared(tmp_path, many())
    group = zarr.open_group(out / "dataset.zarr", mode="r")
    tokenizer = model_tokenizer(str(out / "tokenizer"))
    assert group.attrs["tokenizer"] == token_digest(tokenizer)
    assert group.attrs["vocabulary"] == len(tokenizer) == 280
    prompts, numbers = lists(group, "prompts"), group["pairs/prompt"][...]
    assert len(prompts) == 20
    assert sorted(group["prompts/counts"][...].tolist()) == [2] * 20
    assert np.bincount(group["prompts/split"][...]).tolist() == [12, 4, 4]
    texts = [tokenizer.decode(p, skip_special_tokens=True) for p in prompts]
    assert [texts[n] for n in numbers] == [row["prompt"] for row in many()]
    for side in ("chosen", "rejected"):
        found = [tokenizer.decode(ids, skip_special_tokens=True) for ids in lists(group, f"pairs/{side}")]
        assert found == [row[side] for row in many()]
    check_receipt(out, contents=True)


def test_the_same_file_gives_the_same_bytes(tmp_path):
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found.append(check_receipt(prepared(tmp_path / name, many()))["files"])
    assert found[0] == found[1]


def test_long_prompts_lose_their_beginning_and_long_completions_their_end(tmp_path):
    out = prepared(tmp_path, many(), prompt_length=2, length=3)
    group = zarr.open_group(out / "dataset.zarr", mode="r")
    assert max(map(len, lists(group, "prompts"))) == 2
    assert {len(ids) for side in ("chosen", "rejected") for ids in lists(group, f"pairs/{side}")} <= {2, 3}
    counts = check_receipt(out)["counts"]
    assert counts["prompts cut"] == 40
    assert counts["completions cut"] > 0


def test_pairs_of_equal_completions_are_left_out_and_counted(tmp_path):
    out = prepared(tmp_path, [*many(), ROW | {"rejected": ROW["chosen"]}])
    counts = check_receipt(out)["counts"]
    assert counts["pairs of equal completions left out"] == 1
    assert sum(counts[f"{split} pairs"] for split in ("train", "validation", "test")) == 40


def test_too_few_prompts_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has 1 different prompt\(s\), too few to split"):
        prepared(tmp_path, many(2))


def test_a_split_without_prompts_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"20 prompts leave none for validation; raise data.validation"):
        prepared(tmp_path, many(), validation=0.01)


def test_examples_prefer_the_better_rated_text_of_one_beginning():
    words = [("a", "film", str(n)) for n in range(30)] + [("the", "rest", str(n)) for n in range(30)]
    rated = [Rated("films", str(n), text, float(n % 30) / 10, []) for n, text in enumerate(words)]
    rows = example_rows(rated, 20, seed=0)
    assert len(rows) == 20
    assert {row["prompt"] for row in rows} == {"a film", "the rest"}
    assert all(int(row["chosen"]) - int(row["rejected"]) >= 10 for row in rows)
    with pytest.raises(DataError, match="lower `ratings` to at most 20"):
        example_rows(rated, 21, seed=0)
