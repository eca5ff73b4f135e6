"""When a few batches count as learned by heart."""

import pytest

from flaxdl.training.overfitting import has_overfit, verdict

pytestmark = pytest.mark.quick


def lines(*values, every=5, name="accuracy"):
    """Lines of training metrics; a loss that stays as it is beside another metric."""
    return [
        {"step": every * number, "split": "train", "loss": 2.0} | {name: value}
        for number, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("accuracies", "batches", "expected"),
    [
        ((), 1, False),
        ((0.5, 0.99), 1, False),
        ((0.5, 1.0), 1, True),
        ((0.5, 0.9995), 5, True),  # a mistake of dropout
        ((0.5, 1.0), 6, False),  # the line is of five of the six batches
        ((0.5, 1.0, 1.0), 6, True),
        ((0.5, 1.0, 0.9, 1.0), 6, False),
        ((1.0,), 5, True),
        ((0.5, None), 1, False),
    ],
)
def test_the_accuracy_rises_to_one_on_all_batches(accuracies, batches, expected):
    assert has_overfit(lines(*accuracies), batches) == expected


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((4.0, 0.05), False), ((4.0, 0.04), True), ((4.0, None), False), ((None, 0.01), False)],
)
def test_or_the_loss_falls_to_a_hundredth(losses, expected):
    assert has_overfit(lines(*losses, name="loss"), 1) == expected


def test_the_verdict_has_the_figures():
    assert verdict(lines(0.5, 1.0), 1) == (
        "overfit the batch: training accuracy 1 and loss 2 at step 10; the model can learn"
    )
    failed = verdict(lines(0.5, 0.75), 3)
    assert failed.startswith(
        "did NOT overfit the 3 batches: training accuracy 0.75 and loss 2 at step 10. Try "
    )
    assert "training loss not finite at step 5" in verdict(lines(None, name="loss"), 1)
