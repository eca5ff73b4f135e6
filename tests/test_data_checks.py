"""What a run says of its data when it is set up, by training and by a dry run alike."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl import Config
from flaxdl.data import Arrays, Images, Transform
from flaxdl.layers import Linear
from flaxdl.runs.setup import set_up
from flaxdl.runs.summary import summarize
from flaxdl.runs.workdir import Workdir
from flaxdl.training import Classification, Selection, Task

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1), dtype=np.uint8)
LABELS = np.arange(60) % 2


class OneLayer(nn.Module):
    """Logistic regression."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, images, train=False):
        return Linear(self.num_classes, name="fc")(images.reshape(len(images), -1))


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """The squared error of the first output."""

    def losses(self, outputs, batch):
        return (outputs[:, 0] - batch["label"]) ** 2, batch["weight"]

    def metrics(self, outputs, batch):
        return {"loss": self.losses(outputs, batch)}


@dataclass(frozen=True, kw_only=True)
class Soft(Classification):
    """Classification by probabilities."""

    def losses(self, outputs, batch):
        return jnp.sum((outputs - batch["label"]) ** 2, -1), batch["weight"]

    def metrics(self, outputs, batch):
        return {"loss": self.losses(outputs, batch)}


def set_up_with(inputs=IMAGES, label=LABELS, **changes):
    arrays = {"train_inputs": inputs, "train_label": label}
    settings = {
        "model": OneLayer(),
        "data": Arrays.from_memory(**arrays),
        "transform": Images(),
        "batch_size": 8,
        "selection": Selection(metric="loss"),
    }
    return set_up(Config(**(settings | changes)))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            LABELS.astype(np.float32),
            r"train_label must be .* float32 \[54\]; use train_label.astype",
        ),
        (np.eye(2)[LABELS], r"use train_label.argmax\(1\)"),
        (LABELS + 1, "train_label .* from 1 to 2, but classes must start at 0: subtract 1"),
    ],
)
def test_a_classifier_needs_classes(label, message):
    with pytest.raises(ValueError, match=message):
        set_up_with(label=label)


def test_tasks_of_ones_own_take_any_labels(caplog):
    for label in (LABELS.astype(np.float32), LABELS + 1, LABELS * 5000):
        set_up_with(label=label, task=Regression())
    set_up_with(label=np.eye(2, dtype=np.float32)[LABELS], task=Soft())
    assert "no training examples" not in caplog.text


def test_set_up_warns_once_of_each(caplog):
    label = LABELS * 2
    setup = set_up_with(IMAGES.astype(np.float32), label, model=OneLayer(3))
    starts = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert starts == [
        "train_inputs (float32, 0 to 255)",
        "1 of 3 classes (1) have no training examples",
        "the validation split has only 6 examples, so model selection will be noisy; a larger one, "
        "such as by --data.validation-fraction, would help",
    ]
    line = "train / validation by class: 0 27 / 3, 1 0 / 0, 2 27 / 3"
    assert line in summarize(setup).split("\n")


def test_inputs_without_a_transform_are_checked(caplog):
    set_up_with(IMAGES.astype(np.float32) * 100, transform=Transform())
    assert "Subtract their mean and divide by their standard deviation" in caplog.text


def test_a_fitted_transform_is_used_when_a_run_is_resumed(tmp_path):
    setup = set_up_with(IMAGES.astype(np.float32))
    assert setup.transform.levels == (0, 255)
    setup.transform.save(tmp_path)
    resumed = set_up(setup.config, Images().restore(tmp_path))
    assert resumed.transform.levels == (0, 255)
    assert Workdir(tmp_path).fitted(Images()) is None  # there is no checkpoint
