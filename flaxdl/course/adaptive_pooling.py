"""Does a network with adaptive pooling take images of any size?

A CNN like that of the course learns printed digits of 32 x 32 pixels and is tested on the same
digits, drawn larger and smaller. Adaptive pooling averages whatever maps there are to 4 x 4 numbers
per channel, so that the layers after it always fit. Whether they also see what they have learned to
see is another question.

For comparison, the same test images are scaled back to 32 x 32 pixels first. The control is the
same network without adaptive pooling, which must refuse other sizes.
"""

import statistics
from collections.abc import Sequence
from functools import cache, partial
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
from flaxdl.course.pixel_order import patches
from flaxdl.course.training import Splits, draw_batches, evaluate, fit
from flaxdl.data import Tfds
from flaxdl.errors import UserError
from flaxdl.layers import Linear, adaptive_avg_pool, max_pool

CLAIM = "Adaptive pooling lets a network take images of any size."
EXPECTED = "in part: the shapes fit, and the accuracy does not follow by itself"
SEEDS = 5

TRAINED = 32  # pixels
SIZES = (12, 16, 24, 28, 32, 36, 40, 48)
NEAR = (24, 28, 36, 40, 48)  # the sizes that decide
SHAPES = range(1, 65)
RATES = (1e-3, 3e-3, 1e-2)
CLOSE = 0.05  # of accuracy


class CNN(nn.Module):
    """Three convolutions as in the course's SimpleCNN, with fewer channels."""

    adaptive: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W] to logits [B, 10]."""
        x = nn.relu(Linear(8, name="conv0")(patches(images[..., None])))
        x = nn.relu(Linear(16, name="conv1")(patches(max_pool(x, 2))))
        x = nn.relu(Linear(32, name="conv2")(patches(max_pool(x, 2))))
        if self.adaptive:
            x = adaptive_avg_pool(x, 4)
        x = nn.relu(Linear(64, name="hidden")(x.reshape(len(x), -1)))
        return Linear(10, name="fc")(x)


@cache
def load_digits() -> Splits:
    """Returns printed digits, bright on dark, as images [N, 32, 32] with labels."""
    splits = Tfds("glyphs", validation="test").load(seed=0)
    assert splits.validation is not None

    def prepare(arrays: dict) -> tuple[np.ndarray, np.ndarray]:
        chosen = arrays["label"] < 10
        gray = arrays["inputs"][chosen].astype(np.float32).mean(-1)
        edge = np.concatenate([gray[:, 0], gray[:, -1], gray[:, :, 0], gray[:, :, -1]], axis=1)
        ink = abs(gray - np.median(edge, axis=1)[:, None, None])
        return ink / ink.max((1, 2), keepdims=True), arrays["label"][chosen]

    images, labels = prepare(splits.train.arrays())
    held_out, rest = np.split(np.random.default_rng(0).permutation(len(labels)), [1000])
    return Splits(
        (images[rest], labels[rest]),
        (images[held_out], labels[held_out]),
        prepare(splits.validation.arrays()),
    )


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


@partial(jax.jit, static_argnums=0)
def train(steps: int, data: Any, seed: int, rate: float) -> Any:
    """Returns the variables after training on images of 32 x 32 pixels."""
    key = jax.random.key(seed)
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
    batches = draw_batches(key, len(data[1]), 32, steps)
    return fit(CNN(), CNN().init(key, data[0][:2]), adam, data, batches, key)[0]


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the accepted sizes with and without adaptive pooling, and accuracies by size."""
    digits = load_digits()
    run = partial(train, 50 if quick else 500, jax.tree.map(jnp.asarray, digits.train))

    def stacked(seeds: Sequence[int], rate: float) -> Any:
        trained = [run(seed, rate) for seed in seeds]
        return jax.tree.map(lambda *values: jnp.stack(values), *trained)

    losses = {
        rate: evaluate(CNN(), stacked(PILOT_SEEDS, rate), *digits.validation)[0].tolist()
        for rate in RATES
    }
    rate = best_rate(losses)
    variables, (images, labels) = stacked(seeds, rate), digits.test
    accuracy: dict[str, list[list[float]]] = {"as it is": [], "scaled back to 32": []}
    for size in SIZES:
        resized = jax.image.resize(images, (len(images), size, size), "linear")
        back = jax.image.resize(resized, (len(images), TRAINED, TRAINED), "linear")
        for arm, tested in zip(accuracy, (resized, back), strict=True):
            found = evaluate(CNN(), variables, tested, labels)[1]
            accuracy[arm].append(np.asarray(found, float).round(4).tolist())
    return {
        "accepted": {"adaptive": accepted(CNN()), "control": accepted(CNN(adaptive=False))},
        "accuracy": accuracy,
        "sizes": list(SIZES),
        "learning_rate": rate,
    }


def loss_at(results: Results, arm: str, size: int) -> float:
    """Returns the median over seeds of the accuracy at 32 pixels minus that at another size."""
    of, sizes = results["accuracy"], results["sizes"]
    whole, part = of["as it is"][sizes.index(TRAINED)], of[arm][sizes.index(size)]
    return statistics.median(a - b for a, b in zip(whole, part, strict=True))


def verdict(results: Results) -> Verdict:
    """Holds if all sizes from 24 pixels are accepted and the accuracy from 24 to 48 is close.

    In part if they are only accepted. Without adaptive pooling, 32 must be the only one accepted.
    """
    losses = {size: loss_at(results, "as it is", size) for size in NEAR}
    sizes, control = results["accepted"]["adaptive"], results["accepted"]["control"]
    reason = (
        f"All sizes from {min(sizes)} to {max(sizes)} pixels are accepted (without adaptive "
        f"pooling: {', '.join(map(str, control))}); against {TRAINED} pixels, the accuracy falls by "
        f"{', '.join(f'{100 * loss:.1f} points at {size}' for size, loss in losses.items())}."
    )
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
