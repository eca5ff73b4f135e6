"""Masks for attention: which keys a query may look at. True or 1 keeps, False or 0 hides.

The shape of a mask is [T, S], or [B, N, T, S] with 1 for an axis along which all is the same; `&`
combines masks.

Legend: B batch, N heads, T queries, S keys.
"""

import jax
import jax.numpy as jnp

from flaxdl.checks import check_integers, check_shape
from flaxdl.errors import UserError


def padding_mask(lengths: jax.Array, max_length: int) -> jax.Array:
    """Returns bool[B, 1, 1, S] that hides from every query the keys beyond each length.

    Raises:
        UserError: if the lengths are not int32[B].
    """
    check_shape("lengths", lengths, "B")
    check_integers("lengths", lengths)
    return (jnp.arange(max_length) < lengths[:, None])[:, None, None, :]


def token_mask(
    tokens: jax.Array, lengths: jax.Array | None, mask: jax.Array | None
) -> jax.Array | None:
    """Returns bool[B, 1, 1, T] that hides padding tokens, or None where there is none.

    Args:
        tokens: int32[B, T].
        lengths: int32[B], how many tokens are real, or None.
        mask: bool[B, T], which tokens are real, or None.

    Raises:
        UserError: if both lengths and mask are given, or either does not fit the tokens.
    """
    if lengths is not None and mask is not None:
        raise UserError("lengths and mask say the same: give one of them, got both")
    if lengths is not None:
        check_shape("lengths", lengths, "B", B=tokens.shape[0])
        return padding_mask(lengths, tokens.shape[1])
    if mask is not None:
        check_shape("mask", mask, "B T", B=tokens.shape[0], T=tokens.shape[1])
        return mask.astype(bool)[:, None, None, :]
    return None


def causal_mask(length: int) -> jax.Array:
    """Returns bool[1, 1, T, T] that hides from every query the keys after it."""
    return jnp.tri(length, dtype=bool)[None, None]


def check_mask(mask: jax.Array, full_shape: tuple[int, ...]) -> None:
    """Checks that a mask has one of the shapes that the module's docstring describes.

    Raises:
        UserError: with the shape it has.
    """
    sizes = zip(reversed(mask.shape), reversed(full_shape), strict=False)
    if mask.ndim not in (2, 4) or any(size not in (1, full) for size, full in sizes):
        raise UserError(
            f"mask must have shape [T, S] = {list(full_shape[2:])} or [B, N, T, S] = "
            f"{list(full_shape)}, or 1 instead of any of these sizes, got {list(mask.shape)}"
        )
