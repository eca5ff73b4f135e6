"""Fully convolutional network for series: sensor readings, audio, spectrograms over time.

Legend: B batch, T time, C channels, K classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_integers, check_shape
from flaxdl.layers import BatchNorm, Conv, Linear
from flaxdl.models.sizes import required_size


class CNN1d(nn.Module):
    """Classifier of series of any length: three convolutions over time, averaged over time.

    Each convolution is followed by batch normalization and ReLU, and keeps the length, as
    `padding="same"` in PyTorch does. With `lengths`, padding has no effect: it is zero before each
    convolution, as are the steps beyond the ends of a series, and counts neither in the statistics
    of batch normalization nor in the average over time.

    Wang, Yan and Oates, "Time Series Classification from Scratch with Deep Neural Networks: A
    Strong Baseline", 2017, where it is called FCN.

    >>> model = flaxdl.models.CNN1d(num_classes=5)
    >>> series = jnp.zeros((2, 100, 3))  # [B, T, C]
    >>> variables = model.init(jax.random.key(0), series)
    >>> model.apply(variables, series, lengths=jnp.array([100, 60])).shape
    (2, 5)
    """

    num_classes: int | None
    """Number of classes; inferred from the data if None."""
    filters: tuple[int, int, int] = (128, 256, 128)
    """Number of output channels of each convolution."""
    kernel_sizes: tuple[int, int, int] = (8, 5, 3)
    """Window of each convolution, in steps."""

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps series [B, T, C] with `lengths` int32[B] to logits [B, K].

        Raises:
            UserError: if shapes do not match, or the lengths are not integers.
        """
        check_shape("inputs", inputs, "B T C")
        mask = None if lengths is None else _mask(inputs, lengths)
        x = _without_padding(inputs, mask)
        for number, (filters, size) in enumerate(
            zip(self.filters, self.kernel_sizes, strict=True), start=1
        ):
            before = (size - 1) // 2  # an even window reaches one step further ahead than back
            x = jnp.pad(x, ((0, 0), (before, size - 1 - before), (0, 0)))
            x = Conv(filters, size, name=f"conv{number}")(x)  # [B, T, filters]
            x = BatchNorm(name=f"bn{number}")(x, train, mask=mask)
            x = _without_padding(nn.relu(x), mask)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        if lengths is None:
            features = jnp.mean(x, axis=1, dtype=wide)  # [B, filters]
        else:
            total = jnp.sum(x, axis=1, dtype=wide)
            features = total / jnp.clip(lengths, 1, inputs.shape[1])[:, None].astype(wide)
        num_classes = required_size("num_classes", self.num_classes)
        return Linear(num_classes, name="fc")(features.astype(x.dtype))


def _mask(inputs: jax.Array, lengths: jax.Array) -> jax.Array:
    """Returns the mask bool[B, T, 1] that is False for padding."""
    check_shape("lengths", lengths, "B", B=inputs.shape[0])
    check_integers("lengths", lengths)
    return (jnp.arange(inputs.shape[1]) < lengths[:, None])[:, :, None]


def _without_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    return x if mask is None else jnp.where(mask, x, 0)
