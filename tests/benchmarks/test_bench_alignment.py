"""What the benchmark of alignment compares is the same work: tokens, reference, and the loss of a batch."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def made(load, tmp_path, monkeypatch):
    """The benchmark's script with its small data, model and stored reference in a folder."""
    from relent.methods.alignment.dpo import DPO

    bench = load("bench_alignment")
    monkeypatch.setattr(DPO, "pair", DPO.pair)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    bench.make(tmp_path, bench.SIZES["small"])
    bench.store_reference(tmp_path, threads=1)
    return bench, tmp_path


def test_both_trainers_see_the_same_tokens_and_both_references_are_one(made):
    from relent.tasks.preference_alignment.data import SIDES
    from relent.train.stage import build

    bench, folder = made
    module, datamodule, task = build(bench.spec_of(folder, "student"))
    batch = next(iter(datamodule.train_dataloader()))
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.mul_(1.1)
    stored = module.training_step(batch, 0).detach()
    bench.recompute_reference()
    torch.testing.assert_close(module.training_step(batch, 0).detach(), stored, rtol=0, atol=1e-5)
    ours = set()
    for prompts, tokens, lengths in task.texts.given.values():
        for prompt, rows, sizes in zip(prompts.tolist(), tokens, lengths.tolist()):
            ours.add(
                (*task.texts.context(prompt), -1, *rows[0, : sizes[0]].tolist(), -1, *rows[1, : sizes[1]].tolist())
            )
    trainer = bench.trl_trainer(folder, str(folder / "trl"), bench.SIZES["small"], stored=False)
    columns = [trainer.train_dataset[name] for name in ("prompt_ids", *(f"{side}_ids" for side in SIDES))]
    assert ours == {(*prompt, -1, *chosen, -1, *rejected) for prompt, chosen, rejected in zip(*columns)}
    assert len(ours) == bench.SIZES["small"].pairs


def test_pairs_are_the_same_at_every_call(load):
    bench = load("bench_alignment")
    size = bench.SIZES["small"]
    assert bench.texts_of(size, 5) == bench.texts_of(size, 5)
    assert len({row["chosen"] for row in bench.texts_of(size, 5)}) == 5
