"""Fast versions of operations, and the mode that switches them off.

An operation is a definition in plain JAX, and beside it what makes it fast: gradients of its own,
and lowerings for a platform. Here alone platforms, custom gradients and `shard_map` are named.

Gradients of our own take forward-mode differentiation away: `jax.jvp`, `jax.jacfwd` and
`jax.linearize` of a function that uses them raise "can't apply forward-mode differentiation (jvp)
to a custom_vjp function". Under `reference` they work. `jax.grad`, `jax.hessian` and
Hessian-vector products work in both modes.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Function = TypeVar("Function", bound=Callable[..., Any])

# JAX keeps what it has traced and compiled apart by the value of this context.
_is_reference = jax.make_user_context(os.environ.get("FLAXDL_REFERENCE", "") not in ("", "0"))


@contextmanager
def reference() -> Iterator[None]:
    """Within, operations are computed by their definitions, in JAX's own way.

    Use it to check a number against stock XLA, or for forward-mode differentiation:

    >>> with flaxdl.ops.reference():
    ...     _, tangents = jax.jvp(loss, (params,), (direction,))

    The environment variable `FLAXDL_REFERENCE=1` does the same for a whole process.
    """
    with _is_reference(True):
        yield


def is_reference() -> bool:
    """Returns whether operations are computed by their definitions."""
    return bool(_is_reference.value)


def accelerated(
    definition: Function,
    *,
    fast: Callable[..., Any] | None = None,
    forward: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Function:
    """The operation of a definition, computed in a faster way.

    Args:
        definition: a pure function of arrays, or trees of them, and of hashable settings, which it
            takes as keywords.
        fast: computes the same from the same arguments; by default the definition does.
        forward: computes `(outputs, saved)`, with what `backward` needs; by default `saved` are the
            arrays themselves. It must not call the operation, since then there would be no second
            derivative.
        backward: from `(saved, gradient)`, and the settings, the tuple of the arrays' gradients;
            None leaves it to JAX.

    Returns:
        A function with the signature of the definition, which stands for it in reference mode.
    """
    fast = fast or definition
    forward = forward or (lambda *arrays, **settings: (fast(*arrays, **settings), arrays))

    def primal(settings: tuple[tuple[str, Any], ...], *arrays: Any) -> Any:
        return fast(*arrays, **dict(settings))

    compute: Any = primal
    if backward is not None:
        compute = jax.custom_vjp(primal, nondiff_argnums=(0,))
        compute.defvjp(
            lambda settings, *arrays: forward(*arrays, **dict(settings)),
            lambda settings, saved, gradient: backward(saved, gradient, **dict(settings)),
        )

    @functools.wraps(definition)
    def operation(*arrays: Any, **settings: Any) -> Any:
        if is_reference():
            return definition(*arrays, **settings)
        return compute(tuple(sorted(settings.items())), *_varying_alike(arrays))

    return operation  # type: ignore[return-value]


def by_platform(default: Callable[..., Any], **lowerings: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays that is lowered in another way on some platforms.

    Args:
        default: what other platforms compute, and all in reference mode.
        **lowerings: by platform, as in `cpu=...` or `cuda=...`, a function that computes the same.
    """

    def compute(*arrays: Any) -> Any:
        if is_reference():
            return default(*arrays)
        return jax.lax.platform_dependent(*arrays, default=default, **lowerings)

    return compute


def is_on_gpu(device: Any) -> bool:
    """Returns whether a device is a GPU."""
    return device.platform == "gpu"


@functools.cache
def has_ampere() -> bool:
    """Returns whether JAX computes on NVIDIA GPUs of the Ampere generation or later."""
    device = jax.devices()[0]
    is_nvidia = is_on_gpu(device) and "cuda" in device.client.platform_version.lower()
    return is_nvidia and float(device.compute_capability) >= 8


def _varying_alike(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arrays that differ from device to device under `jax.shard_map` wherever one of them does.

    `shard_map` then adds up the gradient of what was the same on all devices, such as parameters.
    """
    leaves = jax.tree.leaves(arrays)
    axes = {axis for leaf in leaves for axis in _axes(leaf)}
    if not axes:
        return arrays
    everywhere = sum(
        (jnp.zeros_like(leaf, jnp.float32, shape=()) for leaf in leaves if _axes(leaf)),
        jnp.float32(0),
    )

    def varying(leaf: Any) -> Any:
        if _axes(leaf) == axes or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf + everywhere.astype(leaf.dtype)  # the zero is compiled away

    return jax.tree.map(varying, arrays)


def _axes(leaf: Any) -> frozenset[str]:
    kind = jax.typeof(leaf)
    kind = getattr(kind, "manual_axis_type", kind)  # which jax 0.8 calls `vma`
    return frozenset(getattr(kind, "varying", getattr(kind, "vma", ())))
