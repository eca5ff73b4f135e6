"""Do more data and a larger model give better results?

A small decoder-only Transformer learns to predict the next letter of names in 25 languages. There
are three widths, and three amounts of text. All are trained for equally many steps, and evaluated
where the loss on validation text is lowest, since a large model that sees little text again and
again becomes worse. A larger width costs more compute in each step.

The control is text whose letters are shuffled. There is nothing to be learned from it but how
frequent each letter is, so that more of it must not help.
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

from flaxdl.course.experiment import (
    PILOT_SEEDS,
    Results,
    Verdict,
    best_rate,
    draw_range,
    is_larger,
    make_figure,
)
from flaxdl.data import Tfds
from flaxdl.layers import LayerNorm, Linear, MultiHeadAttention, causal_mask

CLAIM = "Transformers scale: more data and more compute give better results."
EXPECTED = "in part at this scale"
SEEDS = 5

LETTERS = "abcdefghijklmnopqrstuvwxyz \n"  # and one for all others
WIDTHS = (4, 12, 36)
AMOUNTS = (1000, 5000, 25000)  # letters
LENGTH, BATCH, EVALUATIONS = 16, 32, 6
RATES = (3e-3, 1e-2, 3e-2)
MARGIN = 0.05  # nats per letter


class Decoder(nn.Module):
    """One pre-norm Transformer block with a causal mask."""

    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps letters int32[B, T] to logits of the next letters [B, T, 29]."""
        x = nn.Embed(len(LETTERS) + 1, self.width, name="embedding")(tokens)
        x += self.param("positions", nn.initializers.normal(0.1), (LENGTH, self.width))
        normed = LayerNorm(name="norm1")(x)
        mask = causal_mask(tokens.shape[1])
        x += MultiHeadAttention(self.width, 2, name="attn")(normed, normed, normed, mask)
        hidden = nn.gelu(Linear(4 * self.width, name="ff1")(LayerNorm(name="norm2")(x)))
        x += Linear(self.width, name="ff2")(hidden)
        return Linear(len(LETTERS) + 1, name="head")(LayerNorm(name="norm3")(x))


@cache
def load_text() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the letters of names, one per line: for training, validation and test, int32[N]."""
    names = Tfds("languages", validation="test").load(seed=0).train.arrays()["inputs"]
    order = np.random.default_rng(0).permutation(len(names))
    text = "\n".join(str(names[place]) for place in order)
    numbers = {letter: number for number, letter in enumerate(LETTERS)}
    letters = np.array([numbers.get(letter, len(LETTERS)) for letter in text], np.int32)
    return letters[20000:], letters[:10000], letters[10000:20000]


@partial(jax.jit, static_argnums=(0, 1))
def train(width: int, steps: int, texts: Any, seed: int, rate: float, amount: int) -> jax.Array:
    """Trains a model; returns validation and test losses in nats per letter, [evaluations, 2].

    Args:
        width: number of features.
        steps: number of steps.
        texts: letters for training, validation and test.
        seed: seed of the initial parameters, of the batches and of the part of the text.
        rate: initial learning rate of Adam.
        amount: number of letters to train on.
    """
    text, *held_out = texts
    init_key, place_key, data_key = jax.random.split(jax.random.key(seed), 3)
    model = Decoder(width)
    first = jax.random.randint(place_key, (), 0, len(text) - amount)
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(params: Any, windows: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    def step(carry, key):
        params, state = carry
        starts = first + jax.random.randint(key, (BATCH, 1), 0, amount - LENGTH)
        gradients = jax.grad(loss)(params, text[starts + jnp.arange(LENGTH + 1)])
        updates, state = adam.update(gradients, state)
        return (optax.apply_updates(params, updates), state), None

    def stage(carry, keys):
        carry, _ = jax.lax.scan(step, carry, keys)
        windows = [part[: 500 * (LENGTH + 1)].reshape(500, -1) for part in held_out]
        return carry, jnp.stack([loss(carry[0], part) for part in windows])

    params: Any = model.init(init_key, text[:LENGTH][None])["params"]
    keys = jax.random.split(data_key, (EVALUATIONS, steps // EVALUATIONS))
    return jax.lax.scan(stage, (params, adam.init(params)), keys)[1]


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns test losses by width, amount of text and seed, for text and for shuffled text."""
    texts = jax.tree.map(jnp.asarray, load_text())
    shuffled = [jax.random.permutation(jax.random.key(0), part) for part in texts]

    def run(texts: Any, width: int, seed: int, rate: float, amount: int) -> tuple[float, float]:
        losses = np.asarray(train(width, 60 if quick else 300, tuple(texts), seed, rate, amount))
        validation, test = losses[losses[:, 0].argmin()].astype(float)
        return validation, round(test, 4)

    found: dict[str, Any] = {"losses": {}, "learning_rates": {}}
    for width in WIDTHS:
        pilots = {
            rate: [run(texts, width, seed, rate, AMOUNTS[-1])[0] for seed in PILOT_SEEDS]
            for rate in RATES
        }
        rate = found["learning_rates"][str(width)] = best_rate(pilots)
        found["losses"][str(width)] = [
            [run(texts, width, seed, rate, amount)[1] for seed in seeds] for amount in AMOUNTS
        ]
    rate = found["learning_rates"][str(WIDTHS[-1])]
    found["control"] = [
        [run(shuffled, WIDTHS[-1], seed, rate, amount)[1] for seed in seeds]
        for amount in AMOUNTS[1:]
    ]
    return found


def gains(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Returns, for each seed, by how much the loss falls."""
    return [a - b for a, b in zip(before, after, strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if each step of data helps the largest model, and each step of width with most data.

    In part if only data or only width helps. More shuffled text must not help.
    """
    losses = results["losses"]
    by_amount = losses[str(WIDTHS[-1])]
    by_width = [losses[str(width)][-1] for width in WIDTHS]
    data, width = (
        [gains(rows[place], rows[place + 1]) for place in range(len(rows) - 1)]
        for rows in (by_amount, by_width)
    )
    control = gains(*results["control"])
    numbers = [
        ", ".join(f"{statistics.median(step):.2f}" for step in steps)
        for steps in (data, width, [control])
    ]
    reason = (
        f"Five times the text lowers the loss of the largest model by {numbers[0]} nats per "
        f"letter, three times the width lowers it by {numbers[1]}, and five times the shuffled "
        f"text by {numbers[2]} (medians)."
    )
    helps = [all(is_larger(step, MARGIN) for step in steps) for steps in (data, width)]
    if is_larger(control, MARGIN) or not any(helps):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if all(helps) else "holds in part", reason)


def draw(results: Results):
    """Draws the test loss by the amount of text, a line for each width."""
    figure = make_figure(width=5.0)
    (axes,) = figure.axes
    for width in WIDTHS:
        by_seed = list(zip(*results["losses"][str(width)], strict=True))
        draw_range(axes, AMOUNTS, by_seed, f"width {width}")
    axes.set(xscale="log", xlabel="letters of text", ylabel="test loss (nats per letter)")
    axes.set_xticks(AMOUNTS, [f"{amount}" for amount in AMOUNTS])
    axes.minorticks_off()
    axes.legend(fontsize=9)
    return figure
