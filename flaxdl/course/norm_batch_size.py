"""Does layer normalization work at any batch size and any length, unlike batch normalization?

BatchNorm computes mean and variance over the examples of a batch, LayerNorm over the features of
one example. Two small classifiers of handwritten digits are trained with either norm: an MLP, whose
channels have one value per example, and one post-norm Transformer block that reads an image as
eight rows, whose channels have eight values per example. Batches have 1 to 64 examples. Every
training sees equally many examples, and has the best learning rate for its batch size.

"Recomputed" is BatchNorm after the running statistics were replaced with those of all training
examples: it tells whether a loss of accuracy comes from poor running statistics or from training.

The second part computes the output of one example alone, in a batch with others, and with padding,
and measures how much it changes.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.course.training import (
    draw_batches,
    fit,
    in_parallel,
    load_digits,
    test_accuracy,
    tuned,
)
from flaxdl.errors import UserError
from flaxdl.layers import BatchNorm, LayerNorm, Linear, MultiHeadAttention, padding_mask

CLAIM = "LayerNorm works at any batch size, including 1, and for any length of a sequence."
EXPECTED = "holds; BatchNorm fails at batch size 1 and suffers at 2"
SEEDS = 5

SIZES = (1, 2, 4, 16, 64)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
NORMS = ("LayerNorm", "BatchNorm")
WORSE = 0.05  # of accuracy: BatchNorm with the smallest batch against LayerNorm
SAME = 0.02  # of accuracy: LayerNorm at batch size 64 against 1
ZERO, DEPENDS = 1e-5, 1e-2  # changes of outputs, whose size is about 1


class Norm(nn.Module):
    """LayerNorm or BatchNorm."""

    kind: str
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalizes [B, ..., C]."""
        if self.kind == "LayerNorm":
            return LayerNorm(name="norm")(x)
        return BatchNorm(self.momentum, name="norm")(x, train)


class MLP(nn.Module):
    """Two hidden layers, each normalized."""

    kind: str
    momentum: float = 0.1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, 8, 8] to logits [B, 10]."""
        x = images.reshape(len(images), 64)
        for number in range(2):
            x = Linear(32, name=f"fc{number}")(x)
            x = nn.relu(Norm(self.kind, self.momentum, name=f"norm{number}")(x, train))
        return Linear(10, name="fc")(x)


class Block(nn.Module):
    """Post-norm Transformer block, as in the course, with either norm."""

    kind: str
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """Maps [B, T, 16] to [B, T, 16]."""
        attended = MultiHeadAttention(16, 2, name="attn")(x, x, x, mask)
        x = Norm(self.kind, self.momentum, name="norm1")(x + attended, train)
        changed = Linear(16, name="ff2")(nn.relu(Linear(32, name="ff1")(x)))
        return Norm(self.kind, self.momentum, name="norm2")(x + changed, train)


class Transformer(nn.Module):
    """Classifier with one block; its output for each row is an input of the last layer."""

    kind: str
    momentum: float = 0.1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, 8, 8] to logits [B, 10]."""
        positions = self.param("positions", nn.initializers.normal(0.5), (8, 16))
        x = Linear(16, name="rows")(images) + positions
        x = Block(self.kind, self.momentum, name="block")(x, None, train)
        return Linear(10, name="fc")(x.reshape(len(x), -1))


NETS = {"MLP": MLP, "Transformer": Transformer}


def measure_accuracy(seeds: Sequence[int], sizes: Sequence[int], examples: int) -> dict[str, Any]:
    """Returns accuracies by net, norm, batch size and seed; none if a batch is refused."""
    digits = load_digits()
    found: dict[str, Any] = {"accuracy": {}, "learning_rates": {}, "refusals": {}}

    def train(size: int, model: Any, variables: Any, key: jax.Array, rate: jax.Array):
        steps = examples // size
        adam = optax.adam(optax.linear_schedule(rate, 0.0, steps))
        batches = draw_batches(key, len(digits.train[1]), size, steps)
        return fit(model, variables, adam, digits.train, batches, key)

    def measure_one(case: tuple[str, str, int]) -> tuple[Any, Any]:
        net, kind, size = case
        model = NETS[net](kind)
        try:
            best = tuned(model, partial(train, size, model), RATES, seeds, digits)
        except UserError as error:
            return None, str(error)
        accuracy = {kind: best.accuracy}
        if kind == "BatchNorm":
            statistics = recompute(NETS[net](kind, momentum=1.0), best.variables)
            variables = best.variables | statistics
            accuracy["recomputed"] = test_accuracy(model, variables, digits)
        return accuracy, best.rate

    cases = list(itertools.product(NETS, NORMS, sizes))
    for (net, kind, size), (accuracy, rate) in zip(
        cases, in_parallel(measure_one, cases), strict=True
    ):
        if accuracy is None:
            found["refusals"][f"{net}, {kind}, {size}"] = rate
            continue
        for name, by_seed in accuracy.items():
            found["accuracy"].setdefault(net, {}).setdefault(name, {})[str(size)] = by_seed
        found["learning_rates"].setdefault(net, {}).setdefault(kind, {})[str(size)] = rate
    return found


@partial(jax.jit, static_argnums=0)
def recompute(model: nn.Module, variables: Any) -> Any:
    """Returns the running statistics of all training examples, for variables by seed."""
    images = load_digits().train[0]
    apply = partial(model.apply, mutable=["batch_stats"])
    return jax.vmap(lambda variables: apply(variables, images, True)[1])(variables)


def changes(kind: str, training: bool, seed: int) -> dict[str, float]:
    """Returns how much outputs of a block for an example change with others, and with padding.

    The last number is how much the mean of the outputs over the rows depends on the example.
    """
    x = jax.random.normal(jax.random.key(seed), (4, 8, 16), jnp.float64)
    block = Block(kind)
    variables = block.init(jax.random.key(seed + 1), x, None, False)

    def output(x: jax.Array, length: int = 8) -> jax.Array:
        mask = padding_mask(jnp.full(len(x), length), x.shape[1])
        outputs, _ = block.apply(variables, x, mask, training, mutable=["batch_stats"])
        assert isinstance(outputs, jax.Array)
        return outputs[0, :8]

    alone = output(x[:1])
    padded = jnp.pad(x[:1], ((0, 0), (0, 8), (0, 0)))
    found = {
        "others": output(x) - alone,
        "padding": output(padded) - alone,
        "example": output(x[1:2]).mean(0) - alone.mean(0),
    }
    return {name: float(jnp.abs(change).max()) for name, change in found.items()}


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the accuracies, and the changes of outputs by norm, mode and seed."""
    with jax.enable_x64(True):
        changed = {
            kind: {
                mode: [changes(kind, mode == "training", seed) for seed in seeds]
                for mode in ("training", "eval")
            }
            for kind in NORMS
        }
    sizes, examples = ((1, 2, 64), 256) if quick else (SIZES, 4096)
    return measure_accuracy(seeds, sizes, examples) | {"changes": changed}


def smallest(results: Results, net: str, norm: str) -> str:
    """Returns the smallest batch size that a norm can train with."""
    return min(results["accuracy"][net][norm], key=int)


def advantages(results: Results, net: str, size: str) -> list[float]:
    """Returns, for each seed, the accuracy with LayerNorm minus that with BatchNorm."""
    layer, batch = (results["accuracy"][net][norm][size] for norm in NORMS)
    return [ours - theirs for ours, theirs in zip(layer, batch, strict=True)]


def loss(results: Results, net: str) -> float:
    """Returns the median accuracy that LayerNorm loses from the largest to the smallest batches."""
    of = results["accuracy"][net]["LayerNorm"]
    pairs = zip(of[str(SIZES[-1])], of[str(SIZES[0])], strict=True)
    return float(np.median([large - small for large, small in pairs]))


def is_independent(results: Results, kind: str, mode: str) -> bool:
    """Returns True if other examples and padding change nothing in any seed."""
    changed = results["changes"][kind][mode]
    return all(max(change["others"], change["padding"]) < ZERO for change in changed)


def verdict(results: Results) -> Verdict:
    """Holds if LayerNorm works with one example, and BatchNorm is worse with as few as it can.

    Holds in part if BatchNorm is worse in only one of the networks. With the largest batches, it
    must not be, and it must depend on other examples and on padding in training mode.
    """
    fails, parts = [], []
    for net in NETS:
        few, many = smallest(results, net, "BatchNorm"), str(SIZES[-1])
        fails.append(is_larger(advantages(results, net, few), WORSE))
        parts.append(
            f"in the {net}, LayerNorm minus BatchNorm is "
            f"{100 * np.median(advantages(results, net, few)):.1f} points of test accuracy at "
            f"batch size {few} and {100 * np.median(advantages(results, net, many)):.1f} at {many},"
            f" and LayerNorm at 1 minus {many} is {-100 * loss(results, net):.1f}"
        )
    reason = f"I{'; '.join(parts)[1:]} (medians)."
    dependent = results["changes"]["BatchNorm"]["training"]
    controls = (
        not any(is_larger(advantages(results, net, str(SIZES[-1])), WORSE) for net in NETS)
        and min(min(change["others"], change["padding"]) for change in dependent) > DEPENDS
    )
    works = (
        all(loss(results, net) <= SAME for net in NETS)
        and all(is_independent(results, "LayerNorm", mode) for mode in ("training", "eval"))
        and is_independent(results, "BatchNorm", "eval")
    )
    if not (controls and works and any(fails)):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if all(fails) else "holds in part", reason)


def draw(results: Results):
    """Draws the test accuracy by batch size, a panel for each network."""
    figure = make_figure(len(NETS), width=3.4, height=2.9)
    for axes, net in zip(figure.axes, NETS, strict=True):
        for name, of in results["accuracy"][net].items():
            sizes = sorted(map(int, of))
            by_seed = list(zip(*([100 * v for v in of[str(size)]] for size in sizes), strict=True))
            label = "BatchNorm, recomputed" if name == "recomputed" else name
            draw_range(axes, sizes, by_seed, label)
        axes.set(xscale="log", xlabel="batch size", title=net, ylim=(50, 100))
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("test accuracy (%)")
    figure.axes[-1].legend(fontsize=9, loc="lower right")
    return figure
