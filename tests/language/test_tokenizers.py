from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.errors import DataError
from relent.language.tokenizers import (
    END,
    UNKNOWN,
    byte_level_bpe,
    read_tokenizer,
    word_level,
    word_level_of,
    write_tokenizer,
)

TEXTS = ["the cat saw the dog", "the dog ran", "a cat ran and ran"]
BPE = byte_level_bpe(TEXTS * 3, 280)


def test_words_are_numbered_by_frequency_after_end_and_unknown():
    tokenizer = word_level(TEXTS, 5)
    assert tokenizer.get_vocab_size() == 5
    assert tokenizer.token_to_id(END) == 0
    assert tokenizer.token_to_id(UNKNOWN) == 1
    assert tokenizer.encode("The zebra ran").ids[1] == 1
    assert tokenizer.encode("THE").ids == tokenizer.encode("the").ids


def test_given_words_keep_their_numbers_and_others_are_refused():
    tokenizer = word_level_of(["cat", "dog"])
    assert tokenizer.encode("dog cat dog").ids == [2, 1, 2]
    assert tokenizer.encode(f"cat {END}").ids == [1, 0]
    with pytest.raises(Exception, match="Missing"):
        tokenizer.encode("cow")
    with pytest.raises(ValueError, match="differ"):
        word_level_of(["cat", "cat"])


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_bytes_spell_any_text(text):
    ids = BPE.encode(text).ids
    assert BPE.decode(ids) == text
    assert all(0 < token < BPE.get_vocab_size() for token in ids)


def test_frequent_pairs_are_one_token():
    assert len(BPE.encode(" the").ids) < 4
    assert BPE.token_to_id(END) == 0


def test_the_same_texts_give_the_same_file(tmp_path):
    sums = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sums.append(write_tokenizer(byte_level_bpe(TEXTS, 270), tmp_path / name))
    assert sums[0] == sums[1]
    assert read_tokenizer(tmp_path / "one", sums[0]).encode("cat").ids


def test_another_or_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_tokenizer(tmp_path)
    write_tokenizer(word_level(TEXTS, 5), tmp_path)
    with pytest.raises(DataError, match="not the tokeniser"):
        read_tokenizer(tmp_path, "0" * 64)


@pytest.mark.parametrize(("make", "size"), [(word_level, 2), (byte_level_bpe, 256)])
def test_too_small_a_vocabulary_is_refused(make, size):
    with pytest.raises(ValueError, match="got size"):
        make(TEXTS, size)
