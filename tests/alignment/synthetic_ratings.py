"""Rated texts without a network, in the layout of the real archive, and a small task around them."""

from __future__ import annotations

import io
import itertools
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from relent.data import preferences, sentiment, word_vectors

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"good": 1.5, "bad": -1.5, "film": 0.0, "the": 0.0, "very": 0.2, "not": -0.4, "rare": 0.0}
OPTIONS: dict[str, Any] = {
    "vocabulary": 6,
    "length": 3,
    "prompt_words": 2,
    "prompts": 14,
    "validation_prompts": 3,
    "test_prompts": 3,
    "pairs": 96,
    "held_out_pairs": 24,
    "row": 12,
}


def write_archive(folder: Path, texts: int = 400, seed: int = 0) -> Path:
    """One domain, `films`, of short texts whose raters scatter around a score that the words decide."""
    rng = np.random.default_rng(seed)
    truth, rated = [], []
    for number in range(texts):
        words = rng.choice(list(WORDS), size=rng.integers(2, 7), p=[0.2, 0.2, 0.2, 0.2, 0.09, 0.09, 0.02])
        negated = sum(pair == ("not", "good") for pair in itertools.pairwise(words.tolist()))
        centre = sum(WORDS[word] for word in words) - 3.0 * negated
        scores = np.clip(np.rint(centre + rng.normal(scale=1.2, size=10)), -4, 4).astype(int).tolist()
        mean = float(np.mean(scores))
        truth.append(f"{number}_1\t{mean}\t{' '.join(words)}")
        rated.append(f"{number}_1\t{mean}\t1.0\t{scores}")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / sentiment.FILE, "w:gz") as tar:
        for name, lines in (("GroundTruth", truth), ("anonDataRatings", rated)):
            content = "\n".join(lines).encode()
            entry = tarfile.TarInfo(f"hutto/films_{name}.txt")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return folder


def write_encoder(folder: Path, size: int = 8, seed: int = 0) -> Path:
    """A sentence encoder as WordLlama lays it out: random vectors of the pieces that a small BPE makes of the words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=28, special_tokens=["<s>"], show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    vectors = np.random.default_rng(seed).normal(size=(tokenizer.get_vocab_size(), size)).astype(np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / word_vectors.TOKENIZER))
    save_file({"embedding.weight": vectors}, folder / word_vectors.WEIGHTS)
    return folder


def prepare(folder: Path, out: Path, **changes: Any) -> Path:
    """Prepare the data set of the archive in `folder`, with word vectors of an encoder beside it."""
    encoder = write_encoder(folder.parent / "encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentiment, "DOMAINS", {"films": ("films", 400)})
        patch.setattr(preferences, "RATER_PAIRS", 2000)
        out.mkdir(parents=True)
        preferences.prepare({"vader_ratings": folder, "wordllama": encoder}, out, OPTIONS | changes)
    return out


def copy_methods(folder: Path, tasks: Iterable[str] = ()) -> None:
    """Copy the manifests of all methods of alignment, without the claims about tasks other than those."""
    shutil.copytree(ROOT / "config" / "methods" / "alignment", folder / "methods" / "alignment")
    for path in (folder / "methods").rglob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        claims = values.get("claims", [])
        # Claims about all tasks are about those with the exact reward.
        here = [c for c in claims if (set(c.get("tasks", [])) & set(tasks) if tasks else "tasks" not in c)]
        path.write_text(yaml.safe_dump(values | {"claims": here}, sort_keys=False, allow_unicode=True))


def write_manifests(folder: Path) -> Path:
    """A `config` folder with the methods of alignment and one task, at the scale `smoke`."""
    copy_methods(folder)
    task = yaml.safe_load((ROOT / "config" / "tasks" / "sentiment_exact.yaml").read_text())
    smoke = task["scales"]["smoke"]
    smoke["data"] = OPTIONS
    smoke["training"] |= {"max_steps": 12, "batch_size": 16, "checkpoint_every": 4}
    base = task["teachers"]["base"]
    base["model"] = {"smoke": base["model"]["smoke"]}
    base["training"] = {"smoke": {"max_steps": 30, "batch_size": 8, "learning_rate": 0.01}}
    task |= {"scales": {"smoke": smoke}, "sources": [], "name": "ratings"}
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "ratings.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return folder
