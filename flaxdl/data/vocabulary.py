"""Vocabularies, learned from texts or loaded from pretrained models."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.texts import chunks
from flaxdl.data.tokenizer_files import BERT_FILE_NAME, FILE_NAME, read_tokenizer, tokenizer_errors
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHARACTERS = "characters"
LEARNED = (CHARACTERS, "words")
_PADDING, _UNKNOWN = "<pad>", "<unk>"  # ids 0 and 1


def learn(
    texts: Sequence[str],
    kind: str,
    *,
    max_vocabulary: int = 30_000,
    lowercase: bool = False,
    marks: Sequence[str] = (),
) -> "Tokenizer":
    """Learns a vocabulary of characters or words, ordered by frequency.

    Args:
        texts: texts to learn from.
        kind: `characters` or `words`.
        max_vocabulary: maximum vocabulary size, including padding, unknown tokens and `marks`.
        lowercase: True to lowercase texts.
        marks: additional special tokens, with ids from 2.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    vocabulary = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
    # Normalization gives é a single encoding, so that equal texts have equal tokens.
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    vocabulary.normalizer = normalizers.Sequence(steps)
    if kind == CHARACTERS:
        any_character = Regex("(?m:.)")  # including newlines, in the syntax of Oniguruma
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
    """Loads a vocabulary from a file, a folder, or a pretrained model by name.

    Raises:
        UserError: if there is no such vocabulary, or if it cannot be read.
    """
    path = input_path(name)
    return read_tokenizer(path if path.exists() else _pretrained(name))


def encode_batch(vocabulary: "Tokenizer", rows: Sequence[Any]) -> list["Encoding"]:
    """Encodes texts or text pairs.

    Raises:
        UserError: if tokenization fails, for example without a token for unknown words.
    """
    with tokenizer_errors("the texts cannot be tokenized"):
        return vocabulary.encode_batch(rows)


def decode_batch(vocabulary: "Tokenizer", rows: Sequence[Sequence[int]]) -> list[str]:
    """Converts token ids back to texts.

    Raises:
        UserError: if the tokenizer cannot decode the ids.
    """
    with tokenizer_errors("the tokens cannot be decoded"):
        return vocabulary.decode_batch(rows)


def fill(rows: np.ndarray, sequences: Sequence[Sequence[int]]) -> list[int]:
    """Writes each id sequence to the start of its row of int32[N, T]; returns the lengths."""
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = ids
    return [len(ids) for ids in sequences]


def tokens_before(
    vocabulary: "Tokenizer", texts: Sequence[str] | np.ndarray, characters: np.ndarray
) -> np.ndarray:
    """Counts the tokens, int32[N], that start within the first `characters` (int[N]) of each text.

    Special tokens before them count, too.
    """
    counts = np.zeros(len(texts), np.int32)
    for part in chunks(len(texts)):
        encoded = encode_batch(vocabulary, list(texts[part]))
        for number, encoding in enumerate(encoded, start=part.start):
            size = int(characters[number])
            # Special tokens have empty spans at character 0, also at the end of a text.
            after = (i for i, (start, end) in enumerate(encoding.offsets) if size <= start < end)
            counts[number] = next(after, len(encoding))
    return counts


def word_numbers(
    vocabulary: "Tokenizer",
    texts: Sequence[str] | np.ndarray,
    pairs: Sequence[str] | np.ndarray | None,
    *,
    out: np.ndarray,
) -> None:
    """Numbers the words of each text or text pair, from 0, in order.

    All tokens of a word have the same number. Consecutive special tokens count as one word.

    Args:
        vocabulary: tokenizer of the texts.
        texts: the texts, [N].
        pairs: second texts of text pairs, [N]; None for single texts.
        out: array for the numbers, int32[N, T]; not changed after the last token of a text.
    """
    for part in chunks(len(texts)):
        rows = list(texts[part] if pairs is None else zip(texts[part], pairs[part], strict=True))
        for row, encoding in zip(out[part], encode_batch(vocabulary, rows), strict=True):
            words = list(zip(encoding.sequence_ids, encoding.word_ids, strict=True))
            is_new = [word != previous for previous, word in pairwise(words)]
            row[: len(words)] = np.cumsum([0, *is_new])


def _pretrained(name: str) -> Path:
    from flaxdl.weights import hub

    if Path(name).suffix in (".json", ".txt"):
        raise UserError(f"no such tokenizer: {name}")
    try:
        return hub.locate(name)
    except UserError as error:
        raise UserError(
            f"tokenizer must be 'characters', 'words', the path of a {FILE_NAME}, a "
            f"{BERT_FILE_NAME} or a folder with one of them, or a pretrained model, got {name!r}"
            f"{did_you_mean(name, LEARNED) or f'. {error}'}"
        ) from error
