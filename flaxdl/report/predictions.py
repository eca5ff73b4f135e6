"""What a trained network answers on data that it was not trained on, kept for the report.

N: examples that were answered, M: those that are shown.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.analysis.figures import as_picture
from flaxdl.data import Dataset, Splits, evaluation_batches
from flaxdl.data.dataset import Subset
from flaxdl.data.text import FittedText
from flaxdl.data.text_pairs import FittedTextPairs
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.runs.prediction import Writing, predict_with
from flaxdl.runs.restored import RestoredRun
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.tasks import LanguageModeling, SequenceToSequence

_MOST_ANSWERED = 10_000  # of a larger split, evenly spread over it
_MOST_AT_ONCE = 128
_MOST_SHOWN = 24
_MOST_REWRITTEN = 128  # texts, among which mistakes are looked for
_LARGEST_PICTURE = 128  # pixels of the longer side
_PROMPT_LENGTH = 24  # tokens, where the config has no prompt


@dataclass(frozen=True)
class Answers:
    """What a classifier answers, and its most confident mistakes."""

    step: int
    """The step of the checkpoint."""
    split: str
    available: int
    """How many examples the split has."""
    label: np.ndarray  # int32[N]
    predicted: np.ndarray  # int32[N]
    confidence: np.ndarray  # float32[N]
    """The probability of the answer."""
    shown: np.ndarray  # int32[M]
    """The mistakes that are shown, as numbers of answers, the most confident first."""
    inputs: np.ndarray  # uint8[M, H, W] or [M, H, W, 3], or texts [M]
    """What they look like; none where inputs are neither pictures nor texts."""


@dataclass(frozen=True)
class Writings:
    """What a model that writes makes of texts."""

    step: int
    """The step of the checkpoint."""
    split: str
    items: np.ndarray  # texts [M]
    """The prompts, or the texts that are rewritten."""
    texts: np.ndarray  # texts [M]
    """What was written."""
    expected: np.ndarray  # texts [M], or none
    """What should have been, of texts that are rewritten."""
    tried: int
    """Among how many texts those that came out wrong were looked for."""


def answer(run: RestoredRun, splits: Splits) -> Answers | Writings | None:
    """Lets a network answer the test split, or the validation split where there is no other.

    Args:
        run: the network.
        splits: the data, transformed.

    Returns:
        The answers; None where there is nothing to ask, or the task is of another kind.

    Raises:
        UserError: if the data cannot be read, or the network cannot do its task.
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
        case _:
            return None if run.classes is None else _classify(run, split, dataset)


def save(answers: Answers | Writings, path: Path) -> None:
    """Writes answers to an .npz file, whole or not at all."""
    arrays = {field.name: getattr(answers, field.name) for field in fields(answers)}
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> Answers | Writings | None:
    """Reads what `save` has written; None where there is nothing, or nothing that can be read."""
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = dict(file)
        kind = Answers if "label" in arrays else Writings
        single = {"step": int, "split": str, "available": int, "tried": int}
        arrays |= {name: single[name](x) for name, x in arrays.items() if name in single}
        return kind(**arrays)
    except Exception:  # whatever a broken file makes NumPy raise
        return None


def _classify(run: RestoredRun, split: str, dataset: Dataset) -> Answers | None:
    available = len(dataset)
    if available > _MOST_ANSWERED:
        places = np.linspace(0, available - 1, _MOST_ANSWERED).astype(np.int64)
        dataset = Subset(dataset, places)

    @partial(jax.jit, out_shardings=replicated(run.mesh))
    def most_probable(state: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        logits = run.inference.predict(state, batch)
        probabilities = jax.nn.softmax(logits.astype(jnp.float32))
        return jnp.argmax(logits, axis=-1), jnp.max(probabilities, axis=-1)

    answered: list[tuple[np.ndarray, ...]] = []  # batch by batch: label, answer, confidence
    mistakes: list[tuple[float, int, np.ndarray]] = []
    batch_size = min(len(dataset), run.config.batch_size, _MOST_AT_ONCE)
    batch_size = run.inference_size(batch_size)
    first = 0  # the number of the batch's first example
    with closing(evaluation_batches(dataset, run.transform, batch_size=batch_size)) as batches:
        for batch in batches:
            if "label" not in batch:
                return None
            placed = run.put(batch)
            predicted, confidence = jax.device_get(most_probable(run.state, placed))
            rows = np.flatnonzero(batch["weight"] > 0)  # those that can be read, each once
            wrong = rows[predicted[rows] != batch["label"][rows]]
            mistakes += [
                (float(confidence[row]), first + place, batch["inputs"][row])
                for place, row in zip(np.searchsorted(rows, wrong).tolist(), wrong, strict=True)
            ]
            mistakes = sorted(mistakes, key=lambda one: -one[0])[:_MOST_SHOWN]
            answered.append((batch["label"][rows], predicted[rows], confidence[rows]))
            first += len(rows)
    label, predicted, confidence = map(np.concatenate, zip(*answered, strict=True))
    return Answers(
        step=int(run.state.step),
        split=split,
        available=available,
        label=label.astype(np.int32),
        predicted=predicted.astype(np.int32),
        confidence=confidence.astype(np.float32),
        shown=np.array([number for _, number, _ in mistakes], np.int32),
        inputs=_shown(run, [inputs for _, _, inputs in mistakes]),
    )


def _shown(run: RestoredRun, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Inputs as pictures of one size, or as texts; none where they are neither."""
    if not inputs:
        return np.zeros(0, np.uint8)
    transform = run.transform
    if inputs[0].ndim == 1 and isinstance(transform, FittedText):
        return np.array([transform.decode(row[None])[0] for row in inputs])
    if inputs[0].ndim in (2, 3):
        return np.stack([_smaller(as_picture(row)) for row in inputs])
    return np.zeros(0, np.uint8)


def _smaller(picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    scale = _LARGEST_PICTURE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(round(scale * side), 1) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def _continue(run: RestoredRun, split: str, dataset: Dataset) -> Writings | None:
    """A sample: the config's prompt continued, or the beginning of the first text."""
    transform, task = run.transform, run.config.task
    assert isinstance(task, LanguageModeling)
    if not isinstance(transform, FittedText):
        return None
    prompt = task.prompt
    if prompt is None:
        first = dataset.gather(np.arange(1))["inputs"]  # [1, T]
        prompt = transform.decode(first[:, : min(_PROMPT_LENGTH, first.shape[1] // 2)])[0]
    return _writings(run, split, [prompt], [])


def _rewrite(run: RestoredRun, split: str, dataset: Dataset) -> Writings | None:
    """Some texts rewritten, those that come out wrong first."""
    transform = run.transform
    if not isinstance(transform, FittedTextPairs):
        return None
    batch = dataset.gather(np.arange(min(len(dataset), _MOST_REWRITTEN)))
    items, expected = (transform.decode(batch[name]) for name in ("inputs", "label"))
    return _writings(run, split, items, expected)


def _writings(
    run: RestoredRun, split: str, items: Sequence[str], expected: Sequence[str]
) -> Writings:
    texts = [one.text for one in predict_with(run, items) if isinstance(one, Writing)]
    order = range(len(items))
    if expected:
        order = sorted(order, key=lambda i: texts[i] == expected[i])[:_MOST_SHOWN]
    return Writings(
        step=int(run.state.step),
        split=split,
        items=np.array([items[i] for i in order]),
        texts=np.array([texts[i] for i in order]),
        expected=np.array([expected[i] for i in order] if expected else [], dtype=str),
        tried=len(items),
    )
