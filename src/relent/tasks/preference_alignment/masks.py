"""What a run's masks of tokens say: how many are zero, and whether they find the tokens that the reward depends on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relent.errors import DataError
from relent.language.reward import NgramReward
from relent.scores.classification import rank_correlation
from relent.tasks.preference_alignment.data import SIDES, Pairs, PreferenceTexts
from relent.tasks.stored import open_extras, read_array

Rows = list[dict[str, Any]]
SHOWN = 12
"""Pairs whose masks are told token by token."""


def evaluate_masks(folder: Path, texts: PreferenceTexts, pairs: Pairs) -> tuple[dict[str, float], Rows]:
    """Scores and table of a run that wrote the masks of its test pairs; both empty for any other.

    `mask_zero_share` is the share of tokens with m_u = 0, `kl_mask_zero_share` that with m_d = 0. Where the reward is
    known, `mask_reward_correlation` is Spearman's ρ, over all tokens, of m_u and the size of what a token adds to it; 0
    for a constant mask.

    Args:
        folder: The run.
        texts: Its data set.
        pairs: Its test pairs.

    Raises:
        DataError: The masks are incomplete, or of another data set.
    """
    place = folder / "masks.zarr"
    group = open_extras(place, texts.checksum)
    if group is None:
        return {}, []
    reward, kl = (torch.from_numpy(read_array(group, name, place)) for name in ("reward", "kl"))
    inside = torch.arange(pairs.tokens.shape[2]) < pairs.lengths[..., None]
    if reward.shape != inside.shape or kl.shape != inside.shape:
        raise DataError(f"{place}: holds masks of other pairs; train the run again")
    scores = {
        "mask_zero_share": float((reward[inside] == 0).double().mean()),
        "kl_mask_zero_share": float((kl[inside] == 0).double().mean()),
    }
    columns = {"reward_mask": reward, "kl_mask": kl}
    if isinstance(texts.reward, NgramReward):
        columns["reward"] = added = reward_of_tokens(texts, texts.reward, pairs)
        correlation = float(rank_correlation(reward[inside], added[inside].abs()))
        scores["mask_reward_correlation"] = 0.0 if math.isnan(correlation) else correlation
    rows = []
    for pair, side, place in inside[:SHOWN].nonzero().tolist():
        token = int(pairs.tokens[pair, side, place])
        row = {"pair": pair, "side": SIDES[side], "place": place, "token": texts.words[token] if texts.words else token}
        rows.append(row | {name: float(values[pair, side, place]) for name, values in columns.items()})
    return scores, rows


def reward_of_tokens(texts: PreferenceTexts, reward: NgramReward, pairs: Pairs) -> Tensor:
    """What each token adds to the reward of what stands before it, (N, 2, T) float64."""
    last = torch.tensor([texts.context(prompt)[-1] for prompt in pairs.prompt.tolist()])
    before = torch.cat([last[:, None, None].expand(-1, 2, 1), pairs.tokens[..., :-1]], -1).long()
    return reward.unigram[pairs.tokens.long()] + reward.bigram[before, pairs.tokens.long()]


def draw_masks(rows: Rows, path: Path) -> None:
    """Figure of a run: tokens of some completions, as dark as their masks are large."""
    from matplotlib.figure import Figure

    lines = sorted({(row["pair"], SIDES.index(row["side"])) for row in rows})
    width = 1 + max(row["place"] for row in rows)
    figure = Figure(figsize=(1.1 * 2 * width + 2, 0.28 * len(lines) + 1), layout="constrained")
    for axes, name, title in zip(figure.subplots(1, 2), ("reward_mask", "kl_mask"), ("$m_u$", "$m_d$")):
        values = np.full((len(lines), width), np.nan)
        for row in rows:
            line = lines.index((row["pair"], SIDES.index(row["side"])))
            values[line, row["place"]] = row[name]
            axes.text(row["place"], line, row["token"], ha="center", va="center", fontsize=7)
        image = axes.imshow(values, cmap="Oranges", vmin=0, vmax=max(np.nanmax(values), 1e-6), aspect="auto")
        axes.set(title=title, xlabel="place", xticks=range(width))
        axes.set_yticks(range(len(lines)), [f"{pair} {SIDES[side]}" for pair, side in lines], fontsize=6)
        figure.colorbar(image, ax=axes, shrink=0.5)
    figure.savefig(path, dpi=110)
