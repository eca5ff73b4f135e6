"""Whether tokens, model and pretrained weights belong together.

Nothing can raise inside a compiled step, where a token id out of range reads as NaN, and nothing
tells there that an id meant another token in pretraining; so both are checked where data and model
meet.
"""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import flax.linen as nn
import numpy as np

from flaxdl.config import Config
from flaxdl.data import Dataset, Text, TextPairs, Transform
from flaxdl.data.text import FittedText
from flaxdl.data.text_pairs import FittedTextPairs
from flaxdl.data.tokenizer_files import has_tokenizer, read_tokenizer
from flaxdl.data.vocabulary import CHARACTERS
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path
from flaxdl.weights import hub

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOGGER = logging.getLogger(__name__)
_SHOWN = 3  # tokens named in a message
_EMBEDDINGS = (
    "embedding.weight",
    "encoder.embedding.weight",
    "decoder.embedding.weight",
    "embeddings.word_embeddings.weight",
    "bert.embeddings.word_embeddings.weight",
)


def with_tokenizer(config: Config) -> Config:
    """Sets the tokenizer of a config without `init.weights` that names none.

    Runs of earlier versions, which had this default, are resumed by the same config.
    """
    text = config.transform
    if isinstance(text, Text) and text.tokenizer is None and config.init.weights is None:
        return replace(config, transform=replace(text, tokenizer=CHARACTERS))
    return config


def fit_transform(config: Config, train: Dataset) -> Transform:
    """Fits the transform of a new run to the training split.

    Without a tokenizer in the config, that of `init.weights` is taken.

    Raises:
        UserError: if it cannot be fitted, or gives tokens of the weights other ids.
    """
    text, weights = config.transform, config.init.weights
    if not isinstance(text, Text | TextPairs) or weights is None:
        return text.fit(train)
    if isinstance(text, Text) and text.tokenizer == weights:
        return text.fit(train)
    folder = _tokenizer_folder(weights)
    if isinstance(text, Text) and text.tokenizer is None and folder is not None:
        _LOGGER.info("using the tokenizer of init.weights: %s", folder)
        return replace(text, tokenizer=str(folder)).fit(train)
    fitted = text.fit(train)
    # Embeddings that are drawn at random suit any tokenizer.
    is_drawn = any(fnmatchcase(name, key) for name in _EMBEDDINGS for key in config.init.omit)
    if isinstance(fitted, FittedText | FittedTextPairs) and not is_drawn:
        _check_ids(fitted, folder, weights)
    return fitted


def _check_ids(fitted: FittedText | FittedTextPairs, folder: Path | None, weights: str) -> None:
    """Checks that the ids of tokens are those of the weights, as far as these are known."""
    if isinstance(fitted, FittedTextPairs):
        name = "the vocabulary of the training texts"
        remedy = "train on texts with the same characters, or omit the embeddings (init.omit)"
    else:
        name = f"transform.tokenizer {fitted.tokenizer!r}"
        remedy = f"leave transform.tokenizer out to use that of the weights, {weights}"
    if folder is not None:
        _compare(fitted.vocabulary, read_tokenizer(folder), name, remedy)
    elif isinstance(fitted, FittedText) and fitted.tokenizer is None:
        _LOGGER.warning(
            "init.weights %s come without a tokenizer; token ids of the characters in the training "
            "texts are unlikely to be theirs: set transform.tokenizer",
            weights,
        )


def _tokenizer_folder(weights: str) -> Path | None:
    """The folder of the tokenizer that weights come with, or None."""
    path = local_path(weights)
    beside = local_path(weights.rpartition(":")[0])  # FILE:KEY names one dict in a file
    if not path.exists():
        if weights in hub.PUBLISHED:
            return None
        path = beside if beside.is_file() else hub.locate(weights)
    folder = path if path.is_dir() else path.parent
    return folder if has_tokenizer(folder) else None


def _compare(ours: "Tokenizer", theirs: "Tokenizer", name: str, remedy: str) -> None:
    """Checks that tokens have the ids with which weights were trained.

    Raises:
        UserError: if a token of both has another id, or they have few tokens in common.
    """
    ids, trained_ids = ours.get_vocab(), theirs.get_vocab()
    moved = sorted(token for token in ids.keys() & trained_ids if ids[token] != trained_ids[token])
    if moved:
        shown = ", ".join(
            f"{token!r} is {ids[token]} in place of {trained_ids[token]}"
            for token in moved[:_SHOWN]
        )
        raise UserError(
            f"{name} is not the tokenizer of init.weights: {len(moved):,} tokens have other ids, "
            f"such as {shown}; {remedy}"
        )
    missing = sorted(trained_ids.keys() - ids)
    if missing:
        fault = (
            f"{name} lacks {len(missing):,} of the {len(trained_ids):,} tokens of init.weights, "
            f"such as {', '.join(map(repr, missing[:_SHOWN]))}; {remedy}"
        )
        if 2 * len(missing) > len(trained_ids):
            raise UserError(fault)
        _LOGGER.warning("%s", fault)
    if str(ours.normalizer) != str(theirs.normalizer):
        _LOGGER.warning(
            "%s normalizes texts in another way than that of init.weights: %s in place of %s",
            name,
            ours.normalizer,
            theirs.normalizer,
        )


def check_tokens(
    model: nn.Module, arrays: Mapping[str, np.ndarray], *, vocab_size: int | None = None
) -> None:
    """Checks token ids, int[N, T], against the model; other inputs and models pass.

    Args:
        model: its field `vocab_size` says what it takes; `target_vocab_size`, if there is one,
            does so for `targets`, `type_vocab_size` for `token_types`, and `max_length` for all.
        arrays: examples or a batch by name.
        vocab_size: how many tokens the data know, whether they are in these arrays or not.

    Raises:
        UserError: naming the field of the model that is too small or not given, what the data
            need, and the flag to set.
    """
    sizes = {
        "inputs": "vocab_size",
        "targets": "target_vocab_size",
        "token_types": "type_vocab_size",
    }
    if "token_types" in arrays:
        _check_takes_pairs(model)
    for name, size in sizes.items():
        if name == "targets" and getattr(model, size, None) is None:
            size = "vocab_size"
        if name not in arrays or not hasattr(model, size):
            continue
        taken = getattr(model, size)
        tokens = arrays[name]
        if tokens.min(initial=0) < 0:
            raise UserError(f"{name} must be token ids from 0 on, got {tokens.min()}")
        is_type = name == "token_types"
        needed = max(0 if is_type else vocab_size or 0, int(tokens.max(initial=0)) + 1)
        if taken is None:
            raise UserError(
                f"model.{size} is None, which takes it from the vocabulary of the transform, but "
                f"there is none; the largest token id is {needed - 1}, so set "
                f"--model.{size.replace('_', '-')} {needed} or more"
            )
        if needed > taken:
            what = "different values, as pairs of texts need" if is_type else "different tokens"
            raise UserError(
                f"{name} have {needed} {what}, but model.{size} is {taken}; "
                f"set --model.{size.replace('_', '-')} {needed}"
            )
        positions, length = getattr(model, "max_length", None), tokens.shape[1]
        if positions is not None and length > positions:
            raise UserError(
                f"{name} are {length} tokens long, but model.max_length is {positions}; "
                f"set --model.max-length {length}, or shorten the texts with --transform.max-length"
            )


def _check_takes_pairs(model: nn.Module) -> None:
    parameters = inspect.signature(type(model).__call__).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any and "token_types" not in parameters:
        raise UserError(
            f"{type(model).__name__} takes no token_types, which pairs of texts come with; "
            "use a BERT, or leave data.pair out"
        )
