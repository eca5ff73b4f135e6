"""Does a single vector between encoder and decoder lose information?

An encoder-decoder without attention reads a sequence, and all that the decoder gets is one vector
of fixed size, the encoder's final state. The task is to reverse strings of 1 to 16 random letters
out of 8. Each letter is 3 bits of information, and none can be guessed from the others. The
decoder's cross-entropy tells how many of these bits it received: the bits of the string minus those
that are missing when the decoder predicts each letter, given the right letters before it.

Without loss, the bits received are the bits of the string. A bottleneck is a ceiling, which rises
with the size of the vector. Short strings must pass, and the same network must pass long ones with
attention, where the decoder reads all outputs of the encoder. One arm is trained four times as
long, since a network that has not learned the task receives few bits, too.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxdl.course.experiment import INK, Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.course.seeds_and_rates import Logits, choose_rates, train_seeds, trainer
from flaxdl.models import Seq2SeqRNN

CLAIM = "The fixed-size vector between a recurrent encoder and decoder loses information."
EXPECTED = "holds"
SEEDS = 5

LETTERS, LONGEST, BATCH = 8, 16, 32
END, START = 0, LETTERS + 1  # token ids; letters are 1 to LETTERS
BITS = math.log2(LETTERS)
RATES = (5e-3, 1e-2, 2e-2)
LENGTHS = (2, 4, 6, 8, 12, 16)  # of test strings
TEST = 128  # strings of each length
MARGIN = 0.1  # fraction of the string's bits


@dataclass(frozen=True)
class Arm:
    """Network and amount of training."""

    size: int
    attention: bool = False
    longer: int = 1


ARMS = {
    "vector of 8": Arm(8),
    "vector of 32": Arm(32),
    "vector of 32, trained 4 times as long": Arm(32, longer=4),
    "32 with attention": Arm(32, attention=True),
}


class Reverser(nn.Module):
    """Encoder-decoder with vectors of `size` features."""

    size: int
    """Size of the vector."""
    attention: bool
    """Dot-product attention of the decoder."""

    @nn.compact
    def __call__(self, strings: jax.Array, lengths: jax.Array, targets: jax.Array) -> jax.Array:
        """Maps strings int32[B, T] and targets int32[B, T + 1] to logits [B, T + 1, tokens]."""
        model = Seq2SeqRNN(
            vocab_size=LETTERS + 2,
            embedding_size=16,
            hidden_size=self.size,
            bidirectional=False,
            attention="dot" if self.attention else None,
            name="model",
        )
        return model(strings, targets=targets, lengths=lengths)


def make_strings(key: jax.Array, lengths: jax.Array):
    """Draws strings of these lengths int32[B]; returns the inputs of `Reverser` and its labels."""
    letters = jax.random.randint(key, (len(lengths), LONGEST), 1, LETTERS + 1)
    steps = jnp.arange(LONGEST)
    strings = jnp.where(steps < lengths[:, None], letters, END)
    places = jnp.maximum(lengths[:, None] - 1 - steps, 0)
    reverse = jnp.take_along_axis(letters, places, axis=1)
    labels = jnp.where(steps < lengths[:, None], reverse, END)
    labels = jnp.pad(labels, ((0, 0), (0, 1)))  # ends with END
    targets = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    return (strings, lengths, targets), labels


def draw_batch(key: jax.Array, _: jax.Array):
    """Draws a batch with lengths from 1 to LONGEST."""
    key, length_key = jax.random.split(key)
    return make_strings(key, jax.random.randint(length_key, (BATCH,), 1, LONGEST + 1))


def received(logits: Logits, _: jax.Array) -> jax.Array:
    """Returns the mean bits that the decoder receives of test strings, by length, [LENGTHS]."""
    lengths = jnp.repeat(jnp.array(LENGTHS), TEST)
    inputs, labels = make_strings(jax.random.key(0), lengths)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits(*inputs), labels)
    is_letter = jnp.arange(LONGEST + 1) < lengths[:, None]
    missing = (nats * is_letter).sum(1) / math.log(2)
    return (lengths * BITS - missing).reshape(len(LENGTHS), TEST).mean(1)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the received bits by arm, seed and length, and the chosen learning rates."""
    bits, chosen = {}, {}
    for name, arm in ARMS.items():
        model = Reverser(arm.size, arm.attention)
        train = trainer(model, draw_batch, received, (60 if quick else 600) * arm.longer)
        rates = RATES[1:2] if quick else RATES
        if arm.longer > 1:  # the rate of the same network with less training
            rates = [chosen[f"vector of {arm.size}"]]
        (chosen[name],) = choose_rates(train, rates)
        bits[name] = train_seeds(train, seeds, [chosen[name]])[0].round(2).tolist()
    return {"lengths": list(LENGTHS), "bits": bits, "learning_rates": chosen}


def fractions(results: Results, arm: str, length: int) -> list[float]:
    """Returns, for each seed, the fraction of the string's bits that the decoder receives."""
    place = results["lengths"].index(length)
    return [bits[place] / (length * BITS) for bits in results["bits"][arm]]


def is_better(results: Results, arm: str, other: str, length: int) -> bool:
    """Returns True if an arm receives a larger fraction than another by the margin."""
    pairs = zip(fractions(results, arm, length), fractions(results, other, length), strict=True)
    return is_larger([a - b for a, b in pairs], MARGIN)


def verdict(results: Results) -> Verdict:
    """Holds if attention receives more of long strings, as does a larger vector, but not of short.

    Attention must be better even than the same vector with four times as much training.
    """
    short, long = results["lengths"][0], results["lengths"][-1]
    small, large, longer, attention = ARMS
    percent = {arm: 100 * statistics.median(fractions(results, arm, long)) for arm in ARMS}
    numbers = ", ".join(f"{arm}: {value:.0f} %" for arm, value in percent.items())
    reason = f"Of the {long * BITS:.0f} bits of {long} letters, the decoder receives: {numbers}."
    holds = (
        is_better(results, attention, large, long)
        and is_better(results, attention, longer, long)
        and is_better(results, large, small, long)
        and not is_better(results, attention, large, short)
    )
    return Verdict("holds" if holds else "does not hold here", reason)


def draw(results: Results):
    """Draws the bits that the decoder receives by the bits of the string."""
    figure = make_figure(width=6.0, height=3.8)
    (axes,) = figure.axes
    sent = [length * BITS for length in results["lengths"]]
    axes.plot(sent, sent, "--", linewidth=1, color=INK, label="no loss")
    for arm in ARMS:
        draw_range(axes, sent, results["bits"][arm], arm)
    axes.set(xlabel="bits of the string (3 per letter)", ylabel="bits that the decoder receives")
    axes.set_xticks(sent)
    axes.legend(fontsize=8, loc="upper left")
    return figure
