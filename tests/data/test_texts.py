"""Text data sets from small sources of the same form as the real ones."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import zarr

from relent.data import glosses, sentiment, shakespeare, texts
from relent.errors import ConfigError, DataError

SHARES = {"teacher": 0.4, "student": 0.2, "validation": 0.2}


def test_words_keep_case_aside_and_marks_of_mood():
    assert texts.words("Don’t you DARE, it's 3 o'clock!!") == ["don't", "you", "dare", "it's", "3", "o'clock", "!!"]


def test_the_most_frequent_words_get_numbers_and_the_rest_is_unknown():
    corpus = [["a", "b", "a"], ["b", "c", "a"]]
    numbers = texts.vocabulary(corpus, 4)
    assert numbers == {"a": 2, "b": 3}
    assert texts.encode([["a", "c", "b", "a"], ["b"]], numbers, 3).tolist() == [[2, 1, 3], [3, 0, 0]]


def test_ties_of_frequency_are_broken_by_the_alphabet():
    assert texts.vocabulary([["z", "y", "x"]], 4) == {"x": 2, "y": 3}


def test_a_group_never_stands_in_two_splits():
    groups = np.repeat(np.arange(50), 3)
    split = texts.split_by_group(groups, SHARES, sentiment.SPLITS, seed=0)
    for group in range(50):
        assert len(set(split[groups == group])) == 1
    assert np.bincount(split).tolist() == [60, 30, 30, 30]
    assert not np.array_equal(split, texts.split_by_group(groups, SHARES, sentiment.SPLITS, seed=1))


@pytest.fixture
def ratings(tmp_path, monkeypatch):
    """Two domains, ten reviews of two sentences each; the first says good, the second bad."""
    monkeypatch.setattr(sentiment, "DOMAINS", {"films": ("films", 20), "tweets": ("tweets", 20)})
    archive = tmp_path / sentiment.FILE
    with tarfile.open(archive, "w:gz") as tar:
        for stem in ("films", "tweets"):
            truth, rated = [], []
            for review in range(10):
                truth += [f"{review}_1\t1.5\t{stem} {review} good", f"{review}_2\t-0.5\t{stem} {review} bad"]
                rated += [f"{review}_1\t1.5\t0.5\t[3, 0, 2, 1]", f"{review}_2\t-0.5\t1.0\t[-2, 1, -1, 0]"]
            for name, lines in (("GroundTruth", truth), ("anonDataRatings", rated)):
                content = ("\ufeff" + "\n".join(lines)).encode()
                entry = tarfile.TarInfo(f"hutto/{stem}_{name}.txt")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return tmp_path


def test_sentiment_has_the_raters_distribution_and_keeps_reviews_together(ratings, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    options = {"fractions": SHARES, "per_class": 0, "vocabulary": 50, "length": 4}
    sentiment.prepare({"vader_ratings": ratings}, out, options)
    group = zarr.open_group(out / "dataset.zarr", mode="r")
    labels, people, split = (group[name][...] for name in ("labels", "people", "split"))
    assert np.bincount(labels).tolist() == [20, 20]
    np.testing.assert_allclose(people[labels == 1], np.tile([0.125, 0.875], (20, 1)))
    np.testing.assert_allclose(people[labels == 0], np.tile([0.625, 0.375], (20, 1)))
    assert all(split[first] == split[first + 1] for first in range(0, 40, 2))
    assert list(group.attrs["sources"]) == ["films", "tweets"]
    assert group["inputs"][...].max() < group.attrs["vocabulary"]


def test_sentiment_of_another_size_is_refused(ratings, monkeypatch):
    monkeypatch.setattr(sentiment, "DOMAINS", {"films": ("films", 21)})
    with pytest.raises(DataError, match="films has 20 texts, not 21"):
        sentiment.read(ratings / sentiment.FILE)


def test_a_broken_archive_is_refused(tmp_path):
    (tmp_path / sentiment.FILE).write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read"):
        sentiment.read(tmp_path / sentiment.FILE)


GLOSSES = """  1 licence
00000001 04 n 01 deed 0 000 | something that people do; "a brave deed"
00000002 04 n 01 act 0 000 | something that people do
00000003 05 n 01 cat 0 000 | a small furry animal
00000004 05 n 01 tie 0 000 | one of two
00000005 20 n 01 tie 0 000 | one of two
00000006 20 n 01 oak 0 000 | a large tree
"""


@pytest.fixture
def nouns(tmp_path, monkeypatch):
    monkeypatch.setattr(glosses, "SYNSETS", 6)
    (tmp_path / glosses.FILE).write_text(GLOSSES)
    return tmp_path


def test_glosses_drop_examples_copies_and_ambiguous_definitions(nouns, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    options = {
        "classes": ["act", "animal", "plant"],
        "per_class": 0,
        "fractions": SHARES,
        "vocabulary": 50,
        "length": 6,
    }
    glosses.prepare({"wordnet_nouns": nouns}, out, options)
    group = zarr.open_group(out / "dataset.zarr", mode="r")
    assert group["labels"][...].tolist() == [0, 1, 2]
    assert glosses.read(nouns / glosses.FILE)[0] == ("act", "something that people do")


def test_an_unknown_class_of_glosses_is_refused(nouns, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'animal'"):
        glosses.prepare({"wordnet_nouns": nouns}, tmp_path, {"classes": ["animals"]})


def test_words_are_predicted_within_a_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shakespeare, "WORKS", 7)
    for name in ("a", "b", *shakespeare.VALIDATION, *shakespeare.TEST):
        (tmp_path / f"{name}_gut.txt").write_text(
            "to be or not to be that is rare" if name == "a" else "to be to be or"
        )
    out = tmp_path / "out"
    out.mkdir()
    shakespeare.prepare(
        {"shakespeare": tmp_path}, out, {"context": 2, "least_count": 2, "train_items": 0, "test_items": 0}
    )
    group = zarr.open_group(out / "dataset.zarr", mode="r")
    classes = list(group.attrs["classes"])
    assert classes == ["<other>", "be", "to", "or"]  # by frequency, then the alphabet
    split = group["split"][...]
    assert np.bincount(split).tolist() == [7 + 3, 2 * 3, 3 * 3]
    first = [classes[token] for token in group["inputs"][0]], classes[int(group["labels"][0])]
    assert first == (["to", "be"], "or")
    assert (group["inputs"][...] < group.attrs["vocabulary"]).all()


def test_windows():
    inputs, labels = shakespeare.windows(np.arange(6, dtype=np.int32), 3)
    assert inputs.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert labels.tolist() == [3, 4, 5]
