"""Generated text pairs: random strings and the same strings reversed."""

from dataclasses import dataclass

import numpy as np

from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.source import Source, Splits, hold_out
from flaxdl.errors import UserError

SHORTEST, LONGEST = 5, 40
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


@dataclass(frozen=True)
class ReversedStrings(Source):
    """Pairs such as `hello` and `olleh`: strings of 5 to 40 random letters, and their reversals.

    All lengths are equally frequent, and no test string is in another split. Since letters are
    independent, a model must store each of them to reproduce the string. The generated strings do
    not depend on the seed.
    """

    train: int = 40_000
    """Number of training strings, including those held out for validation."""
    test: int = 3_600
    """Number of test strings, evaluated once, at the end of the run."""
    validation_fraction: float = 0.05
    """Fraction of the training strings held out for validation."""

    def load(self, seed: int) -> Splits:
        """Generates the strings; `seed` determines which ones are held out for validation.

        Raises:
            UserError: if the number of strings is not positive, or if a split would be empty.
        """
        if not (self.train > 0 and self.test > 0):
            raise UserError(f"train and test must be positive, got {self.train} and {self.test}")
        strings = random_strings(self.test + self.train)
        pairs = {
            "inputs": np.array(strings, dtype=object),
            "label": np.array([string[::-1] for string in strings], dtype=object),
        }
        test = ArrayDataset({name: texts[: self.test] for name, texts in pairs.items()})
        train = ArrayDataset({name: texts[self.test :] for name, texts in pairs.items()})
        return Splits(
            *hold_out(train, fraction=self.validation_fraction, seed=seed), test, classes=None
        )


def random_strings(count: int) -> list[str]:
    """Returns different strings of random letters, the same ones each time."""
    rng = np.random.default_rng(0)
    strings: dict[str, None] = {}
    while len(strings) < count:
        length = rng.integers(SHORTEST, LONGEST + 1)
        strings["".join(rng.choice(_LETTERS, length))] = None
    return list(strings)
