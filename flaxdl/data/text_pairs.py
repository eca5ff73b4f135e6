"""Text pairs for encoder-decoder models: inputs, decoder inputs and labels.

N: number of pairs, T: `max_length`, S: `max_target_length`. Token ids are int32[N, T] or
int32[N, S], padded with 0. Inputs and labels share one character vocabulary.
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
from flaxdl.filesystem.atomic import atomic_write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START_TOKEN, END_TOKEN = 2, 3  # first decoder input, last label
_MARKS = ("<start>", "<end>")


@dataclass(frozen=True)
class TextPairs(Transform):
    """Pairs of input text and target text (`label`), tokenized into characters."""

    file_suffixes: ClassVar[tuple[str, ...]] = ()

    max_length: int = 64
    """Maximum length of inputs in characters; longer inputs raise an error."""
    max_target_length: int = 64
    """Maximum length of labels in characters, counting the end token as one; longer labels raise
    an error."""

    def fit(self, train: Dataset) -> "FittedTextPairs":
        """Learns the vocabulary, the characters of all inputs and labels."""
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
    """A `TextPairs` transform with its vocabulary, ready to encode texts."""

    vocabulary: "Tokenizer" = field(kw_only=True, repr=False, compare=False)
    """Tokenizer that maps characters to ids and back."""

    @property
    def vocab_size(self) -> int:
        """Vocabulary size, including special tokens."""
        return largest_id(self.vocabulary) + 1

    def apply(self, dataset: Dataset) -> Dataset:
        """Encodes all pairs and keeps them in memory.

        The decoder input, `targets`, is <start> followed by the target text; `label` is the target
        text followed by <end>. Both have the lengths `target_lengths`.
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
        """Encodes texts from the command line as inputs."""
        return self._encode_inputs(items)

    def decode(self, tokens: np.ndarray) -> list[str]:
        """Converts generated tokens, int32[N, S], to texts without special tokens."""
        return decode_batch(self.vocabulary, [row.tolist() for row in tokens])

    def save(self, workdir: Path) -> None:
        """Writes tokenizer.json in the format of the `tokenizers` library."""
        with atomic_write(workdir / FILE_NAME) as unfinished:
            self.vocabulary.save(str(unfinished))

    def _encode_inputs(self, texts: Sequence[str] | np.ndarray) -> dict[str, np.ndarray]:
        inputs, lengths = self._encode("inputs", texts, self.max_length)
        return {"inputs": inputs, "lengths": lengths}

    def _encode(
        self, side: str, values: Sequence[str] | np.ndarray, longest: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids, int32[N, longest], and lengths, int32[N]."""
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
