"""Do skip connections make a network of 152 layers trainable?

ResNet-152 has a first layer, 50 bottleneck blocks of three layers, and a classifier. The experiment
builds its twin from fully connected layers, which two cores can train: each block reduces 64
features to 16, computes 16 from these, and expands them to 64 again, with batch normalization and
the initialization of He et al. Every network learns the digits for 300 steps, with and without the
skip connections around the blocks.

The control is the same pair with 8 layers, two blocks. There the skip connections must make no such
difference; otherwise, the plain block would be at fault, and not the depth.
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

from flaxdl.course.experiment import (
    INK,
    PILOT_SEEDS,
    Results,
    Verdict,
    best_rate,
    draw_range,
    is_larger,
    make_figure,
)
from flaxdl.data import Tfds
from flaxdl.layers import BatchNorm, Linear
from flaxdl.layers.initializers import constant, kaiming_normal

CLAIM = "Skip connections made it possible to train networks of 152 layers."
EXPECTED = "holds"
SEEDS = 5

WIDTH, NARROW, BATCH = 64, 16, 32
DEPTHS = (8, 152)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
ARMS = ("residual", "plain")
MARGIN = 0.2  # of training accuracy
TRAINED = 0.9
DIVERGED = 10.0  # loss

HE: dict[str, Any] = {"kernel_init": kaiming_normal, "bias_init": constant(0.0)}


class Bottleneck(nn.Module):
    """Bottleneck block of fully connected layers, with optional skip connection."""

    residual: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Maps [B, WIDTH] to the same shape, with the statistics of the batch."""
        x = nn.relu(BatchNorm(name="bn1")(Linear(NARROW, name="fc1", **HE)(inputs), train=True))
        x = nn.relu(BatchNorm(name="bn2")(Linear(NARROW, name="fc2", **HE)(x), train=True))
        x = BatchNorm(name="bn3")(Linear(WIDTH, name="fc3", **HE)(x), train=True)
        return nn.relu(x + inputs if self.residual else x), None


class Network(nn.Module):
    """A first layer, bottleneck blocks and a classifier: `depth` layers in all."""

    residual: bool
    depth: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, 64] to logits [B, 10]."""
        x = Linear(WIDTH, name="first", **HE)(images)
        x = nn.relu(BatchNorm(name="bn")(x, train=True))
        blocks = nn.scan(
            Bottleneck,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=(self.depth - 2) // 3,
        )
        x, _ = blocks(self.residual, name="blocks")(x, None)
        return Linear(10, name="fc")(x)


def digits() -> tuple[jax.Array, jax.Array]:
    """Returns the training digits: standardized pixels float32[N, 64] and labels int32[N]."""
    arrays = Tfds("digits", validation="test").load(seed=0).train.arrays()
    pixels = arrays["inputs"].reshape(-1, 64).astype(np.float32)
    return jnp.asarray((pixels - pixels.mean()) / pixels.std()), jnp.asarray(arrays["label"])


@partial(jax.jit, static_argnums=(0, 1))
def train(
    network: Network, steps: int, seeds: jax.Array, rates: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Trains a network for each seed and rate; returns losses and accuracies [runs, steps]."""
    images, labels = digits()

    def run(seed: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        init_key, data_key = jax.random.split(jax.random.key(seed))
        variables = network.init(init_key, images[:BATCH])
        stats = variables["batch_stats"]
        sgd = optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9)

        def loss(params: Any, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            variables = {"params": params, "batch_stats": stats}
            found, _ = network.apply(variables, images[rows], mutable=["batch_stats"])
            logits: Any = found
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
            return losses.mean(), (logits.argmax(-1) == labels[rows]).mean()

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(images))
            found, gradients = jax.value_and_grad(loss, has_aux=True)(params, rows)
            updates, state = sgd.update(gradients, state)
            return (optax.apply_updates(params, updates), state), found

        params = variables["params"]
        keys = jax.random.split(data_key, steps)
        return jax.lax.scan(step, (params, sgd.init(params)), keys)[1]

    losses, accuracies = jax.vmap(run)(seeds, rates)
    return jnp.where(jnp.isfinite(losses), losses, DIVERGED), accuracies


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the final training accuracy and the loss curves, by depth, arm and seed."""
    accuracy, curves, chosen = {}, {}, {}
    for depth in DEPTHS:
        for arm in ARMS:
            run = partial(train, Network(arm == "residual", depth), 60 if quick else 300)
            by_seed = []
            for seed in PILOT_SEEDS:
                losses, _ = run(jnp.full(len(RATES), seed), jnp.asarray(RATES))
                by_seed.append(losses[:, -20:].mean(1).tolist())
            rate = best_rate(dict(zip(RATES, zip(*by_seed, strict=True), strict=True)))
            losses, correct = run(jnp.asarray(seeds), jnp.full(len(seeds), rate))
            final = correct[:, -20:].mean(1).tolist()
            smooth = np.asarray(losses).reshape(len(seeds), -1, 10).mean(2).round(4)
            accuracy.setdefault(str(depth), {})[arm] = final
            curves.setdefault(str(depth), {})[arm] = smooth.tolist()
            chosen.setdefault(str(depth), {})[arm] = rate
    return {"accuracy": accuracy, "curves": curves, "learning_rates": chosen}


def differences(results: Results, depth: int) -> list[float]:
    """Returns, for each seed, the accuracy with skip connections minus that without."""
    of = results["accuracy"][str(depth)]
    return [with_ - without for with_, without in zip(of["residual"], of["plain"], strict=True)]


def verdict(results: Results) -> Verdict:
    """Holds if only the residual network of 152 layers is trained, and both of 8 layers are."""
    shallow, deep = DEPTHS
    parts = []
    for depth in (deep, shallow):
        of = results["accuracy"][str(depth)]
        residual, plain = (100 * statistics.median(of[arm]) for arm in ARMS)
        parts.append(f"{residual:.1f} % with and {plain:.1f} % without for {depth} layers")
    reason = f"Training accuracy with and without skip connections (medians): {'; '.join(parts)}."
    matters = is_larger(differences(results, deep), MARGIN)
    control = is_larger(differences(results, shallow), MARGIN)
    if not matters or control:
        return Verdict("does not hold here", reason)
    is_trained = statistics.median(results["accuracy"][str(deep)]["residual"]) >= TRAINED
    return Verdict("holds" if is_trained else "holds in part", reason)


def draw(results: Results):
    """Draws the training loss by step, for each depth; infinite losses are drawn at DIVERGED."""
    figure = make_figure(2, width=3.6, height=3.0)
    for axes, depth in zip(figure.axes, reversed(DEPTHS), strict=True):
        for arm, by_seed in results["curves"][str(depth)].items():
            steps = [10 * number + 5 for number in range(len(by_seed[0]))]
            draw_range(axes, steps, by_seed, arm)
            axes.lines[-1].set_marker("")
        axes.axhline(np.log(10), linestyle="--", linewidth=1, color=INK, label="chance")
        axes.set(title=f"{depth} layers", xlabel="step", ylabel="training loss", yscale="log")
        axes.set_ylim(0.02, 14)
    figure.axes[0].legend(fontsize=8, loc="lower left")
    return figure
