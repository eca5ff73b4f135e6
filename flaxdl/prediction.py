"""What a trained model makes of new files and texts; the data set is not needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxdl.config import Config
from flaxdl.data.text import FittedText
from flaxdl.data.text_pairs import END_TOKEN, START_TOKEN, FittedTextPairs
from flaxdl.models import Seq2SeqTransformer, TransformerLM, generate, translate
from flaxdl.tokens import check_tokens
from flaxdl.trained import Trained, restore
from flaxdl.training.precision import matmul_precision, to_compute_dtype
from flaxdl.training.tasks import LanguageModeling, SequenceToSequence


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
    """How a language model continues a text."""

    num_tokens: int | None = None
    """How many tokens it writes; by default as many as it has positions for."""
    temperature: float = 0.8
    """0 takes the most likely token each time; 1 draws from the model's probabilities."""
    seed: int = 0
    """Decides what is drawn."""


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
        items: names of files, or texts.
        config: the run's config, where config.json cannot bring it back.
        sampling: how a language model writes.

    Raises:
        ValueError: if there is no run or checkpoint, an item cannot be read, or the run's task is
            none of these.
    """
    return predict_with(restore(workdir, config), items, sampling=sampling)


def predict_with(
    trained: Trained, items: Sequence[str], *, sampling: Sampling = Sampling()
) -> list[Prediction] | list[Writing]:
    """What `predict` gives, with a trained network that is at hand.

    Raises:
        ValueError: if an item cannot be read, or the run's task is none of these.
    """
    shapes = {name: example.shape[1:] for name, example in trained.examples.items()}
    batch = trained.transform.read(items, shapes)
    check_tokens(trained.config.model, batch)
    match trained.config.task:
        case LanguageModeling():
            texts = _continue(trained, items, batch, sampling)
        case SequenceToSequence():
            texts = _rewrite(trained, batch)
        case _:
            return _classify(trained, items, batch)
    return [Writing(item, text) for item, text in zip(items, texts, strict=True)]


def _classify(
    trained: Trained, items: Sequence[str], batch: dict[str, np.ndarray]
) -> list[Prediction]:
    classes = trained.classes
    if classes is None:
        raise ValueError("the run holds no classifier: its data have no classes")
    probabilities = np.asarray(jax.nn.softmax(jax.jit(trained.steps.predict)(trained.state, batch)))
    return [
        Prediction(item, {classes[i]: float(row[i]) for i in np.argsort(-row)})
        for item, row in zip(items, probabilities, strict=True)
    ]


def _continue(
    trained: Trained, prompts: Sequence[str], batch: dict[str, np.ndarray], sampling: Sampling
) -> list[str]:
    model, text = trained.config.model, trained.transform
    if not (isinstance(model, TransformerLM) and isinstance(text, FittedText)):
        raise ValueError(
            f"to continue texts takes a TransformerLM and the transform Text, "
            f"got {type(model).__name__} and {type(text).__name__}"
        )
    lengths = batch["lengths"]
    longest = int(lengths.max())
    num_tokens = sampling.num_tokens or max(model.max_length - longest, 1)
    if longest + num_tokens > model.max_length:
        raise ValueError(
            f"the prompt's {longest} tokens and {num_tokens} more are too many for the model, "
            f"which has {model.max_length} positions"
        )
    with matmul_precision(trained.config.precision):
        tokens = generate(
            model,
            _variables(trained),
            batch["inputs"][:, :longest],
            lengths=lengths,
            num_tokens=num_tokens,
            temperature=sampling.temperature,
            key=jax.random.key(sampling.seed),
        )
    return [
        prompt + text.decode(row[None, length:])[0]
        for prompt, row, length in zip(prompts, np.asarray(tokens), lengths, strict=True)
    ]


def _rewrite(trained: Trained, batch: dict[str, np.ndarray]) -> list[str]:
    model, pairs = trained.config.model, trained.transform
    if not (isinstance(model, Seq2SeqTransformer) and isinstance(pairs, FittedTextPairs)):
        raise ValueError(
            f"to rewrite texts takes a Seq2SeqTransformer and the transform TextPairs, "
            f"got {type(model).__name__} and {type(pairs).__name__}"
        )
    with matmul_precision(trained.config.precision):
        tokens = translate(
            model,
            _variables(trained),
            batch["inputs"],
            lengths=batch["lengths"],
            start_token=START_TOKEN,
            end_token=END_TOKEN,
            max_length=pairs.max_target_length - 1,  # the last place is for the end token
        )
    return pairs.decode(np.asarray(tokens))


def _variables(trained: Trained) -> dict[str, Any]:
    """The variables in the precision that the run computes in."""
    params = to_compute_dtype(trained.state.params, trained.config.precision)
    return {"params": params, **trained.state.model_state}
