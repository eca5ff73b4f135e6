"""Sizes of models that a run takes from its data."""

from flaxdl.errors import UserError


def known_size(name: str, size: int | None) -> int:
    """Returns the size of a model, which None leaves to the data of a run.

    Raises:
        UserError: if it is still None, or less than 1.
    """
    if size is None:
        raise UserError(
            f"{name} is None, and there are no data that determine it; set it to a number"
        )
    if size < 1:
        raise UserError(f"{name} must be at least 1, got {size}")
    return size
