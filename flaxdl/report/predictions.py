"""Predictions on held-out data for the report, stored in `predictions.npz`.

N: evaluated examples, M: mistakes to show, U: uncertain predictions to show.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.data import Dataset, Splits
from flaxdl.data.text import FittedText
from flaxdl.data.text_pairs import FittedTextPairs
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.report import estimates, forecasts, label_sets
from flaxdl.report.estimates import Estimates
from flaxdl.report.evaluated import evaluated
from flaxdl.report.forecasts import Forecasts
from flaxdl.report.label_sets import LabelSets
from flaxdl.report.shown_examples import KeptExamples, example_names, shown_inputs
from flaxdl.runs.prediction import Generation, predict_with_run
from flaxdl.runs.restored import RestoredRun
from flaxdl.training.tasks import (
    Forecasting,
    LanguageModeling,
    MaskedLanguageModeling,
    MultiLabelClassification,
    Regression,
    SequenceToSequence,
)

_MAX_SHOWN = 24  # mistakes, or rewritten texts
_MAX_UNCERTAIN = 12
_MAX_REWRITTEN = 128  # texts; those with wrong results are shown first
_PROMPT_LENGTH = 24  # tokens, if the config has no prompt


def _nothing() -> np.ndarray:
    return np.zeros(0, np.int32)


@dataclass(frozen=True)
class Predictions:
    """Predictions of a classifier, and the inputs of its most confident mistakes."""

    step: int
    """Step of the checkpoint."""
    split: str
    available: int
    """Number of examples in the split."""
    label: np.ndarray  # int32[N]
    predicted: np.ndarray  # int32[N]
    confidence: np.ndarray  # float32[N]
    """Probability of the predicted class."""
    shown: np.ndarray  # int32[M]
    """Indices (into the N predictions) of the mistakes to show, most confident first."""
    inputs: np.ndarray  # uint8[M, H, W] or [M, H, W, 3], or texts [M]
    """Inputs of these mistakes; empty if inputs are neither images nor texts."""
    # Files of version 0.1.0 and earlier commits lack the following fields.
    index: np.ndarray = field(default_factory=_nothing)  # int32[N]
    """Position of each example in the split."""
    label_probability: np.ndarray = field(default_factory=_nothing)  # float32[N]
    """Probability of the true class."""
    names: np.ndarray = field(default_factory=_nothing)  # texts [N]
    """File names of the examples; empty if examples are not files."""
    uncertain: np.ndarray = field(default_factory=_nothing)  # int32[U]
    """Indices (into the N predictions) of the least confident correct predictions."""
    uncertain_inputs: np.ndarray = field(default_factory=_nothing)
    """Inputs of the uncertain predictions, in the format of `inputs`."""


@dataclass(frozen=True)
class Generations:
    """Texts that a model continued or rewrote."""

    step: int
    """Step of the checkpoint."""
    split: str
    items: np.ndarray  # texts [M]
    """Prompts, or texts to rewrite."""
    texts: np.ndarray  # texts [M]
    """Generated texts."""
    expected: np.ndarray  # texts [M], or none
    """Expected results of rewriting; empty for prompts."""
    tried: int
    """Number of generated texts, including those not stored."""


StoredPredictions = Predictions | Generations | Forecasts | Estimates | LabelSets
"""Contents of `predictions.npz`."""


def compute(run: RestoredRun, splits: Splits) -> StoredPredictions | None:
    """Computes predictions on the test split, or on the validation split if there is no test split.

    Args:
        run: restored run.
        splits: transformed splits of the run.

    Returns:
        The predictions, or None if there is no split to evaluate or the task has no predictions.

    Raises:
        UserError: if the data cannot be read, or if the model does not fit the task.
    """
    split = "test" if splits.test is not None else "validation"
    dataset = getattr(splits, split)
    if dataset is None or not len(dataset):
        return None
    match run.config.task:
        case LanguageModeling():
            return _continue(run, split, dataset)
        case SequenceToSequence():
            return _rewrite(run, split, dataset)
        case Forecasting():
            return forecasts.compute(run, split, dataset)
        case Regression():
            return estimates.compute(run, split, dataset)
        case MultiLabelClassification():
            return label_sets.compute(run, split, dataset)
        case MaskedLanguageModeling():
            return None
        case _:
            is_classifier = run.classes is not None and run.has_class_labels
            return _classify(run, split, dataset) if is_classifier else None


def save(found: StoredPredictions, path: Path) -> None:
    """Writes predictions to an .npz file atomically."""
    arrays = {field.name: getattr(found, field.name) for field in fields(found)}
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> StoredPredictions | None:
    """Reads a file written by `save`; returns None if it is missing or unreadable."""
    if not path.is_file():  # opening a pipe would block
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = dict(file)
        kinds = {
            "estimate": Estimates,
            "thresholds": LabelSets,
            "label": Predictions,
            "forecast": Forecasts,
        }
        kind = next((kind for name, kind in kinds.items() if name in arrays), Generations)
        single = {"step": int, "split": str, "available": int, "tried": int}
        arrays |= {name: single[name](x) for name, x in arrays.items() if name in single}
        return kind(**arrays)
    except Exception:  # NumPy raises various errors for damaged files
        return None


def _classify(run: RestoredRun, split: str, dataset: Dataset) -> Predictions | None:
    def classify(logits: jax.Array, batch: Any) -> tuple[jax.Array, ...]:
        if "label" not in batch:
            return ()
        probabilities = jax.nn.softmax(logits.astype(jnp.float32))
        of_label = jnp.take_along_axis(probabilities, batch["label"][:, None], axis=-1)[:, 0]
        return jnp.argmax(logits, axis=-1), jnp.max(probabilities, axis=-1), of_label

    # Per batch: index, label, prediction, confidence, probability of the label.
    found: list[tuple[np.ndarray, ...]] = []
    mistakes = KeptExamples(_MAX_SHOWN)
    uncertain = KeptExamples(_MAX_UNCERTAIN)
    with closing(evaluated(run, dataset, classify)) as batches:
        for index, batch, results in batches:
            if not results:
                return None
            predicted, confidence, of_label = results
            label, inputs = batch["label"], batch["inputs"]
            is_correct = predicted == label
            mistakes.add(np.flatnonzero(~is_correct), -confidence, inputs)
            uncertain.add(np.flatnonzero(is_correct), confidence, inputs)
            found.append((index, label, predicted, confidence, of_label))
    index, label, predicted, confidence, of_label = (
        np.concatenate(parts) for parts in zip(*found, strict=True)
    )
    return Predictions(
        step=int(run.state.step),
        split=split,
        available=len(dataset),
        label=label.astype(np.int32),
        predicted=predicted.astype(np.int32),
        confidence=confidence.astype(np.float32),
        shown=mistakes.numbers,
        inputs=shown_inputs(run, mistakes.inputs),
        index=index.astype(np.int32),
        label_probability=of_label.astype(np.float32),
        names=example_names(dataset, index),
        uncertain=uncertain.numbers,
        uncertain_inputs=shown_inputs(run, uncertain.inputs),
    )


def _continue(run: RestoredRun, split: str, dataset: Dataset) -> Generations | None:
    """Continues the configured prompt or, if there is none, the beginning of the first text."""
    transform, task = run.transform, run.config.task
    assert isinstance(task, LanguageModeling)
    if not isinstance(transform, FittedText):
        return None
    prompt = task.prompt
    if prompt is None:
        first = dataset.gather(np.arange(1))["inputs"]  # [1, T]
        prompt = transform.decode(first[:, : min(_PROMPT_LENGTH, first.shape[1] // 2)])[0]
    return _generations(run, split, [prompt], [])


def _rewrite(run: RestoredRun, split: str, dataset: Dataset) -> Generations | None:
    """Rewrites the first texts of a split; those with wrong results come first."""
    transform = run.transform
    if not isinstance(transform, FittedTextPairs):
        return None
    batch = dataset.gather(np.arange(min(len(dataset), _MAX_REWRITTEN)))
    items, expected = (transform.decode(batch[name]) for name in ("inputs", "label"))
    return _generations(run, split, items, expected)


def _generations(
    run: RestoredRun, split: str, items: Sequence[str], expected: Sequence[str]
) -> Generations:
    texts = [one.text for one in predict_with_run(run, items) if isinstance(one, Generation)]
    order = range(len(items))
    if expected:
        order = sorted(order, key=lambda i: texts[i] == expected[i])[:_MAX_SHOWN]
    return Generations(
        step=int(run.state.step),
        split=split,
        items=np.array([items[i] for i in order]),
        texts=np.array([texts[i] for i in order]),
        expected=np.array([expected[i] for i in order] if expected else [], dtype=str),
        tried=len(items),
    )
