"""Training on images of the user's own: from disk as from memory, with views, loader processes and a loaded teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
import zarr
from PIL import Image
from safetensors.torch import load_file

from relent.data.image_folder import prepare
from relent.data.rows import StoredRows
from relent.evaluate.run import evaluate_run
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.runspec import RunSpec
from relent.tasks.classification.data import read_data, read_teacher, read_teacher_views
from relent.tasks.classification.options import Augmentation
from relent.tasks.classification.training import Task
from relent.tasks.classification.views import Views
from relent.train.stage import run_stage
from synthetic_patterns import TASK, copy_methods

ROOT = Path(__file__).resolve().parents[2]
VIEWS = {"views": 2, "least_area": 0.3, "flip": True}


@pytest.fixture(scope="module")
def catalogue_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Catalogue]:
    """Give a function that makes a task of a folder of pictures, with data options of its own, prepared."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 6)):
        for label in range(3):
            folder = root / "pictures" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (20, 20, 3)).astype(np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    copy_methods(ROOT / "config", root / "config")
    (root / "config" / "tasks").mkdir()

    def make(name: str, teacher: dict[str, Any] | None = None, **data: Any) -> Catalogue:
        options = {"path": str(root / "pictures"), "side": 16, "validation": 0.2, "augmentation": VIEWS, **data}
        scale = TASK["scales"]["smoke"] | {"data": options, "model": {"network": "cifar", "name": "resnet8"}}
        teachers = {"wide": {"model": {"smoke": {"network": "cifar", "name": "resnet14"}}, "training": {"smoke": {}}}}
        task = TASK | {"name": name, "data_module": "relent.data.image_folder", "teachers": teachers}
        if teacher is not None:
            task["teachers"] = {"wide": {"model": {"smoke": teacher}, "training": {"smoke": {"max_steps": 0}}}}
        (root / "config" / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task | {"scales": {"smoke": scale}}))
        layout = Layout(f"{root}/data", f"{root}/teachers", f"{root}/results")
        catalogue = Catalogue.load(root / "config", layout=layout)
        prepare({}, Path(layout.dataset(name, "smoke")), options)
        return catalogue

    return make


def train(catalogue: Catalogue, task: str) -> RunSpec:
    """A teacher and a student distilled from it."""
    run_stage(catalogue.teacher_spec(task, "wide", "smoke"))
    spec = catalogue.stage_spec(Run(task, "knowledge_distillation", "default", "smoke", 0))
    run_stage(spec)
    return spec


def same(one: str, other: str) -> bool:
    weights, others = (load_file(Path(folder) / "weights.safetensors") for folder in (one, other))
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module")
def memory(catalogue_of: Callable[..., Catalogue]) -> RunSpec:
    """A trained student on images that are read into memory; not to be changed."""
    return train(catalogue_of("memory"), "memory")


def test_from_disk_and_by_loader_processes_training_is_that_from_memory(
    catalogue_of: Callable[..., Catalogue], memory: RunSpec
) -> None:
    disk = train(catalogue_of("disk", memory_mb=0), "disk")
    data = read_data(disk.inputs["data"])
    teacher = read_teacher(disk.inputs["teacher"], data)
    views = read_teacher_views(disk.inputs["teacher"], Augmentation(**VIEWS).model_dump())
    assert all(isinstance(values, StoredRows) for values in [*teacher.values(), *views.values()])
    assert views["logits"].shape == (2, 90, 3)
    assert same(memory.inputs["teacher"], disk.inputs["teacher"])
    assert same(memory.output, disk.output)
    ahead = replace(disk, output=f"{disk.output}-ahead", data_options=disk.data_options | {"loader_processes": 2})
    run_stage(ahead)
    assert same(memory.output, ahead.output)
    scores = [evaluate_run(Path(spec.output), {}).scores for spec in (memory, disk)]
    assert scores[0]["teacher_kl"] == scores[1]["teacher_kl"]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]


def test_tasks_on_images_of_the_user_list_what_their_runs_are_scored_by(memory: RunSpec) -> None:
    tasks = Catalogue.load(ROOT / "config").tasks
    made = evaluate_run(Path(memory.output), {}).scores.keys()
    assert made == tasks["cifar100"].metrics.keys() == tasks["imagenet"].metrics.keys()
    assert made == tasks["imagenet_lamb"].metrics.keys()
    narrow = made - {"class_mean_cosine"}  # where the student's features are narrower than the teacher's
    assert tasks["images_sprites"].metrics.keys() == tasks["images_emoji"].metrics.keys() == narrow


def test_stored_outputs_are_those_on_the_very_view(catalogue_of: Callable[..., Catalogue]) -> None:
    catalogue = catalogue_of("cropped", memory_mb=0, crop=12)
    spec = train(catalogue, "cropped")
    teacher = Task(catalogue.teacher_spec("cropped", "wide", "smoke")).network().eval()
    weights = load_file(Path(spec.inputs["teacher"]) / "weights.safetensors")
    teacher.load_state_dict({k.removeprefix("network."): v for k, v in weights.items()})
    module = Task(spec).datamodule(_config(spec), start_batch=0)
    module.trainer = None  # type: ignore[assignment]
    for number, batch in enumerate(module.train_dataloader()):
        assert batch["input"].shape[1:] == (3, 12, 12)
        with torch.no_grad():
            logits = teacher(batch["input"]).logits
        assert torch.allclose(logits, batch["teacher_logits"], atol=1e-4)
        if number == 3:
            break


def _config(spec: RunSpec) -> Any:
    from relent.methods.distillation.knowledge_distillation import Config

    return Config(**spec.hyperparameters)


def test_a_teacher_that_is_loaded_is_not_trained(catalogue_of: Callable[..., Catalogue], tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageClassification

    torch.manual_seed(1)
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    saved = AutoModelForImageClassification.from_config(AutoConfig.for_model("resnet", **shape, num_labels=3)).eval()
    saved.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    catalogue = catalogue_of("loaded", teacher={"network": "transformers", "path": str(tmp_path)})
    spec = train(catalogue, "loaded")
    group = zarr.open_group(Path(spec.inputs["teacher"]) / "outputs.zarr", mode="r")
    stored = np.asarray(zarr.open_array(Path(spec.inputs["data"]) / "dataset.zarr" / "inputs", mode="r"))
    pixels = torch.from_numpy(stored[:5]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = saved(pixels).logits
    assert torch.allclose(torch.from_numpy(np.asarray(group["logits"])[:5]), expected, atol=1e-4)
    assert np.asarray(group["views/logits"]).shape == (2, 90, 3)


# ---------------------------------------------------------------------------------------------- the papers' views


def test_a_crop_with_padding_shows_black_beyond_the_edge() -> None:
    images, items = torch.rand(64, 3, 8, 8) + 0.5, torch.arange(64)
    options = Augmentation(views=1, shift=4, border="black")
    shown = Views(options, (-1.0, 2.0)).of(images, items, torch.zeros(64, dtype=torch.int64))
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), value=-1.0)
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)
    matches = (windows.permute(0, 2, 3, 1, 4, 5) == shown[:, None, None]).all((3, 4, 5))
    assert (matches.sum((1, 2)) == 1).all()
    assert len(matches.nonzero()[:, 1:].unique(dim=0)) > 40


def test_a_resized_crop_is_a_part_of_the_image_and_a_pure_function() -> None:
    height, width = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    images = torch.stack([height, width, torch.ones(32, 32)]).expand(200, 3, 32, 32)
    views = Views(Augmentation(views=3, least_area=0.08), (0.0, 1.0), size=16)
    items, which = torch.arange(200), torch.ones(200, dtype=torch.int64)
    shown = views.of(images, items, which)
    assert shown.shape == (200, 3, 16, 16)
    assert torch.equal(shown[50:60], views.of(images[50:60], items[50:60], which[50:60]))
    assert not torch.equal(shown, views.of(images, items, which - 1))
    # Along each axis the crop's coordinates rise evenly: 16 steps over its side; antialiasing bends the ends a little.
    high = (shown[:, 0, 8, 0] - shown[:, 0, 7, 0]) * 16
    wide = (shown[:, 1, 0, 8] - shown[:, 1, 0, 7]) * 16
    share, aspect = high * wide / 1024, wide / high
    assert share.min() > 0.06
    assert share.max() <= 1.01
    assert 0.3 < share.median() < 0.65
    assert 0.6 < aspect.min() < 0.85
    assert 1.2 < aspect.max() < 1.65
    assert torch.allclose(shown[:, 2], torch.ones(()), atol=1e-6)
