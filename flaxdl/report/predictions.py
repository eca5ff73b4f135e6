"""Predictions on held-out data for the report, stored in `predictions.npz`.

N: evaluated examples, M: mistakes to show, U: uncertain predictions to show.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.analysis.figures import as_picture, series_picture
from flaxdl.data import Dataset, Splits, Waveforms, evaluation_batches
from flaxdl.data.dataset import Subset
from flaxdl.data.pipeline import evaluation_order
from flaxdl.data.series import FittedSeries
from flaxdl.data.text import FittedText
from flaxdl.data.text_pairs import FittedTextPairs
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.report import forecasts
from flaxdl.report.forecasts import Forecasts
from flaxdl.runs.prediction import Generation, predict_with_run
from flaxdl.runs.restored import RestoredRun
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.tasks import (
    Forecasting,
    LanguageModeling,
    MaskedLanguageModeling,
    SequenceToSequence,
)

_MAX_EXAMPLES = 10_000  # evenly spaced examples of larger splits
_MAX_BATCH_SIZE = 128
_MAX_SHOWN = 24  # mistakes, or rewritten texts
_MAX_UNCERTAIN = 12
_MAX_REWRITTEN = 128  # texts; those with wrong results are shown first
_LARGEST_PICTURE = 128  # pixels of the longer side
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


StoredPredictions = Predictions | Generations | Forecasts
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
        case MaskedLanguageModeling():
            return None
        case _:
            return None if run.classes is None else _classify(run, split, dataset)


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
        kinds = {"label": Predictions, "forecast": Forecasts}
        kind = next((kind for name, kind in kinds.items() if name in arrays), Generations)
        single = {"step": int, "split": str, "available": int, "tried": int}
        arrays |= {name: single[name](x) for name, x in arrays.items() if name in single}
        return kind(**arrays)
    except Exception:  # NumPy raises various errors for damaged files
        return None


def _classify(run: RestoredRun, split: str, dataset: Dataset) -> Predictions | None:
    available = len(dataset)
    positions = np.arange(available)
    if available > _MAX_EXAMPLES:
        positions = np.linspace(0, available - 1, _MAX_EXAMPLES).astype(np.int64)
        dataset = Subset(dataset, positions)
    order = evaluation_order(dataset)

    @partial(jax.jit, out_shardings=replicated(run.mesh))
    def classify(state: Any, batch: Any) -> tuple[jax.Array, ...]:
        logits = run.inference.predict(state, batch)
        probabilities = jax.nn.softmax(logits.astype(jnp.float32))
        of_label = jnp.take_along_axis(probabilities, batch["label"][:, None], axis=-1)[:, 0]
        return jnp.argmax(logits, axis=-1), jnp.max(probabilities, axis=-1), of_label

    # Per batch: index, label, prediction, confidence, probability of the label.
    evaluated: list[tuple[np.ndarray, ...]] = []
    mistakes = _Kept(_MAX_SHOWN)
    uncertain = _Kept(_MAX_UNCERTAIN)
    batch_size = min(len(dataset), run.config.batch_size, _MAX_BATCH_SIZE)
    batch_size = run.inference_size(batch_size)
    first = 0  # number of readable examples in earlier batches
    with closing(evaluation_batches(dataset, run.transform, batch_size=batch_size)) as batches:
        for number, batch in enumerate(batches):
            if "label" not in batch:
                return None
            found = jax.device_get(classify(run.state, run.put(batch)))
            rows = np.flatnonzero(batch["weight"] > 0)  # not padding, and readable
            predicted, confidence, of_label = (x[rows] for x in found)
            label, inputs = batch["label"][rows], batch["inputs"][rows]
            is_correct = predicted == label
            mistakes.add(np.flatnonzero(~is_correct), -confidence, inputs, first)
            uncertain.add(np.flatnonzero(is_correct), confidence, inputs, first)
            index = positions[order[number * batch_size + rows]]
            evaluated.append((index, label, predicted, confidence, of_label))
            first += len(rows)
    index, label, predicted, confidence, of_label = (
        np.concatenate(parts) for parts in zip(*evaluated, strict=True)
    )
    return Predictions(
        step=int(run.state.step),
        split=split,
        available=available,
        label=label.astype(np.int32),
        predicted=predicted.astype(np.int32),
        confidence=confidence.astype(np.float32),
        shown=mistakes.numbers,
        inputs=_shown(run, mistakes.inputs),
        index=index.astype(np.int32),
        label_probability=of_label.astype(np.float32),
        names=_names(dataset, np.searchsorted(positions, index)),
        uncertain=uncertain.numbers,
        uncertain_inputs=_shown(run, uncertain.inputs),
    )


class _Kept:
    """Collection that keeps the examples with the lowest values, and their inputs."""

    def __init__(self, most: int):
        self._most = most
        self._examples: list[tuple[float, int, np.ndarray]] = []

    def add(self, rows: np.ndarray, values: np.ndarray, inputs: np.ndarray, first: int) -> None:
        """Adds `rows` of a batch whose first example has the number `first`."""
        rows = rows[np.argsort(values[rows], kind="stable")][: self._most]
        self._examples += [
            (float(values[row]), first + int(row), inputs[row].copy()) for row in rows
        ]
        self._examples = sorted(self._examples, key=lambda one: one[0])[: self._most]

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of the examples, lowest value first."""
        return np.array([number for _, number, _ in self._examples], np.int32)

    @property
    def inputs(self) -> list[np.ndarray]:
        """Inputs of the examples, lowest value first."""
        return [inputs for _, _, inputs in self._examples]


def _shown(run: RestoredRun, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Returns inputs as images of one size or as texts; empty if they are neither.

    Sounds are shown as spectrograms, with high frequencies at the top.
    """
    if not inputs:
        return np.zeros(0, np.uint8)
    transform = run.transform
    if isinstance(transform, Waveforms):
        spectrograms = transform.pictures(np.stack(inputs))
        return np.stack([_smaller(as_picture(one[::-1])) for one in spectrograms])
    if inputs[0].ndim == 1 and isinstance(transform, FittedText):
        return np.array([transform.decode(row[None])[0] for row in inputs])
    if isinstance(transform, FittedSeries):
        return np.stack([series_picture(row) for row in inputs])
    if inputs[0].ndim in (2, 3):
        return np.stack([_smaller(as_picture(row)) for row in inputs])
    return np.zeros(0, np.uint8)


def _names(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """Returns the names of examples; empty if they have none."""
    names = [dataset.example_name(int(index)) for index in indices]
    return _nothing() if None in names else np.array(names, dtype=str)


def _smaller(picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    scale = _LARGEST_PICTURE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(round(scale * side), 1) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


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
