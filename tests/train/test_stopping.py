"""A run that is asked to stop: at any moment it ends soon, says how far it is, and goes on to the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zarr
from lightning.pytorch import Callback
from safetensors.torch import load_file

from relent.contract.subject import differing
from relent.errors import StoppedError
from relent.manifest.catalogue import Catalogue, Run
from relent.runspec import RunSpec
from relent.tasks.classification.training import Task
from relent.train.stage import run_stage
from relent.train.stopping import Stop

STEPS = 12


class Asks(Callback):
    """Sends a signal when a hook is called for the n-th time."""

    def __init__(self, hook: str, call: int, number: signal.Signals = signal.SIGTERM):
        self.left, self.number = call, number
        setattr(self, hook, self._count)

    def _count(self, *_: object, **__: object) -> None:
        if not self.left:
            os.kill(os.getpid(), self.number)
        self.left -= 1


@pytest.fixture
def spec(catalogue: Catalogue, changed: Callable[..., RunSpec]) -> RunSpec:
    plain = catalogue.stage_spec(Run("patterns", "cross_entropy", "default", "smoke", 0))
    return changed(plain, checkpoint_every=5, validate_every=4)


def whole(spec: RunSpec) -> Path:
    uninterrupted = replace(spec, output=f"{spec.output}-whole")
    run_stage(uninterrupted)
    return Path(uninterrupted.output)


def checkpoint_of(spec: RunSpec) -> Path:
    return Path(spec.output) / "checkpoints" / spec.plan() / "last.ckpt"


def assert_same_bits(one: Path, other: Path) -> None:
    weights, others = (load_file(folder / "weights.safetensors") for folder in (one, other))
    assert not differing(weights, others)
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    logits = [zarr.open_group(f / "predictions.zarr", mode="r")["test/logits"][...] for f in (one, other)]
    assert logits[0].tobytes() == logits[1].tobytes()


MOMENTS = [
    *[("on_train_batch_start", call) for call in (0, 3, 4, 7, 11)],
    *[("on_train_batch_end", call) for call in (3, 4, 10, 11)],
    *[(hook, call) for hook in ("on_validation_start", "on_validation_end") for call in range(3)],
    *[(hook, 0) for hook in ("setup", "on_train_start", "on_train_end")],
]


def test_stopped_at_any_moment_a_run_goes_on_to_the_same_bits(spec):
    """One run is stopped at every moment in turn: each time it must go on from where it was, and no other number."""
    expected = whole(spec)
    for hook, call in MOMENTS:
        run = replace(spec, output=f"{spec.output}-{hook}-{call}")
        with pytest.raises(StoppedError, match="stopped by SIGTERM") as stopped:
            run_stage(run, callbacks=[Asks(hook, call)])
        assert stopped.value.status == 143
        assert not (Path(run.output) / "config.json").exists()
        run_stage(run)
        assert_same_bits(expected, Path(run.output))


@pytest.mark.parametrize(
    ("hook", "call", "step"),
    [
        ("on_train_batch_start", 0, 1),
        ("on_train_batch_start", 6, 7),
        ("on_validation_start", 0, 4),
        # Nothing would run the validation after the last step again: the checkpoint before has to do.
        ("on_train_batch_start", 11, 10),
        ("on_validation_start", 2, 10),
        ("on_validation_end", 2, 12),
    ],
)
def test_the_step_under_way_is_finished_and_kept(spec, hook, call, step):
    with pytest.raises(StoppedError) as stopped:
        run_stage(spec, callbacks=[Asks(hook, call)])
    assert torch.load(checkpoint_of(spec), weights_only=True)["relent"]["step"] == step
    message = str(stopped.value)
    assert "\n" not in message
    for part in (spec.output, f"last.ckpt is of step {step}", "the same command goes on from there"):
        assert part in message


def test_a_run_stopped_again_and_again_ends(spec):
    expected = whole(spec)
    for _ in range(STEPS):
        with pytest.raises(StoppedError):
            run_stage(spec, callbacks=[Asks("on_train_batch_start", 0)])
    run_stage(spec)
    assert_same_bits(expected, Path(spec.output))


@pytest.mark.parametrize("call", [0, 1, 4])
def test_micro_batches_of_a_step_are_all_taken(spec, changed, call):
    parts = changed(spec, accumulate=4, batch_size=20)
    expected = whole(parts)
    with pytest.raises(StoppedError):
        run_stage(parts, callbacks=[Asks("on_train_batch_start", call)])
    progress = torch.load(checkpoint_of(parts), weights_only=True)["relent"]
    assert (progress["step"], progress["batches"]) == (call // 4 + 1, 4 * (call // 4 + 1))
    run_stage(parts)
    assert_same_bits(expected, Path(parts.output))


def test_stopped_while_outputs_are_written_nothing_is_trained_again(spec, monkeypatch):
    expected = whole(spec)
    write = Task.write_outputs

    def interrupted(task: Task, module: object, folder: Path) -> None:
        write(task, module, folder)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Task, "write_outputs", interrupted)
    with pytest.raises(StoppedError, match="give the same command to go on"):
        run_stage(spec)
    monkeypatch.undo()
    assert not (Path(spec.output) / "config.json").exists()
    assert torch.load(checkpoint_of(spec), weights_only=True)["relent"]["step"] == STEPS

    def trained(*_: object) -> None:
        raise AssertionError("a step was trained again")

    monkeypatch.setattr("relent.methods.distillation.cross_entropy.CrossEntropy.training_step", trained)
    run_stage(spec)
    assert_same_bits(expected, Path(spec.output))


def test_stopped_before_training_nothing_is_written(spec, monkeypatch):
    def reads_long(self: Task, spec: RunSpec) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Task, "__init__", reads_long)
    with pytest.raises(StoppedError, match="stopped by SIGTERM; give the same command"):
        run_stage(spec)
    assert [path.name for path in Path(spec.output).rglob("*") if path.is_file()] == ["lock"]


def test_a_stale_config_does_not_vouch_for_new_files(spec, changed, monkeypatch):
    """A run trained again and stopped while it writes must not look whole by the config.json of the first time."""
    run_stage(spec)
    other = changed(spec, learning_rate=0.02)
    monkeypatch.setattr(Task, "write_outputs", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError):
        run_stage(other)
    assert not (Path(spec.output) / "config.json").exists()


def test_ctrl_c_finishes_the_step_and_a_second_one_does_not_wait(spec):
    with pytest.raises(StoppedError, match="SIGINT at step 3") as stopped:
        run_stage(spec, callbacks=[Asks("on_train_batch_start", 2, signal.SIGINT)])
    assert stopped.value.status == 130
    impatient = replace(spec, output=f"{spec.output}-impatient")
    presses = [Asks(hook, 2, signal.SIGINT) for hook in ("on_train_batch_start", "on_before_backward")]
    with pytest.raises(StoppedError, match="give the same command"):
        run_stage(impatient, callbacks=presses)
    assert not checkpoint_of(impatient).exists()


def test_handlers_are_put_back(spec):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    run_stage(spec)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_sigterm_again_changes_nothing(spec):
    """SLURM's daemon and `srun` each send one."""
    with Stop(spec) as stop:
        stop.training = True
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked()
        assert stop.asked_between_batches()
