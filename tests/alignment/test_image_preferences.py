"""A policy of images, from the base model to scores and pictures, on digits without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from synthetic_ratings import ROOT, copy_methods

from relent.compare.results import read_run
from relent.contract.check import check_method
from relent.errors import ConfigError
from relent.evaluate.run import Evaluation, evaluate_run
from relent.files import read_json
from relent.language.batches import TokenBatch
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.runspec import RunSpec
from relent.tasks.preference_alignment.comparison import draw
from relent.tasks.preference_alignment.options import Options
from relent.train.stage import build, run_stage
from synthetic_digits import OPTIONS, prepare

TASK = "image_preferences"
OF_MASKS = {"mask_zero_share", "kl_mask_zero_share"}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """The task with small images, prepared, and its base model."""
    root = tmp_path_factory.mktemp("images")
    copy_methods(root / "config", {TASK})
    task = yaml.safe_load((ROOT / "config" / "tasks" / f"{TASK}.yaml").read_text())
    smoke, base = task["scales"]["smoke"], task["teachers"]["base"]
    smoke["data"] = OPTIONS
    smoke["evaluation"] = {"exact": False, "samples": 12}
    smoke["training"] |= {"max_steps": 40, "batch_size": 32}
    base |= {"training": {"smoke": {"max_steps": 150, "batch_size": 16, "learning_rate": 0.01}}}
    base["model"] = {"smoke": base["model"]["smoke"]}
    (root / "config" / "tasks").mkdir()
    path = root / "config" / "tasks" / f"{TASK}.yaml"
    path.write_text(yaml.safe_dump(task | {"sources": [], "scales": {"smoke": smoke}}, sort_keys=False))
    prepare(root / "data" / TASK / "smoke")
    found = Catalogue.load(root / "config", layout=Layout(*(f"{root}/{name}" for name in ("data", "teachers", "runs"))))
    run_stage(found.teacher_spec(TASK, "base", "smoke"))
    return found


def spec_of(catalogue: Catalogue, method: str, variant: str = "default") -> RunSpec:
    return catalogue.stage_spec(Run(TASK, method, variant, "smoke", 0))


def shortened(spec: RunSpec) -> RunSpec:
    return replace(spec, hyperparameters=spec.hyperparameters | {"max_steps": 2})


@pytest.fixture(scope="module")
def evaluated(catalogue: Catalogue) -> dict[str, Evaluation]:
    """Runs of three methods, trained and scored."""
    found = {}
    for method in ("sft", "dpo", "dpo_kernels"):
        run_stage(spec_of(catalogue, method))
        found[method] = evaluate_run(Path(spec_of(catalogue, method).output))
    return found


def test_the_contract_is_kept(catalogue, tmp_path):
    """Among it: with γ = α = 0 it ends with the weights of DPO, bit for bit."""
    results = check_method(catalogue, "dpo_kernels", TASK, tmp_path)
    assert not [f"{r.check}: {r.detail}" for r in results if r.outcome == "fail"]
    limit = next(r for r in results if r.check == "baseline limit")
    assert (limit.outcome, "it is dpo, bit for bit" in limit.detail) == ("pass", True)


def test_the_base_model_has_learnt_the_captions_and_the_mark(evaluated):
    settings = evaluated["dpo"].settings
    assert 0.2 < settings["reference_mark_rate"] < 0.6
    assert settings["reference_caption_accuracy"] > 0.6
    assert settings["reference_whole_rate"] > 0.95


@pytest.mark.parametrize("method", ["sft", "dpo", "dpo_kernels"])
def test_a_policy_gives_up_the_mark_and_is_wanted_more_often(evaluated, method):
    found = evaluated[method]
    assert found.scores["mark_rate"] < 0.5 * found.settings["reference_mark_rate"]
    assert found.scores["wanted_rate"] > found.settings["reference_wanted_rate"] + 0.1
    assert found.scores["preference_accuracy"] > 0.9
    assert found.scores["kl_to_reference"] > 0
    assert found.tables["standard_errors"][0]["wanted_rate"] < 0.1


def test_scores_are_those_of_the_manifest(catalogue, evaluated):
    scores = evaluated["dpo_kernels"].scores
    assert set(scores) == set(catalogue.tasks[TASK].metrics) - OF_MASKS
    captions = evaluated["dpo_kernels"].tables["captions"]
    assert [row["caption"] for row in captions][:2] == ["a zero", "a one"]
    mean = sum(row["wanted_rate"] for row in captions) / len(captions)
    assert mean == pytest.approx(scores["wanted_rate"], abs=1e-9)


def test_every_method_of_pairs_takes_images(catalogue):
    run_stage(shortened(spec_of(catalogue, "sparsepo")))
    masked = evaluate_run(Path(spec_of(catalogue, "sparsepo").output))
    assert set(masked.scores) >= OF_MASKS
    assert {row["token"] for row in masked.tables["masks"]} <= {f"#{code}" for code in range(8)}
    for method in ("f_dpo", "tdpo", "implicit_reward", "reward_model"):
        run = Run(TASK, method, "default", "smoke", 0)
        *earlier, last = (catalogue.stage_spec(run, stage) for stage in catalogue.methods[method].stages)
        for spec in earlier:
            run_stage(shortened(spec))
        module, datamodule, _ = build(last)
        assert bool(module.training_step(next(iter(datamodule.train_dataloader())), 0).isfinite())


def test_methods_get_embeddings_of_captions_and_images_without_asking_what_they_are(catalogue):
    module, datamodule, task = build(spec_of(catalogue, "dpo_kernels"))
    batch = next(iter(datamodule.train_dataloader()))
    encoder = task.embedder()
    rows = TokenBatch.from_tensors(batch, "chosen_")
    expected = encoder.images(task.texts.images.decode(rows.ids[:, 3:]))
    prompts, chosen, rejected = module.embeddings(batch)
    torch.testing.assert_close(chosen, expected)
    nearer = (chosen * prompts).sum(1) > (rejected * prompts).sum(1)
    assert float(nearer.float().mean()) > 0.9
    assert not any("image_tower" in name for name in module.state_dict())


def test_samples_are_drawn_for_a_run_and_for_the_comparison(catalogue, evaluated, tmp_path):
    runs = [read_run(spec_of(catalogue, method).output, method) for method in evaluated]
    assert (runs[0].folder / "figures" / "samples.png").stat().st_size > 5000
    captions = draw(runs, tmp_path)
    assert list(captions) == ["samples.png", "frontier.png"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in captions)
    pictures = read_json(runs[0].folder / "scores.json")["tables"]["pictures"]
    assert len(pictures) == 2 * 10 * 6
    assert {len(row["image"]) for row in pictures} == {14 * 14}


def test_an_exact_evaluation_and_another_model_s_tokens_are_refused(catalogue, tmp_path):
    parts = {"data": OPTIONS, "model": {"architecture": "gpt2"}}
    with pytest.raises(ValueError, match=r"images cannot be enumerated; set evaluation.exact to false"):
        Options.of("relent.data.image_preferences")(**parts, evaluation={})
    _, _, task = build(spec_of(catalogue, "dpo"))
    with pytest.raises(ConfigError, match=r"model\.path: .* give a folder with the data set's tokenizer.json"):
        task.texts.check_model({"path": str(tmp_path)}, 21)
