"""Scores by class and calibration, against numbers computed by hand and by scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from flaxdl.report.scores import calibrate, class_scores, confusion_matrix, most_confused

pytestmark = pytest.mark.quick

LABEL = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 0, 2, 0])
CLASSES = ("cat", "dog", "owl", "yak")


def test_rows_are_true_and_columns_predicted_classes():
    expected = [[3, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(confusion_matrix(LABEL, PREDICTED, 4), expected)


def test_scores_by_hand():
    cat, dog, owl, yak = class_scores(LABEL, PREDICTED, CLASSES)
    assert (cat.name, cat.examples, cat.precision, cat.recall) == ("cat", 4, 3 / 5, 3 / 4)
    assert (dog.precision, dog.recall, dog.f1) == (0.5, 0.5, 0.5)
    assert (owl.precision, owl.recall) == (1, 0.5)
    assert owl.f1 == pytest.approx(2 / 3)
    assert (yak.examples, yak.precision, yak.recall, yak.f1) == (0, None, None, None)


def test_the_most_confused_pairs_come_first():
    confusion = np.array([[9, 0, 4], [1, 9, 0], [0, 0, 9]])
    assert most_confused(confusion, CLASSES[:3]) == [("cat", "owl", 4), ("dog", "cat", 1)]


def test_calibration_by_hand():
    found = calibrate(np.array([0.95, 0.85, 0.81, 1.0]), np.array([True, False, True, True]))
    np.testing.assert_allclose(found.confidence, [0.83, 0.975])
    np.testing.assert_allclose(found.accuracy, [0.5, 1.0])
    np.testing.assert_array_equal(found.count, [2, 2])
    assert found.error == pytest.approx(0.5 * 0.33 + 0.5 * 0.025)


def test_calibration_is_scikit_learns():
    random = np.random.default_rng(0)
    confidence = random.uniform(0.1, 1, 500)
    is_correct = random.uniform(size=500) < confidence**2
    found = calibrate(confidence, is_correct)
    accuracy, mean = calibration_curve(is_correct, confidence, n_bins=10)
    np.testing.assert_allclose(found.accuracy, accuracy)
    np.testing.assert_allclose(found.confidence, mean)
