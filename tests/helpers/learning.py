"""Whether a model can learn: every parameter gets a gradient, and one batch can be overfitted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.weights import state_dict


def train_logits(model, variables, inputs, key):
    """Logits in training, and the updated statistics."""
    return model.apply(
        variables, inputs, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )


def assert_every_parameter_learns(model, inputs):
    """No parameter has a gradient that is zero everywhere, for a random direction of the logits."""
    variables = jax.jit(model.init)(jax.random.key(0), inputs)

    def loss(params):
        logits, _ = train_logits(model, variables | {"params": params}, inputs, jax.random.key(1))
        return jnp.sum(logits * jax.random.normal(jax.random.key(2), logits.shape))

    gradients = state_dict({"params": jax.jit(jax.grad(loss))(variables["params"])})
    assert [key for key, gradient in gradients.items() if not np.abs(gradient).max() > 0] == []


def assert_no_second_trace(model, inputs):
    """A second batch of the same shape runs what was compiled for the first."""
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    traces = []

    def counted(variables, inputs):
        traces.append(None)
        return model.apply(variables, inputs)

    apply = jax.jit(counted)
    apply(variables, inputs)
    apply(variables, inputs + 1)
    assert len(traces) == 1
    # A second entry is a second program; JAX does not keep one in every case.
    assert apply._cache_size() <= 1


def overfit(model, inputs, labels, *, steps, learning_rate):
    """Trains on one batch with Adam; returns the accuracy on it at the end."""
    variables = jax.jit(model.init)(jax.random.key(0), inputs)
    optimizer = optax.adam(learning_rate)

    def loss(params, variables, key):
        logits, updates = train_logits(model, variables | {"params": params}, inputs, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (updates, jnp.mean(logits.argmax(-1) == labels))

    @jax.jit
    def step(variables, state, key):
        params = variables["params"]
        gradients, (updates, accuracy) = jax.grad(loss, has_aux=True)(params, variables, key)
        changes, state = optimizer.update(gradients, state)
        return {"params": optax.apply_updates(params, changes), **updates}, state, accuracy

    state, accuracy = optimizer.init(variables["params"]), 0.0
    for key in jax.random.split(jax.random.key(1), steps):
        variables, state, accuracy = step(variables, state, key)
    return float(accuracy)
