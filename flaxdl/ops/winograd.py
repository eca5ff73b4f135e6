"""Winograd's algorithm for convolution with 3×3 windows, with less than half the multiplications.

A tile of 4×4 positions gives 2×2 outputs. Along one axis, the tile d₀ d₁ d₂ d₃ and the window
g₀ g₁ g₂ are transformed to four numbers each; the products m of these numbers give two outputs:

    tile      d₀ − d₂    d₁ + d₂              d₂ − d₁              d₁ − d₃
    window    g₀         (g₀ + g₁ + g₂) / 2   (g₀ − g₁ + g₂) / 2   g₂
    outputs   m₀ + m₁ + m₂    m₁ − m₂ − m₃

Along both axes, this takes 16 products for 4 outputs instead of 36; with channels, they are 16
matrix products. In float32, the result is as accurate as that of direct convolution. Gradients are
computed by differentiating these sums and need as few multiplications.

Lavin and Gray, F(2×2, 3×3) of https://arxiv.org/abs/1509.09308.

Legend: B batch, H height, W width, I input, O output channels; h, w tiles.
"""

import itertools

import jax
import jax.numpy as jnp


def convolve_tiles(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves [B, H, W, I] with [3, 3, I, O] to [B, H, W, O], with zero padding of 1."""
    batch, height, width, channels = inputs.shape
    fill = (height % 2, width % 2)  # completes the last tiles
    border = [(0, 0), (1, 1 + fill[0]), (1, 1 + fill[1]), (0, 0)]
    tiles = [part for row in _of_tiles(jnp.pad(inputs, border), 1) for part in _of_tiles(row, 2)]
    windows = [part for row in _of_windows(kernel) for part in _of_windows(row)]
    products = [
        (tile.reshape(-1, channels) @ window).reshape(*tile.shape[:3], window.shape[-1])
        for tile, window in zip(tiles, windows, strict=True)
    ]  # [B, h, w, O]
    columns = [_outputs(products[column::4]) for column in range(4)]
    rows = [_outputs([column[row] for column in columns]) for row in range(2)]
    pairs = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2)  # [B, h, 2, w, 2, O]
    outputs = pairs.reshape(batch, height + fill[0], width + fill[1], kernel.shape[-1])
    return outputs[:, :height, :width]


def _of_tiles(inputs: jax.Array, axis: int) -> list[jax.Array]:
    # Positions are split into even and odd ones instead of sliced with strides: the gradient of a
    # split is one copy, whereas the gradient of four slices is a sum of four images.
    count = inputs.shape[axis] // 2
    pairs = inputs.reshape(*inputs.shape[:axis], count, 2, *inputs.shape[axis + 1 :])
    even_odd = [part.squeeze(axis + 1) for part in jax.lax.split(pairs, (1, 1), axis + 1)]
    d0, d1, d2, d3 = (
        jax.lax.slice_in_dim(part, start, start + count - 1, axis=axis)
        for start, part in itertools.product((0, 1), even_odd)
    )
    return [d0 - d2, d1 + d2, d2 - d1, d1 - d3]


def _of_windows(kernel: jax.Array) -> list[jax.Array]:
    g0, g1, g2 = kernel
    return [g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]


def _outputs(products: list[jax.Array]) -> list[jax.Array]:
    m0, m1, m2, m3 = products
    return [m0 + m1 + m2, m1 - m2 - m3]
