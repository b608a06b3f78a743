"""Images as rows of tokens: what is lost on the way, and what is not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.errors import DataError
from relent.language.image_tokens import FIRST, ImageTokens, fit_patches


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Noise, 20 images of 8 × 8 pixels."""
    return torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokens(images) -> ImageTokens:
    """Their codebook, 12 patches of 2 × 2 pixels."""
    return ImageTokens(fit_patches(images, 2, 12, seed=0), 8)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(FIRST, FIRST + 11), min_size=16, max_size=16))
def test_tokens_survive_the_way_to_an_image_and_back(tokens, row):
    rows = torch.tensor([row])
    assert torch.equal(tokens.encode(tokens.decode(rows)), rows)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 20), st.integers(0, 2**31))
def test_patches_of_one_pixel_are_even_grey_levels_and_lose_nothing_between(levels, seed):
    patches = fit_patches(torch.zeros(1, 4, 4), 1, levels, seed=0)
    grey = ImageTokens(patches, 4)
    drawn = torch.randint(levels, (5, 4, 4), generator=torch.Generator().manual_seed(seed))
    codes = grey.encode(drawn / (levels - 1))
    assert torch.equal(codes, drawn.flatten(1) + FIRST)
    torch.testing.assert_close(grey.decode(codes), drawn / (levels - 1))


def test_every_square_gets_its_nearest_patch(images, tokens):
    decoded = tokens.decode(tokens.encode(images))
    for number, top, left in ((0, 0, 0), (3, 2, 6), (19, 6, 4)):
        square, found = (x[number, top : top + 2, left : left + 2] for x in (images, decoded))
        errors = (tokens.patches - square).square().sum((1, 2))
        torch.testing.assert_close((found - square).square().sum(), errors.min())


def test_patches_go_from_dark_to_bright_and_are_the_same_each_time(images, tokens):
    brightness = tokens.patches.mean((1, 2))
    assert bool((brightness.diff() >= 0).all())
    assert [float(brightness[0]), float(brightness[-1])] == [0.0, 1.0]
    assert torch.equal(fit_patches(images, 2, 12, seed=0), tokens.patches)


def test_an_image_is_found_anywhere_in_a_row_and_what_is_missing_is_dark(images, tokens):
    own = tokens.encode(images[:1])
    row = torch.cat([torch.tensor([[0, 13, 14]]), own, torch.tensor([[5, 5]])], 1)
    mask = torch.zeros_like(row, dtype=torch.bool)
    mask[:, 3:19] = True
    assert torch.equal(tokens.decode(row, mask), tokens.decode(own))
    mask[:, 15:] = False
    row[0, 3] = 13  # no patch
    expected = tokens.decode(own)
    expected[:, :2, :2] = expected[:, 6:] = 0.0
    assert torch.equal(tokens.decode(row, mask), expected)


def test_a_codebook_needs_as_many_patches():
    flat = torch.zeros(2, 4, 4)
    flat[0] = 0.5
    with pytest.raises(DataError, match="have 1 different patches; lower `codes` to at most 3"):
        fit_patches(flat, 2, 8, seed=0)
