"""A custom task with several labels per example: no part of a run treats them as single classes."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.small_runs import bright_quadrants, small_config
from PIL import Image

import flaxdl
from flaxdl.data import Arrays
from flaxdl.errors import UserError
from flaxdl.report import predictions
from flaxdl.report.write import write_report
from flaxdl.runs.restored import read_plan
from flaxdl.training import Selection, Task


@dataclass(frozen=True, kw_only=True)
class Independent(Task):
    """Binary cross-entropy of independent labels."""

    def losses(self, outputs, batch):
        losses = optax.sigmoid_binary_cross_entropy(outputs, batch["label"])
        return jnp.mean(losses, axis=-1), batch["weight"]

    def metrics(self, outputs, batch):
        return {"loss": self.losses(outputs, batch)}


@pytest.fixture(scope="module")
def config():
    (inputs, label), (test_inputs, test_label) = bright_quadrants(80, 0), bright_quadrants(37, 1)
    data = Arrays.from_memory(
        train_inputs=inputs,
        train_label=np.eye(4, dtype=np.float32)[label],
        test_inputs=test_inputs,
        test_label=np.eye(4, dtype=np.float32)[test_label],
    )
    return small_config(data=data, task=Independent(), selection=Selection(metric="loss"), epochs=1)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom") / "run"
    flaxdl.train(config, folder)
    return folder


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(bright_quadrants(1, 5)[0][0, ..., 0]).save(path)
    return str(path)


def test_the_report_has_no_predictions_of_classes(workdir, config, caplog):
    plan = read_plan(workdir, config)
    assert plan.classes == ("0", "1", "2", "3")
    assert not plan.has_class_labels
    assert (workdir / "report.html").exists()
    (workdir / "report.html").unlink()
    write_report([workdir], config=config)
    assert (workdir / "report.html").exists()
    assert predictions.load(workdir / "predictions.npz") is None
    assert "has no predictions" not in caplog.text


def test_prediction_of_classes_is_refused(workdir, config, image):
    with pytest.raises(UserError, match="not a classifier: the labels .* are not single classes"):
        flaxdl.predict(workdir, [image], config=config)


def test_figures_name_no_predicted_class(workdir, config, image):
    figure = flaxdl.visualize(workdir, image, "saliency", class_name="2", config=config)
    assert (figure.get_suptitle() or figure.axes[0].get_title()) == "Saliency for class “2”"


def test_a_classifier_has_class_labels(tmp_path):
    flaxdl.train(small_config(epochs=0.2, evaluate_every=0.2), tmp_path, report=False)
    assert read_plan(tmp_path, small_config()).has_class_labels
