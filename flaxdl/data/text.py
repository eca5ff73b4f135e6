"""Texts: from strings to token ids of few lengths, with a vocabulary learnt or brought along.

N: texts, T: `max_length`. Ids are int32[N, T]; 0 fills up behind the end, at `lengths`. Pairs of
texts are one row, in which token types, int32[N, T], tell the second text (1) from the first (0).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flaxdl.data.dataset import ArrayDataset, Dataset
from flaxdl.data.transforms import Transform
from flaxdl.data.vocabulary import FILE_NAME, LEARNT, learn, load

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text(Transform):
    """Texts, cut into tokens; `fit` gives the `FittedText` that knows their ids.

    Examples that have a `pair` are encoded with it, as the tokenizer says; where both are too long,
    the longer one is cut off first.
    """

    file_suffixes: ClassVar[tuple[str, ...]] = ()

    tokenizer: str = "characters"
    """`characters` or `words`, learnt from the training split; or that of a pretrained model: a
    tokenizer.json, a vocab.txt, a folder that holds one, or the model's published name."""
    max_length: int = 64
    """Tokens of a text; what is longer is cut off, what is shorter is filled up."""
    max_vocabulary: int = 30_000
    """Learn at most this many tokens, the most frequent; padding and unknown are counted."""
    lowercase: bool = False
    """Learn and read texts in lower case; a pretrained model's tokenizer knows this itself."""
    padded_lengths: tuple[int, ...] = ()
    """Shorter lengths to fill up to, as in (16, 32): texts of similar length share a batch, which
    is as long as it needs to be. Each length is compiled once."""

    def __post_init__(self):
        sizes = (0, *self.padded_lengths, self.max_length)
        if any(size >= following for size, following in pairwise(sizes)):
            raise ValueError(
                f"padded_lengths must grow, from 1 on and below max_length = {self.max_length}, "
                f"got {self.padded_lengths}"
            )

    def fit(self, train: Dataset) -> "FittedText":
        """Learns the vocabulary, the most frequent token first.

        Raises:
            ValueError: if `tokenizer` is neither of the two words nor can be read.
        """
        if self.tokenizer not in LEARNT:
            return self._fitted(load(self.tokenizer))
        arrays = train.arrays()
        texts = [str(text) for name in ("inputs", "pair") for text in arrays.get(name, ())]
        vocabulary = learn(
            texts, self.tokenizer, max_vocabulary=self.max_vocabulary, lowercase=self.lowercase
        )
        return self._fitted(vocabulary)

    def restore(self, workdir: Path) -> "FittedText":
        """Reads the tokenizer.json in `workdir`."""
        return self._fitted(load(str(workdir / FILE_NAME)))

    def _fitted(self, vocabulary: "Tokenizer") -> "FittedText":
        marks = vocabulary.num_special_tokens_to_add(is_pair=True)
        if self.max_length <= marks:
            raise ValueError(
                f"max_length must be above the {marks} special tokens, got {self.max_length}"
            )
        vocabulary.no_padding()
        vocabulary.enable_truncation(self.max_length, strategy="longest_first")
        settings = {setting.name: getattr(self, setting.name) for setting in fields(Text)}
        return FittedText(**settings, vocabulary=vocabulary)


@dataclass(frozen=True)
class FittedText(Text):
    """A `Text` with its vocabulary, ready to encode."""

    vocabulary: "Tokenizer" = field(kw_only=True, repr=False, compare=False)
    """Token <-> id."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are, padding and unknown included."""
        return self.vocabulary.get_vocab_size()

    def apply(self, dataset: Dataset) -> Dataset:
        """Encodes all texts, and keeps them in memory."""
        arrays = dataset.arrays()
        texts, pairs = (
            None if column is None else [str(text) for text in column]
            for column in (arrays["inputs"], arrays.pop("pair", None))
        )
        arrays |= self.encode(texts or [], pairs)
        if not self.padded_lengths:
            return ArrayDataset(arrays)
        return TokenDataset(arrays, sizes=(*self.padded_lengths, self.max_length))

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Encodes texts as they stand on the command line; in a pair there is a tab between."""
        if "token_types" not in shapes:
            return self.encode(items)
        pairs = [item.split("\t") for item in items]
        for item, pair in zip(items, pairs, strict=True):
            if len(pair) != 2:
                raise ValueError(f"each item must be two texts with a tab between, got {item!r}")
        return self.encode([first for first, _ in pairs], [second for _, second in pairs])

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns `inputs`, int32[N, T], and `lengths`, int32[N]; `token_types` with pairs.

        Raises:
            ValueError: if nothing is left of a text, with its number.
        """
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encoded = self.vocabulary.encode_batch(rows)
        inputs, lengths = padded([encoding.ids for encoding in encoded], self.max_length)
        if len(lengths) and not lengths.all():
            number = int(np.argmin(lengths))
            raise ValueError(
                f"texts must have tokens, got {rows[number]!r} as number {number + 1} "
                f"of {len(rows)}"
            )
        if cut := sum(bool(encoding.overflowing) for encoding in encoded):
            _LOGGER.warning(
                "%d of %d texts are longer than max_length %d, and are cut",
                cut,
                len(rows),
                self.max_length,
            )
        batch = {"inputs": inputs, "lengths": lengths}
        if pairs is not None:
            types = [encoding.type_ids for encoding in encoded]
            batch["token_types"] = padded(types, self.max_length)[0]
        return batch

    def decode(self, inputs: np.ndarray) -> list[str]:
        """Puts tokens int32[N, T] together again; padding is left out."""
        return self.vocabulary.decode_batch([row[row != 0].tolist() for row in inputs])

    def save(self, workdir: Path) -> None:
        """Writes tokenizer.json, which the `tokenizers` library reads everywhere."""
        self.vocabulary.save(str(workdir / FILE_NAME))


class TokenDataset(ArrayDataset):
    """Token ids in memory, whose batches are as long as the longest text in them needs.

    Args:
        arrays: `inputs` and `lengths`, with or without `token_types`.
        sizes: the lengths that batches may have, growing.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], *, sizes: Sequence[int]):
        super().__init__(arrays)
        self._sizes = np.array(sizes)
        self._lengths = arrays["lengths"]

    def lengths(self) -> np.ndarray:
        """The number of tokens of each text."""
        return self._lengths

    def batch(self, indices: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches rows, cut to the smallest size that holds every text of the whole batch."""
        longest = self._lengths[indices].max()
        size = self._sizes[np.searchsorted(self._sizes, longest)]
        batch = self.gather(indices[rows])
        tokens = {name: batch[name] for name in ("inputs", "token_types") if name in batch}
        return batch | {name: np.ascontiguousarray(ids[:, :size]) for name, ids in tokens.items()}


def padded(sequences: Sequence[Sequence[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Fills sequences of at most `size` ids up to int32[N, size]; beside it their lengths."""
    lengths = np.array([len(ids) for ids in sequences], np.int32)
    rows = np.zeros((len(sequences), size), np.int32)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = ids
    return rows, lengths
