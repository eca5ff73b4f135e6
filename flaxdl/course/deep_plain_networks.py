"""Are very deep plain networks hard to train, and is it because their gradients vanish?

Networks of 8, 20 and 56 layers learn the digits: a first layer, a stack of blocks of two layers,
and a classifier. A plain block is `relu(block(x))`, a residual one `relu(block(x) + x)`. Both are
initialized as in PyTorch or as He et al. (2015) propose, with or without batch normalization. The
layers are fully connected, so that hundreds of networks can be trained on two cores.

There are two questions. Is a plain network of 56 layers harder to train than one of 8 layers? And
has its gradient vanished before training, in float64, at the weights of the first block? The claim
needs both in the same network. The control is a residual network with batch normalization, which
must not be hard to train.

Two more arms test whether the gradient is the cause. "Rescaled" scales the gradient of each layer
to the same norm before each step, so that none vanishes or explodes. "Mirrored" is a plain network
whose weights are mirrored, [[A, -A], [-A, A]] with an orthogonal A (Balduzzi et al., 2017): a ReLU
cuts one half of each pair, the other half passes, and all layers together are linear at first.
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
from flax.core import FrozenDict

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
from flaxdl.data import Tfds
from flaxdl.layers import BatchNorm, Linear
from flaxdl.layers.initializers import constant, kaiming_normal

CLAIM = "Very deep plain networks are hard to train because their gradients vanish."
EXPECTED = "in part: gradients vanish at PyTorch's initialization, not at that of He"
SEEDS = 5

WIDTH, BATCH = 48, 32
DEPTHS = (8, 20, 56)  # trained
MEASURED = (56, 110)  # before training
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
PLAIN = ("plain, PyTorch's", "plain, He's", "plain, He's, BN")
RESIDUAL = ("residual, PyTorch's", "residual, He's", "residual, He's, BN")
MIRRORED = "plain, mirrored"
RESCALED = ("plain, PyTorch's, rescaled", "plain, He's, BN, rescaled")
ARMS = (*PLAIN, MIRRORED, *RESIDUAL)
CONTROL = "residual, He's, BN"
HARDER = 0.1  # of training accuracy
VANISHED = 1e-3  # gradient of the first block's weights, as a fraction of that of the last block's
DIVERGED = 10.0  # loss


def mirrored(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Initializes a kernel so that a stack of layers with ReLU is linear at first."""
    rows, columns = shape[0] // 2, shape[1] // 2
    kernel = nn.initializers.orthogonal()(key, (rows, columns), dtype)
    half = jnp.concatenate([kernel, -kernel], axis=1)
    return jnp.concatenate([half, -half])


class Block(nn.Module):
    """Two layers with optional batch normalization and skip connection."""

    residual: bool
    norm: bool
    initializers: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Maps [B, WIDTH] to the same shape, with the statistics of the batch."""
        x = inputs
        for number in (0, 1):
            x = nn.relu(x) if number == 1 else x
            x = Linear(WIDTH, name=f"fc{number}", **self.initializers)(x)
            x = BatchNorm(name=f"bn{number}")(x, train=True) if self.norm else x
        return nn.relu(x + inputs if self.residual else x), None


class Network(nn.Module):
    """Network of `depth` layers: one, a stack of blocks of two, and a classifier."""

    residual: bool
    norm: bool
    depth: int
    initializers: Any = FrozenDict()

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps images [B, 64] to logits [B, 10] and the last features [B, WIDTH]."""
        x = nn.relu(Linear(WIDTH, name="first", **self.initializers)(images))
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=self.depth // 2 - 1,
        )
        x, _ = blocks(self.residual, self.norm, self.initializers, name="blocks")(x, None)
        return Linear(10, name="fc")(x), x


def build(arm: str, depth: int) -> Network:
    """Returns the network of an arm, with PyTorch's initialization."""
    return Network("residual" in arm, "BN" in arm, depth)


def initialize(arm: str, depth: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns the variables of an arm's networks, stacked over seeds.

    Networks of one initialization begin with the same blocks, whatever their depth and skips.
    """
    initializers = FrozenDict()
    if "PyTorch's" not in arm:
        kernel_init = mirrored if arm == MIRRORED else kaiming_normal
        initializers = FrozenDict({"kernel_init": kernel_init, "bias_init": constant(0.0)})
    deepest = Network(False, "BN" in arm, MEASURED[-1], initializers)
    variables = dict(_initialize(deepest, jnp.asarray(seeds)))
    for name, arrays in variables.items():
        first = jax.tree.map(lambda array: array[:, : depth // 2 - 1], arrays["blocks"])
        variables[name] = arrays | {"blocks": first}
    return variables


@partial(jax.jit, static_argnums=0)
def _initialize(network: Network, seeds: jax.Array) -> Any:
    images = jnp.zeros((2, 64))
    return jax.vmap(lambda seed: network.init(jax.random.key(seed), images))(seeds)


def digits() -> tuple[jax.Array, jax.Array]:
    """Returns the training digits: standardized pixels float32[N, 64] and labels int32[N]."""
    arrays = Tfds("digits", validation="test").load(seed=0).train.arrays()
    pixels = arrays["inputs"].reshape(-1, 64).astype(np.float32)
    return jnp.asarray((pixels - pixels.mean()) / pixels.std()), jnp.asarray(arrays["label"])


def make_loss(network: Network) -> Callable:
    """Returns a function of variables, images and labels: loss, accuracy and last features."""

    def loss(params: Any, stats: Any, images: jax.Array, labels: jax.Array):
        variables = {"params": params, **stats}
        (logits, features), _ = network.apply(variables, images, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), ((logits.argmax(-1) == labels).mean(), features)

    return loss


@partial(jax.jit, static_argnums=0)
def at_initialization(
    network: Network, params: Any, stats: Any, seeds: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradient norms by layer [seeds, layers], and the contrast of the features.

    The contrast is the median distance of two images in the last features, divided by the norm of
    the features.
    """
    images, labels = digits()
    gradient = jax.grad(make_loss(network), has_aux=True)

    def one(params: Any, stats: Any, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jax.random.permutation(jax.random.key(seed), len(images))[:BATCH]
        params = jax.tree.map(lambda array: array.astype(jnp.float64), params)
        x = images[rows].astype(jnp.float64)
        gradients, (_, features) = gradient(params, stats, x, labels[rows])
        kernels = [gradients["blocks"][f"fc{number}"]["kernel"] for number in (0, 1)]
        norms = jnp.stack([jnp.linalg.norm(k, axis=(1, 2)) for k in kernels], 1).reshape(-1)
        distances = jnp.linalg.norm(features - jnp.roll(features, 1, axis=0), axis=1)
        return norms, jnp.median(distances / jnp.linalg.norm(features, axis=1))

    return jax.vmap(one)(params, stats, seeds)


def rescale(gradients: Any) -> Any:
    """Scales the gradient of each layer's weights, and of its biases, to norm 1."""

    def of_array(path: Any, gradient: jax.Array) -> jax.Array:
        first = 1 if path[0].key == "blocks" else 0  # an axis of blocks
        axes = tuple(range(first, gradient.ndim))
        largest = jnp.abs(gradient).max(axes, keepdims=True)  # squares could underflow
        gradient = gradient / jnp.where(largest > 0, largest, 1)
        norm = jnp.sqrt(jnp.square(gradient).sum(axes, keepdims=True))
        return gradient / jnp.where(norm > 0, norm, 1)

    return jax.tree_util.tree_map_with_path(of_array, gradients)


@partial(jax.jit, static_argnums=(0, 1))
def train(
    network: Network, steps: int, rescaled: bool, variables: Any, seeds: Any, rates: Any
) -> tuple[jax.Array, jax.Array]:
    """Trains a network for each seed and rate; returns final losses and training accuracies."""
    images, labels = digits()
    gradient = jax.value_and_grad(make_loss(network), has_aux=True)

    def run(variables: Any, seed: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        sgd = optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9)
        stats = {name: value for name, value in variables.items() if name != "params"}

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(images))
            (loss, (accuracy, _)), gradients = gradient(params, stats, images[rows], labels[rows])
            gradients = jax.lax.cond(rescaled, rescale, lambda same: same, gradients)
            updates, state = sgd.update(gradients, state)
            return (optax.apply_updates(params, updates), state), (loss, accuracy)

        params = variables["params"]
        keys = jax.random.split(jax.random.key(seed), steps)
        _, (losses, accuracies) = jax.lax.scan(step, (params, sgd.init(params)), keys)
        loss = losses[-20:].mean()
        return jnp.where(jnp.isfinite(loss), loss, DIVERGED), accuracies[-20:].mean()

    return jax.vmap(run)(variables, seeds, rates)


def tune_and_train(
    arm: str, depth: int, steps: int, seeds: Sequence[int]
) -> tuple[float, list[float]]:
    """Returns the best learning rate on the pilot seeds, and the accuracies of `seeds` with it."""

    def run(seeds: Sequence[int], rates: Sequence[float]) -> tuple[list[float], list[float]]:
        variables = initialize(arm, depth, seeds)
        network, rescaled = build(arm, depth), arm in RESCALED
        found = train(network, steps, rescaled, variables, jnp.asarray(seeds), jnp.asarray(rates))
        return found[0].tolist(), found[1].tolist()

    losses = [run([seed] * len(RATES), RATES)[0] for seed in PILOT_SEEDS]
    rate = best_rate(dict(zip(RATES, zip(*losses, strict=True), strict=True)))
    return rate, run(seeds, [rate] * len(seeds))[1]


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns gradients and contrasts by arm, depth and seed, and the accuracy after training."""
    norms, contrast, accuracy, rates = {}, {}, {}, {}
    for arm in ARMS:
        for depth in MEASURED:
            variables = initialize(arm, depth, seeds)
            params = variables.pop("params")
            with jax.enable_x64(True):
                network = build(arm, depth)
                found = at_initialization(network, params, variables, jnp.asarray(seeds))
            norms.setdefault(arm, {})[str(depth)] = found[0].tolist()
            contrast.setdefault(arm, {})[str(depth)] = found[1].tolist()
    for arm in (*ARMS, *RESCALED):
        for depth in (DEPTHS[0], DEPTHS[-1]) if quick or arm in RESCALED else DEPTHS:
            rate, final = tune_and_train(arm, depth, 100 if quick else 300, seeds)
            accuracy.setdefault(arm, {})[str(depth)] = final
            rates.setdefault(arm, {})[str(depth)] = rate
    return {"norms": norms, "contrast": contrast, "accuracy": accuracy, "learning_rates": rates}


def is_hard(results: Results, arm: str) -> bool:
    """Returns True if the deepest trained network learns the digits worse than the shallowest."""
    by_depth = results["accuracy"][arm]
    pairs = zip(by_depth[str(DEPTHS[0])], by_depth[str(DEPTHS[-1])], strict=True)
    return is_larger([shallow - deep for shallow, deep in pairs], HARDER)


def first_over_last(results: Results, arm: str) -> float:
    """Returns the gradient of the first block's weights over that of the last (median)."""
    norms = results["norms"][arm][str(DEPTHS[-1])]
    return statistics.median(by_layer[0] / by_layer[-1] for by_layer in norms)


def verdict(results: Results) -> Verdict:
    """Holds if the plain networks that are hard to train are those with vanished gradients.

    For this, rescaled gradients must also make the network of PyTorch's initialization easy. Holds
    in part if only some of the hard networks have vanished gradients. The control must be easy.
    """
    deep = str(DEPTHS[-1])
    accuracy = {
        arm: 100 * statistics.median(results["accuracy"][arm][deep]) for arm in results["accuracy"]
    }
    parts = [f"{a}: {accuracy[a]:.0f} %, {first_over_last(results, a):.0e}" for a in PLAIN]
    reason = (
        f"Training accuracy with {deep} layers, and gradient of the first block over that of the "
        f"last: {'; '.join(parts)}; the control {accuracy[CONTROL]:.0f} %. With rescaled "
        f"gradients: {accuracy[RESCALED[0]]:.0f} % instead of {accuracy[PLAIN[0]]:.0f} %."
    )
    hard = [arm for arm in PLAIN if is_hard(results, arm)]
    vanished = [arm for arm in hard if first_over_last(results, arm) < VANISHED]
    if not vanished or is_hard(results, CONTROL):
        return Verdict("does not hold here", reason)
    is_cause = vanished == hard and not is_hard(results, RESCALED[0])
    return Verdict("holds" if is_cause else "holds in part", reason)


def draw(results: Results):
    """Draws the gradient by layer, and the training accuracy by depth."""
    figure = make_figure(2, width=3.8, height=4.2)
    gradients, training = figure.axes
    for number, arm in enumerate(ARMS):
        style: Any = {"color": COLORS[number % 4], "linestyle": "-"}
        if arm in RESIDUAL:
            style = {"color": COLORS[RESIDUAL.index(arm)], "linestyle": "--"}
        norms = np.array(results["norms"][arm][str(DEPTHS[-1])])
        relative = norms / norms[:, -1:]
        layers = range(2, 2 + norms.shape[1])
        gradients.plot(layers, np.median(relative, 0), **style)
        accuracy = [100 * np.array(values) for values in results["accuracy"][arm].values()]
        depths = [int(depth) for depth in results["accuracy"][arm]]
        middle, low, high = (
            [f(values) for values in accuracy] for f in (np.median, np.min, np.max)
        )
        training.plot(depths, middle, marker="o", label=arm, **style)
        training.fill_between(depths, low, high, color=style["color"], alpha=0.15, linewidth=0)
    gradients.axhline(VANISHED, linestyle=":", linewidth=1, color=INK)
    gradients.set(yscale="log", xlabel=f"layer of {DEPTHS[-1]}", ylabel="gradient (last layer: 1)")
    training.set(xlabel="layers", ylabel="training accuracy (%)", ylim=(0, 104), xticks=depths)
    handles, labels = training.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, handlelength=4)
    return figure
