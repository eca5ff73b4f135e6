"""Running text for language models: any text file, or Python's own documentation."""

from dataclasses import dataclass

import numpy as np

from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.source import Source, Splits
from flaxdl.data.text_files import MARKUP, check_encoding, read_text
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path


@dataclass(frozen=True)
class Documents(Source):
    """A long text in windows; its beginning is for training, its end for the test.

    Each window begins with the last character of the one before, so that a model that predicts all
    characters of a window but the first predicts each character of the text once.
    """

    path: str | None = None
    """A text file; by default Python's own documentation, the topics of `pydoc`."""
    window: int = 256
    """Characters in a window."""
    validation_fraction: float = 0.05
    """Share of the text, before the test part, to choose by."""
    test_fraction: float = 0.05
    """Share of the text, at its end, that is looked at once."""
    encoding: str = "utf-8"
    """Encoding of the file, such as `cp1252`; a byte order mark takes precedence."""

    def __post_init__(self):
        check_encoding(self.encoding)
        if self.window < 2:
            raise UserError(f"window must be at least 2, got {self.window}")
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise UserError(f"{name} must be above 0 and below 0.5, got {getattr(self, name)}")

    def load(self, seed: int) -> Splits:
        """Reads the text and cuts it.

        Raises:
            UserError: if the file cannot be read, or is too short for a window in each part.
        """
        text = _topics() if self.path is None else _read(self.path, self.encoding)
        test = round(len(text) * (1 - self.test_fraction))
        validation = test - round(len(text) * self.validation_fraction)
        return Splits(
            train=self._windows(text[:validation]),
            validation=self._windows(text[validation:test]),
            test=self._windows(text[test:]),
            classes=None,
        )

    def _windows(self, text: str) -> ArrayDataset:
        # What is left over at the end is shorter than a window, and left out.
        starts = range(0, len(text) - self.window + 1, self.window - 1)
        if not starts:
            raise UserError(
                f"each part of the text must have a window of {self.window} characters, got "
                f"{len(text)} in {self.path or 'the documentation'}"
            )
        windows = [text[start : start + self.window] for start in starts]
        return ArrayDataset({"inputs": np.array(windows, dtype=object)})


def _topics() -> str:
    """The pages that `help("TOPIC")` shows, about 465,000 characters; they change with Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _read(path: str, encoding: str) -> str:
    text = read_text(local_path(path), encoding, allowed=MARKUP)
    return text.replace("\r\n", "\n").replace("\r", "\n")
