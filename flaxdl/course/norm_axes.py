"""Do batch and layer normalization normalize different axes?

Both subtract a mean and divide by a standard deviation, but over different axes. The experiment
computes the statistics by hand in float64 over either set of axes, and compares the results with
the layers. As a second test, the gradient of a single output shows which inputs it depends on. The
control is each layer against the axes of the other.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.course.experiment import Results, Verdict, make_figure
from flaxdl.layers import BatchNorm, LayerNorm

CLAIM = "BatchNorm normalizes across the batch, LayerNorm across the features."
EXPECTED = "exact"
SEEDS = 5

SHAPE = (3, 4, 5)  # examples, positions, channels
OUTPUT = (1, 2, 3)  # the output whose inputs are found
AXES = {"BatchNorm": (0, 1), "LayerNorm": (2,)}
EPSILON = 1e-5
EXACT = 1e-12  # difference in float64 that rounding explains
DIFFERENT = 0.1


def by_hand(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Normalizes [B, T, C] with mean and standard deviation over the axes."""
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPSILON)


def by_layer(name: str, x: jax.Array) -> jax.Array:
    """Normalizes [B, T, C] with an untrained layer; BatchNorm with the statistics of the batch."""
    key = jax.random.key(0)
    if name == "LayerNorm":
        layer = LayerNorm(epsilon=EPSILON)
        outputs = layer.apply(layer.init(key, x), x)
    else:
        layer = BatchNorm(epsilon=EPSILON)
        outputs, _ = layer.apply(layer.init(key, x), x, train=True, mutable=["batch_stats"])
    assert isinstance(outputs, jax.Array)
    return outputs


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns differences by layer, axes and seed; and the inputs that an output depends on."""
    differences = {layer: {axes: [] for axes in AXES} for layer in AXES}
    inputs_of = {}
    with jax.enable_x64(True):
        for layer in AXES:
            for seed in seeds:
                x = np.random.default_rng(seed).normal(1.0, 2.0, SHAPE)
                outputs = np.asarray(by_layer(layer, jnp.asarray(x)))
                for other, axes in AXES.items():
                    difference = np.abs(outputs - by_hand(x, axes)).max()
                    differences[layer][other].append(float(difference))
            x = jnp.asarray(np.random.default_rng(seeds[0]).normal(1.0, 2.0, SHAPE))
            gradient = jax.grad(lambda x, layer=layer: by_layer(layer, x)[OUTPUT])(x)
            inputs_of[layer] = np.argwhere(gradient != 0).tolist()
    return {"differences": differences, "inputs_of_one_output": inputs_of}


def verdict(results: Results) -> Verdict:
    """Exact if each layer agrees with its own axes, in values and gradients, and with no others."""
    own, other = [], []
    for layer in AXES:
        for axes, values in results["differences"][layer].items():
            (own if axes == layer else other).extend(values)
    counts = {layer: len(results["inputs_of_one_output"][layer]) for layer in AXES}
    reason = (
        f"Over its own axes, a layer differs by at most {max(own):.0e} from the formula; over "
        f"those of the other layer, by {min(other):.1f} or more. An output depends on "
        f"{counts['BatchNorm']} of {np.prod(SHAPE)} inputs with BatchNorm (a channel of all "
        f"examples) and on {counts['LayerNorm']} with LayerNorm (the channels of one position)."
    )
    example, position, channel = OUTPUT
    expected = {
        "BatchNorm": [[b, t, channel] for b in range(SHAPE[0]) for t in range(SHAPE[1])],
        "LayerNorm": [[example, position, c] for c in range(SHAPE[2])],
    }
    exact = max(own) <= EXACT and results["inputs_of_one_output"] == expected
    return Verdict("exact" if exact and min(other) >= DIFFERENT else "does not hold here", reason)


def draw(results: Results):
    """Draws the inputs that one output depends on, for each layer."""
    figure = make_figure(2, width=3.0, height=3.6)
    examples, positions, channels = SHAPE
    for axes, layer in zip(figure.axes, AXES, strict=True):
        grid = np.zeros(SHAPE)
        for index in results["inputs_of_one_output"][layer]:
            grid[tuple(index)] = 1
        axes.imshow(grid.reshape(-1, channels), cmap="Blues", vmin=0, vmax=1.4, alpha=0.8)
        for example in range(1, examples):
            axes.axhline(example * positions - 0.5, linewidth=1, color="#d55e00")
        axes.plot(OUTPUT[2], OUTPUT[0] * positions + OUTPUT[1], "o", color="#d55e00")
        axes.set(title=layer, xlabel="channel", xticks=range(channels))
        axes.set_yticks([positions * (e + 0.5) - 0.5 for e in range(examples)])
        axes.set_yticklabels([f"example {e}" for e in range(examples)])
        axes.grid(visible=False)
    return figure
