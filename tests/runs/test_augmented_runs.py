"""Runs with augmentation on the host: another size in training, operations and several copies."""

import json
import signal

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.small_runs import bright_quadrants, interrupt_at, small_config, train
from PIL import Image

import flaxdl
from flaxdl.analysis.memory import memory_of
from flaxdl.cli import main
from flaxdl.data import Arrays, AutoAugment, Images, RandAugment, TrivialAugmentWide
from flaxdl.layers import BatchNorm, Conv, Linear
from flaxdl.models import LeNet5
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.runs.prediction import predict
from flaxdl.runs.setup import set_up
from flaxdl.training import Interrupted

TRANSFORM = Images(
    size=16,
    resize=18,
    min_scale=0.5,
    flip=True,
    train_size=12,
    augment=RandAugment(magnitude=4, interpolation="bilinear", fill=(60,)),
)


class Pooled(nn.Module):
    """Any size of images: convolution, BatchNorm, and the mean over all positions."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, images, train=False):
        x = Conv(8, 3, padding=1, name="conv")(images)
        x = nn.relu(BatchNorm(name="bn")(x, train))
        return Linear(self.num_classes, name="fc")(x.mean((1, 2)))


class Flat(nn.Module):
    """One size of images."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(4)(images.reshape(len(images), -1))


def source(count=72):
    inputs, label = bright_quadrants(count, 0, size=20)
    test_inputs, test_label = bright_quadrants(21, 1, size=20)
    return Arrays.from_memory(
        train_inputs=inputs, train_label=label, test_inputs=test_inputs, test_label=test_label
    )


def config(**changes):
    settings = {
        "model": Pooled(),
        "data": source(),
        "transform": TRANSFORM,
        "batch_size": 16,
        "epochs": 3,
        "repeated_augmentation": 4,
    }
    return small_config(**(settings | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(config(), workdir)


def test_training_and_evaluation_have_their_own_sizes_and_an_epoch_all_its_steps():
    setup = set_up(config())
    assert setup.training_examples["inputs"].shape == (1, 12, 12, 1)
    assert setup.examples["inputs"].shape == (1, 16, 16, 1)
    assert setup.facts()["example"]["inputs"]["shape"] == [16, 16, 1]
    assert setup.steps_per_epoch == len(setup.splits.train) // 16
    assert setup.steps_per_epoch == set_up(config(repeated_augmentation=1)).steps_per_epoch
    batches = setup.training_batches()
    assert next(batches)["inputs"].shape == (16, 12, 12, 1)
    batches.close()
    (batch, *_) = setup.evaluation_batches("validation")
    assert batch["inputs"].shape == (16, 16, 16, 1)


@pytest.mark.parametrize("step", [1, 6])  # within the first and the second epoch
def test_a_run_that_is_interrupted_within_an_epoch_ends_the_same(
    whole, tmp_path, monkeypatch, step
):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, signal.SIGTERM)
        with pytest.raises(Interrupted, match=f"saved at step {step}"):
            train(config(), tmp_path)
    resumed = train(config(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole[1].variables)


def test_prediction_and_export_use_the_size_of_evaluation(whole, tmp_path):
    workdir, result = whole
    pixels = bright_quadrants(1, 5, size=40)[0]
    Image.fromarray(pixels[0, ..., 0]).save(tmp_path / "one.png")
    batch = TRANSFORM.prepare({"inputs": pixels}, {})
    assert batch["inputs"].shape == (1, 16, 16, 1)
    inputs = TRANSFORM.normalize(batch["inputs"])
    expected = jax.nn.softmax(result.run.model.apply(result.variables, inputs))[0]
    (answer,) = predict(workdir, [str(tmp_path / "one.png")], config=config())
    np.testing.assert_allclose(sorted(answer.probabilities.values()), sorted(expected), rtol=1e-5)
    restored = flaxdl.restore(workdir, config())
    assert restored.examples["inputs"].shape == (1, 16, 16, 1)
    flaxdl.export(workdir, tmp_path / "model.stablehlo", config=config())
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    assert [16, 16, 1] in [list(x.shape[1:]) for x in program.in_avals]


@pytest.mark.parametrize("model", [LeNet5(num_classes=4), Flat()])
def test_a_model_whose_parameters_depend_on_the_size_is_refused(model):
    transform = Images(size=16, min_scale=0.5, train_size=24)
    message = (
        rf"{type(model).__name__} must accept the inputs of training, \[24, 24, 1\], and those of "
        r"evaluation, \[16, 16, 1\], with the same parameters"
    )
    with pytest.raises(flaxdl.UserError, match=message):
        set_up(config(model=model, transform=transform))


def test_images_that_cannot_be_augmented_are_refused_before_training():
    inputs, label = bright_quadrants(72, 0, size=20)
    data = Arrays.from_memory(train_inputs=inputs / np.float32(255), train_label=label)
    transform = Images(augment=TrivialAugmentWide())
    with pytest.raises(flaxdl.UserError, match=r"needs uint8 images .* got float32\[20, 20, 1\]"):
        set_up(config(data=data, transform=transform))


def test_the_memory_of_a_step_is_that_of_the_training_size():
    assert memory_of(set_up(config())).batch == 16 * (12 * 12 + 4 + 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "repeated_augmentation must be at least 1, got 0"),
        (3, "repeated_augmentation must divide batch_size 16, got 3"),
        (32, "repeated_augmentation must divide batch_size 16, got 32"),
        (2.0, "repeated_augmentation must be an integer, got 2.0"),
    ],
)
def test_wrong_numbers_of_copies_are_named(value, message):
    with pytest.raises(flaxdl.UserError, match=message):
        config(repeated_augmentation=value)


@pytest.mark.parametrize(
    "augment",
    [
        TrivialAugmentWide(num_magnitude_bins=20, fill=(1, 2, 3)),
        RandAugment(num_ops=1, magnitude=np.int64(3), interpolation="bilinear"),
        AutoAugment(),
    ],
)
def test_augmentations_are_stored_under_public_names(augment):
    given = small_config(transform=Images(augment=augment))
    record = json.loads(json.dumps(to_json(given.transform)))
    assert record["augment"]["class"] == f"flaxdl.data.{type(augment).__name__}"
    assert from_json(record) == given.transform


def test_flags_change_the_fields_of_an_augmentation(tmp_path, monkeypatch, capsys):
    (tmp_path / "quadrants.py").write_text(
        "from helpers.small_runs import small_config\n"
        "from flaxdl.data import Images, RandAugment\n"
        "config = small_config(transform=Images(size=8, min_scale=0.5, augment=RandAugment()))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flaxdl.run.train", lambda config, *_, **__: found.append(config))
    found = []
    flags = ("--transform.train-size", "6", "--transform.augment.magnitude", "5")
    flags += ("--transform.augment.fill", "7", "--repeated-augmentation", "2")
    assert main(["train", "--config", "quadrants.py", *flags]) == 0
    (config,) = found
    assert config.transform.train_size == 6
    assert config.transform.augment == RandAugment(magnitude=5, fill=(7,))
    assert config.repeated_augmentation == 2
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--config", "quadrants.py", "--transform.augment.magnitude", "31"])
    assert stopped.value.code == 2
    assert "augment.magnitude must be an integer" in capsys.readouterr().err
