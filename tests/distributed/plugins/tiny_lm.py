"""A language model of a few thousand weights, to try sharding: reads an image as tokens, predicts token and class."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.methods.classifier import ClassifierMethod
from relent.methods.config import MethodConfig

VOCABULARY = 16


class Config(MethodConfig):
    """The recipe's settings."""


class Output(NamedTuple):
    """Class logits (B, C), features (B, D), and logits of the next token (B, L, V) with the tokens (B, L)."""

    logits: Tensor
    features: Tensor
    mid: Tensor
    token_logits: Tensor
    tokens: Tensor


class TinyLM(nn.Module):
    """GPT-2 over the pixels in 16 shades; output and input embeddings are one tensor, as in the real ones."""

    def __init__(self, length: int, classes: int):
        super().__init__()
        settings: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": length}
        settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **settings))
        self.classifier = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Output:
        tokens = (images.flatten(1) * 4 + VOCABULARY / 2).long().clamp(0, VOCABULARY - 1)
        output = self.model(tokens, output_hidden_states=True)
        features = output.hidden_states[-1].mean(1)
        return Output(self.classifier(features), features, features, output.logits, tokens)


class TinyLanguageModel(ClassifierMethod):
    """Class and next token, both by cross-entropy."""

    def setup_method(self) -> None:
        data = self.task.data  # type: ignore[attr-defined]
        self.network = TinyLM(data.inputs[0].numel(), self.classes)

    def terms(self, output: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        labelled = label_cross_entropy(batch["label"], tempered_log_probs(output.logits), reduction="mean")
        following = output.tokens[:, 1:].reshape(-1)
        predicted = tempered_log_probs(output.token_logits[:, :-1].reshape(len(following), -1))
        tokens = label_cross_entropy(following, predicted, reduction="mean")
        return {"label": labelled, "token": tokens}
