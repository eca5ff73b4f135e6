"""Pairs of text segments for next-sentence prediction."""

import re
from dataclasses import dataclass

import numpy as np

from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.documents import check_fractions, read_document, split_text
from flaxdl.data.source import Source, Splits
from flaxdl.data.text_files import check_encoding
from flaxdl.errors import UserError


@dataclass(frozen=True)
class NextSentencePairs(Source):
    """Pairs of segments of a long text, to pretrain a BERT on with the task `BertPreTraining`.

    The text is divided into training, validation and test split, in this order, and each split is
    cut into segments of whole words. Each segment but the last is the first of a pair. In half of
    the pairs, the second segment is the next one (`next_sentence_label` 0). In the others, it is a
    random segment of the same split that differs from both (label 1, as in `transformers`). Devlin
    et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
    2018.

    The seed of a run determines its training pairs, which are the same in each epoch; the pairs for
    evaluation do not depend on the seed.
    """

    path: str | None = None
    """Path or URL of a text file; by default, Python's documentation (the `pydoc` topics)."""
    segment_length: int = 128
    """Maximum length of a segment in characters; only a longer word is divided."""
    validation_fraction: float = 0.05
    """Fraction of the text for validation, taken before the test split."""
    test_fraction: float = 0.05
    """Fraction of the text for the test split, taken from its end."""
    encoding: str = "utf-8"
    """Encoding of the file, such as `cp1252`; a byte order mark takes precedence."""

    def __post_init__(self):
        check_encoding(self.encoding)
        if self.segment_length < 2:
            raise UserError(f"segment_length must be at least 2, got {self.segment_length}")
        check_fractions(self.validation_fraction, self.test_fraction)

    def load(self, seed: int) -> Splits:
        """Reads the text and draws the pairs.

        Raises:
            UserError: if the file cannot be read, or if a split has too few different segments.
        """
        text = read_document(self.path, self.encoding)
        train, validation, test = split_text(text, self.validation_fraction, self.test_fraction)
        # source.py and pipeline.py use (seed, ..., 0) to (seed, ..., 3).
        return Splits(
            train=self._pairs(train, np.random.default_rng((seed, 0, 4))),
            validation=self._pairs(validation, np.random.default_rng(1)),
            test=self._pairs(test, np.random.default_rng(2)),
            classes=None,
        )

    def _pairs(self, text: str, rng: np.random.Generator) -> ArrayDataset:
        segments = cut(text, self.segment_length)
        if len(set(segments)) < 3:
            raise UserError(
                f"each split must have at least 3 different segments of up to "
                f"{self.segment_length} characters, got a split with {len(set(segments))} from "
                f"{self.path or 'the documentation'}"
            )
        first, second = segments[:-1], segments[1:]
        is_random = rng.permutation(len(first)) < len(first) // 2
        for index in np.flatnonzero(is_random):
            forbidden = {segments[index], segments[index + 1]}
            while second[index] in forbidden:
                second[index] = segments[rng.integers(len(segments))]
        return ArrayDataset(
            {
                "inputs": np.array(first, dtype=object),
                "pair": np.array(second, dtype=object),
                "next_sentence_label": is_random.astype(np.int32),
            }
        )


def cut(text: str, length: int) -> list[str]:
    """Cuts a text into consecutive segments of whole words, of at most `length` characters.

    White space between segments is dropped; words of more than `length` characters are divided.

    >>> flaxdl.data.next_sentence_pairs.cut("To be, or not to be", 9)
    ['To be, or', 'not to be']
    """
    words = rf"\S(?:.{{0,{length - 2}}}\S)?(?!\S)"
    return re.findall(rf"{words}|\S{{{length}}}", text, re.DOTALL)
