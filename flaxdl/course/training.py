"""Training of small classifiers, for experiments that compare many of them.

All steps of a training are one `jax.lax.scan`, so a function that trains can run under `jax.vmap`,
for many seeds and learning rates together.

Legend: N training examples, S steps, B examples per batch.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import PILOT_SEEDS, best_rate
from flaxdl.data import Tfds

Variables = Any
"""Variables of a model: parameters, and running statistics if it has any."""
Data = tuple[np.ndarray, np.ndarray]
"""Inputs [N, ...] and labels int32[N]."""


class Splits(NamedTuple):
    """Data of an experiment; learning rates are chosen on the validation split."""

    train: Data
    validation: Data
    test: Data


@cache
def load_digits() -> Splits:
    """Returns the handwritten digits as images [N, 8, 8]: 1077, 360 and 360 of them."""
    splits = Tfds("digits", validation="test").load(seed=0)  # keeps the whole training split
    assert splits.test is not None
    train, test = splits.train.arrays(), splits.test.arrays()
    mean, std = train["inputs"].mean(), train["inputs"].std()
    images, held_out = (((a["inputs"][..., 0] - mean) / std).astype("f4") for a in (train, test))
    labels, order = train["label"], np.random.default_rng(0).permutation(len(images))
    validation, rest = np.split(order, [len(held_out)])
    return Splits(
        (images[rest], labels[rest]),
        (images[validation], labels[validation]),
        (held_out, test["label"]),
    )


def in_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Returns the function's result for each item; compiling uses one core, so several run."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(function, items))


def draw_batches(key: jax.Array, examples: int, batch_size: int, steps: int) -> jax.Array:
    """Draws the numbers of the examples in each batch, int32[S, B]; each epoch has a new order."""
    epochs = -(-steps * batch_size // examples)
    orders = jax.vmap(lambda k: jax.random.permutation(k, examples))(jax.random.split(key, epochs))
    return orders.reshape(-1)[: steps * batch_size].reshape(steps, batch_size)


def loss_of(
    model: nn.Module, variables: Variables, inputs: Any, labels: Any, key: jax.Array
) -> tuple[jax.Array, Variables]:
    """Returns the mean cross-entropy in training mode, and the new running statistics."""
    rngs = {"dropout": key}
    logits, changed = model.apply(variables, inputs, True, rngs=rngs, mutable=["batch_stats"])
    assert isinstance(logits, jax.Array)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), changed


def fit(
    model: nn.Module,
    variables: Variables,
    optimizer: optax.GradientTransformation,
    data: Data,
    batches: jax.Array,
    key: jax.Array,
) -> tuple[Variables, jax.Array]:
    """Trains a classifier for one step per batch.

    Args:
        model: classifier that is called with a batch of inputs and `train`.
        variables: initial variables.
        optimizer: optimizer of the parameters.
        data: all training examples.
        batches: numbers of the examples in each batch, int32[S, B].
        key: key of the random numbers for dropout.

    Returns:
        The variables after the last step, and the loss of each step [S].
    """
    inputs, labels = map(jnp.asarray, data)

    def step(carry, batch):
        variables, state = carry
        examples, key = batch

        def loss(params):
            return loss_of(
                model, variables | {"params": params}, inputs[examples], labels[examples], key
            )

        (value, changed), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradients, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return ({**variables, **changed, "params": params}, state), value

    start = (dict(variables), optimizer.init(variables["params"]))
    keys = jax.random.split(key, len(batches))
    (variables, _), losses = jax.lax.scan(step, start, (batches, keys))
    return variables, losses


@partial(jax.jit, static_argnums=0)
def initialize(model: nn.Module, seeds: jax.Array, inputs: jax.Array) -> Variables:
    """Returns initial variables for each seed, for inputs like these [B, ...]."""
    return jax.vmap(lambda seed: model.init(jax.random.key(seed), inputs))(seeds)


@partial(jax.jit, static_argnums=0)
def evaluate(
    model: nn.Module, variables: Variables, inputs: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns mean cross-entropy and accuracy in eval mode, for variables with one more axis."""

    def by_variables(variables: Variables) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(variables, inputs, False)
        assert isinstance(logits, jax.Array)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits.argmax(-1) == labels).mean()

    return jax.vmap(by_variables)(variables)


Run = Callable[[Variables, jax.Array, jax.Array], tuple[Variables, jax.Array]]
"""Training: from initial variables, a key and the learning rate to what `fit` returns."""


def sweep(
    model: nn.Module, run: Run, rates: Sequence[float], seeds: Sequence[int], inputs: np.ndarray
) -> tuple[Variables, jax.Array]:
    """Runs a training for all learning rates and seeds together.

    Returns:
        The results of `run`, with the axes [rates, seeds] before their own.
    """
    variables = initialize(model, jnp.asarray(seeds), jnp.asarray(inputs[:2]))
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    by_seed = jax.vmap(run, in_axes=(0, 0, None))
    grid = jax.jit(jax.vmap(by_seed, in_axes=(None, None, 0)))
    return grid(variables, keys, jnp.asarray(rates))


class Tuned(NamedTuple):
    """Trainings at the learning rate with the lowest validation loss on the pilot seeds."""

    rate: float
    variables: Variables
    """Trained variables, with seeds as the first axis."""
    accuracy: list[float]
    """Test accuracy by seed."""
    by_rate: list[list[float]]
    """Test accuracy by learning rate and seed, also at the other learning rates."""


def tuned(
    model: nn.Module, run: Run, rates: Sequence[float], seeds: Sequence[int], splits: Splits
) -> Tuned:
    """Trains with all learning rates, and returns the results of the best one.

    Pilot seeds and others are trained together, as compiling takes longer than training.
    """
    trained, _ = sweep(model, run, rates, (*PILOT_SEEDS, *seeds), splits.train[0])
    pilots, shape = len(PILOT_SEEDS), (len(rates), -1)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trained)
    losses = np.asarray(evaluate(model, flat, *splits.validation)[0]).reshape(shape)
    rate = best_rate(dict(zip(rates, losses[:, :pilots].tolist(), strict=True)))
    place = list(rates).index(rate)
    best = jax.tree.map(lambda x: x[place, pilots:], trained)
    by_rate = np.reshape(test_accuracy(model, flat, splits), shape)[:, pilots:].tolist()
    return Tuned(rate, best, by_rate[place], by_rate)


def test_accuracy(model: nn.Module, variables: Variables, splits: Splits) -> list[float]:
    """Returns the test accuracy in eval mode, for variables with one more axis."""
    return np.asarray(evaluate(model, variables, *splits.test)[1]).astype(float).round(4).tolist()
