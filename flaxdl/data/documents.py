"""Text for language models: any text file, or Python's documentation."""

from dataclasses import dataclass

import numpy as np

from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.source import Source, Splits
from flaxdl.data.text_files import MARKUP, check_encoding, read_text
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path


@dataclass(frozen=True)
class Documents(Source):
    """A long text cut into windows, in the order training, validation and test split.

    Consecutive windows of a split overlap by `burn_in` characters, which serve only as context in
    the later window: a model predicts the characters after them, so each character of the text is
    predicted once. The first window of a split has no earlier text, and is predicted starting with
    its second character.
    """

    path: str | None = None
    """Path or URL of a text file; by default, Python's documentation (the `pydoc` topics)."""
    window: int = 256
    """Window length in characters."""
    validation_fraction: float = 0.05
    """Fraction of the text for validation, taken before the test split."""
    test_fraction: float = 0.05
    """Fraction of the text for the test split, taken from its end."""
    encoding: str = "utf-8"
    """Encoding of the file, such as `cp1252`; a byte order mark takes precedence."""
    burn_in: int = 1
    """Number of characters at the start of a window that are read but not predicted (weight 0). A
    recurrent model starts each window without a state and builds it up from these characters."""

    def __post_init__(self):
        check_encoding(self.encoding)
        if self.window < 2:
            raise UserError(f"window must be at least 2, got {self.window}")
        if not 1 <= self.burn_in < self.window:
            raise UserError(
                f"burn_in must be at least 1 and below window = {self.window}, got {self.burn_in}"
            )
        check_fractions(self.validation_fraction, self.test_fraction)

    def load(self, seed: int) -> Splits:
        """Reads the text and cuts it into windows.

        Raises:
            UserError: if the file cannot be read, or if a split is shorter than one window.
        """
        text = read_document(self.path, self.encoding)
        train, validation, test = split_text(text, self.validation_fraction, self.test_fraction)
        return Splits(
            train=self._windows(train),
            validation=self._windows(validation),
            test=self._windows(test),
            classes=None,
        )

    def _windows(self, text: str) -> ArrayDataset:
        # Characters at the end that do not fill a window are dropped.
        starts = range(0, len(text) - self.window + 1, self.window - self.burn_in)
        if not starts:
            raise UserError(
                f"each split must have at least one window of {self.window} characters, got a "
                f"split of {len(text)} from {self.path or 'the documentation'}"
            )
        windows = [text[start : start + self.window] for start in starts]
        arrays = {"inputs": np.array(windows, dtype=object)}
        if self.burn_in > 1:  # the first character is never predicted
            arrays["burn_in"] = np.full(len(windows), self.burn_in, np.int32)
            arrays["burn_in"][0] = 1
        return ArrayDataset(arrays)


def check_fractions(validation: float, test: float) -> None:
    """Checks the fractions of a text for validation and test.

    Raises:
        UserError: if a fraction is not above 0 and below 0.5.
    """
    for name, fraction in (("validation_fraction", validation), ("test_fraction", test)):
        if not 0 < fraction < 0.5:
            raise UserError(f"{name} must be above 0 and below 0.5, got {fraction}")


def read_document(path: str | None, encoding: str) -> str:
    """Returns the text of a file, or Python's documentation if `path` is None.

    The documentation consists of the pages of `help("TOPIC")`: about 465,000 characters, varying by
    Python version.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    text = read_text(input_path(path), encoding, allowed=MARKUP)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split_text(text: str, validation: float, test: float) -> tuple[str, str, str]:
    """Cuts a text into training, validation and test part, given the fractions of the last two."""
    end = round(len(text) * (1 - test))
    start = end - round(len(text) * validation)
    return text[:start], text[start:end], text[end:]
