"""Does a network with adaptive pooling take images of any size?

A CNN like that of the course learns handwritten digits of 32 x 32 pixels and is tested on other
digits, drawn larger and smaller. Adaptive pooling averages whatever maps there are to 4 x 4 numbers
per channel, so that the layers after it always fit. Whether they also see what they have learned to
see is another question.

For comparison, the same test images are scaled back to 32 x 32 pixels first. The control is the
same network without adaptive pooling, which must refuse the smaller sizes.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import ScopeParamShapeError

from flaxdl.course.experiment import (
    INK,
    PILOT_SEEDS,
    Results,
    Verdict,
    best_rate,
    draw_range,
    make_figure,
)
from flaxdl.course.training import Data, draw_batches, evaluate, load_digits
from flaxdl.errors import UserError
from flaxdl.layers import Conv, Linear, adaptive_avg_pool, max_pool

CLAIM = "Adaptive pooling lets a network take images of any size."
EXPECTED = "in part: the shapes fit, but the accuracy does not follow"
SEEDS = 5

TRAINED = 32  # pixels
SIZES = (8, 12, 16, 24, 28, 32, 36, 40, 48)
NEAR = (24, 28, 36, 40, 48)  # the sizes that decide
SHAPES = range(1, 65)
RATES = (1e-3, 3e-3, 1e-2)
CLOSE = 0.05  # of accuracy
LEARNED = 0.9  # accuracy at the size of the training, without which the others mean nothing


class CNN(nn.Module):
    """Three convolutions as in the course's SimpleCNN, with fewer channels."""

    adaptive: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W] to logits [B, 10]."""
        x = nn.relu(Conv(8, 3, padding=1, name="conv0")(images[..., None]))
        x = nn.relu(Conv(16, 3, padding=1, name="conv1")(max_pool(x, 2)))
        x = nn.relu(Conv(16, 3, padding=1, name="conv2")(max_pool(x, 2)))
        if self.adaptive:
            x = adaptive_avg_pool(x, 4)
        x = nn.relu(Linear(64, name="hidden")(x.reshape(len(x), -1)))
        return Linear(10, name="fc")(x)


def resized(images: Any, size: int) -> jax.Array:
    """Scales images [N, H, W] to another size."""
    return jax.image.resize(images, (len(images), size, size), "linear")


def accepted(model: CNN) -> list[int]:
    """Returns the sizes whose logits have the right shape, with weights made for 32 x 32 pixels."""

    def images(size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2, size, size), jnp.float32)

    variables = jax.eval_shape(model.init, jax.random.key(0), images(TRAINED))
    found = []
    for size in SHAPES:
        try:
            logits = jax.eval_shape(model.apply, variables, images(size))
        except (UserError, ScopeParamShapeError):
            continue
        assert isinstance(logits, jax.ShapeDtypeStruct)
        found += [size] if logits.shape == (2, 10) else []
    return found


ADAM = optax.inject_hyperparams(optax.adam)(1e-3)


@jax.jit
def step(params: Any, state: Any, images: jax.Array, labels: jax.Array, rate: float) -> Any:
    """Makes a step of Adam; returns new parameters and the state of the optimizer."""

    def loss(params: Any) -> jax.Array:
        logits: Any = CNN().apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    state.hyperparams["learning_rate"] = jnp.asarray(rate)
    updates, state = ADAM.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


def train(steps: int, data: Data, seed: int, rate: float) -> Any:
    """Returns the variables after training, with a learning rate that falls to zero."""
    images, labels = data
    params: Any = CNN().init(jax.random.key(seed), images[:2])["params"]
    state = ADAM.init(params)
    batches = np.asarray(draw_batches(jax.random.key(seed), len(labels), 32, steps))
    for number, batch in enumerate(batches):
        part = rate * (1 - number / steps)
        params, state = step(params, state, images[batch], labels[batch], part)
    return {"params": params}


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the accepted sizes with and without adaptive pooling, and accuracies by size."""
    digits, steps = load_digits(), 60 if quick else 300
    training, validation = (
        (np.asarray(resized(images, TRAINED)), labels) for images, labels in digits[:2]
    )

    def train_all(seeds: Sequence[int], rate: float) -> Any:
        trained = [train(steps, training, seed, rate) for seed in seeds]
        return jax.tree.map(lambda *values: jnp.stack(values), *trained)

    losses = {
        rate: evaluate(CNN(), train_all(PILOT_SEEDS, rate), *validation)[0].tolist()
        for rate in RATES
    }
    rate = best_rate(losses)
    variables, (images, labels) = train_all(seeds, rate), digits.test
    accuracy: dict[str, list[list[float]]] = {"as it is": [], "scaled back to 32": []}
    for size in SIZES:
        drawn = resized(images, size)
        for arm, tested in zip(accuracy, (drawn, resized(drawn, TRAINED)), strict=True):
            found = evaluate(CNN(), variables, tested, labels)[1]
            accuracy[arm].append(np.asarray(found, float).round(4).tolist())
    return {
        "accepted": {"adaptive": accepted(CNN()), "control": accepted(CNN(adaptive=False))},
        "accuracy": accuracy,
        "sizes": list(SIZES),
        "learning_rate": rate,
    }


def loss_at(results: Results, size: int) -> float:
    """Returns the median over seeds of the accuracy at 32 pixels minus that at another size."""
    by_size = dict(zip(results["sizes"], results["accuracy"]["as it is"], strict=True))
    whole, part = by_size[TRAINED], by_size[size]
    return statistics.median(a - b for a, b in zip(whole, part, strict=True))


def verdict(results: Results) -> Verdict:
    """Holds if all sizes from 24 pixels are accepted and the accuracy from 24 to 48 is close.

    In part if they are only accepted. Without adaptive pooling, 24 must be refused, and at 32 the
    digits must have been learned.
    """
    losses = {size: loss_at(results, size) for size in NEAR}
    sizes, control = results["accepted"]["adaptive"], results["accepted"]["control"]
    reason = (
        f"All sizes from {min(sizes)} to {max(sizes)} pixels are accepted (without adaptive "
        f"pooling: {', '.join(map(str, control))}); against {TRAINED} pixels, the accuracy falls "
        f"by {', '.join(f'{100 * loss:.1f} points at {size}' for size, loss in losses.items())}."
    )
    learned = statistics.median(results["accuracy"]["as it is"][results["sizes"].index(TRAINED)])
    if learned < LEARNED:
        return Verdict("does not hold here", f"Only {100 * learned:.1f} % at {TRAINED} pixels.")
    if not set(range(min(NEAR), max(SHAPES) + 1)) <= set(sizes) or min(NEAR) in control:
        return Verdict("does not hold here", reason)
    return Verdict("holds" if max(losses.values()) <= CLOSE else "holds in part", reason)


def draw(results: Results):
    """Draws the test accuracy by the size of the test images."""
    figure = make_figure(width=5.0)
    (axes,) = figure.axes
    for arm, by_size in results["accuracy"].items():
        values = [[100 * value for value in of_seed] for of_seed in zip(*by_size, strict=True)]
        draw_range(axes, results["sizes"], values, arm)
    axes.axvline(TRAINED, linestyle="--", linewidth=1, color=INK, label="trained")
    axes.set(xlabel="size of the test images (pixels)", ylabel="test accuracy (%)", ylim=(0, 103))
    axes.set_xticks(results["sizes"])
    axes.legend(fontsize=9, loc="lower right")
    return figure
