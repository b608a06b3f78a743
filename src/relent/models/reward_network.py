"""A reward of texts from a causal language model's body and one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relent.language.batches import TokenBatch
from relent.models.causal_lm import CausalLM

__all__ = ["LearnedReward", "RewardNetwork"]


class RewardNetwork(nn.Module):
    """r(x, y): a linear function of the hidden state at the last token of prompt and completion.

    The head is drawn from N(0, 1/(H + 1)), as in Stiennon et al., arXiv 2009.01325, for a body of H channels.

    Args:
        body: The language model; its output layer is not used.
    """

    def __init__(self, body: CausalLM):
        super().__init__()
        self.body = body
        embedding = body.model.get_output_embeddings().weight
        self.head = nn.Linear(embedding.shape[1], 1, dtype=embedding.dtype)
        nn.init.normal_(self.head.weight, std=(embedding.shape[1] + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Reward of each row of one text, padded on either side: (B,), at least float32."""
        places = torch.arange(1, batch.ids.shape[1] + 1, device=batch.ids.device)
        last = (batch.attention * places).argmax(1)
        return self._scores(self.body(batch).hidden[torch.arange(len(batch), device=last.device), last])

    @torch.no_grad()
    def continued(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """Reward of each row followed by each of some tokens, the row itself computed once.

        Args:
            ids: (B, L) rows without padding.
            tokens: (T,).

        Returns:
            (B, T), at least float32.
        """
        (rows, length), count = ids.shape, len(tokens)
        positions = torch.arange(length + 1, device=ids.device)
        seen = torch.ones(rows * count, length + 1, dtype=torch.bool, device=ids.device)
        _, cache = self.body.hidden_step(ids, seen[:rows, :length], positions[:length].expand(rows, -1))
        cache.batch_repeat_interleave(count)
        last = tokens.to(ids.device).repeat(rows)[:, None]
        hidden, _ = self.body.hidden_step(last, seen, positions[length:].expand(rows * count, -1), cache)
        return self._scores(hidden[:, -1]).view(rows, count)

    def _scores(self, hidden: Tensor) -> Tensor:
        rewards: Tensor = self.head(hidden).squeeze(-1)
        return rewards.to(torch.promote_types(rewards.dtype, torch.float32))


class LearnedReward:
    """A frozen reward network in the place of an exact reward.

    It is no module, so that a method that keeps it neither trains nor saves nor shards it.

    Args:
        network: A trained network.
    """

    def __init__(self, network: RewardNetwork):
        self.network = network.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, batch: TokenBatch) -> Tensor:
        """Reward of each row, prompt and completion together: (B,) float64, on the batch's device."""
        rewards: Tensor = self.network.to(batch.ids.device)(batch).double()
        return rewards
