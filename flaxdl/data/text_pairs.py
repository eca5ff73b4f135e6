"""Pairs of texts: what an encoder reads, and what a decoder reads and has to write.

N: pairs, T: `max_length`, S: `max_target_length`. Ids are int32[N, T] or [N, S], characters with
one vocabulary for both sides; 0 fills up behind the ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flaxdl.data.dataset import ArrayDataset, Dataset
from flaxdl.data.texts import as_texts, chunks
from flaxdl.data.tokenizer_files import FILE_NAME, largest_id
from flaxdl.data.transforms import Transform
from flaxdl.data.vocabulary import decode_batch, encode_batch, fill, learn, load
from flaxdl.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START_TOKEN, END_TOKEN = 2, 3  # what a decoder reads first, and what it writes last
_MARKS = ("<start>", "<end>")


@dataclass(frozen=True)
class TextPairs(Transform):
    """Texts `inputs` and what to make of them, `label`, character by character."""

    file_suffixes: ClassVar[tuple[str, ...]] = ()

    max_length: int = 64
    """Characters of the longest input there may be."""
    max_target_length: int = 64
    """Characters of the longest label there may be, and one for its end."""

    def fit(self, train: Dataset) -> "FittedTextPairs":
        """Learns the characters of both sides."""
        arrays = train.arrays()
        texts = [text for side in ("inputs", "label") for text in as_texts(arrays[side], side)]
        return self._fitted(learn(texts, "characters", marks=_MARKS))

    def restore(self, workdir: Path) -> "FittedTextPairs":
        """Reads the tokenizer.json in `workdir`."""
        return self._fitted(load(str(workdir / FILE_NAME)))

    def _fitted(self, vocabulary: "Tokenizer") -> "FittedTextPairs":
        return FittedTextPairs(self.max_length, self.max_target_length, vocabulary=vocabulary)


@dataclass(frozen=True)
class FittedTextPairs(TextPairs):
    """A `TextPairs` with its vocabulary, ready to encode."""

    vocabulary: "Tokenizer" = field(kw_only=True, repr=False, compare=False)
    """Character <-> id."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are, those of no character included."""
        return largest_id(self.vocabulary) + 1

    def apply(self, dataset: Dataset) -> Dataset:
        """Encodes all pairs, and keeps them in memory.

        The decoder reads `targets`, <start> and the text; it has to write `label`, the text and
        <end>. Both are as long as `target_lengths` say.
        """
        arrays = dataset.arrays()
        ids, lengths = self._encode("label", arrays["label"], self.max_target_length - 1)
        targets = np.pad(ids, ((0, 0), (1, 0)), constant_values=START_TOKEN)
        label = np.pad(ids, ((0, 0), (0, 1)))
        label[np.arange(len(label)), lengths] = END_TOKEN
        return ArrayDataset(
            {
                **self._encode_inputs(arrays["inputs"]),
                "targets": targets,
                "target_lengths": lengths + 1,
                "label": label,
            }
        )

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Encodes texts as they stand on the command line, as inputs."""
        return self._encode_inputs(items)

    def decode(self, tokens: np.ndarray) -> list[str]:
        """Puts what was written, int32[N, S], together; what is no character is left out."""
        return decode_batch(self.vocabulary, [row.tolist() for row in tokens])

    def save(self, workdir: Path) -> None:
        """Writes tokenizer.json, which the `tokenizers` library reads everywhere."""
        self.vocabulary.save(str(workdir / FILE_NAME))

    def _encode_inputs(self, texts: Sequence[str] | np.ndarray) -> dict[str, np.ndarray]:
        inputs, lengths = self._encode("inputs", texts, self.max_length)
        return {"inputs": inputs, "lengths": lengths}

    def _encode(
        self, side: str, values: Sequence[str] | np.ndarray, longest: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids, int32[N, longest], and their numbers, int32[N]."""
        texts = as_texts(values, side)
        rows, lengths = np.zeros((len(texts), longest), np.int32), np.zeros(len(texts), np.int32)
        for part in chunks(len(texts)):
            ids = [encoding.ids for encoding in encode_batch(self.vocabulary, list(texts[part]))]
            for text, row in zip(texts[part], ids, strict=True):
                if not 0 < len(row) <= longest:
                    raise UserError(
                        f"{side} must have between 1 and {longest} characters, got {text!r} with "
                        f"{len(row)}; set --transform.max-{'target-' * (side == 'label')}length"
                    )
            lengths[part] = fill(rows[part], ids)
        return rows, lengths
