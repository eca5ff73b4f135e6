"""Tokenization of texts, with a learned vocabulary or the tokenizer of a pretrained model.

N: number of texts, T: `max_length`. Token ids are int32[N, T], padded with 0 after `lengths`
tokens. A text pair is one row; token types, int32[N, T], are 0 for its first text and 1 for its
second text.
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
from flaxdl.data.vocabulary import (
    CHARACTERS,
    LEARNED,
    decode_batch,
    encode_batch,
    fill,
    learn,
    load,
    tokens_before,
)
from flaxdl.errors import UserError
from flaxdl.filesystem.atomic import atomic_write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text(Transform):
    """Tokenization of texts; `fit` returns a `FittedText` with the vocabulary.

    If examples have a field `pair`, it contains the second text of each text pair. Both texts are
    encoded together as the tokenizer defines. In pairs that are too long, the longer text is
    truncated first.

    If examples have a field `burn_in`, as those of `Documents`, it is a number of characters at the
    start of each text, and is converted to the number of their tokens.
    """

    file_suffixes: ClassVar[tuple[str, ...]] = ()

    tokenizer: str | None = None
    """Tokenizer: `characters` or `words` (with a vocabulary learned from the training split), or
    the path of a tokenizer.json, a vocab.txt or a folder with one of them, or the name of a
    pretrained model. By default, the tokenizer of `init.weights` or, without one, `characters`."""
    max_length: int = 64
    """Maximum number of tokens per text; longer texts are truncated, shorter ones padded."""
    max_vocabulary: int = 30_000
    """Maximum size of a learned vocabulary, including padding and unknown tokens."""
    lowercase: bool = False
    """Lowercasing of texts for a learned vocabulary; pretrained tokenizers use their own
    setting."""
    bucket_lengths: tuple[int, ...] = ()
    """Lengths below `max_length` for length bucketing, such as (16, 32). Texts of similar length
    are batched and padded to the shortest length that fits. The model is compiled once per
    length."""

    def __post_init__(self):
        sizes = (0, *self.bucket_lengths, self.max_length)
        if any(size >= following for size, following in pairwise(sizes)):
            raise UserError(
                f"bucket_lengths must be increasing, at least 1 and below max_length = "
                f"{self.max_length}, got {self.bucket_lengths}"
            )

    def fit(self, train: Dataset) -> "FittedText":
        """Learns the vocabulary, ordered by frequency, or loads a pretrained tokenizer.

        Raises:
            UserError: if a pretrained tokenizer cannot be loaded, or if `max_length` does not
                exceed the number of special tokens.
        """
        kind = self.tokenizer or CHARACTERS
        if kind not in LEARNED:
            if self.lowercase:
                _LOGGER.warning("lowercase is ignored: the tokenizer %s has its own setting", kind)
            return self._fitted(load(kind))
        arrays = train.arrays()
        texts = [
            text
            for name in ("inputs", "pair")
            if name in arrays
            for text in as_texts(arrays[name], name)
        ]
        return self._fitted(self._learn(texts, kind))

    def restore(self, workdir: Path) -> "FittedText":
        """Reads the tokenizer.json in `workdir`."""
        return self._fitted(load(str(workdir / FILE_NAME)))

    def _learn(self, texts: Sequence[str], kind: str) -> "Tokenizer":
        return learn(texts, kind, max_vocabulary=self.max_vocabulary, lowercase=self.lowercase)

    def _fitted(self, vocabulary: "Tokenizer") -> "FittedText":
        marks = vocabulary.num_special_tokens_to_add(is_pair=True)
        if self.max_length <= marks:
            raise UserError(
                f"max_length must be above {marks}, the number of special tokens, "
                f"got {self.max_length}"
            )
        vocabulary.no_padding()
        vocabulary.enable_truncation(self.max_length, strategy="longest_first")
        settings = {setting.name: getattr(self, setting.name) for setting in fields(Text)}
        return FittedText(**settings, vocabulary=vocabulary)


@dataclass(frozen=True)
class FittedText(Text):
    """A `Text` transform with its vocabulary, ready to encode texts."""

    vocabulary: "Tokenizer" = field(kw_only=True, repr=False, compare=False)
    """Tokenizer that maps texts to ids and back."""

    @property
    def vocab_size(self) -> int:
        """Vocabulary size, including padding and unknown tokens."""
        return largest_id(self.vocabulary) + 1

    def apply(self, dataset: Dataset) -> Dataset:
        """Encodes all texts and keeps their tokens in memory.

        Raises:
            UserError: if an example is not text (the message contains its number), or if texts are
                truncated to their burn-in.
        """
        arrays = dataset.arrays()
        pairs = arrays.pop("pair", None)
        texts = as_texts(arrays["inputs"], "inputs")
        arrays |= self.encode_examples(texts, None if pairs is None else as_texts(pairs, "pair"))
        if "burn_in" in arrays:
            arrays["burn_in"] = tokens_before(self.vocabulary, texts, arrays["burn_in"])
            self._check_burn_in(arrays["burn_in"], arrays["lengths"])
        if not self.bucket_lengths:
            return ArrayDataset(arrays)
        return TokenDataset(arrays, sizes=(*self.bucket_lengths, self.max_length))

    def _check_burn_in(self, burn_in: np.ndarray, lengths: np.ndarray) -> None:
        has_targets = burn_in < lengths
        # The first window of a document has a shorter burn-in and says nothing about the others.
        others = has_targets[1:] if len(has_targets) > 1 else has_targets
        if others.any() or not len(others):
            return
        raise UserError(
            f"the burn-in leaves no token to predict in texts that are truncated to max_length = "
            f"{self.max_length} tokens; increase --transform.max-length or reduce --data.burn-in"
        )

    def encode_examples(
        self, texts: np.ndarray | Sequence[str], pairs: np.ndarray | Sequence[str] | None
    ) -> dict[str, np.ndarray]:
        """Encodes the texts of a dataset, by default as `encode`."""
        return self.encode(texts, pairs)

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Encodes texts from the command line; the texts of a pair are separated by a tab.

        Raises:
            UserError: if the run was trained on text pairs and an item does not have two texts.
        """
        if "token_types" not in shapes:
            return self.encode(items)
        pairs = [item.split("\t") for item in items]
        for item, pair in zip(items, pairs, strict=True):
            if len(pair) != 2:
                raise UserError(f"each item must be two texts separated by a tab, got {item!r}")
        return self.encode([first for first, _ in pairs], [second for _, second in pairs])

    def encode(
        self,
        texts: Sequence[str] | np.ndarray,
        pairs: Sequence[str] | np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Encodes texts as arrays of token ids.

        Args:
            texts: the texts, [N].
            pairs: second texts of text pairs, [N]; by default, `texts` are single texts.

        Returns:
            A batch with `inputs`, int32[N, T], and `lengths`, int32[N]; for pairs, also
            `token_types`, int32[N, T].

        Raises:
            UserError: if a text has no tokens (the message contains its number), or if `pairs` has
                another length than `texts`.
        """
        count = len(texts)
        if pairs is not None and len(pairs) != count:
            raise UserError(
                f"pairs must have as many texts as the first texts, got {len(pairs)} and {count}"
            )
        inputs = np.zeros((count, self.max_length), np.int32)
        lengths = np.zeros(count, np.int32)
        types = None if pairs is None else np.zeros_like(inputs)
        cut = 0
        # The library's results take 100 bytes per token, so texts are encoded in small chunks.
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
                    f"each text must have at least one token, but text {part.start + number + 1} "
                    f"of {count} has none: {rows[number]!r}"
                )
        if cut:
            _LOGGER.warning(
                "%s of %s texts are longer than max_length = %d and are truncated",
                f"{cut:,}",
                f"{count:,}",
                self.max_length,
            )
        batch = {"inputs": inputs, "lengths": lengths}
        return batch if types is None else batch | {"token_types": types}

    def decode(self, inputs: np.ndarray) -> list[str]:
        """Converts tokens, int32[N, T], back to texts, ignoring padding."""
        return decode_batch(self.vocabulary, [row[row != 0].tolist() for row in inputs])

    def save(self, workdir: Path) -> None:
        """Writes tokenizer.json in the format of the `tokenizers` library."""
        with atomic_write(workdir / FILE_NAME) as unfinished:
            self.vocabulary.save(str(unfinished))


class TokenDataset(ArrayDataset):
    """Dataset of token ids in memory, with batches padded to the bucket of their longest text.

    Args:
        arrays: `inputs`, `lengths` and, for text pairs, `token_types`; for whole-word masking,
            `words`.
        sizes: bucket lengths in increasing order; the last one is `max_length`.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], *, sizes: Sequence[int]):
        super().__init__(arrays)
        self._sizes = np.array(sizes)
        self._lengths = arrays["lengths"]

    def lengths(self) -> np.ndarray:
        """Returns the number of tokens of each text."""
        return self._lengths

    def batch(self, indices: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches examples, cut to the shortest bucket length that fits all texts of the batch."""
        longest = self._lengths[indices].max()
        size = self._sizes[np.searchsorted(self._sizes, longest)]
        batch = self.gather(indices[rows])
        names = ("inputs", "token_types", "words")
        tokens = {name: batch[name] for name in names if name in batch}
        return batch | {name: np.ascontiguousarray(ids[:, :size]) for name, ids in tokens.items()}
