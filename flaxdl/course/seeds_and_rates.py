"""Training of one model for several seeds and learning rates together, in one compiled program."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import PILOT_SEEDS, best_rate

Draw = Callable[[jax.Array], tuple[tuple[jax.Array, ...], jax.Array]]
"""Function of a random key that draws a batch: the inputs of the model, and the labels, int32[...],
one for each row of logits."""


def logits_of(model: nn.Module, params: Any, inputs: tuple[jax.Array, ...]) -> jax.Array:
    """Returns the logits of a model for one set of parameters."""
    logits = model.apply({"params": params}, *inputs)
    assert isinstance(logits, jax.Array)
    return logits


def trainer(
    model: nn.Module,
    draw: Draw,
    steps: int,
    change: Callable[[Any, jax.Array], Any] | None = None,
) -> Callable[[Sequence[int], Sequence[float]], tuple[list[float], Any]]:
    """Returns a function that trains a model with Adam and gradients clipped to a norm of 1.

    Args:
        model: module that maps inputs to logits.
        draw: function that draws a batch; each seed sees its own batches.
        steps: number of steps.
        change: function of the initial parameters and a random key that changes them; by default,
            they stay those of the model.

    Returns:
        Function of seeds and learning rates, as many of one as of the other: the mean loss in the
        last tenth of the steps of each run, and the parameters with the runs as first axis.
    """

    def loss(params: Any, inputs: tuple[jax.Array, ...], labels: jax.Array) -> jax.Array:
        logits = logits_of(model, params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def run(seed: jax.Array, rate: jax.Array) -> tuple[jax.Array, Any]:
        init_key, change_key, data_key = jax.random.split(jax.random.key(seed), 3)
        params = model.init(init_key, *draw(data_key)[0])["params"]
        if change is not None:
            params = change(params, change_key)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

        def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params, *draw(key))
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(data_key, steps)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return losses[-max(steps // 10, 1) :].mean(), params

    together = jax.jit(jax.vmap(run))

    def train(seeds: Sequence[int], rates: Sequence[float]) -> tuple[list[float], Any]:
        losses, params = together(jnp.asarray(seeds), jnp.asarray(rates))
        return np.asarray(losses).tolist(), params

    return train


def choose_rate(train: Callable, rates: Sequence[float]) -> float:
    """Returns the learning rate with the lowest loss on the pilot seeds."""
    grid = [(seed, rate) for rate in rates for seed in PILOT_SEEDS]
    losses, _ = train(*zip(*grid, strict=True))
    by_rate = np.reshape(losses, (len(rates), -1)).tolist()
    return best_rate(dict(zip(rates, by_rate, strict=True)))


def correct(
    model: nn.Module, params: Any, inputs: tuple[jax.Array, ...], labels: jax.Array
) -> np.ndarray:
    """Returns which predictions are right, bool[runs, ...], one for each run and label."""

    def predictions(params: Any) -> jax.Array:
        return logits_of(model, params, inputs).argmax(-1)

    # One run after another, since test sets of all runs together need much memory.
    return np.asarray(jax.jit(lambda p: jax.lax.map(predictions, p))(params) == labels)
