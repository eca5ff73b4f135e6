"""Is the last output of a recurrent network the final state that a text is classified from?

The course classifies a text from `out[:, -1, :]`, the output of a bidirectional GRU at the last
time step. Texts of one batch are padded to the same length, so the last step is usually padding.
The experiment pads names in eight languages to 32, 64 and 128 tokens and classifies them from:

- "last output": the output at the last step, as in the course;
- "final states": the final states of both directions of the same GRU, which also reads padding;
- "last output, packed": the output at the last letter. The GRU gets the lengths of the names, as
  with PyTorch's `pack_padded_sequence`, so that padding has no effect;
- "final states, packed": the final states of a GRU that gets the lengths;
- "mean, packed": the mean of the outputs at the letters, as a control.

Packed arms do not depend on the padding and are trained once.
"""

import statistics
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.course.experiment import INK, Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.course.seeds_and_rates import Logits, choose_rates, train_seeds, trainer
from flaxdl.data import Text, Tfds
from flaxdl.layers import GRU, Embedding, Linear

CLAIM = "The output of a bidirectional GRU at the last time step is the final state to classify."
EXPECTED = (
    "does not hold: the last step reads padding, and the backward direction has seen one token"
)
SEEDS = 5

PADDINGS = (32, 64, 128)
LAST, FINAL, MEAN = 0, 1, 2  # what is classified
ARMS = {  # whether the GRU gets the lengths, and what is classified
    "last output": (False, LAST),
    "final states": (False, FINAL),
    "last output, packed": (True, LAST),
    "final states, packed": (True, FINAL),
    "mean, packed": (True, MEAN),
}
CLASSES, BATCH = 8, 32
RATES = (3e-3, 1e-2, 3e-2)
MARGIN = 0.02  # of accuracy


class Classifier(nn.Module):
    """Text classifier with a bidirectional GRU, as in the course except for what is classified."""

    vocab_size: int
    """Vocabulary size, including padding."""

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array, kind: jax.Array) -> jax.Array:
        """Maps tokens int32[B, T] with lengths int32[B] to logits [B, CLASSES]."""
        x = Embedding(self.vocab_size, 16, padding_index=0, name="embedding")(tokens)
        outputs, states = GRU(hidden_size=16, bidirectional=True, name="rnn")(x, lengths=lengths)
        last = jnp.take_along_axis(outputs, lengths[:, None, None] - 1, axis=1)[:, 0]
        mean = outputs.sum(1) / lengths[:, None]  # outputs after the length are zero
        features = jnp.stack([last, jnp.concatenate(states, axis=-1), mean])[kind]
        return Linear(CLASSES, name="fc")(features)


def read_names() -> tuple[int, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Returns the vocabulary size, and tokens, lengths and labels of both splits."""
    splits = Tfds("languages").load(0)
    text = Text("characters").fit(splits.train)
    found = {}
    for name, split in (("train", splits.train), ("test", splits.test)):
        assert split is not None
        arrays = text.apply(split).arrays()
        rows = (arrays["label"] < CLASSES) & (arrays["lengths"] <= PADDINGS[0])
        tokens, lengths, label = (arrays[key][rows] for key in ("inputs", "lengths", "label"))
        found[name] = (tokens[:, : PADDINGS[0]], lengths, label)
    return text.vocab_size, found


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the test accuracy by arm, padding and seed, and the chosen learning rates."""
    vocab_size, splits = read_names()
    train, test = (tuple(map(jnp.asarray, splits[name])) for name in ("train", "test"))
    packed, kinds = map(jnp.asarray, zip(*ARMS.values(), strict=True))
    accuracy, rates = {arm: {} for arm in ARMS}, []
    for padding in PADDINGS[: 2 if quick else None]:

        def inputs(tokens: jax.Array, lengths: jax.Array, arm: jax.Array, padding: int = padding):
            tokens = jnp.pad(tokens, ((0, 0), (0, padding - tokens.shape[1])))
            return tokens, jnp.where(packed[arm], lengths, padding), kinds[arm]

        def draw(key: jax.Array, arm: jax.Array, inputs=inputs):
            rows = jax.random.randint(key, (BATCH,), 0, len(train[0]))
            return inputs(train[0][rows], train[1][rows], arm), train[2][rows]

        def evaluate(logits: Logits, arm: jax.Array, inputs=inputs) -> jax.Array:
            return (logits(*inputs(test[0], test[1], arm)).argmax(-1) == test[2]).mean()

        run = trainer(Classifier(vocab_size), draw, evaluate, 50 if quick else 300)
        arms = range(len(ARMS) if padding == PADDINGS[0] else 2)  # packed: the same for all
        if not rates:  # other rates do not help with more padding
            rates = choose_rates(run, RATES[1:2] if quick else RATES, arms)
        found = train_seeds(run, seeds, [rates[arm] for arm in arms], arms)
        for arm in arms:
            accuracy[list(ARMS)[arm]][str(padding)] = found[arm].round(4).tolist()
    return {"accuracy": accuracy, "learning_rates": dict(zip(ARMS, rates, strict=True))}


def lost(results: Results, arm: str, reference: str, padding: str) -> list[float]:
    """Returns, for each seed, the accuracy of the reference minus that of an arm."""
    of = results["accuracy"]
    return [r - a for r, a in zip(of[reference][padding], of[arm][padding], strict=True)]


def verdict(results: Results) -> Verdict:
    """Does not hold if the last output loses the margin against the final states at every padding.

    The control, the mean of the outputs, must not lose it against the final states.
    """
    paddings = list(results["accuracy"]["last output"])
    loss = {p: lost(results, "last output", "final states", p) for p in paddings}
    control = lost(results, "mean, packed", "final states, packed", paddings[0])
    direction = lost(results, "last output, packed", "final states, packed", paddings[0])
    points = ", ".join(f"{100 * statistics.median(loss[p]):.1f} (padded to {p})" for p in paddings)
    reason = (
        f"The last output costs {points} points of accuracy compared with the final states; "
        f"without padding it costs {100 * statistics.median(direction):.1f}, and the mean of the "
        f"outputs {100 * statistics.median(control):.1f} (medians)."
    )
    loses = [is_larger(loss[p], MARGIN) for p in paddings]
    if all(loses) and not is_larger(control, MARGIN):
        return Verdict("does not hold here", reason)
    return Verdict("holds in part" if any(loses) else "holds", reason)


def draw(results: Results):
    """Draws the accuracy by padding; packed arms as lines that do not depend on it."""
    figure = make_figure(width=6.0, height=3.6)
    (axes,) = figure.axes
    paddings = [int(padding) for padding in results["accuracy"]["last output"]]
    for arm in ARMS:
        by_padding = results["accuracy"][arm]
        columns = [by_padding.get(str(p), by_padding[str(paddings[0])]) for p in paddings]
        by_seed = [[100 * value for value in row] for row in zip(*columns, strict=True)]
        draw_range(axes, paddings, by_seed, arm)
    axes.axhline(100 / CLASSES, linestyle="--", linewidth=1, color=INK, label="chance")
    axes.set(xscale="log", xlabel="tokens after padding", ylabel="test accuracy (%)", ylim=(0, 100))
    axes.set_xticks(paddings, [str(p) for p in paddings])
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="center right")
    return figure
