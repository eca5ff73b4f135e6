"""Do CNNs suit images and spectrograms, and is it because of where the pixels are?

A CNN assumes that neighboring pixels belong together, and that a pattern means the same everywhere.
A multilayer perceptron (MLP) does not know which pixels are neighbors. Both learn two tasks: digits
drawn in many typefaces, and spectrograms of ten kinds of sounds, such as tones and chirps.

Then all images are scrambled by one fixed permutation of the pixels. No information is lost, as the
permutation could be undone, but neighbors are no longer neighbors. If the CNN is better because of
its assumption, it must lose its advantage. The MLP is the control: it must not notice.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import (
    COLORS,
    INK,
    PILOT_SEEDS,
    Results,
    Verdict,
    best_rate,
    is_larger,
    make_figure,
)
from flaxdl.data import LogMel, Sounds, Tfds
from flaxdl.layers import Linear, max_pool

CLAIM = "CNNs suit images, spectrograms and other spatial data."
EXPECTED = "holds; permuting the pixels hurts the CNN alone"
SEEDS = 5

BATCH, HELD_OUT = 64, 500
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
ORDERS = ("as is", "permuted")
MARGIN = 0.05  # of accuracy


def patches(x: jax.Array) -> jax.Array:
    """Returns the 3 x 3 neighborhood of each pixel of [B, H, W, C], as [B, H, W, 9 C]."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [(row, column) for row in range(3) for column in range(3)]
    return jnp.concatenate([padded[:, r : r + height, c : c + width] for r, c in shifts], axis=-1)


class CNN(nn.Module):
    """Two convolutions with pooling, and a linear layer.

    A convolution is one small linear layer for all patches; inside `scan` on a CPU, this form of it
    takes a tenth of the time of `Conv`.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images [B, H, W, 1] to logits [B, 10]."""
        for number, channels in enumerate((8, 16)):
            x = nn.relu(Linear(channels, name=f"conv{number}")(patches(x)))
            x = max_pool(x, 2)
        return Linear(10, name="fc")(x.reshape(len(x), -1))


class MLP(nn.Module):
    """Two hidden layers, with thirteen times as many parameters as the CNN."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images [B, H, W, 1] to logits [B, 10]."""
        x = x.reshape(len(x), -1)
        for number in range(2):
            x = nn.relu(Linear(128, name=f"hidden{number}")(x))
        return Linear(10, name="fc")(x)


MODELS = {"CNN": CNN(), "MLP": MLP()}


def standardized(images: np.ndarray) -> np.ndarray:
    """Scales each image [H, W, 1] to mean 0 and variance 1."""
    images = images - images.mean((1, 2, 3), keepdims=True)
    return images / (images.std((1, 2, 3), keepdims=True) + 1e-3)


def digits_of_typefaces() -> tuple[dict, dict]:
    """Returns training and test images of digits in gray, float32[N, 16, 16, 1], with labels."""
    splits = Tfds("glyphs", validation="test").load(seed=0)

    def prepare(arrays: dict) -> dict:
        chosen = arrays["label"] < 10
        gray = arrays["inputs"][chosen].astype(np.float32).mean(-1)
        halved = gray.reshape(-1, 16, 2, 16, 2).mean((2, 4))[..., None]
        return {"inputs": standardized(halved), "label": arrays["label"][chosen]}

    assert splits.validation is not None
    return prepare(splits.train.arrays()), prepare(splits.validation.arrays())


def spectrograms() -> tuple[dict, dict]:
    """Returns training and test spectrograms of sounds, float32[N, 16, 16, 1], with labels."""
    splits = Sounds(train=5001, test=1000, validation_fraction=1 / 5001).load(seed=0)
    transform = LogMel(sample_rate=8000, n_fft=512, hop_length=512, n_mels=16)

    def prepare(arrays: dict) -> dict:
        parts = np.array_split(arrays["inputs"], 10)
        images = [np.asarray(transform.normalize(jnp.asarray(part))) for part in parts]
        return {"inputs": np.concatenate(images), "label": arrays["label"]}

    assert splits.test is not None
    return prepare(splits.train.arrays()), prepare(splits.test.arrays())


TASKS = {"digits": digits_of_typefaces, "spectrograms": spectrograms}


@partial(jax.jit, static_argnums=(0, 1))
def train(model: nn.Module, steps: int, data: Any, seeds: jax.Array, rates: jax.Array) -> Any:
    """Trains once per seed and rate; returns validation losses and test accuracies.

    Args:
        model: network for images.
        steps: number of steps of Adam.
        data: training examples, of which the last are held out, and test examples.
        seeds: int[runs].
        rates: learning rates, float[runs].
    """
    examples, test = data
    fitted = jax.tree.map(lambda array: array[:-HELD_OUT], examples)
    held_out = jax.tree.map(lambda array: array[-HELD_OUT:], examples)

    def evaluate(params: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
        logits: Any = model.apply({"params": params}, batch["inputs"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), (logits.argmax(-1) == batch["label"]).mean()

    def run(seed_and_rate: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        seed, rate = seed_and_rate
        init_key, data_key = jax.random.split(jax.random.key(seed))
        params = model.init(init_key, examples["inputs"][:1])["params"]
        adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(fitted["label"]))
            batch = jax.tree.map(lambda array: array[rows], fitted)
            gradients = jax.grad(lambda p: evaluate(p, batch)[0])(params)
            updates, state = adam.update(gradients, state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(data_key, steps)
        (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), keys)
        return evaluate(params, held_out)[0], evaluate(params, test)[1]

    return jax.lax.map(run, (seeds, rates))


def permute(images: np.ndarray) -> np.ndarray:
    """Permutes the pixels of all images in the same way."""
    order = np.random.default_rng(0).permutation(images[0].size)
    return images.reshape(len(images), -1)[:, order].reshape(images.shape)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by task, order of pixels, model and seed, and examples."""
    accuracy, rates, examples = {}, {}, {}
    for task, load in TASKS.items():
        for order in ORDERS:
            change: Callable = permute if order == "permuted" else np.asarray
            data = [
                {"inputs": jnp.asarray(change(arrays["inputs"])), "label": arrays["label"]}
                for arrays in load()
            ]
            example = np.asarray(data[1]["inputs"][3, ..., 0])
            examples.setdefault(task, {})[order] = example.round(2).tolist()
            for name, model in MODELS.items():
                run = partial(train, model, 150 if quick else 600, data)
                grid = [(seed, rate) for rate in RATES for seed in PILOT_SEEDS]
                losses, _ = run(*map(jnp.asarray, zip(*grid, strict=True)))
                by_rate = np.asarray(losses).reshape(len(RATES), -1).tolist()
                rate = best_rate(dict(zip(RATES, by_rate, strict=True)))
                _, correct = run(jnp.asarray(seeds), jnp.full(len(seeds), rate))
                correct = np.asarray(correct).round(4).tolist()
                accuracy.setdefault(task, {}).setdefault(order, {})[name] = correct
                rates.setdefault(task, {}).setdefault(order, {})[name] = rate
    return {"accuracy": accuracy, "learning_rates": rates, "examples": examples}


def differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Returns, for each seed, the first accuracy minus the second."""
    return [a - b for a, b in zip(first, second, strict=True)]


def suits(results: Results, task: str) -> bool:
    """Returns True if the CNN is better than the MLP, and if permuting hurts the CNN alone."""
    as_is, permuted = (results["accuracy"][task][order] for order in ORDERS)
    is_better = is_larger(differences(as_is["CNN"], as_is["MLP"]), MARGIN)
    is_hurt = is_larger(differences(as_is["CNN"], permuted["CNN"]), MARGIN)
    control = is_larger(differences(as_is["MLP"], permuted["MLP"]), MARGIN)
    return is_better and is_hurt and not control


def verdict(results: Results) -> Verdict:
    """Holds if the CNN suits both tasks, in part if it suits one of them."""
    parts = []
    for task, orders in results["accuracy"].items():
        (cnn, mlp), (cnn_permuted, mlp_permuted) = (
            [100 * statistics.median(orders[order][name]) for name in MODELS] for order in ORDERS
        )
        parts.append(
            f"the CNN recognizes {cnn:.1f} % of the {task} as they are and {cnn_permuted:.1f} % "
            f"permuted, the MLP {mlp:.1f} % and {mlp_permuted:.1f} %"
        )
    suited = sum(suits(results, task) for task in results["accuracy"])
    reason = f"In the test (medians), {'; '.join(parts)}."
    return Verdict(("does not hold here", "holds in part", "holds")[suited], reason)


def draw(results: Results):
    """Draws an example as is and permuted, and the accuracy of both models, for each task."""
    figure = make_figure(4, width=2.0, height=3.2)
    grid = figure.axes[0].get_gridspec()
    assert grid is not None
    grid.set_width_ratios((1, 2, 1, 2))
    for column, (task, orders) in enumerate(results["accuracy"].items()):
        pictures, bars = figure.axes[2 * column : 2 * column + 2]
        as_is, permuted = (np.array(results["examples"][task][order]) for order in ORDERS)
        if task == "spectrograms":
            as_is = as_is[::-1]  # low frequencies at the bottom
        gap = np.full((3, as_is.shape[1]), np.nan)
        pictures.imshow(np.concatenate([as_is, gap, permuted]), cmap="viridis")
        pictures.set_axis_off()
        for number, name in enumerate(MODELS):
            for place, order in enumerate(ORDERS):
                values = [100 * value for value in orders[order][name]]
                x = place + 0.4 * (number - 0.5)
                label = name if place == 0 else None
                color = COLORS[number]
                bars.bar(x, np.median(values), 0.36, color=color, alpha=0.5, label=label)
                bars.plot([x] * len(values), values, "o", color=color, markersize=3)
        bars.axhline(10, linestyle="--", linewidth=1, color=INK)
        bars.set_xticks(range(len(ORDERS)), ORDERS)
        bars.set(title=task, ylabel="test accuracy (%)", ylim=(0, 100))
        bars.set_axisbelow(True)
    figure.axes[1].legend(fontsize=8, loc="upper right")
    return figure
