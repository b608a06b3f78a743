"""What samples of a policy of images are worth: the captioned digit, the mark, and pictures of some of them.

A classifier says which digit an image shows, the definition of the mark whether it bears it. How well the policy's
states separate clean from marked images is told by the alignment quality index of DETONATE (arXiv 2506.14903).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from relent.data.image_preferences import DIGITS, bears_mark
from relent.models.image_judges import read_judge
from relent.scores.alignment_quality import alignment_quality_index
from relent.tasks.preference_alignment.data import ImagePairs
from relent.tasks.stored import read_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, Any]]
SHOWN = 6
"""Samples of a caption that are kept as pictures."""
LEVELS = 15
"""A picture in a table is a row of hexadecimal digits, 0 dark, f bright, line by line."""
FRAME = 0.55
"""Brightness between the pictures of a figure."""


def sampled_images(group: zarr.Group, place: Path, texts: ImagePairs) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the captions (N,), the images (N, S, S) that were sampled for them, and whether they are whole.

    An image that ended early, or has a token that is no patch, is dark there and not whole.

    Raises:
        DataError: The samples are missing or broken.
    """
    prompts, tokens, lengths = (
        torch.from_numpy(read_array(group, f"samples/{name}", place)) for name in ("prompt", "tokens", "lengths")
    )
    inside = torch.arange(tokens.shape[1]) < lengths[:, None]
    patches = (tokens > texts.end) & (tokens <= len(texts.images.patches))
    return prompts, texts.images.decode(tokens, inside), (inside & patches).all(1)


def judge_images(prompts: Tensor, images: Tensor, whole: Tensor, texts: ImagePairs, data: str) -> dict[str, Tensor]:
    """What each image is, (N,) bool: the captioned digit, marked, both wanted, whole.

    Args:
        prompts: (N,) numbers of the captions.
        images: (N, S, S).
        whole: (N,) bool.
        texts: The data set.
        data: Its folder, which holds the classifier.

    Raises:
        DataError: There is no classifier.
    """
    judge = read_judge(data, texts.images.side, len(DIGITS))
    with torch.no_grad():
        right = judge(images).argmax(1) == prompts
    marked = bears_mark(images, texts.mark)
    return {"caption_accuracy": right, "mark_rate": marked, "wanted_rate": right & ~marked & whole, "whole_rate": whole}


def state_separation(group: zarr.Group, place: Path) -> float:
    """AQI of the stored states of clean and marked images."""
    states = [torch.from_numpy(read_array(group, f"states/{name}", place)) for name in ("safe", "unsafe")]
    labels = torch.arange(len(states)).repeat_interleave(torch.tensor([len(rows) for rows in states]))
    return float(alignment_quality_index(torch.cat(states), labels))


def by_caption(prompts: Tensor, judged: Mapping[str, Tensor], texts: ImagePairs) -> Rows:
    """The judgements of each caption, as shares."""
    return [
        {"caption": texts.caption(prompt)}
        | {name: float(values[prompts == prompt].double().mean()) for name, values in judged.items()}
        for prompt in prompts.unique().tolist()
    ]


# ---------------------------------------------------------------------------------------------------------- pictures


def picture_rows(of: str, prompts: Tensor, images: Tensor, texts: ImagePairs) -> Rows:
    """The first samples of each caption as table rows."""
    rows = []
    for prompt in prompts.unique().tolist():
        for number, image in enumerate(images[prompts == prompt][:SHOWN]):
            levels = (image * LEVELS).round().int().flatten().tolist()
            text = "".join(f"{level:x}" for level in levels)
            rows.append({"of": of, "caption": texts.caption(prompt), "sample": number, "image": text})
    return rows


def _image(text: str) -> NDArray[np.float64]:
    side = round(len(text) ** 0.5)
    return np.array([int(digit, 16) for digit in text], dtype=float).reshape(side, side) / LEVELS


def draw_grid(axes: Axes, rows: Sequence[Mapping[str, Any]], title: str, *, captions: bool = True) -> None:
    """Pictures of one model: a line a caption, its samples side by side."""
    lines: dict[str, list[NDArray[np.float64]]] = {}
    for row in rows:
        lines.setdefault(row["caption"], []).append(np.pad(_image(row["image"]), 1, constant_values=FRAME))
    grid = np.concatenate([np.concatenate(line, 1) for line in lines.values()])
    # A grey frame tells the mark from the page.
    axes.imshow(grid, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    height = len(grid) / len(lines)
    axes.set_yticks([height * (number + 0.5) for number in range(len(lines))], lines if captions else [])
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)


def draw_samples(rows: Rows, method: str, path: Path) -> None:
    """Figure of a run: samples of the reference beside those of the policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 7.2), layout="constrained")
    for number, (axes, (of, title)) in enumerate(
        zip(figure.subplots(1, 2), (("reference", "reference"), ("policy", method)))
    ):
        draw_grid(axes, [row for row in rows if row["of"] == of], title, captions=number == 0)
    figure.savefig(path, dpi=110)
