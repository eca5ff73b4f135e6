"""Training of a model for many seeds, learning rates and settings in one compiled program.

A setting is a number of an experiment's own, such as the initial bias of a gate. Runs that differ
only in it share the program.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import PILOT_SEEDS, best_rate

Logits = Callable[..., jax.Array]
"""Function from the inputs of a model to logits, for one set of parameters."""
Train = Callable[[list[tuple[int, float, int]]], tuple[np.ndarray, np.ndarray]]
"""Function of runs (seed, learning rate, setting) that returns for each of them the mean loss in
the last tenth of the steps, [N], and the evaluation, [N, ...]."""


def trainer(
    model: nn.Module,
    draw: Callable[[jax.Array, jax.Array], tuple[tuple, jax.Array]],
    evaluate: Callable[[Logits, jax.Array], jax.Array],
    steps: int,
    change: Callable[[Any, jax.Array, jax.Array], Any] | None = None,
) -> Train:
    """Returns a function that trains a model with Adam, with gradients clipped to a norm of 1.

    Args:
        model: module that maps inputs to logits.
        draw: function of a random key and the setting that draws a batch: the inputs, and the
            labels, one integer for each row of logits.
        evaluate: function of the trained model, which maps inputs to logits, and the setting.
        steps: number of steps.
        change: function of the initial parameters, a random key and the setting that returns other
            initial parameters.
    """

    def apply(params: Any, *inputs: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, *inputs)
        assert isinstance(logits, jax.Array)
        return logits

    def loss(params: Any, inputs: tuple, labels: jax.Array) -> jax.Array:
        logits = apply(params, *inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def run(seed: jax.Array, rate: jax.Array, setting: jax.Array) -> tuple[jax.Array, jax.Array]:
        init_key, change_key, data_key = jax.random.split(jax.random.key(seed), 3)
        params = model.init(init_key, *draw(data_key, setting)[0])["params"]
        if change is not None:
            params = change(params, change_key, setting)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

        def step(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params, *draw(key, setting))
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(data_key, steps)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        last = losses[-max(steps // 10, 1) :].mean()
        return last, evaluate(lambda *inputs: apply(params, *inputs), setting)

    together = jax.jit(jax.vmap(run))
    most = 0

    def train(runs: list[tuple[int, float, int]]) -> tuple[np.ndarray, np.ndarray]:
        nonlocal most
        most = max(most, len(runs))
        padding = runs[:1] * (most - len(runs))  # as many runs as before need no compilation
        arrays = together(*map(jnp.asarray, zip(*runs, *padding, strict=True)))
        losses, found = (np.asarray(array, np.float64)[: len(runs)] for array in arrays)
        return losses, found

    return train


def choose_rates(
    train: Train, rates: Sequence[float], settings: Sequence[int] = (0,)
) -> list[float]:
    """Returns the learning rate with the lowest loss on the pilot seeds for each setting.

    If there is only one learning rate, nothing is trained.
    """
    if len(rates) == 1:
        return [rates[0]] * len(settings)
    pilots = [
        (seed, rate, setting) for setting, rate, seed in product(settings, rates, PILOT_SEEDS)
    ]
    losses = train(pilots)[0].reshape(len(settings), len(rates), -1).tolist()
    return [best_rate(dict(zip(rates, found, strict=True))) for found in losses]


def train_seeds(
    train: Train, seeds: Sequence[int], rates: Sequence[float], settings: Sequence[int] = (0,)
) -> np.ndarray:
    """Returns the evaluations of all seeds for each setting, [settings, seeds, ...].

    Args:
        train: function returned by `trainer`.
        seeds: the recorded seeds.
        rates: the learning rate of each setting.
        settings: the settings.
    """
    pairs = list(zip(rates, settings, strict=True))
    _, found = train([(seed, rate, setting) for rate, setting in pairs for seed in seeds])
    return found.reshape(len(settings), len(seeds), *found.shape[1:])
