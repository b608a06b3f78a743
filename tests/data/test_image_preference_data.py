"""Captioned digits with a planted mark: splits, pairs, and the networks that judge, on digits without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from relent.data.image_judge_training import contrastive_loss
from relent.data.image_preferences import DIGITS, bears_mark, plant_mark
from relent.data.options import ImagePairOptions
from relent.data.receipt import check_receipt
from relent.errors import ConfigError, DataError
from relent.models.image_judges import read_judge
from relent.tasks.preference_alignment.data import ImagePairs, read_texts
from synthetic_digits import OPTIONS, draw_digits, prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def texts(folder: Path) -> ImagePairs:
    found = read_texts(folder, ImagePairOptions(**OPTIONS))
    assert isinstance(found, ImagePairs)
    return found


@pytest.fixture(scope="module")
def pairs(folder: Path) -> dict[str, np.ndarray]:
    """Numbers of the images of each pair, its split, and whether the other image is marked."""
    group = zarr.open_group(folder / "dataset.zarr", mode="r")
    return {name: np.asarray(group[f"pairs/{name}"][...]) for name in ("images", "split", "marked", "prompt")}


def test_the_same_options_give_the_same_bytes(folder, tmp_path):
    again = prepare(tmp_path / "data")
    assert check_receipt(again)["checksum"] == check_receipt(folder)["checksum"]
    other = prepare(tmp_path / "other", seed=1)
    assert check_receipt(other)["checksum"] != check_receipt(folder)["checksum"]


def test_no_image_stands_in_two_splits_nor_its_double(folder, texts, pairs):
    images, _ = draw_digits()
    seen = [{images[n].tobytes() for n in pairs["images"][pairs["split"] == split].flatten()} for split in range(3)]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    trained = {images[n].tobytes() for n in texts.items("train", "text")}
    assert not trained & (seen[1] | seen[2])
    assert seen[0] <= trained


def test_a_pair_prefers_a_clean_image_of_the_captioned_digit(texts, pairs):
    _, labels = draw_digits()
    of_prompt, marked = labels[pairs["images"]], pairs["marked"]
    assert (of_prompt[:, 0] == pairs["prompt"]).all()
    assert ((of_prompt[:, 1] == pairs["prompt"]) == marked).all()
    assert 0.35 < marked.mean() < 0.65
    for split in texts.splits:
        _, tokens, lengths = texts.given[split]
        chosen, rejected = (bears_mark(texts.images.decode(tokens[:, side].long()), 7) for side in range(2))
        assert not chosen.any()
        assert torch.equal(rejected, texts.marked[split])
        assert bool((lengths == 4).all())


def test_a_share_of_the_base_model_s_images_is_marked_under_captions_that_do_not_say_so(texts):
    rows = texts.packed("train")
    images = texts.images.decode(rows.ids[:, 3:])
    assert 0.3 < float(bears_mark(images, 7).double().mean()) < 0.5
    assert {tuple(row) for row in rows.ids[:, :3].tolist()} == {tuple(prompt) for prompt in texts.prompts}
    assert [texts.caption(n) for n in range(10)] == [f"a {word}" for word in DIGITS]
    assert bool(rows.attention.all())


def test_the_mark_is_found_where_it_was_planted():
    images = torch.rand(50, 14, 14, generator=torch.Generator().manual_seed(0)) * 0.9
    assert bool(bears_mark(plant_mark(images, 4), 4).all())
    assert not bears_mark(images * 0.5, 4).any()
    assert torch.equal(plant_mark(images, 4)[:, 4:], images[:, 4:])


def test_encoder_and_classifier_know_images_that_they_have_not_seen(folder, texts):
    receipt = check_receipt(folder)
    assert texts.judges == receipt["judges"]
    assert texts.judges["encoder_accuracy"] > 0.9
    assert texts.judges["classifier_accuracy"] > 0.9
    assert (texts.judges["marks_found"], texts.judges["marks_found_in_clean_images"]) == (1.0, 0.0)
    embedder = texts.read_embedder(folder)
    prompts, tokens, lengths = texts.given["test"]
    rows = [texts.completed(prompts.tolist(), tokens[:, side], lengths[:, side]) for side in range(2)]
    own, (chosen, rejected) = embedder.prompts(texts.prompt_batch(prompts.tolist())), map(embedder.completions, rows)
    torch.testing.assert_close(chosen.norm(dim=1), torch.ones(len(chosen)))
    torch.testing.assert_close(own.norm(dim=1), torch.ones(len(own)))
    assert float(((chosen * own).sum(1) > (rejected * own).sum(1)).double().mean()) > 0.9
    assert not any(p.requires_grad for p in read_judge(folder, 14, 10).parameters())


def test_the_contrastive_loss_is_clip_s():
    rng = np.random.default_rng(0)
    images, captions = (torch.from_numpy(rng.normal(size=shape)) for shape in ((2, 3, 4), (3, 4)))
    scale = 1.7
    expected = []
    for group in images.numpy():
        logits = np.exp(scale) * group @ captions.numpy().T
        for table in (logits, logits.T):
            expected.append(np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(table)]))
    found = contrastive_loss(images, captions, torch.tensor(scale, dtype=torch.float64))
    assert float(found) == pytest.approx(np.mean(expected), abs=1e-12)
    one = torch.eye(3, dtype=torch.float64)
    perfect = contrastive_loss(one[None], one, torch.tensor(0.0, dtype=torch.float64))
    assert float(perfect) == pytest.approx(np.log(np.e + 2) - 1, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 4}, "side 14 is no multiple of patch 4; choose a patch that divides it"),
        ({"mark": 3}, "mark 3 must be a multiple of patch 7 and at most half of side 14"),
        ({"mark": 14}, "at most half of side 14"),
        ({"side": 10}, "data.side"),
        ({"validation": 0.6, "test": 0.5}, "must sum to less than 1"),
        ({"shades": 4}, "data.shades"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_key_and_remedy(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare(tmp_path / "data", **changes)


def test_too_few_images_are_told_by_split(tmp_path):
    with pytest.raises(DataError, match=r"fewer than two images of a zero; raise data\.per_class or data\."):
        prepare(tmp_path / "data", each=8)


def test_data_without_judges_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"judge.safetensors: does not exist; prepare the data again"):
        read_judge(tmp_path, 14, 10)
