"""Prediction for new files and texts with a trained model, without its dataset."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.backend.malloc import return_freed_memory
from flaxdl.config import Config
from flaxdl.data.text import FittedText
from flaxdl.data.text_pairs import END_TOKEN, START_TOKEN, FittedTextPairs
from flaxdl.errors import UserError
from flaxdl.models import RNNLM, TransformerLM, generate, translate
from flaxdl.models.generation import EncoderDecoder, check_beams
from flaxdl.runs.forecasts import Forecast, forecast_each
from flaxdl.runs.items import SkippedItem, expand_items, summary
from flaxdl.runs.multi_label import MultiLabelPrediction, make_labeler
from flaxdl.runs.regression import Estimate, make_estimator
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.runs.tokens import check_tokens
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.precision import matmul_precision, to_compute_dtype
from flaxdl.training.tasks import (
    Forecasting,
    LanguageModeling,
    MaskedLanguageModeling,
    MultiLabelClassification,
    Regression,
    SequenceToSequence,
)

_MAX_BATCH_SIZE = 128  # upper limit for runs with larger training batches

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Prediction:
    """Prediction of a classifier for one input."""

    item: str
    """File name or text."""
    probabilities: dict[str, float]
    """Class probabilities by class name, in descending order."""

    @property
    def label(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))


@dataclass(frozen=True)
class Generation:
    """Text generated for one input."""

    item: str
    """Input text."""
    text: str
    """Input text and continuation (language model), or output text (encoder-decoder model)."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling options of text generation with a language model.

    Raises:
        UserError: if the value of a field is invalid; the message names the field.
    """

    num_tokens: int | None = None
    """Number of tokens to generate; by default, up to the model's maximum length or, with an RNN,
    as many as the maximum length of the transform."""
    temperature: float = 0.8
    """Sampling temperature; 0 always selects the most likely token, 1 samples from the model's
    distribution."""
    seed: int = 0
    """Random seed for sampling."""

    def __post_init__(self):
        if self.num_tokens is not None and self.num_tokens < 1:
            raise UserError(f"num_tokens must be at least 1, got {self.num_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be 0 or more and finite, got {self.temperature}")
        if self.seed < 0:
            raise UserError(f"seed must be 0 or more, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Options of text generation with an encoder-decoder model.

    Raises:
        UserError: if the value of a field is invalid; the message names the field.
    """

    beams: int = 1
    """Number of hypotheses of the beam search; 1 always selects the most likely token (greedy
    decoding)."""
    length_penalty: float = 0.0
    """Exponent a of the length L in the score of a hypothesis, its log-probability divided by L^a;
    0 ranks by probability, higher values favor longer texts."""

    def __post_init__(self):
        check_beams(self.beams, self.length_penalty)


Predictions = (
    list[Prediction]
    | list[MultiLabelPrediction]
    | list[Estimate]
    | list[Generation]
    | list[Forecast]
)
"""Predictions of a run, of the kind of its task."""


def predict(
    workdir: str | Path,
    items: Sequence[str],
    *,
    config: Config | None = None,
    sampling: Sampling = Sampling(),
    beam_search: BeamSearch = BeamSearch(),
) -> Predictions:
    """Predicts classes or numbers, generates texts or continues series, with a run's best model.

    Args:
        workdir: working directory of the run.
        items: texts, file names, or names of folders to search recursively. For forecasts, a file
            is a table with the columns of the run's data.
        config: config of the run, needed only if it uses classes that are not part of flaxdl.
        sampling: sampling options for language models.
        beam_search: options for encoder-decoder models.

    Raises:
        UserError: if there is no run or checkpoint, if an item cannot be read (`predict_each`
            skips it instead), or if the run's task does not support prediction.
    """
    return predict_with_run(
        restore(workdir, config), items, sampling=sampling, beam_search=beam_search
    )


def predict_with_run(
    run: RestoredRun,
    items: Sequence[str],
    *,
    sampling: Sampling = Sampling(),
    beam_search: BeamSearch = BeamSearch(),
) -> Predictions:
    """Like `predict`, for a run that is already in memory.

    Raises:
        UserError: if an item cannot be read, or if the run's task does not support prediction.
    """
    found = list(predict_each(run, items, sampling=sampling, beam_search=beam_search))
    unreadable = [one for one in found if isinstance(one, SkippedItem)]
    if unreadable:
        raise UserError(summary(unreadable, len(found)))
    return cast(Predictions, found)


def predict_each(
    run: RestoredRun,
    items: Sequence[str],
    *,
    sampling: Sampling = Sampling(),
    beam_search: BeamSearch = BeamSearch(),
) -> Iterator[Prediction | MultiLabelPrediction | Estimate | Generation | Forecast | SkippedItem]:
    """Yields a prediction for each item, or the reason why there is none, in order.

    Items are processed in batches of one shape by a single compiled program, so memory does not
    grow with their number.

    Args:
        run: restored run, see `flaxdl.runs.restored.restore`.
        items: texts, file names, or names of folders to search recursively.
        sampling: sampling options for language models.
        beam_search: options for encoder-decoder models.

    Raises:
        UserError: if the run's task does not support prediction.
    """
    if isinstance(run.config.task, Forecasting):
        yield from forecast_each(run, items)
        return
    predict_batch = _make_predictor(run, sampling, beam_search)
    expanded = expand_items(items, run.transform)
    size = min(run.config.batch_size, _MAX_BATCH_SIZE, len(expanded))
    size = run.inference_size(size)
    with return_freed_memory():
        for start in range(0, len(expanded), size or 1):
            chunk = expanded[start : start + size]
            batch, skipped = _read_batch(run, chunk, sampling)
            texts = [str(item) for item, skip in zip(chunk, skipped, strict=True) if skip is None]
            found = predict_batch(texts, _pad_batch(batch, size), start) if texts else ()
            predictions = iter(found)
            yield from (next(predictions) if skip is None else skip for skip in skipped)


BatchPredictor = Callable[
    [Sequence[str], Batch, int],
    Sequence[Prediction | MultiLabelPrediction | Estimate | Generation],
]
"""Callable that maps items, a padded batch and the index of the first item to predictions."""


def _make_predictor(
    run: RestoredRun, sampling: Sampling, beam_search: BeamSearch
) -> BatchPredictor:
    is_translator = isinstance(run.config.task, SequenceToSequence)
    if beam_search != BeamSearch() and not is_translator:
        raise UserError(
            f"beams and length_penalty apply to runs with the task SequenceToSequence, "
            f"got {type(run.config.task).__name__}"
        )
    match run.config.task:
        case LanguageModeling():
            return _make_generator(run, sampling)
        case Regression():
            return make_estimator(run)
        case SequenceToSequence():
            return _make_translator(run, beam_search)
        case MaskedLanguageModeling():
            raise UserError(
                "prediction is not available for masked language modeling; fine-tune the model "
                "for another task, with the workdir of this run as init.weights"
            )
        case MultiLabelClassification():
            return make_labeler(run)
        case _:
            return _make_classifier(run)


def _read_batch(
    run: RestoredRun, items: Sequence[str | SkippedItem], sampling: Sampling
) -> tuple[Batch, list[SkippedItem | None]]:
    """Returns a batch of the readable items and, for each item, None or a `SkippedItem`."""
    skipped = [item if isinstance(item, SkippedItem) else None for item in items]
    readable = [item for item in items if isinstance(item, str)]
    try:
        return _read_checked(run, readable, sampling) if readable else {}, skipped
    except ValueError:  # at least one item is unreadable; read them one by one
        parts = []
        for place, item in enumerate(items):
            if isinstance(item, str):
                try:
                    parts.append(_read_checked(run, [item], sampling))
                except ValueError as error:
                    skipped[place] = SkippedItem(item, str(error))
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}, skipped


def _read_checked(run: RestoredRun, items: Sequence[str], sampling: Sampling) -> Batch:
    """Reads items as a batch, and checks that the model accepts it."""
    shapes = {name: example.shape[1:] for name, example in run.examples.items()}
    batch = run.transform.read(items, shapes)
    model, text = run.config.model, run.transform
    check_tokens(model, batch)
    if isinstance(run.config.task, LanguageModeling) and isinstance(text, FittedText):
        longest, num_tokens = int(batch["lengths"].max()), sampling.num_tokens or 1
        if isinstance(model, TransformerLM) and longest + num_tokens > model.max_length:
            raise UserError(
                f"the prompt has {longest} tokens, and at least {num_tokens} more must fit, but "
                f"model.max_length is {model.max_length}"
            )
        # Longer prompts are truncated, and the generated text would not follow their last token.
        if isinstance(model, RNNLM) and longest >= text.max_length:
            raise UserError(
                f"the prompt has {longest} tokens or more, but must have fewer than "
                f"transform.max_length = {text.max_length}"
            )
    return batch


def _pad_batch(batch: Batch, size: int) -> Batch:
    """Pads a batch to `size` rows by repeating its last row, to avoid recompilation."""
    return {name: rows[np.minimum(np.arange(size), len(rows) - 1)] for name, rows in batch.items()}


def _make_classifier(run: RestoredRun) -> BatchPredictor:
    classes = run.classes
    if classes is None or not run.has_class_labels:
        raise UserError(
            "the run is not a classifier: the labels of its data are not single classes"
        )

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


def _make_generator(run: RestoredRun, sampling: Sampling) -> BatchPredictor:
    model, text = run.config.model, run.transform
    if not (isinstance(model, TransformerLM | RNNLM) and isinstance(text, FittedText)):
        raise UserError(
            f"text generation needs a TransformerLM or RNNLM and the Text transform, "
            f"got {type(model).__name__} and {type(text).__name__}"
        )
    variables = _variables(run)

    def continue_texts(items: Sequence[str], batch: Batch, first: int) -> list[Generation]:
        lengths = batch["lengths"]
        longest = int(lengths.max())
        num_tokens = sampling.num_tokens
        if num_tokens is None and isinstance(model, TransformerLM):
            num_tokens = model.max_length - longest
        with matmul_precision(run.config.precision):
            tokens = generate(
                model,
                variables,
                batch["inputs"][:, :longest],
                lengths=lengths,
                num_tokens=text.max_length if num_tokens is None else num_tokens,
                temperature=sampling.temperature,
                key=jax.random.fold_in(jax.random.key(sampling.seed), first),
            )
        rows = zip(items, np.asarray(tokens), lengths, strict=False)
        return [
            Generation(prompt, prompt + text.decode(row[None, length:])[0])
            for prompt, row, length in rows
        ]

    return continue_texts


def _make_translator(run: RestoredRun, beam_search: BeamSearch) -> BatchPredictor:
    model, pairs = run.config.model, run.transform
    if not (isinstance(model, EncoderDecoder) and isinstance(pairs, FittedTextPairs)):
        raise UserError(
            "text generation needs a Seq2SeqRNN or Seq2SeqTransformer and the TextPairs transform, "
            f"got {type(model).__name__} and {type(pairs).__name__}"
        )
    variables = _variables(run)

    def rewrite_texts(items: Sequence[str], batch: Batch, first: int) -> list[Generation]:
        with matmul_precision(run.config.precision):
            tokens = translate(
                model,
                variables,
                batch["inputs"],
                lengths=batch["lengths"],
                start_token=START_TOKEN,
                end_token=END_TOKEN,
                max_length=pairs.max_target_length - 1,  # minus the end token
                beams=beam_search.beams,
                length_penalty=beam_search.length_penalty,
            )
        texts = pairs.decode(np.asarray(tokens)[: len(items)])
        return [Generation(item, text) for item, text in zip(items, texts, strict=True)]

    return rewrite_texts


def _variables(run: RestoredRun) -> dict[str, Any]:
    """Returns the variables in the compute dtype of the run."""
    params = to_compute_dtype(run.state.params, run.config.precision)
    return {"params": params, **run.state.model_state}
