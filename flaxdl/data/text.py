"""Texts: from strings to token ids of one length, with a vocabulary learnt or brought along.

N: texts, T: `max_length`. Ids are int32[N, T]; 0 fills up behind the end, at `lengths`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flaxdl.data.dataset import ArrayDataset, Dataset
from flaxdl.data.transforms import Transform

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE_NAME = "tokenizer.json"  # in the workdir
_PADDING, _UNKNOWN = "<pad>", "<unk>"  # ids 0 and 1


@dataclass(frozen=True)
class Text(Transform):
    """Texts, cut into tokens; `fit` gives the `FittedText` that knows their ids."""

    tokenizer: str = "characters"
    """`characters` or `words`, learnt from the training split, or the path of a tokenizer.json."""
    max_length: int = 64
    """Tokens of a text; what is longer is cut off, what is shorter is filled up."""
    max_vocabulary: int = 30_000
    """Learn at most this many tokens, the most frequent; padding and unknown are counted."""
    lowercase: bool = False
    """Learn and read texts in lower case."""

    def fit(self, train: Dataset) -> "FittedText":
        """Learns the vocabulary, the most frequent token first.

        Raises:
            ValueError: if `tokenizer` is neither of the two words nor a readable file.
        """
        if self.tokenizer in ("characters", "words"):
            texts = [str(text) for text in train.arrays()["inputs"]]
            return self._fitted(learn(texts, self))
        return self._fitted(load(self.tokenizer))

    def restore(self, workdir: Path) -> "FittedText":
        """Reads the tokenizer.json in `workdir`."""
        return self._fitted(load(str(workdir / FILE_NAME)))

    def _fitted(self, vocabulary: "Tokenizer") -> "FittedText":
        vocabulary.no_padding()
        vocabulary.enable_truncation(self.max_length)
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
        return ArrayDataset(arrays | self.encode([str(text) for text in arrays["inputs"]]))

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Encodes texts as they stand on the command line."""
        return self.encode(items)

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns `inputs`, int32[N, T], and `lengths`, int32[N].

        Raises:
            ValueError: if nothing is left of a text, with its number.
        """
        encoded = [encoding.ids for encoding in self.vocabulary.encode_batch(list(texts))]
        inputs, lengths = padded(encoded, self.max_length)
        if len(lengths) and not lengths.all():
            number = int(np.argmin(lengths))
            raise ValueError(f"texts must have tokens, got {texts[number]!r} as text {number}")
        return {"inputs": inputs, "lengths": lengths}

    def decode(self, inputs: np.ndarray) -> list[str]:
        """Puts tokens int32[N, T] together again; padding is left out."""
        return self.vocabulary.decode_batch([row[row != 0].tolist() for row in inputs])

    def save(self, workdir: Path) -> None:
        """Writes tokenizer.json, which the `tokenizers` library reads everywhere."""
        self.vocabulary.save(str(workdir / FILE_NAME))


def padded(sequences: Sequence[Sequence[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Fills sequences of at most `size` ids up to int32[N, size]; beside it their lengths."""
    lengths = np.array([len(ids) for ids in sequences], np.int32)
    rows = np.zeros((len(sequences), size), np.int32)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = ids
    return rows, lengths


def learn(texts: Sequence[str], settings: Text, *, marks: Sequence[str] = ()) -> "Tokenizer":
    """Counts characters or words, and numbers them by frequency; `marks` come first, from id 2."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    vocabulary = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
    # One way to write é, else the same text has two sets of tokens.
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if settings.lowercase else [])]
    vocabulary.normalizer = normalizers.Sequence(steps)
    if settings.tokenizer == "characters":
        any_character = Regex("(?m:.)")  # newlines too, in the spelling of Oniguruma
        vocabulary.pre_tokenizer = pre_tokenizers.Split(any_character, "isolated")
        vocabulary.decoder = decoders.Fuse()
    else:
        vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=settings.max_vocabulary,
        special_tokens=[_PADDING, _UNKNOWN, *marks],
        show_progress=False,
    )
    vocabulary.train_from_iterator(texts, trainer)
    return vocabulary


def load(path: str) -> "Tokenizer":
    """Reads a tokenizer.json.

    Raises:
        ValueError: if it cannot be read.
    """
    from tokenizers import Tokenizer

    if not Path(path).is_file():
        raise ValueError(
            f"tokenizer must be 'characters', 'words' or the path of a tokenizer.json, got {path!r}"
        )
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises no narrower kind
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error
