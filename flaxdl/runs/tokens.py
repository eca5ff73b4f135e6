"""Checks that tokens, model and pretrained weights match.

A compiled step cannot raise an error: a token id out of range yields NaN, and an id that denoted
another token in pretraining remains unnoticed. Both are therefore checked during setup.
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
from flaxdl.filesystem.inputs import input_path
from flaxdl.filesystem.paths import local_path
from flaxdl.filesystem.remote_urls import is_url
from flaxdl.runs.remote_workdir import has_run, reading_copy
from flaxdl.weights import hub

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOGGER = logging.getLogger(__name__)
_SHOWN = 3  # tokens named in a message
_EMBEDDINGS = (
    "encoder.weight",
    "embedding.weight",
    "encoder.embedding.weight",
    "decoder.embedding.weight",
    "target_embedding.weight",
    "embeddings.word_embeddings.weight",
    "bert.embeddings.word_embeddings.weight",
)


def with_default_tokenizer(config: Config) -> Config:
    """Sets the default tokenizer of a config that has neither a tokenizer nor `init.weights`.

    Earlier versions stored this default in the config, so the result matches their configs.
    """
    text = config.transform
    if isinstance(text, Text) and text.tokenizer is None and config.init.weights is None:
        return replace(config, transform=replace(text, tokenizer=CHARACTERS))
    return config


def fit_transform(config: Config, train: Dataset) -> Transform:
    """Fits the transform of a new run to the training split.

    If the config has no tokenizer, the tokenizer of `init.weights` is used.

    Raises:
        UserError: if the transform cannot be fitted, or if its token ids differ from those of the
            weights.
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
    # Randomly initialized embeddings work with any tokenizer.
    is_random = any(fnmatchcase(name, key) for name in _EMBEDDINGS for key in config.init.omit)
    if isinstance(fitted, FittedText | FittedTextPairs) and not is_random:
        _check_ids(fitted, folder, weights)
    return fitted


def _check_ids(fitted: FittedText | FittedTextPairs, folder: Path | None, weights: str) -> None:
    """Checks that token ids match those of the weights, if their tokenizer is known."""
    if isinstance(fitted, FittedTextPairs):
        name = "the vocabulary of the training texts"
        remedy = "train on texts with the same characters, or omit the embeddings (init.omit)"
    else:
        name = f"transform.tokenizer {fitted.tokenizer!r}"
        remedy = f"omit transform.tokenizer to use the tokenizer of the weights, {weights}"
    if folder is not None:
        _compare(fitted.vocabulary, read_tokenizer(folder), name, remedy)
    elif isinstance(fitted, FittedText) and fitted.tokenizer is None:
        _LOGGER.warning(
            "init.weights %s have no tokenizer, and the token ids of the characters in the "
            "training texts are unlikely to match: set transform.tokenizer",
            weights,
        )


def _tokenizer_folder(weights: str) -> Path | None:
    """Returns the folder that contains the tokenizer of the weights; None if there is none."""
    is_run = is_url(weights) and has_run(weights)
    path = reading_copy(weights) if is_run else input_path(weights)
    if not path.exists():
        if weights in hub.PRETRAINED:
            return None
        beside = local_path(weights.rpartition(":")[0])  # FILE:KEY selects one state dict of a file
        path = beside if beside.is_file() else hub.locate(weights)
    folder = path if path.is_dir() else path.parent
    return folder if has_tokenizer(folder) else None


def _compare(ours: "Tokenizer", theirs: "Tokenizer", name: str, remedy: str) -> None:
    """Checks that tokens have the ids that the weights were trained with.

    Raises:
        UserError: if a token has different ids, or if most tokens of the weights are missing.
    """
    ids, trained_ids = ours.get_vocab(), theirs.get_vocab()
    moved = sorted(token for token in ids.keys() & trained_ids if ids[token] != trained_ids[token])
    if moved:
        shown = ", ".join(
            f"{token!r} is {ids[token]} instead of {trained_ids[token]}" for token in moved[:_SHOWN]
        )
        raise UserError(
            f"{name} is not the tokenizer of init.weights: {len(moved):,} tokens have different "
            f"ids, such as {shown}; {remedy}"
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
            "%s normalizes texts differently from the tokenizer of init.weights: %s instead of %s",
            name,
            ours.normalizer,
            theirs.normalizer,
        )


def check_tokens(
    model: nn.Module, arrays: Mapping[str, np.ndarray], *, vocab_size: int | None = None
) -> None:
    """Checks that token ids, int[N, T], fit the sizes of the model; ignores other inputs.

    Args:
        model: the model. Its field `vocab_size` bounds the ids of `inputs`, `target_vocab_size` (or
            `vocab_size` without it) those of `targets`, and `type_vocab_size` those of
            `token_types`; `max_length` bounds the number of tokens T.
        arrays: arrays of examples or of a batch, by field name.
        vocab_size: vocabulary size of the data, including tokens not in these arrays.

    Raises:
        UserError: if a size of the model is too small or None; the message names the field, the
            size that the data needs, and the flag to set.
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
            raise UserError(f"{name} must be token ids of 0 or more, got {tokens.min()}")
        is_type = name == "token_types"
        needed = max(0 if is_type else vocab_size or 0, int(tokens.max(initial=0)) + 1)
        if taken is None:
            raise UserError(
                f"model.{size} is None, but the transform has no vocabulary to take it from; the "
                f"largest token id is {needed - 1}, so set --model.{size.replace('_', '-')} "
                f"{needed} or more"
            )
        if needed > taken:
            what = "different values, as text pairs need" if is_type else "different tokens"
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
            f"{type(model).__name__} does not accept token_types, which text pairs have; "
            "use a BERT model, or omit data.pair"
        )
