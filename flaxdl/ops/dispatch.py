"""Fast versions of operations, and the reference mode that disables them.

An operation is a definition in plain JAX. It may have a faster version, with custom gradients and
lowerings for specific platforms. Only this module refers to platforms, custom gradients and
`shard_map`.

Custom gradients do not support forward-mode differentiation: `jax.jvp`, `jax.jacfwd` and
`jax.linearize` of a function that uses them raise "can't apply forward-mode autodiff (jvp) to a
custom_vjp function". They work in reference mode. `jax.grad`, `jax.hessian` and Hessian-vector
products work in both modes, except through cuDNN's attention (16 bits on NVIDIA GPUs), which has no
second derivatives.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Function = TypeVar("Function", bound=Callable[..., Any])

# JAX caches traced and compiled functions separately for each value of this context.
_is_reference = jax.make_user_context(os.environ.get("FLAXDL_REFERENCE", "") not in ("", "0"))


@contextmanager
def reference() -> Iterator[None]:
    """Context manager in which operations are computed by their definitions in plain JAX.

    Use it to compare results with stock XLA, or for forward-mode differentiation:

    >>> norm = flaxdl.layers.LayerNorm()
    >>> variables = norm.init(jax.random.key(0), jnp.ones(4))
    >>> with flaxdl.ops.reference():
    ...     _, slope = jax.jvp(partial(norm.apply, variables), (jnp.arange(4.0),), (jnp.ones(4),))

    The environment variable `FLAXDL_REFERENCE=1` does the same for a whole process.
    """
    with _is_reference(True):
        yield


def is_reference() -> bool:
    """Returns True in reference mode, where operations are computed by their definitions."""
    return bool(_is_reference.value)


def accelerated(
    definition: Function,
    *,
    fast: Callable[..., Any] | None = None,
    forward: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Function:
    """Returns a faster version of an operation.

    Args:
        definition: pure function whose positional arguments are arrays or trees of arrays, and
            whose keyword arguments (settings) are hashable.
        fast: faster function with the same arguments and results; by default, the definition.
        forward: callable that returns `(outputs, saved)`, where `saved` contains the residuals for
            `backward`; by default, it calls `fast` and saves the arrays. It must not call the
            operation, since this would prevent second derivatives.
        backward: callable that maps `(saved, gradient)` and the settings to a tuple with the
            gradients of the arrays; by default, JAX differentiates `fast`.

    Returns:
        Function with the signature of the definition. In reference mode, it calls the definition.
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
    """Returns a function of arrays that is lowered differently on some platforms.

    Args:
        default: function for all other platforms, and for all platforms in reference mode.
        **lowerings: functions with the same results for specific platforms, as in `cpu=...` or
            `cuda=...`.
    """

    def compute(*arrays: Any) -> Any:
        if is_reference():
            return default(*arrays)
        return jax.lax.platform_dependent(*arrays, default=default, **lowerings)

    return compute


def is_on_gpu(device: Any) -> bool:
    """Returns True if a device is a GPU."""
    return device.platform == "gpu"


@functools.cache
def has_ampere() -> bool:
    """Returns True if JAX's default device is an NVIDIA GPU of the Ampere generation or later."""
    device = jax.devices()[0]
    is_nvidia = is_on_gpu(device) and "cuda" in device.client.platform_version.lower()
    return is_nvidia and float(device.compute_capability) >= 8


def _varying_alike(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Marks all arrays as varying across devices under `jax.shard_map` if one of them is.

    `shard_map` then sums the gradients of arrays that are equal on all devices, such as parameters.
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
    kind = getattr(kind, "manual_axis_type", kind)  # `vma` in jax 0.8
    return frozenset(getattr(kind, "varying", getattr(kind, "vma", ())))
