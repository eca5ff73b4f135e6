"""Does clipping the norm of the gradients prevent them from exploding?

Two networks are trained by SGD without warmup, with many learning rates, with and without clipping
the norm of the gradient to 1. The first is an RNN whose recurrent matrix has a spectral radius of
1.2: a gradient may grow by a fifth with each of the 40 steps that it passes. The second is a
post-norm Transformer of two blocks that reads a digit as eight rows. A step with a loss of more
than twice that of guessing, or none at all, counts as an explosion.

The control is an RNN with a spectral radius of 0.5, whose gradients vanish instead.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.course.training import Splits, draw_batches, fit, load_digits, sweep, test_accuracy
from flaxdl.layers import RNN, Linear, TransformerBlock

CLAIM = "Clipping prevents exploding gradients in RNNs and Transformers."
EXPECTED = "holds"
SEEDS = 5

LENGTH, WIDTH, BATCH = 40, 32, 32
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ARMS = ("clipped", "not clipped")
HIGH = 0.3  # learning rate at which explosions are counted
FEWER = 0.1  # of the steps


class Reader(nn.Module):
    """Classifier of the last state of an RNN."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps [B, T, 1] to logits [B, 2]."""
        outputs, _ = RNN(WIDTH, name="rnn")(x)
        return Linear(2, name="fc")(outputs[:, -1])


class Transformer(nn.Module):
    """Two post-norm blocks, and a linear layer on the mean."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, 8, 8] to logits [B, 10]."""
        positions = self.param("positions", nn.initializers.normal(0.5), (8, WIDTH))
        x = Linear(WIDTH, name="rows")(images) + positions
        for number in range(2):
            x = TransformerBlock(WIDTH, 2, 2 * WIDTH, 0.0, name=f"block{number}")(x)
        return Linear(10, name="fc")(x.mean(1))


def make_sequences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws sequences [count, LENGTH, 1], and whether the first half has the larger sum."""
    x = np.random.default_rng(seed).standard_normal((count, LENGTH, 1)).astype("f4")
    halves = x.reshape(count, 2, -1).sum(-1)
    return x, (halves[:, 0] > halves[:, 1]).astype("i4")


class Task(NamedTuple):
    """A network and its data."""

    model: nn.Module
    splits: Splits
    classes: int
    radius: float | None = None
    """Spectral radius of the recurrent matrix at the start."""


def start(task: Task, variables: Any) -> Any:
    """Returns variables whose recurrent matrix, if any, has the spectral radius of the task."""
    if task.radius is None:
        return variables
    params = variables["params"]
    weight = params["rnn"]["weight_hh_l0"]
    weight = weight * task.radius / jnp.abs(jnp.linalg.eigvals(weight)).max()
    return {"params": params | {"rnn": params["rnn"] | {"weight_hh_l0": weight}}}


def make_tasks() -> dict[str, Task]:
    """Returns the tasks by name; the last one is the control."""
    sequences = Splits(*(make_sequences(count, n) for n, count in enumerate((4096, 360, 360))))
    return {
        "RNN, radius 1.2": Task(Reader(), sequences, 2, 1.2),
        "Transformer": Task(Transformer(), load_digits(), 10),
        "RNN, radius 0.5": Task(Reader(), sequences, 2, 0.5),
    }


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns accuracy by task, clipping, rate and seed, explosions, and losses by step."""
    steps = 100 if quick else 400
    found = {"accuracy": {}, "explosions": {}, "losses": {}}
    for name, task in make_tasks().items():
        for arm in ARMS:

            def train(variables, key, rate, task=task, arm=arm):
                clip = optax.clip_by_global_norm(1.0) if arm == "clipped" else optax.identity()
                batches = draw_batches(key, len(task.splits.train[1]), BATCH, steps)
                sgd = optax.chain(clip, optax.sgd(rate))
                return fit(task.model, start(task, variables), sgd, task.splits.train, batches, key)

            trained, losses = sweep(task.model, train, RATES, seeds, task.splits.train[0])
            flat = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), trained)
            correct = np.reshape(test_accuracy(task.model, flat, task.splits), (len(RATES), -1))
            losses = np.asarray(losses)  # [rates, seeds, steps]
            exploded = ~(losses <= 2 * math.log(task.classes))  # also those that are not numbers
            high = losses[RATES.index(HIGH), 0]
            values = {
                "accuracy": correct.tolist(),
                "explosions": exploded.mean(-1).astype(float).round(4).tolist(),
                "losses": [round(float(x), 3) if np.isfinite(x) else None for x in high],
            }
            for key, value in values.items():
                found[key].setdefault(name, {})[arm] = value
    return found | {"rates": list(RATES)}


def prevented(results: Results, task: str) -> list[float]:
    """Returns, for each seed, the fraction of steps that explode only without clipping."""
    at = results["rates"].index(HIGH)
    clipped, plain = (results["explosions"][task][arm][at] for arm in ARMS)
    return [without - with_ for with_, without in zip(clipped, plain, strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if clipping prevents explosions in the RNN and the Transformer, in part if in one.

    In the RNN with a small spectral radius, there must be none to prevent.
    """
    *tasks, control = results["explosions"]
    at = results["rates"].index(HIGH)
    parts = [
        f"{100 * np.median(results['explosions'][task]['not clipped'][at]):.0f} % and "
        f"{100 * np.median(results['explosions'][task]['clipped'][at]):.0f} % ({task})"
        for task in (*tasks, control)
    ]
    reason = (
        f"At a learning rate of {HIGH:g}, so many steps explode without and with clipping: "
        f"{', '.join(parts)} (medians)."
    )
    prevents = [is_larger(prevented(results, task), FEWER) for task in tasks]
    if is_larger(prevented(results, control), FEWER) or not any(prevents):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if all(prevents) else "holds in part", reason)


def draw(results: Results):
    """Draws the loss by step for seed 0, and the accuracy by learning rate, for each task."""
    tasks = list(results["accuracy"])[:2]
    figure = make_figure(3, width=2.5, height=2.7)
    left, *others = figure.axes
    for arm in reversed(ARMS):
        losses = results["losses"][tasks[0]][arm]
        left.plot([np.nan if x is None else x for x in losses], linewidth=1, label=arm)
    left.set(xlabel="step", ylabel="training loss", title=f"RNN, rate {HIGH:g}")
    left.legend(fontsize=8)
    for axes, task in zip(others, tasks, strict=True):
        for arm in reversed(ARMS):
            by_seed = zip(*results["accuracy"][task][arm], strict=True)
            values = [[100 * value for value in by_rate] for by_rate in by_seed]
            draw_range(axes, results["rates"], values, arm)
        axes.set(xscale="log", xlabel="learning rate", title=task.partition(",")[0], ylim=(0, 103))
    others[0].set_ylabel("test accuracy (%)")
    return figure
