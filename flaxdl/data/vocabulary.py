"""Vocabularies: learnt from texts, or read from the files that published models come with."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.tokenizer_files import BERT_FILE_NAME, FILE_NAME, errors_named, read_tokenizer
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHARACTERS = "characters"
LEARNT = (CHARACTERS, "words")
_PADDING, _UNKNOWN = "<pad>", "<unk>"  # ids 0 and 1


def learn(
    texts: Sequence[str],
    kind: str,
    *,
    max_vocabulary: int = 30_000,
    lowercase: bool = False,
    marks: Sequence[str] = (),
) -> "Tokenizer":
    """Counts characters or words, and numbers them by frequency; `marks` come first, from id 2."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    vocabulary = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
    # One way to write é, else the same text has two sets of tokens.
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    vocabulary.normalizer = normalizers.Sequence(steps)
    if kind == CHARACTERS:
        any_character = Regex("(?m:.)")  # newlines too, in the spelling of Oniguruma
        vocabulary.pre_tokenizer = pre_tokenizers.Split(any_character, "isolated")
        vocabulary.decoder = decoders.Fuse()
    else:
        vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_vocabulary,
        special_tokens=[_PADDING, _UNKNOWN, *marks],
        show_progress=False,
    )
    vocabulary.train_from_iterator(texts, trainer)
    return vocabulary


def load(name: str) -> "Tokenizer":
    """Reads a vocabulary: a file, a folder that holds one, or that of a published model.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    path = local_path(name)
    return read_tokenizer(path if path.exists() else _published(name))


def encode_batch(vocabulary: "Tokenizer", rows: Sequence[Any]) -> list["Encoding"]:
    """Encodes texts, or pairs of them.

    Raises:
        UserError: if the vocabulary cannot do so, such as for want of an unknown token.
    """
    with errors_named("the texts cannot be tokenized"):
        return vocabulary.encode_batch(rows)


def decode_batch(vocabulary: "Tokenizer", rows: Sequence[Sequence[int]]) -> list[str]:
    """Puts tokens together again.

    Raises:
        UserError: if the vocabulary cannot do so.
    """
    with errors_named("the tokens cannot be put together"):
        return vocabulary.decode_batch(rows)


def fill(rows: np.ndarray, sequences: Sequence[Sequence[int]]) -> list[int]:
    """Writes sequences of ids to the beginnings of rows, int32[N, T]; returns their lengths."""
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = ids
    return [len(ids) for ids in sequences]


def _published(name: str) -> Path:
    from flaxdl.weights import hub

    if Path(name).suffix in (".json", ".txt"):
        raise UserError(f"no such tokenizer: {name}")
    try:
        return hub.locate(name)
    except UserError as error:
        raise UserError(
            f"tokenizer must be 'characters', 'words', the path of a {FILE_NAME}, a "
            f"{BERT_FILE_NAME} or a folder with one of them, or a published model, got {name!r}"
            f"{did_you_mean(name, LEARNT) or f'. {error}'}"
        ) from error
