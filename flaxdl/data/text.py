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
from flaxdl.data.texts import as_texts, chunks
from flaxdl.data.tokenizer_files import FILE_NAME, largest_id
from flaxdl.data.transforms import Transform
from flaxdl.data.vocabulary import CHARACTERS, LEARNT, decode_batch, encode_batch, fill, learn, load
from flaxdl.errors import UserError

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

    tokenizer: str | None = None
    """`characters` or `words`, learnt from the training split; or that of a pretrained model: a
    tokenizer.json, a vocab.txt, a folder that holds one, or the model's published name. By default
    that of `init.weights`, and characters where these come with none."""
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
            raise UserError(
                f"padded_lengths must grow, from 1 on and below max_length = {self.max_length}, "
                f"got {self.padded_lengths}"
            )

    def fit(self, train: Dataset) -> "FittedText":
        """Learns the vocabulary, the most frequent token first.

        Raises:
            UserError: if `tokenizer` is neither of the two words nor can be read.
        """
        kind = self.tokenizer or CHARACTERS
        if kind not in LEARNT:
            if self.lowercase:
                _LOGGER.warning("lowercase has no effect: the tokenizer %s decides", kind)
            return self._fitted(load(kind))
        arrays = train.arrays()
        texts = [
            text
            for name in ("inputs", "pair")
            if name in arrays
            for text in as_texts(arrays[name], name)
        ]
        vocabulary = learn(
            texts, kind, max_vocabulary=self.max_vocabulary, lowercase=self.lowercase
        )
        return self._fitted(vocabulary)

    def restore(self, workdir: Path) -> "FittedText":
        """Reads the tokenizer.json in `workdir`."""
        return self._fitted(load(str(workdir / FILE_NAME)))

    def _fitted(self, vocabulary: "Tokenizer") -> "FittedText":
        marks = vocabulary.num_special_tokens_to_add(is_pair=True)
        if self.max_length <= marks:
            raise UserError(
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
        return largest_id(self.vocabulary) + 1

    def apply(self, dataset: Dataset) -> Dataset:
        """Encodes all texts, and keeps their tokens in memory.

        Raises:
            UserError: if an example is no text, with its number.
        """
        arrays = dataset.arrays()
        pairs = arrays.pop("pair", None)
        texts = as_texts(arrays["inputs"], "inputs")
        arrays |= self.encode(texts, None if pairs is None else as_texts(pairs, "pair"))
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
                raise UserError(f"each item must be two texts with a tab between, got {item!r}")
        return self.encode([first for first, _ in pairs], [second for _, second in pairs])

    def encode(
        self,
        texts: Sequence[str] | np.ndarray,
        pairs: Sequence[str] | np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns `inputs`, int32[N, T], and `lengths`, int32[N]; `token_types` with pairs.

        Raises:
            UserError: if nothing is left of a text, with its number.
        """
        count = len(texts)
        if pairs is not None and len(pairs) != count:
            raise UserError(f"there must be as many pairs as texts, got {len(pairs)} and {count}")
        inputs = np.zeros((count, self.max_length), np.int32)
        lengths = np.zeros(count, np.int32)
        types = None if pairs is None else np.zeros_like(inputs)
        cut = 0
        # What the library returns takes a hundred bytes a token, so few texts are encoded together.
        for part in chunks(count):
            rows = list(
                texts[part] if pairs is None else zip(texts[part], pairs[part], strict=True)
            )
            encoded = encode_batch(self.vocabulary, rows)
            lengths[part] = fill(inputs[part], [encoding.ids for encoding in encoded])
            if types is not None:
                fill(types[part], [encoding.type_ids for encoding in encoded])
            cut += sum(bool(encoding.overflowing) for encoding in encoded)
            if not lengths[part].all():
                number = int(np.argmin(lengths[part]))
                raise UserError(
                    f"texts must have tokens, got {rows[number]!r} as number "
                    f"{part.start + number + 1} of {count}"
                )
        if cut:
            _LOGGER.warning(
                "%s of %s texts are longer than max_length %d, and are cut",
                f"{cut:,}",
                f"{count:,}",
                self.max_length,
            )
        batch = {"inputs": inputs, "lengths": lengths}
        return batch if types is None else batch | {"token_types": types}

    def decode(self, inputs: np.ndarray) -> list[str]:
        """Puts tokens int32[N, T] together again; padding is left out."""
        return decode_batch(self.vocabulary, [row[row != 0].tolist() for row in inputs])

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
