"""What a trained model makes of new files and texts; the data set is not needed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.backend.malloc import returning_freed_memory
from flaxdl.config import Config
from flaxdl.data.text import FittedText
from flaxdl.data.text_pairs import END_TOKEN, START_TOKEN, FittedTextPairs
from flaxdl.errors import UserError
from flaxdl.models import Seq2SeqTransformer, TransformerLM, generate, translate
from flaxdl.runs.items import Unreadable, expand_items, summary
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.runs.tokens import check_tokens
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.precision import matmul_precision, to_compute_dtype
from flaxdl.training.tasks import LanguageModeling, SequenceToSequence

_MOST_AT_ONCE = 128  # items in a batch, whatever the batch size of the run

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Prediction:
    """What a classifier makes of one input."""

    item: str
    """The file or text."""
    probabilities: dict[str, float]
    """By class name, the most probable first."""

    @property
    def label(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))


@dataclass(frozen=True)
class Writing:
    """What a model that writes makes of one text."""

    item: str
    """The text."""
    text: str
    """The same text continued, by a language model; another one for it, by an encoder-decoder."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a language model continues a text.

    Raises:
        UserError: naming the field whose value is impossible.
    """

    num_tokens: int | None = None
    """How many tokens it writes; by default as many as it has positions for."""
    temperature: float = 0.8
    """0 takes the most likely token each time; 1 draws from the model's probabilities."""
    seed: int = 0
    """Decides what is drawn."""

    def __post_init__(self):
        if self.num_tokens is not None and self.num_tokens < 1:
            raise UserError(f"num_tokens must be at least 1, got {self.num_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be 0 or more and finite, got {self.temperature}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")


def predict(
    workdir: str | Path,
    items: Sequence[str],
    *,
    config: Config | None = None,
    sampling: Sampling = Sampling(),
) -> list[Prediction] | list[Writing]:
    """Classifies files or texts, or continues or rewrites texts, with a run's best checkpoint.

    Args:
        workdir: the run's folder.
        items: texts, or names of files and of folders, whose files are taken at any depth.
        config: the run's config, where config.json cannot bring it back.
        sampling: how a language model writes.

    Raises:
        UserError: if there is no run or checkpoint, items cannot be read (`predict_each` passes
            over them), or the run's task is none of these.
    """
    return predict_with(restore(workdir, config), items, sampling=sampling)


def predict_with(
    run: RestoredRun, items: Sequence[str], *, sampling: Sampling = Sampling()
) -> list[Prediction] | list[Writing]:
    """The same as `predict`, with a run that is in memory.

    Raises:
        UserError: if items cannot be read, or the run's task is none of these.
    """
    found = list(predict_each(run, items, sampling=sampling))
    unreadable = [one for one in found if isinstance(one, Unreadable)]
    if unreadable:
        raise UserError(summary(unreadable, len(found)))
    return cast(list[Prediction] | list[Writing], found)


def predict_each(
    run: RestoredRun, items: Sequence[str], *, sampling: Sampling = Sampling()
) -> Iterator[Prediction | Writing | Unreadable]:
    """Yields the prediction for each item, or why it has none, in the order of the items.

    Items are read and computed batch by batch, so memory does not grow with their number, and by
    one compiled program.

    Args:
        run: the network, see `flaxdl.runs.restored.restore`.
        items: as `predict` takes them.
        sampling: how a language model writes.

    Raises:
        UserError: if the run's task is not to classify, continue or rewrite.
    """
    answer = _answering(run, sampling)
    expanded = expand_items(items, run.transform)
    size = min(run.config.batch_size, _MOST_AT_ONCE, len(expanded))
    size = run.inference_size(size)
    with returning_freed_memory():
        for start in range(0, len(expanded), size or 1):
            some = expanded[start : start + size]
            batch, faults = _read(run, some, sampling)
            texts = [str(item) for item, fault in zip(some, faults, strict=True) if fault is None]
            answers = iter(answer(texts, _filled_up(batch, size), start) if texts else ())
            yield from (next(answers) if fault is None else fault for fault in faults)


Answering = Callable[[Sequence[str], Batch, int], Sequence[Prediction | Writing]]
"""Gives the predictions for items, a batch that begins with their rows, and the first's number."""


def _answering(run: RestoredRun, sampling: Sampling) -> Answering:
    match run.config.task:
        case LanguageModeling():
            return _continuing(run, sampling)
        case SequenceToSequence():
            return _rewriting(run)
        case _:
            return _classifying(run)


def _read(
    run: RestoredRun, items: Sequence[str | Unreadable], sampling: Sampling
) -> tuple[Batch, list[Unreadable | None]]:
    """A batch of the items that can be read, and for each item why it cannot."""
    faults = [item if isinstance(item, Unreadable) else None for item in items]
    readable = [item for item in items if isinstance(item, str)]
    try:
        return _checked(run, readable, sampling) if readable else {}, faults
    except ValueError:  # of one item or more, by us or a user's transform; seen one by one
        parts = []
        for place, item in enumerate(items):
            if isinstance(item, str):
                try:
                    parts.append(_checked(run, [item], sampling))
                except ValueError as error:
                    faults[place] = Unreadable(item, str(error))
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}, faults


def _checked(run: RestoredRun, items: Sequence[str], sampling: Sampling) -> Batch:
    """The items as a batch that the model can take."""
    shapes = {name: example.shape[1:] for name, example in run.examples.items()}
    batch = run.transform.read(items, shapes)
    model = run.config.model
    check_tokens(model, batch)
    if isinstance(run.config.task, LanguageModeling) and isinstance(model, TransformerLM):
        longest, num_tokens = int(batch["lengths"].max()), sampling.num_tokens or 1
        if longest + num_tokens > model.max_length:
            raise UserError(
                f"the prompt's {longest} tokens and {num_tokens} more are too many for the model, "
                f"which has {model.max_length} positions"
            )
    return batch


def _filled_up(batch: Batch, size: int) -> Batch:
    """The batch with its last row repeated up to a size, so that one program computes all."""
    return {name: rows[np.minimum(np.arange(size), len(rows) - 1)] for name, rows in batch.items()}


def _classifying(run: RestoredRun) -> Answering:
    classes = run.classes
    if classes is None:
        raise UserError("the run holds no classifier: its data have no classes")

    @partial(jax.jit, out_shardings=replicated(run.mesh))
    def probabilities_of(state: Any, batch: Any) -> jax.Array:
        logits = run.inference.predict(state, batch)
        return jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

    def classify(items: Sequence[str], batch: Batch, first: int) -> list[Prediction]:
        placed = run.put(batch)
        probabilities = np.asarray(probabilities_of(run.state, placed))[: len(items)]
        return [
            Prediction(item, {classes[i]: float(row[i]) for i in np.argsort(-row)})
            for item, row in zip(items, probabilities, strict=True)
        ]

    return classify


def _continuing(run: RestoredRun, sampling: Sampling) -> Answering:
    model, text = run.config.model, run.transform
    if not (isinstance(model, TransformerLM) and isinstance(text, FittedText)):
        raise UserError(
            f"to continue texts takes a TransformerLM and the transform Text, "
            f"got {type(model).__name__} and {type(text).__name__}"
        )
    variables = _variables(run)

    def continue_(items: Sequence[str], batch: Batch, first: int) -> list[Writing]:
        lengths = batch["lengths"]
        longest = int(lengths.max())
        num_tokens = sampling.num_tokens
        with matmul_precision(run.config.precision):
            tokens = generate(
                model,
                variables,
                batch["inputs"][:, :longest],
                lengths=lengths,
                num_tokens=model.max_length - longest if num_tokens is None else num_tokens,
                temperature=sampling.temperature,
                key=jax.random.fold_in(jax.random.key(sampling.seed), first),
            )
        rows = zip(items, np.asarray(tokens), lengths, strict=False)
        return [
            Writing(prompt, prompt + text.decode(row[None, length:])[0])
            for prompt, row, length in rows
        ]

    return continue_


def _rewriting(run: RestoredRun) -> Answering:
    model, pairs = run.config.model, run.transform
    if not (isinstance(model, Seq2SeqTransformer) and isinstance(pairs, FittedTextPairs)):
        raise UserError(
            f"to rewrite texts takes a Seq2SeqTransformer and the transform TextPairs, "
            f"got {type(model).__name__} and {type(pairs).__name__}"
        )
    variables = _variables(run)

    def rewrite(items: Sequence[str], batch: Batch, first: int) -> list[Writing]:
        with matmul_precision(run.config.precision):
            tokens = translate(
                model,
                variables,
                batch["inputs"],
                lengths=batch["lengths"],
                start_token=START_TOKEN,
                end_token=END_TOKEN,
                max_length=pairs.max_target_length - 1,  # the last place is for the end token
            )
        texts = pairs.decode(np.asarray(tokens)[: len(items)])
        return [Writing(item, text) for item, text in zip(items, texts, strict=True)]

    return rewrite


def _variables(run: RestoredRun) -> dict[str, Any]:
    """The variables in the precision that the run computes in."""
    params = to_compute_dtype(run.state.params, run.config.precision)
    return {"params": params, **run.state.model_state}
