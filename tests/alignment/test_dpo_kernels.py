"""The module of DPO-Kernels: its loss on a network, its kernels and divergences, and sentence embeddings by look-up."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors.numpy import load_file
from synthetic_ratings import WORDS, write_encoder
from tokenizers import Tokenizer

from relent.data import word_vectors
from relent.errors import DataError
from relent.language.sentences import embed, read_word_vectors
from relent.methods.alignment.dpo_kernels import dpo_kernels_loss, policy_divergence
from relent.methods.alignment.sentence_kernels import log_kernel
from relent.train.stage import build


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("dpo_kernels")


@pytest.mark.parametrize("divergence", ["kl", "wasserstein"])
@pytest.mark.parametrize("regulariser", ["difference", "outside"])
def test_a_step_is_the_objective_on_the_tables_of_the_network(
    module_in_float64, sequence_ratios, same_step, divergence, regulariser
):
    settings = {"beta": 0.3, "gamma": 0.7, "alpha": 0.4, "divergence": divergence, "regulariser": regulariser}
    module, batch = module_in_float64("dpo_kernels", settings)
    chosen, rejected = sequence_ratios(module, batch)
    policy, reference, mask = module.outputs(batch).next_token_log_probs()
    divergences = policy_divergence(divergence, policy, reference, mask).chunk(2)
    prompts, good, bad = module.embeddings(batch)
    contrast = log_kernel("rbf", good, prompts) - log_kernel("rbf", bad, prompts)
    assert float(contrast.abs().max()) > 0.01
    margin = 0.3 * (chosen - rejected)
    expected = dpo_kernels_loss(margin, contrast, *divergences, gamma=0.7, alpha=0.4, regulariser=regulariser)
    same_step(module, batch, expected.mean())


@pytest.mark.parametrize("kernel", ["polynomial", "wavelet", "spectral", "mahalanobis", "mixture"])
def test_every_kernel_trains(module_in_float64, kernel):
    module, batch = module_in_float64("dpo_kernels", {"kernel": kernel})
    rbf, _ = module_in_float64("dpo_kernels")
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()
    assert not torch.equal(loss, rbf.training_step(batch, 0))
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


def test_a_mixture_is_resumed_with_its_covariance(student):
    module, *_ = build(student("dpo_kernels", hyperparameters={"kernel": "mixture"}))
    other, *_ = build(student("dpo_kernels", hyperparameters={"kernel": "mixture"}))
    with torch.no_grad():
        module.mixture.level.add_(1.0)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.mixture.weights(), module.mixture.weights())
    assert other.mixture.factor.shape == (8, 8)


def test_training_raises_the_objective_and_the_outer_divergence_holds_it_back(scores_after, reference_reward):
    found = [
        scores_after(
            "dpo_kernels", regulariser, hyperparameters={"regulariser": regulariser, "max_steps": 40, "alpha": 5.0}
        )
        for regulariser in ("difference", "outside")
    ]
    assert all(scores["objective"] > reference_reward for scores in found)
    assert found[1]["kl_to_reference"] < 0.8 * found[0]["kl_to_reference"]


# ------------------------------------------------------------------------------------------ embeddings


def test_a_look_up_gives_the_encoder_s_embedding_of_the_whole_sentence(tmp_path):
    """The mean over the pieces of the sentence, brought to length 1."""
    folder, words = write_encoder(tmp_path / "encoder"), list(WORDS)
    vectors = torch.from_numpy(word_vectors.word_vectors(folder, [None, *words]))
    tokenizer = Tokenizer.from_file(str(folder / word_vectors.TOKENIZER))
    weights = load_file(folder / word_vectors.WEIGHTS)["embedding.weight"].astype(np.float32)
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = rng.integers(1, len(words) + 1, size=5)
        pieces = tokenizer.encode(" ".join(words[number - 1] for number in ids)).ids
        expected = weights[pieces].mean(0)
        found = embed(torch.from_numpy(ids)[None], torch.ones(1, 5, dtype=torch.bool), vectors)[0]
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_no_word_is_embedded_as_zeros_and_padding_counts_for_nothing():
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    ids, mask = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[True, False], [True, False]])
    assert embed(ids, mask, vectors).tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]


def test_data_without_word_vectors_are_told_apart(student, tmp_path):
    spec = student("dpo_kernels")
    folder = Path(shutil.copytree(spec.inputs["data"], tmp_path / "data"))
    del zarr.open_group(folder / "dataset.zarr")[word_vectors.VECTORS]
    with pytest.raises(DataError, match="wordllama"):
        read_word_vectors(folder)
    with pytest.raises(DataError, match="no WordLlama encoder"):
        word_vectors.word_vectors(tmp_path, ["good"])
