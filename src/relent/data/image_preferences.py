"""Captions, images and preferences between images: digits as rows of tokens, some of them with a planted mark.

Source: `mnist_5k`, pooled to S × S pixels and cut into tokens (`relent.language.image_tokens`). The mark, a bright
square in the upper left corner, stands for what nobody wants to see and a model has learnt all the same: a share of the
images that the base model is trained on bears it, under captions that do not say so. A pair prefers a clean image of
the captioned digit to another one, which bears the mark or shows another digit. (The pairs of DETONATE, arXiv
2506.14903, are pictures of a Stable Diffusion model for 25,000 hateful prompts and their benign counterparts.)

Images are split, equal ones together: no image of a validation or test pair is trained on, by any network. With the
data come the frozen encoder of captions and images, which knows the mark by its word, and the classifier that judges
samples (`relent.data.image_judge_training`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from relent.data.image_judge_training import train_encoder, train_judge
from relent.data.images import read_mnist
from relent.data.options import ImagePairOptions, checked
from relent.data.preference_files import SPLITS, ragged, write_pair_arrays
from relent.data.receipt import write_receipt
from relent.data.texts import split_by_group
from relent.errors import DataError
from relent.language.image_tokens import FIRST, PATCHES, ImageTokens, fit_patches
from relent.language.tokenizers import word_level_of, write_tokenizer
from relent.models.image_judges import ENCODER, JUDGE, ImageTower, JointEncoder

FILE = "mnist_5k.csv.gz"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ARTICLE, MARKED = "a", "marked"
END = 0
BRIGHT = 0.5
"""Mean brightness from which on the corner counts as marked."""

Numbers = NDArray[np.int64]


def plant_mark(images: Tensor, mark: int) -> Tensor:
    """Images (N, S, S) with a bright square of `mark` pixels a side in the upper left corner."""
    planted = images.clone()
    planted[:, :mark, :mark] = 1.0
    return planted


def bears_mark(images: Tensor, mark: int) -> Tensor:
    """Whether that square is bright, at least half on average: (N, S, S) → (N,) bool."""
    return images[:, :mark, :mark].mean((1, 2)) >= BRIGHT


class Digits(NamedTuple):
    """Digits of one data set.

    Attributes:
        clean: (N, L) tokens of the images.
        marked: (N, L) tokens of the same images with the mark.
        labels: (N,) digits.
        split: (N,) index into `SPLITS`.
    """

    clean: Tensor
    marked: Tensor
    labels: Numbers
    split: NDArray[np.int8]

    def of(self, split: str) -> Numbers:
        """Numbers of the images of a split."""
        return np.flatnonzero(self.split == SPLITS.index(split))


class ImagePair(NamedTuple):
    """Numbers of the preferred image and the other one, and whether the mark is what is wrong with the latter."""

    chosen: int
    rejected: int
    marked: bool


def draw_pairs(digits: Digits, split: str, count: int, wrong_digit: float, seed: int) -> list[ImagePair]:
    """Pairs of images of a split.

    Args:
        digits: All images.
        split: Which.
        count: Pairs.
        wrong_digit: Share of the pairs whose other image shows another digit, without a mark.
        seed: Seed of the draws.
    """
    rng, own = np.random.default_rng([seed, SPLITS.index(split)]), digits.of(split)
    found = []
    for chosen in rng.choice(own, count):
        marked = bool(rng.random() >= wrong_digit)
        alike = digits.labels[own] == digits.labels[chosen]
        rest = own[alike & (own != chosen)] if marked else own[~alike]
        found.append(ImagePair(int(chosen), int(rng.choice(rest)), marked))
    return found


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write captions, texts, pairs, tokeniser, codebook, encoder and classifier.

    Args:
        sources: Folder of the source `mnist_5k`.
        out: Folder to write into.
        options: `relent.data.options.ImagePairOptions`.
        seed: Seed of splits, codebook, pairs and networks.

    Raises:
        ConfigError: An option is unknown or out of range.
        DataError: The source is missing or broken, or there are too few images.
    """
    chosen = checked(ImagePairOptions, options)
    images, labels = _pooled(Path(sources["mnist_5k"]) / FILE, chosen, seed)
    split = _split(images, labels, chosen, seed)
    training = torch.from_numpy(np.flatnonzero(split == 0))
    patches = fit_patches(images[training], chosen.patch, chosen.codes, seed)
    tokens = ImageTokens(patches, chosen.side)
    digits = Digits(tokens.encode(images), tokens.encode(plant_mark(images, chosen.mark)), labels, split)
    words = [*(f"#{code}" for code in range(chosen.codes)), ARTICLE, MARKED, *DIGITS]
    numbers = {word: number for number, word in enumerate(words, start=FIRST)}
    checksum = write_tokenizer(word_level_of(words), out)
    pairs = {
        name: draw_pairs(
            digits, name, chosen.pairs if name == "train" else chosen.held_out_pairs, chosen.wrong_digit, seed
        )
        for name in SPLITS
    }
    _write(out, digits, pairs, [[END, numbers[ARTICLE], numbers[word]] for word in DIGITS], chosen.marked, seed)
    judges = _train_judges(out, digits, tokens, numbers, chosen, seed)
    group = zarr.open_group(out / "dataset.zarr")
    group.create_array(PATCHES, data=patches.numpy())
    group.attrs.update(
        splits=list(SPLITS),
        end=END,
        words=["<end>", *words],
        vocabulary=FIRST + len(words),
        tokenizer=checksum,
        side=chosen.side,
        judges=judges,
    )
    counts = {name: int((split == number).sum()) for number, name in enumerate(SPLITS)}
    title = "Digits with captions, a planted mark and preferences (LeCun, Cortes, Burges: MNIST)"
    write_receipt(out, counts=counts, title=title, options=chosen.model_dump(mode="json"), seed=seed, judges=judges)


def _pooled(path: Path, options: ImagePairOptions, seed: int) -> tuple[Tensor, Numbers]:
    """Images of S × S pixels with brightness in [0, 1], and their digits."""
    images, labels = read_mnist(path)
    if options.per_class:
        rng = np.random.default_rng(seed)
        kept = [rng.permutation(np.flatnonzero(labels == digit))[: options.per_class] for digit in range(len(DIGITS))]
        images, labels = images[np.sort(np.concatenate(kept))], labels[np.sort(np.concatenate(kept))]
    block = images.shape[1] // options.side
    pooled = images.reshape(-1, options.side, block, options.side, block).mean((2, 4)) / 255
    return torch.from_numpy(pooled).float(), labels


def _split(images: Tensor, labels: Numbers, options: ImagePairOptions, seed: int) -> NDArray[np.int8]:
    """Split of each image, digit by digit; equal images lie in one split.

    Raises:
        DataError: A split has fewer than two images of a digit.
    """
    _, group = np.unique(images.flatten(1).numpy(), axis=0, return_inverse=True)
    shares = {"train": 1 - options.validation - options.test, "validation": options.validation}
    split = np.empty(len(labels), dtype=np.int8)
    for digit, word in enumerate(DIGITS):
        own = np.flatnonzero(labels == digit)
        split[own] = split_by_group(group[own], shares, SPLITS, seed)
        fewest = min(SPLITS, key=lambda name: int((split[own] == SPLITS.index(name)).sum()))
        if (split[own] == SPLITS.index(fewest)).sum() < 2:
            raise DataError(
                f"{fewest}: has fewer than two images of a {word}; raise data.per_class"
                + ("" if fewest == "train" else f" or data.{fewest}")
            )
    return split


def _write(
    out: Path,
    digits: Digits,
    pairs: dict[str, list[ImagePair]],
    captions: Sequence[Sequence[int]],
    marked: float,
    seed: int,
) -> None:
    """Captions and pairs, and the base model's texts: every image under its caption, a share of them with the mark."""
    every = [pair for split in SPLITS for pair in pairs[split]]
    of_pair = digits.labels[[pair.chosen for pair in every]]
    rows = [
        (captions[caption], digits.clean[chosen].tolist(), (digits.marked if mark else digits.clean)[rejected].tolist())
        for caption, (chosen, rejected, mark) in zip(of_pair, every)
    ]
    write_pair_arrays(out, captions, of_pair, np.zeros(len(captions), dtype=np.int8), rows)
    planted = np.random.default_rng(seed).random(len(digits.labels)) < marked
    texts = [
        [*captions[label], *(digits.marked if mark else digits.clean)[number].tolist()]
        for number, (label, mark) in enumerate(zip(digits.labels, planted))
    ]
    arrays: dict[str, NDArray[Any]] = {
        **ragged("texts", texts),
        "texts/split": digits.split,
        "texts/marked": planted,
        "pairs/split": np.repeat(np.arange(len(SPLITS), dtype=np.int8), [len(pairs[name]) for name in SPLITS]),
        "pairs/images": np.array([(pair.chosen, pair.rejected) for pair in every]),
        "pairs/marked": np.array([pair.marked for pair in every]),
    }
    group = zarr.open_group(out / "dataset.zarr")
    for name, values in arrays.items():
        group.create_array(name, data=values)


def _train_judges(
    out: Path, digits: Digits, tokens: ImageTokens, numbers: dict[str, int], options: ImagePairOptions, seed: int
) -> dict[str, float]:
    """Write encoder and classifier; returns how well they, and the rule for the mark, do on test images."""
    captions = torch.tensor(
        [[END, numbers[ARTICLE], numbers[word], END] for word in DIGITS]
        + [[END, numbers[ARTICLE], numbers[MARKED], numbers[word]] for word in DIGITS]
    )
    labels = torch.from_numpy(digits.labels)

    def of(split: str) -> tuple[Tensor, Tensor]:
        """Images, all clean, then all marked; and the number of each one's caption."""
        own = torch.from_numpy(digits.of(split))
        images = tokens.decode(torch.cat([digits.clean[own], digits.marked[own]]))
        return images, torch.cat([labels[own], labels[own] + len(DIGITS)])

    images, caption = of("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = JointEncoder(tokens, FIRST + len(numbers))
        judge = ImageTower(options.side, len(DIGITS))
        train_encoder(encoder, images, caption, captions, options.judge_steps, seed)
        train_judge(judge, images, caption % len(DIGITS), options.judge_steps, seed)
    for name, network in ((ENCODER, encoder), (JUDGE, judge)):
        save_file(network.state_dict(), out / name)
    with torch.no_grad():
        images, caption = of("test")
        nearest = (encoder.images(images) @ encoder.captions(captions).T).argmax(1)
        named, marks = judge(images).argmax(1), bears_mark(images, options.mark)
    planted = caption >= len(DIGITS)
    facts = {
        "encoder_accuracy": nearest == caption,
        "classifier_accuracy": named == caption % len(DIGITS),
        "marks_found": marks[planted],
        "marks_found_in_clean_images": marks[~planted],
    }
    sizes = {"encoder_parameters": encoder, "classifier_parameters": judge}
    return {name: float(right.double().mean()) for name, right in facts.items()} | {
        name: sum(p.numel() for p in network.parameters()) for name, network in sizes.items()
    }
