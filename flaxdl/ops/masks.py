"""Attention masks: True or 1 selects a key that a query attends to, False or 0 masks it.

Masks have shape [T, S] or [B, N, T, S]; axes of size 1 are broadcast. The operator `&` combines
masks.

Legend: B batch, N heads, T queries, S keys.
"""

import jax
import jax.numpy as jnp

from flaxdl.checks import check_integers, check_shape
from flaxdl.errors import UserError


def padding_mask(lengths: jax.Array, max_length: int) -> jax.Array:
    """Returns a mask bool[B, 1, 1, S] that is False for padding.

    Args:
        lengths: int32[B], number of non-padding keys in each sequence.
        max_length: number of keys S, including padding.

    Raises:
        UserError: if the lengths do not have one axis, or are not integers.
    """
    check_shape("lengths", lengths, "B")
    check_integers("lengths", lengths)
    return (jnp.arange(max_length) < lengths[:, None])[:, None, None, :]


def token_mask(
    tokens: jax.Array, lengths: jax.Array | None, mask: jax.Array | None
) -> jax.Array | None:
    """Returns a mask bool[B, 1, 1, T] that is False for padding, or None if there is no padding.

    Args:
        tokens: int32[B, T].
        lengths: int32[B], number of non-padding tokens in each sequence, or None.
        mask: bool[B, T], False for padding, or None.

    Raises:
        UserError: if both `lengths` and `mask` are given, or the shapes do not match.
    """
    if lengths is not None and mask is not None:
        raise UserError("only one of lengths and mask can be given, got both")
    if lengths is not None:
        check_shape("lengths", lengths, "B", B=tokens.shape[0])
        return padding_mask(lengths, tokens.shape[1])
    if mask is not None:
        check_shape("mask", mask, "B T", B=tokens.shape[0], T=tokens.shape[1])
        return mask.astype(bool)[:, None, None, :]
    return None


def causal_mask(length: int) -> jax.Array:
    """Returns a mask bool[1, 1, T, T] that is True for keys up to each query's position."""
    return jnp.tri(length, dtype=bool)[None, None]


def check_mask(mask: jax.Array, full_shape: tuple[int, ...]) -> None:
    """Checks that a mask has one of the shapes described in this module.

    Args:
        mask: the mask.
        full_shape: sizes of B, N, T and S.

    Raises:
        UserError: if the mask has another shape; the message states it.
    """
    sizes = zip(reversed(mask.shape), reversed(full_shape), strict=False)
    if mask.ndim not in (2, 4) or any(size not in (1, full) for size, full in sizes):
        raise UserError(
            f"mask must have shape [T, S] = {list(full_shape[2:])} or [B, N, T, S] = "
            f"{list(full_shape)}, where any size may be 1, got {list(mask.shape)}"
        )
