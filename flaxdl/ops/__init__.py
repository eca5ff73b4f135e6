"""Pure functions used by the layers and the training step, with fast lowerings.

The package contains the mathematics of layers without parameters, and its lowerings for specific
platforms. Each module begins with the definition in plain JAX; the fast version follows below.

Custom gradients do not support forward-mode differentiation. If `jax.jvp`, `jax.jacfwd` or
`jax.linearize` raises "can't apply forward-mode autodiff (jvp) to a custom_vjp function", compute
with the definitions: use `with flaxdl.ops.reference():` or set `FLAXDL_REFERENCE=1`.
"""

from flaxdl.ops.dispatch import reference

__all__ = ["reference"]
