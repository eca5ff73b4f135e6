"""Model sizes that are inferred from the data if None."""

from flaxdl.errors import UserError


def required_size(name: str, size: int | None) -> int:
    """Returns `size` after checking that it is at least 1.

    A training run replaces None with the size found in its data before it calls the model.

    Raises:
        UserError: if the size is None or less than 1.
    """
    if size is None:
        raise UserError(
            f"{name} is None, and there is no dataset to take it from; set it to a number"
        )
    if size < 1:
        raise UserError(f"{name} must be at least 1, got {size}")
    return size
