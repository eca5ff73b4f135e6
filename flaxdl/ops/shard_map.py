"""What layers with a gradient of their own need under `jax.shard_map`."""

import jax
import jax.numpy as jnp


def varying_like(parameter: jax.Array, inputs: jax.Array) -> jax.Array:
    """The parameter as one that differs from device to device wherever the inputs do.

    `shard_map` then adds up its gradient over these devices; the zero itself is compiled away.
    """
    return parameter + jnp.zeros_like(inputs, parameter.dtype, shape=())
