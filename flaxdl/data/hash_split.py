"""Splits decided by the hash of a name, which outlive whatever else comes or goes."""

import hashlib

from flaxdl.errors import UserError


def check_fractions(validation: float, test: float) -> None:
    """Checks what may be held out.

    Raises:
        UserError: naming the field, if nothing would be left to train on.
    """
    for name, fraction in (("validation_fraction", validation), ("test_fraction", test)):
        if not 0 <= fraction < 1:
            raise UserError(f"{name} must be at least 0 and below 1, got {fraction}")
    if validation + test >= 1:
        raise UserError(
            f"validation_fraction and test_fraction must leave something to train on, "
            f"got {validation} and {test}"
        )


def split_of(name: str, validation: float, test: float) -> str:
    """The split that a name belongs to by its SHA-256; what is in the test stays in it."""
    place = (
        int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        / 2**64
    )
    if place < test:
        return "test"
    return "validation" if place < validation + test else "train"
