"""Comparing arrays, and whole modules, with what PyTorch computes."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import reference

from flaxdl.weights import load_weights, state_dict


def assert_close(ours, theirs, tolerance, scale=None):
    """The largest difference is within `tolerance` of `scale`, by default of the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max() if scale is None else scale
    assert np.abs(ours - theirs).max() <= tolerance * scale


def cast(tree, dtype):
    """The tree with all its floating-point leaves in another precision."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def reference_variables(module, name, dtype, *args, **kwargs):
    """Variables of `module` with the weights that the golden values of `name` were computed with.

    Args and kwargs are those of the module's call.
    """
    shapes = jax.eval_shape(lambda key: module.init(key, *args, **kwargs), jax.random.key(0))
    return cast(load_weights(shapes, reference.weights(reference.STATE_DICTS[name])), dtype)


def torch_variables(module, torch_module, *args, **kwargs):
    """Variables of `module` in float64 with the parameters of its PyTorch counterpart."""
    weights = {key: value.detach().numpy() for key, value in torch_module.state_dict().items()}
    shapes = jax.eval_shape(lambda key: module.init(key, *args, **kwargs), jax.random.key(0))
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), shapes)
    return cast(load_weights(wide, weights), jnp.float64)


def assert_gradients_match(gradients, torch_module, tolerance=1e-9):
    """Compares every gradient with the one `torch_module` holds after `backward`."""
    theirs = {
        key: np.zeros(value.shape) if value.grad is None else value.grad.numpy()
        for key, value in torch_module.named_parameters()
    }
    largest = max(np.abs(value).max() for value in theirs.values())
    ours = state_dict(gradients)
    for key, value in theirs.items():
        assert_close(ours[key], value, tolerance, largest)


def result_dtypes(module, dtype, *args, **kwargs):
    """The dtypes that come out of a module whose parameters are in `dtype`, by shapes alone."""

    def run(key):
        return module.apply(cast(module.init(key, *args, **kwargs), dtype), *args, **kwargs)

    return {result.dtype for result in jax.tree.leaves(jax.eval_shape(run, jax.random.key(0)))}


def names_and_shapes(variables):
    """The names and shapes of the state dict, as `reference.STATE_DICTS` holds them."""
    return {key: list(value.shape) for key, value in state_dict(variables).items()}


def with_inputs(module, **inputs):
    """The module, for helpers that call `init` and `apply`, with some inputs given to both."""
    return types.SimpleNamespace(
        init=jax.jit(functools.partial(module.init, **inputs)),
        apply=functools.partial(module.apply, **inputs),
    )
