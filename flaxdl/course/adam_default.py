"""Is Adam the best default optimizer?

A small CNN and a Transformer block classify handwritten digits, trained by Adam and by SGD with
momentum 0.9, with learning rates from 1e-4 to 1. A good default needs two things. It should come
close to the best result without tuning: this is Adam at 1e-3, its default, against SGD at its own
best learning rate. And a wide range of learning rates should be good, in case 1e-3 is not.

The control is SGD at 1e-3, PyTorch's default for it.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax

from flaxdl.course.experiment import Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.course.norm_batch_size import Transformer
from flaxdl.course.training import draw_batches, fit, load_digits, tuned
from flaxdl.layers import Conv, Linear, max_pool

CLAIM = "Adam is usually the best default optimizer."
EXPECTED = "in part: it needs less tuning, and tuned SGD is as good for the CNN"
SEEDS = 5

OPTIMIZERS = {"Adam": optax.adam, "SGD with momentum": partial(optax.sgd, momentum=0.9)}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
DEFAULT = 1e-3
BATCH = 32
CLOSE = 0.02  # of accuracy
MARGIN = 1  # learning rates, which is a factor of three


class CNN(nn.Module):
    """Two convolutions and a linear layer."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, 8, 8] to logits [B, 10]."""
        x = nn.relu(Conv(8, 3, padding=1, name="conv1")(images[..., None]))
        x = nn.relu(Conv(8, 3, padding=1, name="conv2")(max_pool(x, 2)))
        return Linear(10, name="fc")(x.reshape(len(x), -1))


NETS = {"CNN": CNN(), "Transformer": Transformer("LayerNorm")}


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by net, optimizer, learning rate and seed, and the best rates."""
    digits, steps = load_digits(), 100 if quick else 500
    found = {"accuracy": {}, "learning_rates": {}}

    def train(model, optimizer, variables, key, rate):
        batches = draw_batches(key, len(digits.train[1]), BATCH, steps)
        return fit(model, variables, optimizer(rate), digits.train, batches, key)

    for net, model in NETS.items():
        for name, optimizer in OPTIMIZERS.items():
            best = tuned(model, partial(train, model, optimizer), RATES, seeds, digits)
            found["accuracy"].setdefault(net, {})[name] = best.by_rate
            found["learning_rates"].setdefault(net, {})[name] = best.rate
    return found | {"rates": list(RATES)}


def shortfalls(results: Results, net: str, optimizer: str) -> list[float]:
    """Returns, for each seed, the accuracy of SGD at its best rate minus that at the default."""
    accuracy, rates = results["accuracy"][net], results["rates"]
    best = accuracy["SGD with momentum"][
        rates.index(results["learning_rates"][net]["SGD with momentum"])
    ]
    default = accuracy[optimizer][rates.index(DEFAULT)]
    return [tuned - untuned for tuned, untuned in zip(best, default, strict=True)]


def good_rates(results: Results, net: str, optimizer: str) -> list[int]:
    """Returns, for each seed, the number of rates within two points of the best of both."""
    by_seed = {
        name: list(zip(*by_rate, strict=True)) for name, by_rate in results["accuracy"][net].items()
    }
    best = [max(map(max, values)) for values in zip(*by_seed.values(), strict=True)]
    return [
        sum(value >= top - CLOSE for value in values)
        for values, top in zip(by_seed[optimizer], best, strict=True)
    ]


def verdict(results: Results) -> Verdict:
    """Holds if untuned Adam is close to tuned SGD, and has more good rates, in both networks.

    In part if only the first is true. Untuned SGD must not be close to tuned SGD in both.
    """

    def is_close(optimizer: str) -> bool:
        return all(np.median(shortfalls(results, net, optimizer)) <= CLOSE for net in NETS)

    more, parts = [], []
    for net in NETS:
        adam, sgd = (good_rates(results, net, optimizer) for optimizer in OPTIMIZERS)
        more.append(is_larger([a - s for a, s in zip(adam, sgd, strict=True)], MARGIN))
        lost = [100 * np.median(shortfalls(results, net, optimizer)) for optimizer in OPTIMIZERS]
        parts.append(
            f"in the {net}, Adam at {DEFAULT:g} loses {lost[0]:.1f} points against tuned SGD (SGD "
            f"at {DEFAULT:g}: {lost[1]:.1f}), and {np.median(adam):g} learning rates are good for "
            f"Adam, {np.median(sgd):g} for SGD"
        )
    reason = f"I{'; '.join(parts)[1:]} (medians)."
    if is_close("SGD with momentum") or not is_close("Adam"):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if all(more) else "holds in part", reason)


def draw(results: Results):
    """Draws the test accuracy by learning rate, a panel for each network."""
    figure = make_figure(len(NETS), width=3.4, height=2.9)
    for axes, net in zip(figure.axes, NETS, strict=True):
        for optimizer in OPTIMIZERS:
            by_seed = zip(*results["accuracy"][net][optimizer], strict=True)
            values = [[100 * value for value in by_rate] for by_rate in by_seed]
            draw_range(axes, results["rates"], values, optimizer)
        axes.set(xscale="log", xlabel="learning rate", title=net, ylim=(0, 103))
    figure.axes[0].set_ylabel("test accuracy (%)")
    figure.axes[0].legend(fontsize=9, loc="lower center")
    return figure
