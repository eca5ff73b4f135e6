"""What tests of image layers and models share. PyTorch has channels first, we have them last."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from flaxdl.weights import state_dict
from helpers.parity import (
    assert_close,
    assert_gradients_match,
    reference_variables,
    torch_variables,
)

LIVE_TOLERANCE = 1e-9


def channels_last(array):
    """[B, C, *spatial] → [B, *spatial, C]."""
    return np.moveaxis(np.asarray(array), 1, -1)


def channels_first(array):
    """[B, *spatial, C] → [B, C, *spatial]."""
    return np.moveaxis(np.asarray(array), -1, 1)


def reference_images(name, shape):
    """The stored inputs of `shape` [B, C, *spatial], channels last."""
    return channels_last(reference.inputs(name, shape))


def sum_of_products(inputs, kernel, window_strides, padding, **_):
    """A plain 2-D convolution as one matrix product for each position of its window.

    XLA's convolution has no fast form for float64 on a CPU: VGG-16 takes two minutes instead of
    seconds. It is compared with PyTorch's in float64 by itself, in `layers/test_convolution.py`.
    """
    padded = jnp.pad(inputs, [(0, 0), *padding, (0, 0)])
    reach = [
        step * ((size - window) // step) + 1
        for size, window, step in zip(
            padded.shape[1:3], kernel.shape[:2], window_strides, strict=True
        )
    ]
    (down, right), outputs = window_strides, 0
    for row, column in np.ndindex(kernel.shape[:2]):
        part = padded[:, row : row + reach[0] : down, column : column + reach[1] : right]
        outputs += part @ kernel[row, column]
    return outputs


def reference_logits(model, name, images, dtype, *, as_products=True):
    """The logits that `model` computes in `dtype` with the reference weights of `name`.

    In float64, where XLA's convolution takes minutes on a CPU, an equal sum of matrix products
    replaces it, unless `as_products` is False; the convolution layer itself is compared with
    PyTorch's in float64 in `tests/layers`.
    """
    variables = reference_variables(model, name, dtype, images)
    with pytest.MonkeyPatch.context() as patch:
        if dtype == "float64" and as_products:
            patch.setattr(jax.lax, "conv_general_dilated", sum_of_products)
        logits = jax.jit(model.apply)(variables, jnp.asarray(images, dtype))
    assert logits.dtype == dtype
    return logits


def variable_shapes(model, shape):
    """The shapes of a model's variables for images of `shape`, without memory for any of them."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def count_parameters(model, shape):
    """The number of trained values of a model for images of `shape`."""
    params = variable_shapes(model, shape)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def assert_live_parity(ours, theirs, inputs, *, train=None):
    """Outputs, all gradients and running statistics equal PyTorch's, in float64.

    Args:
        ours: a Linen module.
        theirs: the PyTorch module that computes the same; its weights are used.
        inputs: [B, C, *spatial].
        train: passed to `ours` if it takes it; PyTorch's module is switched likewise.
    """
    import torch

    theirs = theirs.double().train(bool(train))
    their_inputs = torch.tensor(inputs, requires_grad=True)
    mode = {} if train is None else {"train": train}
    with jax.enable_x64(True):
        x = jnp.asarray(channels_last(inputs))
        variables = torch_variables(ours, theirs, x)
        # Copies: PyTorch changes its statistics in place.
        variables = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), variables)
        statistics = {name: tree for name, tree in variables.items() if name != "params"}

        their_outputs = theirs(their_inputs)
        cotangent = np.random.default_rng(0).standard_normal(tuple(their_outputs.shape))
        their_outputs.backward(torch.tensor(cotangent))

        def loss(params, x):
            outputs, updates = ours.apply(
                {"params": params, **statistics}, x, **mode, mutable=["batch_stats"]
            )
            return jnp.sum(outputs * channels_last(cotangent)), (outputs, updates)

        gradients, (outputs, updates) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
            variables["params"], x
        )
    assert outputs.dtype == np.float64
    assert_close(channels_first(outputs), their_outputs.detach().numpy(), LIVE_TOLERANCE)
    assert_gradients_match({"params": gradients[0]}, theirs, LIVE_TOLERANCE)
    their_gradients = [their_inputs.grad, *(parameter.grad for parameter in theirs.parameters())]
    largest = max(gradient.abs().max().item() for gradient in their_gradients)
    assert_close(channels_first(gradients[1]), their_gradients[0].numpy(), LIVE_TOLERANCE, largest)
    for key, value in state_dict(updates).items():
        if not key.endswith("num_batches_tracked"):
            assert_close(value, theirs.state_dict()[key].numpy(), LIVE_TOLERANCE)
