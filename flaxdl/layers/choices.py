"""Options that are one of a few words."""

from collections.abc import Collection


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Checks that an option is one of the words that it may be.

    Raises:
        ValueError: as in `activation must be 'relu' or 'gelu', got 'selu'`.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")
