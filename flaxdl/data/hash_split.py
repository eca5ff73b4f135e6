"""Hash-based splits that are stable when other examples are added or removed."""

import hashlib

from flaxdl.errors import UserError


def check_fractions(validation: float, test: float) -> None:
    """Checks the fractions held out for validation and test.

    Raises:
        UserError: if a fraction is not in [0, 1), or if no training data would remain.
    """
    for name, fraction in (("validation_fraction", validation), ("test_fraction", test)):
        if not 0 <= fraction < 1:
            raise UserError(f"{name} must be at least 0 and below 1, got {fraction}")
    if validation + test >= 1:
        raise UserError(
            f"validation_fraction and test_fraction must sum to less than 1, "
            f"got {validation} and {test}"
        )


def split_of(name: str, validation: float, test: float) -> str:
    """Returns the split that a name is assigned to by its SHA-256 hash.

    The test split does not depend on the validation fraction.

    Args:
        name: name of the example.
        validation: fraction of the names for the validation split.
        test: fraction of the names for the test split.

    Returns:
        `train`, `validation` or `test`.
    """
    place = (
        int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        / 2**64
    )
    if place < test:
        return "test"
    return "validation" if place < validation + test else "train"
