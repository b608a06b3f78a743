"""One stage from specification to folder: whole outputs, resume, refusals, accumulation."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import zarr
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from safetensors.torch import load_file

from relent.contract.subject import differing
from relent.contract.trained import Dies, Killed
from relent.errors import CheckpointError, ConfigError, DataError
from relent.files import read_json
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.runspec import RunSpec
from relent.train.stage import build, run_stage
from synthetic_patterns import write_patterns


def spec_of(catalogue: Catalogue, method: str = "cross_entropy", seed: int = 0) -> RunSpec:
    return catalogue.stage_spec(Run("patterns", method, catalogue.methods[method].default_variant, "smoke", seed))


def run(spec: RunSpec, **options) -> Path:
    run_stage(spec, **options)
    return Path(spec.output)


@pytest.fixture(scope="module")
def teacher(shared_catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained teacher; not to be changed."""
    teachers = tmp_path_factory.mktemp("teachers")
    catalogue = replace(shared_catalogue, layout=Layout(shared_catalogue.layout.data, str(teachers), "unused"))
    return run(catalogue.teacher_spec("patterns", "wide", "smoke"))


@pytest.fixture
def taught(catalogue: Catalogue, teacher: Path) -> Catalogue:
    """The catalogue with a trained teacher in its place."""
    shutil.copytree(teacher, catalogue.layout.teacher("patterns", "wide", "smoke"))
    return catalogue


@pytest.fixture
def own_data(catalogue: Catalogue, tmp_path: Path) -> Catalogue:
    """The catalogue with a copy of the data that a test may damage."""
    shutil.copytree(catalogue.layout.data, tmp_path / "data")
    return replace(catalogue, layout=replace(catalogue.layout, data=str(tmp_path / "data")))


def test_a_run_folder_is_whole_and_nothing_else_is_left(taught):
    spec = spec_of(taught, "pld")
    folder = run(spec)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "metrics.csv", "predictions.zarr", "weights.safetensors")
    ]
    config = read_json(folder / "config.json")
    assert config["plan"] == spec.plan()
    assert config["hyperparameters"] == spec.hyperparameters
    facts = config["facts"]
    assert facts["parameters"] == 36 * 8 + 8 + 8 * 8 + 8 + 8 * 5 + 5
    assert facts["training_items"] == 40
    assert facts["data_checksum"] == read_json(Path(spec.inputs["data"]) / "receipt.json")["checksum"]
    with (folder / "metrics.csv").open(newline="") as handle:
        losses = [row for row in csv.DictReader(handle) if row["metric"] == "train/loss"]
    assert [int(row["step"]) for row in losses] == list(range(12))
    logits = zarr.open_group(folder / "predictions.zarr", mode="r")["test/logits"]
    assert logits.shape == (40, 5)


def test_callbacks_and_loggers_are_added_to_the_runs_own(catalogue):
    class Seen(Callback):
        batches = 0

        def on_train_batch_end(self, *_: object) -> None:
            self.batches += 1

    spec, seen, logger = spec_of(catalogue), Seen(), DummyLogger()
    logger.log_metrics = Mock()
    folder = run(spec, callbacks=[seen], loggers=[logger])
    assert seen.batches == 12
    with (folder / "metrics.csv").open(newline="") as handle:
        rows = [(int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(handle)]
    logged = [(call.kwargs["step"], call.kwargs["metrics"]) for call in logger.log_metrics.call_args_list]
    assert rows == [(step, name, value) for step, values in logged for name, value in values.items() if name != "epoch"]


def test_a_teacher_stores_logits_of_every_item(teacher, patterns):
    outputs = zarr.open_group(teacher / "outputs.zarr", mode="r")
    assert outputs["logits"].shape == (200, 5)
    assert outputs["features"].shape == (200, 16)
    assert not (teacher / "predictions.zarr").exists()
    labels = zarr.open_group(patterns / "patterns" / "smoke" / "dataset.zarr", mode="r")["labels"][...]
    assert (outputs["logits"][...].argmax(1) == labels).mean() > 0.6


@pytest.mark.parametrize("killed_at", [4, 5, 11])
def test_a_killed_run_resumes_to_the_same_bits(catalogue, killed_at):
    whole, broken = spec_of(catalogue), spec_of(catalogue)
    whole = replace(whole, output=f"{whole.output}-whole")
    expected, folder = run(whole), Path(broken.output)
    with pytest.raises(Killed):
        run(broken, callbacks=[Dies(killed_at)])
    assert not (folder / "config.json").exists()
    run(broken)
    assert not differing(load_file(expected / "weights.safetensors"), load_file(folder / "weights.safetensors"))
    assert (folder / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()
    ours, theirs = (zarr.open_group(f / "predictions.zarr", mode="r")["test/logits"][...] for f in (folder, expected))
    assert ours.tobytes() == theirs.tobytes()


def test_a_run_whose_data_changed_since_its_checkpoint_starts_afresh(catalogue, tmp_path):
    """Half of its steps on the old data and half on the new ones would be a mixture that nobody asked for."""
    spec = spec_of(catalogue)
    copied, other = tmp_path / "copied", tmp_path / "other"
    shutil.copytree(spec.inputs["data"], copied)
    write_patterns(other, seed=1)
    broken = replace(spec, inputs=spec.inputs | {"data": str(copied)})
    with pytest.raises(Killed):
        run(broken, callbacks=[Dies(8)])
    shutil.rmtree(copied)
    shutil.copytree(other, copied)
    found = load_file(run(broken) / "weights.safetensors")
    fresh = replace(spec, inputs=spec.inputs | {"data": str(other)}, output=f"{spec.output}-fresh")
    assert not differing(load_file(run(fresh) / "weights.safetensors"), found)


@pytest.mark.parametrize(("validate_every", "accumulate"), [(3, 1), (4, 1), (1, 2), (100, 1), (0, 2)])
def test_validation_on_the_way_changes_neither_weights_nor_resume(catalogue, changed, validate_every, accumulate):
    plain = changed(spec_of(catalogue), accumulate=accumulate)
    validated = changed(replace(plain, output=f"{plain.output}-validated"), validate_every=validate_every)
    expected = load_file(run(plain) / "weights.safetensors")
    uninterrupted = run(replace(validated, output=f"{validated.output}-whole"))
    with pytest.raises(Killed):
        run(validated, callbacks=[Dies(9 * accumulate - 1)])
    folder = run(validated)
    assert not differing(expected, load_file(folder / "weights.safetensors"))
    assert (folder / "metrics.csv").read_bytes() == (uninterrupted / "metrics.csv").read_bytes()
    with (folder / "metrics.csv").open(newline="") as handle:
        steps = [int(row["step"]) for row in csv.DictReader(handle) if row["metric"] == "validation/nll"]
    assert steps == list(range(12))[min(validate_every or 12, 12) - 1 :: validate_every or 12]


def killed(spec: RunSpec) -> Path:
    """Checkpoint of a run killed after eight batches."""
    with pytest.raises(Killed):
        run_stage(spec, callbacks=[Dies(8)])
    return Path(spec.output) / "checkpoints" / spec.plan() / "last.ckpt"


def test_a_checkpoint_of_another_configuration_is_refused_by_name(catalogue, changed):
    spec = spec_of(catalogue)
    checkpoint = killed(spec)
    with pytest.raises(CheckpointError, match=r"learning_rate: 0\.01 there, 0\.02 here") as refused:
        run(changed(spec, learning_rate=0.02), resume=checkpoint)
    assert "batch_size" not in str(refused.value)
    with pytest.raises(CheckpointError, match="code, task or data settings differ"):
        run(replace(spec, code="0" * 16), resume=checkpoint)


def test_a_changed_configuration_does_not_find_the_old_checkpoint(catalogue, changed):
    spec = spec_of(catalogue)
    killed(spec)
    other = changed(spec, learning_rate=0.02)
    fresh = replace(other, output=f"{spec.output}-fresh")
    assert not differing(load_file(run(other) / "weights.safetensors"), load_file(run(fresh) / "weights.safetensors"))


@pytest.mark.parametrize("damage", ["truncated", "text", "foreign"])
def test_a_broken_checkpoint_is_refused_with_one_line(catalogue, damage):
    spec = spec_of(catalogue)
    checkpoint = killed(spec)
    if damage == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    elif damage == "text":
        checkpoint.write_text("not a checkpoint")
    else:
        torch.save({"state_dict": {}}, checkpoint)
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*delete it") as refused:
        run(spec)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_runs_no_code(catalogue, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    spec = spec_of(catalogue)
    checkpoint = killed(spec)
    torch.save({"relent": Evil()}, checkpoint)
    with pytest.raises(CheckpointError):
        run(spec)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-6), ("64-true", 1e-12)])
def test_micro_batches_equal_one_batch(catalogue, changed, precision, tolerance):
    """SGD: a step is linear in the gradient. Ten items a batch divide the forty of the split."""
    spec = spec_of(catalogue)
    spec = replace(spec, execution=spec.execution | {"precision": precision})
    recipe = {"optimizer": "sgd", "learning_rate": 0.05, "batch_size": 10}
    whole = changed(spec, **recipe)
    parts = changed(replace(spec, output=f"{spec.output}-parts"), **recipe, accumulate=5)
    one, other = (load_file(run(s) / "weights.safetensors") for s in (whole, parts))
    assert one["network.classifier.weight"].dtype == (torch.float64 if precision == "64-true" else torch.float32)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=tolerance, atol=tolerance)
    torch.manual_seed(0)
    start = dict(build(whole)[0].named_parameters())
    assert (one["network.classifier.weight"] - start["network.classifier.weight"]).abs().max() > 0.01


def test_students_of_one_seed_start_alike_and_see_the_same_batches(taught):
    modules = {}
    for method in ("cross_entropy", "uskd", "pld"):
        module, datamodule, _ = build(spec_of(taught, method))
        modules[method] = (module.network.state_dict(), [b["index"].tolist() for b in datamodule.train_dataloader()])
    weights, batches = modules["cross_entropy"]
    assert all(not differing(weights, other) and seen == batches for other, seen in modules.values())


def test_a_run_in_another_folder_with_other_threads_is_the_same_run(catalogue):
    spec = spec_of(catalogue)
    moved = replace(spec, output=f"{spec.output}-moved", execution=spec.execution | {"accelerator": "gpu"})
    assert moved.plan() == spec.plan()


@pytest.mark.parametrize("change", [{"precision": "bf16-mixed"}, {"devices": 2}, {"nodes": 2}])
def test_precision_and_number_of_processes_decide_the_plan(catalogue, change):
    spec = spec_of(catalogue)
    assert replace(spec, execution=spec.execution | change).plan() != spec.plan()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"code": "x"}, {"upstream": {"teacher": "x"}}, {"data_options": {"a": 1}}]
)
def test_what_decides_the_result_decides_the_plan(catalogue, change):
    spec = spec_of(catalogue)
    assert replace(spec, **change).plan() != spec.plan()


# ------------------------------------------------------------------------------------------ inputs that are wrong


def assert_one_line(raised: pytest.ExceptionInfo, *words: str) -> None:
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_teacher_with_other_classes_is_refused(taught, tmp_path):
    write_patterns(tmp_path / "few" / "patterns" / "smoke", classes=4)
    other = replace(taught, layout=replace(taught.layout, data=str(tmp_path / "few")))
    with pytest.raises(DataError) as raised:
        build(spec_of(other, "knowledge_distillation"))
    assert_one_line(raised, "teacher knows 5 classes", "has 4", "train a teacher on the same classes")


def test_a_teacher_of_other_data_is_refused(taught, tmp_path):
    write_patterns(tmp_path / "other" / "patterns" / "smoke", seed=1)
    other = replace(taught, layout=replace(taught.layout, data=str(tmp_path / "other")))
    with pytest.raises(DataError, match="another data set; train the teacher again"):
        build(spec_of(other, "knowledge_distillation"))


def test_a_missing_teacher_is_named(catalogue):
    with pytest.raises(DataError, match=r"wide/smoke/outputs\.zarr: does not exist; train the teacher first"):
        build(spec_of(catalogue, "knowledge_distillation"))


def test_a_teacher_with_nan_logits_is_refused(taught):
    outputs = zarr.open_group(Path(taught.layout.teacher("patterns", "wide", "smoke")) / "outputs.zarr", mode="r+")
    outputs["logits"][3, 2] = float("nan")
    with pytest.raises(DataError) as raised:
        build(spec_of(taught, "knowledge_distillation"))
    assert_one_line(raised, "logits", "NaN")


def store_of(catalogue: Catalogue) -> Path:
    return Path(catalogue.layout.dataset("patterns", "smoke")) / "dataset.zarr"


def chunks_of_inputs(catalogue: Catalogue) -> list[Path]:
    return sorted(path for path in (store_of(catalogue) / "inputs" / "c").rglob("*") if path.is_file())


def test_a_missing_chunk_is_refused(own_data):
    chunk = chunks_of_inputs(own_data)[1]
    chunk.unlink()
    with pytest.raises(DataError) as raised:
        build(spec_of(own_data))
    name = chunk.relative_to(store_of(own_data))
    assert_one_line(raised, str(name), "a chunk is missing", "run the data rule again")


def test_a_truncated_file_is_refused(own_data):
    chunk = chunks_of_inputs(own_data)[0]
    chunk.write_bytes(chunk.read_bytes()[:-7])
    with pytest.raises(DataError) as raised:
        build(spec_of(own_data))
    assert_one_line(raised, str(chunk.relative_to(store_of(own_data))), "truncated")


def test_a_chunk_of_the_right_size_that_does_not_decode_is_refused(own_data):
    chunk = chunks_of_inputs(own_data)[0]
    chunk.write_bytes(b"\xff" * chunk.stat().st_size)
    with pytest.raises(DataError) as raised:
        build(spec_of(own_data))
    assert_one_line(raised, "inputs", "cannot be decoded")


def test_labels_outside_the_classes_are_refused(own_data):
    folder = store_of(own_data).parent
    zarr.open_group(store_of(own_data), mode="r+")["labels"][0] = 9
    receipt = read_json(folder / "receipt.json")
    for name, facts in receipt["files"].items():
        facts["bytes"] = (folder / name).stat().st_size
    (folder / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(DataError, match="from 0 to 9, but there are 5 classes"):
        build(spec_of(own_data))


def test_a_data_set_without_a_receipt_is_refused(own_data):
    (store_of(own_data).parent / "receipt.json").unlink()
    with pytest.raises(DataError, match=r"receipt\.json: does not exist; run the stage"):
        build(spec_of(own_data))


def test_an_implementation_that_is_no_lightning_module_is_refused(catalogue, tmp_path):
    file = tmp_path / "plain.py"
    file.write_text("from relent.methods.config import MethodConfig as Config\nclass Plain: pass\n")
    with pytest.raises(ConfigError, match=r"Plain is no LightningModule; derive it from relent\.methods\.base\.Method"):
        build(replace(spec_of(catalogue), implementation=f"{file}:Plain"))
