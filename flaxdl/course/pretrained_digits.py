"""A small CNN that is pretrained on printed letters and trained on a fraction of other images.

The networks of several experiments start from it. Each training is one call, so that all of them
share a compiled program, whatever stages are frozen and however many images are used.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import PILOT_SEEDS, Results, best_rate
from flaxdl.course.pixel_order import patches
from flaxdl.course.training import Splits, draw_batches, fit, load_digits
from flaxdl.data import Tfds
from flaxdl.layers import Linear, max_pool

TARGETS = ("printed digits", "handwritten digits")
FRACTIONS = (0.01, 0.05, 0.2, 1.0)
RATES = (1e-3, 3e-3, 1e-2)
BATCH = 32
STAGES = ("conv0", "conv1", "hidden", "fc")
"""Stages of the network, which are also the names of its layers."""
Arms = Mapping[str, tuple[bool, tuple[str, ...]]]
"""For each arm, whether it starts from the pretrained network, and the stages to train."""


class CNN(nn.Module):
    """Two convolutions with pooling, a hidden layer and a classifier."""

    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, 8, 8] to logits [B, classes]."""
        x = images[..., None]
        for name, channels in zip(STAGES[:2], (16, 32), strict=True):
            x = max_pool(nn.relu(Linear(channels, name=name)(patches(x))), 2)
        x = nn.relu(Linear(64, name="hidden")(x.reshape(len(x), -1)))
        return Linear(self.classes, name="fc")(x)


def standardized(images: np.ndarray) -> np.ndarray:
    """Scales each image [H, W] to mean 0 and variance 1."""
    images = images - images.mean((1, 2), keepdims=True)
    return images / (images.std((1, 2), keepdims=True) + 1e-3)


@cache
def load_glyphs() -> tuple[Any, Splits]:
    """Returns images [N, 8, 8] and labels of printed letters, and printed digits."""
    splits = Tfds("glyphs", validation="test").load(seed=0)
    assert splits.validation is not None

    def prepare(arrays: dict) -> tuple[np.ndarray, np.ndarray]:
        gray = arrays["inputs"].astype(np.float32).mean(-1)
        edge = np.concatenate([gray[:, 0], gray[:, -1], gray[:, :, 0], gray[:, :, -1]], axis=1)
        ink = abs(gray - np.median(edge, axis=1)[:, None, None])[:, 4:28, 4:28]  # always bright
        return standardized(ink.reshape(-1, 8, 3, 8, 3).mean((2, 4))), arrays["label"]

    (images, labels), (test, test_labels) = map(
        prepare, (splits.train.arrays(), splits.validation.arrays())
    )
    digits = np.random.default_rng(0).permutation(np.flatnonzero(labels < 10))
    held_out, rest = digits[:1000], digits[1000:]
    chosen = test_labels < 10
    return (images[labels >= 10], labels[labels >= 10] - 10), Splits(
        (images[rest], labels[rest]),
        (images[held_out], labels[held_out]),
        (test[chosen], test_labels[chosen]),
    )


def load(target: str) -> Splits:
    """Returns the images [N, 8, 8] and labels of a target."""
    if target == "printed digits":
        return load_glyphs()[1]
    return Splits(*((standardized(images), labels) for images, labels in load_digits()))


@partial(jax.jit, static_argnums=0)
def learn_letters(steps: int, letters: Any, seed: jax.Array) -> Any:
    """Returns the parameters of a network that has learned the letters."""
    key, model = jax.random.key(seed), CNN(classes=52)
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    batches = draw_batches(key, len(letters[1]), 128, steps)
    return fit(model, model.init(key, letters[0][:2]), adam, letters, batches, key)[0]["params"]


def pretrain(seeds: Sequence[int], steps: int) -> dict[int, Any]:
    """Returns the parameters of networks that have learned the letters, by seed."""
    letters = jax.tree.map(jnp.asarray, load_glyphs()[0])
    return {seed: learn_letters(steps, letters, jnp.asarray(seed)) for seed in seeds}


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns a random order of the examples, in which all classes are equally frequent early."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), int)
    for label in np.unique(labels):
        places = np.flatnonzero(labels[order] == label)
        rank[places] = np.arange(len(places))
    return order[np.argsort(rank, kind="stable")]


@partial(jax.jit, static_argnums=0)
def train(
    steps: int, data: Any, params: Any, seed: int, rows: tuple, rate: float, trained: dict
) -> tuple[jax.Array, jax.Array]:
    """Trains a network on digits; returns the validation loss and the test accuracy.

    Args:
        steps: number of steps of Adam, with a cosine schedule.
        data: splits of digits, as arrays of JAX.
        params: initial parameters.
        seed: seed of the batches.
        rows: order of the training examples, and how many of the first to use.
        rate: initial learning rate.
        trained: for each stage of the network, 1 if it is trained and 0 if it is frozen.
    """
    order, count = rows

    def evaluate(params: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits: Any = CNN().apply({"params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits.argmax(-1) == labels).mean()

    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, key):
        params, state = carry
        batch = order[jax.random.randint(key, (BATCH,), 0, count)]
        images, labels = data.train[0][batch], data.train[1][batch]
        gradients = jax.grad(lambda params: evaluate(params, images, labels)[0])(params)
        found, state = adam.update(gradients, state)
        updates: Any = found
        changes = {
            name: jax.tree.map(lambda update, factor=trained[name]: factor * update, update)
            for name, update in updates.items()
        }
        return (optax.apply_updates(params, changes), state), None

    keys = jax.random.split(jax.random.key(seed), steps)
    (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), keys)
    return evaluate(params, *data.validation)[0], evaluate(params, *data.test)[1]


def compare(
    target: str, arms: Arms, pretrained: dict[int, Any], seeds: Sequence[int], steps: int
) -> Results:
    """Returns the test accuracy by arm, fraction of the training images, and seed.

    Args:
        target: one of `TARGETS`.
        arms: the arms to compare.
        pretrained: parameters by seed, for pilot seeds too.
        seeds: the recorded seeds.
        steps: number of steps of each training.
    """
    data = jax.tree.map(jnp.asarray, load(target))
    labels = np.asarray(data.train[1])

    def run(arm: str, fraction: float, seed: int, rate: float) -> tuple[float, float]:
        from_pretrained, stages = arms[arm]
        params = CNN().init(jax.random.key(seed), data.train[0][:2])["params"]
        if from_pretrained:
            params = {**pretrained[seed], "fc": params["fc"]}
        rows = balanced_order(labels, seed), round(fraction * len(labels))
        trained = {name: float(name in stages) for name in STAGES}
        loss, accuracy = train(steps, data, params, seed, rows, rate, trained)
        return float(loss), round(float(accuracy), 4)

    found: dict[str, Any] = {"accuracy": {}, "learning_rates": {}}
    for arm, fraction in itertools.product(arms, FRACTIONS):
        pilots = {r: [run(arm, fraction, seed, r)[0] for seed in PILOT_SEEDS] for r in RATES}
        rate = best_rate(pilots)
        accuracy = [run(arm, fraction, seed, rate)[1] for seed in seeds]
        found["accuracy"].setdefault(arm, []).append(accuracy)
        found["learning_rates"].setdefault(arm, []).append(rate)
    return found
