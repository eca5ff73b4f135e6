"""Does a cosine schedule help, compared with a constant learning rate?

Two small networks, an MLP and a Transformer block, classify handwritten digits. They are trained by
Adam with a constant learning rate and with one that falls to zero along half a cosine, each with
its own best initial rate.

The control uses PyTorch's `CosineAnnealingLR` with a T_max of half the steps, an easy mistake:
after T_max the learning rate rises again, and the training ends at the full rate.
"""

import itertools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import COLORS, Results, Verdict, is_larger, make_figure
from flaxdl.course.norm_batch_size import NETS
from flaxdl.course.training import Tuned, draw_batches, fit, in_parallel, load_digits, tuned

CLAIM = "A cosine schedule of the learning rate improves the result."
EXPECTED = "in part: a little, where the constant rate leaves noise"
SEEDS = 5

ARMS = ("constant", "cosine", "cosine, T_max too small")
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BATCH = 8
MARGIN = 0.01  # of accuracy


def schedule(arm: str, rate: jax.Array, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    if arm == "constant":
        return lambda step: rate
    period = steps if arm == "cosine" else steps / 2
    return lambda step: rate * (1 + jnp.cos(jnp.pi * step / period)) / 2


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns test accuracies and chosen learning rates by net and schedule."""
    digits, steps = load_digits(), 100 if quick else 1000
    found = {"accuracy": {}, "learning_rates": {}}

    def train(arm, model, variables, key, rate):
        adam = optax.adam(schedule(arm, rate, steps))
        batches = draw_batches(key, len(digits.train[1]), BATCH, steps)
        return fit(model, variables, adam, digits.train, batches, key)

    def measure_one(case: tuple[str, str]) -> Tuned:
        net, arm = case
        model = NETS[net]("LayerNorm")
        return tuned(model, partial(train, arm, model), RATES, seeds, digits)

    cases = list(itertools.product(NETS, ARMS))
    for (net, arm), best in zip(cases, in_parallel(measure_one, cases), strict=True):
        found["accuracy"].setdefault(net, {})[arm] = best.accuracy
        found["learning_rates"].setdefault(net, {})[arm] = best.rate
    return found


def gains(results: Results, net: str, arm: str) -> list[float]:
    """Returns, for each seed, the accuracy with a schedule minus that at a constant rate."""
    of = results["accuracy"][net]
    return [with_ - without for with_, without in zip(of[arm], of["constant"], strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if the cosine helps both networks, in part if one; the control must help neither."""
    parts = [
        f"{100 * np.median(gains(results, net, arm)):.1f} points in the {net} with the {arm}"
        for net in NETS
        for arm in ARMS[1:]
    ]
    reason = f"The gain over a constant rate is {', '.join(parts)} (medians of test accuracy)."
    helps = [is_larger(gains(results, net, "cosine"), MARGIN) for net in NETS]
    control = any(is_larger(gains(results, net, ARMS[2]), MARGIN) for net in NETS)
    if control or not any(helps):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if all(helps) else "holds in part", reason)


def draw(results: Results):
    """Draws the schedules, and the test accuracy of each network, a point for each seed."""
    figure = make_figure(2, width=4.0, height=3.2)
    left, right = figure.axes
    steps = np.arange(101)
    for number, arm in enumerate(ARMS):
        rates = [np.asarray(schedule(arm, jnp.ones(()), 100)(step)) for step in steps]
        left.plot(steps, rates, color=COLORS[number], label=arm)
        for place, net in enumerate(NETS):
            values = [100 * value for value in results["accuracy"][net][arm]]
            x = place + 0.25 * (number - 1)
            right.bar(x, np.median(values), 0.2, color=COLORS[number], alpha=0.5)
            right.plot([x] * len(values), values, "o", color=COLORS[number])
    left.set(xlabel="steps (%)", ylabel="learning rate (of the first)", ylim=(-0.03, 1.4))
    left.legend(fontsize=8, loc="upper left")
    right.set_xticks(range(len(NETS)), list(NETS))
    right.set(ylabel="test accuracy (%)", ylim=(85, 100))
    right.set_axisbelow(True)
    return figure
