"""Pure functions that layers and the training step compute with, and their fast lowerings.

Here belongs the mathematics of a layer without its parameters, and what makes it fast on a
platform. Each file begins with the definition in plain JAX; what makes it fast stands below.

Gradients of our own take forward-mode differentiation away. Where `jax.jvp`, `jax.jacfwd` or
`jax.linearize` raise "can't apply forward-mode autodiff (jvp) to a custom_vjp function", compute
`with flaxdl.ops.reference():`, or set `FLAXDL_REFERENCE=1`; the definitions are used there.
"""

from flaxdl.ops.dispatch import reference

__all__ = ["reference"]
