"""Batch normalization and layer normalization.

Legend: B batch, ... spatial or time axes, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_shape
from flaxdl.errors import UserError
from flaxdl.layers.initializers import constant
from flaxdl.ops.batch_norm import batch_norm, masked_batch_norm, normalize
from flaxdl.ops.layer_norm import layer_norm


class BatchNorm(nn.Module):
    """Batch normalization equivalent to `torch.nn.BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d`.

    In training, channels are normalized with the mean and the biased variance of the batch. The
    mean and the unbiased variance also update the running statistics `mean` [C] and `var` [C] in
    the collection `batch_stats`, as in PyTorch. In inference, channels are normalized with the
    running statistics.

    On several devices, the statistics are computed over the global batch, as in `SyncBatchNorm`:
    automatically under `jit`, and by averaging over the axis "data" under `pmap` or `shard_map`.

    With a mask, as for padded sequences, the statistics are those of the positions where it is
    True, so they do not depend on the amount of padding; PyTorch has no such option.

    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training", 2015.
    """

    momentum: float = 0.1
    """Weight of the batch statistics in the update of the running statistics, as in PyTorch."""
    epsilon: float = 1e-5
    """Epsilon added to the variance before taking its square root."""

    @nn.compact
    def __call__(
        self, inputs: jax.Array, train: bool = False, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes each channel of [B, ..., C]; training updates `batch_stats`.

        Args:
            inputs: [B, ..., C].
            train: whether to use and store the statistics of the batch.
            mask: bool[B, ..., 1], False at positions that do not count in the statistics.

        Raises:
            UserError: if the parameters were initialized for another number of channels, or if
                there is only one value per channel in training, so that its variance is undefined.
        """
        if self.has_variable("params", "scale"):
            expected = self.get_variable("params", "scale").shape[0]
            name = f"inputs of {'.'.join(self.path) or 'BatchNorm'}"
            check_shape(name, inputs, "B ... C", C=expected)
        shape = inputs.shape[-1:]
        scale = self.param("scale", constant(1.0), shape, jnp.float32)
        bias = self.param("bias", constant(0.0), shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)

        dtype = jnp.result_type(inputs, scale)
        wide = jnp.promote_types(dtype, jnp.float32)
        scale, bias = scale.astype(wide), bias.astype(wide)
        if train:
            devices = self._number_of_devices()
            count = inputs.size // inputs.shape[-1] * devices
            if count == 1:
                raise UserError(
                    "inputs of BatchNorm must have more than one value per channel in training, "
                    f"got shape {list(inputs.shape)}"
                )
            options = {"epsilon": self.epsilon, "axis": "data" if devices > 1 else None}
            if mask is None:
                outputs, mean, var = batch_norm(inputs, scale, bias, **options)
                unbiased = count / (count - 1)
            else:
                outputs, mean, var, real = masked_batch_norm(inputs, scale, bias, mask, **options)
                unbiased = real / jnp.maximum(real - 1, 1)
            if not self.is_initializing():
                self._move(running_mean, mean)
                self._move(running_var, var * unbiased)
        else:
            mean, var = running_mean.value.astype(wide), running_var.value.astype(wide)
            outputs = normalize(inputs.astype(wide), mean, var, scale, bias, self.epsilon)
        return outputs.astype(dtype)

    def _number_of_devices(self) -> int:
        """Returns the number of devices that share the batch under `pmap` or `shard_map`."""
        try:
            return jax.lax.axis_size("data")
        except NameError:  # not bound, as under jit, where the array is the global batch
            return 1

    def _move(self, running: nn.Variable, batch: jax.Array) -> None:
        moved = (1 - self.momentum) * running.value + self.momentum * batch
        running.value = moved.astype(running.value.dtype)


class LayerNorm(nn.Module):
    """Layer normalization equivalent to `torch.nn.LayerNorm` over the last axis.

    Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """

    epsilon: float = 1e-5
    """Epsilon added to the variance before taking its square root."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalizes [..., C] with the mean and the biased variance over the last axis.

        Raises:
            UserError: if the parameters were initialized for another number of features.
        """
        if self.has_variable("params", "scale"):
            expected = self.get_variable("params", "scale").shape[0]
            name = f"inputs of {'.'.join(self.path) or 'LayerNorm'}"
            check_shape(name, inputs, "... C", C=expected)
        shape = inputs.shape[-1:]
        scale = self.param("scale", constant(1.0), shape, jnp.float32)
        bias = self.param("bias", constant(0.0), shape, jnp.float32)

        dtype = jnp.result_type(inputs, scale)
        wide = jnp.promote_types(dtype, jnp.float32)
        scale, bias = scale.astype(wide), bias.astype(wide)
        return layer_norm(inputs, scale, bias, epsilon=self.epsilon).astype(dtype)
