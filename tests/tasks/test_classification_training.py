"""Batches and predictions of the classification task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zarr
from safetensors.torch import load_file

from relent.errors import ConfigError
from relent.models.classifiers import InputShape, build_classifier
from relent.tasks.classification.data import read_data, read_teacher
from relent.train.stage import build


def test_a_batch_pairs_each_item_with_its_own_label_and_teacher_output(trained):
    _, datamodule, task = build(trained)
    teacher = read_teacher(trained.inputs["teacher"], task.data)
    seen = []
    for batch in datamodule.train_dataloader():
        index = batch["index"]
        seen += index.tolist()
        assert torch.equal(batch["input"], task.data.inputs[index])
        assert torch.equal(batch["label"], task.data.labels[index])
        assert torch.equal(batch["teacher_logits"], teacher["logits"][index])
        assert torch.equal(batch["teacher_features"], teacher["features"][index])
    assert set(seen) <= set(task.data.items("student").tolist())
    assert len(seen) == 12 * 16


def test_validation_goes_through_its_split_once_and_in_order(trained):
    _, datamodule, task = build(trained)
    index = torch.cat([batch["index"] for batch in datamodule.val_dataloader()])
    assert torch.equal(index, task.data.items("validation"))


def test_a_later_start_gives_the_batches_that_are_left(trained):
    whole = [batch["index"].tolist() for batch in build(trained)[1].train_dataloader()]
    assert [batch["index"].tolist() for batch in build(trained, 7)[1].train_dataloader()] == whole[7:]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_predictions_are_those_of_the_stored_weights(trained, split):
    module, _, task = build(trained)
    module.load_state_dict(load_file(Path(trained.output) / "weights.safetensors"))
    module.eval()
    group = zarr.open_group(Path(trained.output) / "predictions.zarr", mode="r")
    index = torch.from_numpy(group[f"{split}/index"][...])
    assert torch.equal(index, task.data.items(split))
    with torch.no_grad():
        expected = module(task.data.inputs[index]).logits
    torch.testing.assert_close(torch.from_numpy(group[f"{split}/logits"][...]), expected)
    assert group.attrs["data_checksum"] == read_data(trained.inputs["data"]).checksum


@pytest.mark.parametrize(
    ("options", "message"),
    [({"network": "convnt"}, "did you mean 'convnet'"), ({"network": "mlp", "width": 3}, "mlp: .*width")],
)
def test_an_unknown_network_or_option_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_classifier(options, InputShape(size=6), 5)


@pytest.mark.parametrize(
    "options",
    [{"network": "mlp", "hidden": [7, 9]}, {"network": "convnet", "channels": [4, 8], "blocks": 2, "hidden": 9}],
)
@pytest.mark.parametrize("size", [6, 7, 28])
def test_networks_give_logits_penultimate_and_mid_features(options, size):
    network = build_classifier(options, InputShape(size=size), 5)
    output = network(torch.randn(3, 1, size, size))
    assert output.logits.shape == (3, 5)
    assert output.features.shape == (3, 9)
    assert output.mid.shape == (3, 7 if options["network"] == "mlp" else 4)
    torch.testing.assert_close(network.classifier(output.features), output.logits)
    one_by_one = torch.cat([network(torch.ones(1, 1, size, size) * k).logits for k in (1.0, 2.0)])
    both = network(torch.stack([torch.full((1, size, size), k) for k in (1.0, 2.0)])).logits
    torch.testing.assert_close(both, one_by_one)
