"""Do CNNs also suit time series, and RNNs series and audio?

A CNN over time has one filter for all steps, and an RNN one formula. Both assume that neighbors
belong together. A multilayer perceptron (MLP) knows no neighbors, and has weights for each step.
All learn two tasks: series with a plateau, a rise or a fall at some time (Saito's cylinder, bell
and funnel), and ten kinds of sounds, as frames of spectrograms.

Then the values of all examples are permuted in one fixed way: the steps of a series, or all values
of a spectrogram. No information is lost, but neighbors are no longer neighbors. If CNN and RNN are
better because of their assumptions, they must lose their advantage. The MLP must not notice.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import COLORS, INK, Results, Verdict, is_larger, make_figure
from flaxdl.course.pixel_order import differences, permute, standardized
from flaxdl.course.training import (
    Data,
    Splits,
    Tuned,
    Variables,
    draw_batches,
    fit,
    in_parallel,
    tuned,
)
from flaxdl.data import LogMel, Sounds
from flaxdl.layers import GRU, Linear

CLAIM = "CNNs also suit time series; RNNs suit time series and audio."
EXPECTED = "holds"
SEEDS = 5

STEPS, SERIES = 48, 3  # steps of a series, kinds of series
SOUNDS = 10
TRAIN, VALIDATION, TEST = 1500, 500, 1000
BATCH = 32
RATES = (3e-3, 1e-2, 3e-2)
ORDERS = ("as is", "permuted")
MARGIN = 0.05  # of accuracy
PAIRS = (("series", "CNN"), ("series", "RNN"), ("sounds", "RNN"))
"""The pairs of a task and a network that the claim names."""


class CNN(nn.Module):
    """Two convolutions over time with pooling, the mean over time, and a linear layer.

    A convolution is one small linear layer for all windows of seven steps.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps [B, T, C] to logits [B, 10]."""
        for number in range(2):
            steps = x.shape[1]
            padded = jnp.pad(x, ((0, 0), (3, 3), (0, 0)))
            windows = jnp.concatenate([padded[:, i : i + steps] for i in range(7)], axis=-1)
            x = nn.relu(Linear(24, name=f"conv{number}")(windows))
            x = x.reshape(len(x), steps // 2, 2, -1).max(2)
        return Linear(SOUNDS, name="fc")(x.mean(1))


class RNN(nn.Module):
    """A GRU and a linear layer on its final state."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps [B, T, C] to logits [B, 10]."""
        _, state = GRU(24, name="rnn")(x)
        assert isinstance(state, jax.Array)
        return Linear(SOUNDS, name="fc")(state[-1])


class MLP(nn.Module):
    """Two hidden layers on all values of all steps."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps [B, T, C] to logits [B, 10]."""
        x = x.reshape(len(x), -1)
        for number in range(2):
            x = nn.relu(Linear(64, name=f"hidden{number}")(x))
        return Linear(SOUNDS, name="fc")(x)


MODELS = {"CNN": CNN(), "RNN": RNN(), "MLP": MLP()}


def make_series(count: int, seed: int) -> Data:
    """Draws noisy cylinders, bells and funnels, float32[N, T, 1], at random times."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % SERIES
    length = rng.integers(STEPS // 4, STEPS // 2 + 1, count)
    start = rng.integers(0, STEPS - length + 1)
    since = (np.arange(STEPS) - start[:, None]) / length[:, None]  # 0 to 1 during the event
    shapes = np.stack([np.ones_like(since), since, 1 - since])[label, np.arange(count)]
    height = rng.normal(4, 0.5, (count, 1))
    series = height * shapes * ((since >= 0) & (since < 1)) + rng.standard_normal(since.shape)
    return series[..., None].astype("f4"), label.astype("i4")


def load_series() -> Splits:
    """Returns series with labels."""
    return Splits(make_series(TRAIN, 0), make_series(VALIDATION, 1), make_series(TEST, 2))


def load_sounds() -> Splits:
    """Returns spectrograms of sounds as sequences of frames, float32[N, 32, 16], with labels."""
    fraction = VALIDATION / (TRAIN + VALIDATION)
    sounds = Sounds(train=TRAIN + VALIDATION, test=TEST, validation_fraction=fraction).load(seed=0)
    transform = LogMel(sample_rate=8000, n_fft=512, hop_length=256, n_mels=16)

    def prepare(split: Any) -> Data:
        parts = np.array_split(split.arrays()["inputs"], 10)
        images = [np.asarray(transform.normalize(jnp.asarray(part))) for part in parts]
        images = standardized(np.concatenate(images))  # [N, M, T, 1]
        return images[..., 0].swapaxes(1, 2), split.arrays()["label"]

    return Splits(prepare(sounds.train), prepare(sounds.validation), prepare(sounds.test))


TASKS = {"series": load_series, "sounds": load_sounds}


def train(
    model: nn.Module, steps: int, data: Data, variables: Variables, key: jax.Array, rate: jax.Array
) -> tuple[Variables, jax.Array]:
    """Trains with Adam; see `fit`."""
    batches = draw_batches(key, len(data[1]), BATCH, steps)
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return fit(model, variables, adam, data, batches, key)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by task, order, model and seed, and three series."""
    candidates = RATES[1:2] if quick else RATES
    found: dict[str, Any] = {"accuracy": {}, "learning_rates": {}}
    for task, load in TASKS.items():
        as_is = load()
        permuted = Splits(*((permute(inputs), labels) for inputs, labels in as_is))
        accuracy, rates = (found[part].setdefault(task, {}) for part in found)
        for order, splits in zip(ORDERS, (as_is, permuted), strict=True):

            def train_all(model: nn.Module, splits: Splits = splits) -> Tuned:
                run = partial(train, model, 100 if quick else 350, splits.train)
                return tuned(model, run, candidates, seeds, splits)

            results = in_parallel(train_all, MODELS.values())
            for name, best in zip(MODELS, results, strict=True):
                accuracy.setdefault(order, {})[name] = best.accuracy
                rates.setdefault(order, {})[name] = best.rate
    examples, _ = make_series(SERIES, seed=3)
    return found | {"examples": examples[..., 0].astype(float).round(2).tolist()}


def suits(results: Results, task: str, name: str) -> bool:
    """Returns True if a network is better than the MLP as long as values are not permuted.

    Permuting must hurt the network and not the MLP.
    """
    as_is, permuted = (results["accuracy"][task][order] for order in ORDERS)
    return (
        is_larger(differences(as_is[name], as_is["MLP"]), MARGIN)
        and is_larger(differences(as_is[name], permuted[name]), MARGIN)
        and not is_larger(differences(permuted[name], permuted["MLP"]), MARGIN)
        and not is_larger(differences(as_is["MLP"], permuted["MLP"]), MARGIN)
    )


def verdict(results: Results) -> Verdict:
    """Holds if all pairs of the claim suit each other, in part if some do."""
    parts = []
    for task, orders in results["accuracy"].items():
        medians = {n: [100 * statistics.median(orders[o][n]) for o in ORDERS] for n in MODELS}
        numbers = (f"{name} {a:.1f} % and {b:.1f} %" for name, (a, b) in medians.items())
        parts.append(f"{task}: {', '.join(numbers)}")
    suited = sum(suits(results, *pair) for pair in PAIRS)
    reason = f"Test accuracy as is and permuted (medians), {'; '.join(parts)}."
    outcomes = ("does not hold here", "holds in part", "holds in part", "holds")
    return Verdict(outcomes[suited], reason)


def draw(results: Results):
    """Draws a series of each kind, and the accuracy of all models for each task."""
    figure = make_figure(3, width=3.0, height=3.2)
    examples, *panels = figure.axes
    for number, series in enumerate(results["examples"]):
        examples.plot(np.array(series) - 9 * number, color=COLORS[3 + number], linewidth=1.5)
    examples.set(title="plateau, rise and fall", xlabel="time (steps)", ylabel="value", yticks=[])
    for axes, (task, orders) in zip(panels, results["accuracy"].items(), strict=True):
        for number, name in enumerate(MODELS):
            for place, order in enumerate(ORDERS):
                values = [100 * value for value in orders[order][name]]
                x, color = place + 0.28 * (number - 1), COLORS[number]
                label = name if place == 0 else None
                axes.bar(x, np.median(values), 0.26, color=color, alpha=0.5, label=label)
                axes.plot([x] * len(values), values, "o", color=color, markersize=3)
        chance = 100 / (SERIES if task == "series" else SOUNDS)
        axes.axhline(chance, linestyle="--", linewidth=1, color=INK)
        axes.set_xticks(range(len(ORDERS)), ORDERS)
        axes.set(title=task, ylabel="test accuracy (%)", ylim=(0, 115), yticks=range(0, 101, 20))
        axes.set_axisbelow(True)
    panels[0].legend(fontsize=8, loc="upper center", ncols=3, columnspacing=1, handlelength=1)
    return figure
