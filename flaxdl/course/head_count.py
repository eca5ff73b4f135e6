"""Must the number of heads divide the width?

The course begins `MultiHeadAttention` with `assert d_model % n_heads == 0`. The experiment builds
the layer with 1 to 16 heads for 48 features, and records for each whether it is refused, the
numbers of parameters and of attention weights for a text of 6 tokens.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from flaxdl.course.experiment import COLORS, Results, Verdict, make_figure
from flaxdl.errors import UserError
from flaxdl.layers import MultiHeadAttention

CLAIM = "The number of heads must divide the width of the model."
EXPECTED = "exact"
SEEDS = 1

WIDTH, LENGTH = 48, 6
HEADS = range(1, 17)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns, by number of heads, the error or the sizes of outputs, parameters and weights."""
    x = jnp.ones((1, LENGTH, WIDTH))
    found = {}
    for heads in HEADS:
        layer = MultiHeadAttention(WIDTH, heads)
        try:
            init = partial(layer.init_with_output, mutable=True)
            outputs, variables = jax.eval_shape(init, jax.random.key(seeds[0]), x, x, x)
        except UserError as error:
            found[str(heads)] = {"error": str(error)}
            continue
        (weights,) = variables["intermediates"]["attention_weights"]
        found[str(heads)] = {
            "output": outputs.shape[1:],
            "parameters": sum(array.size for array in jax.tree.leaves(variables["params"])),
            "attention_weights": weights.size,
        }
    return {"heads": found}


def verdict(results: Results) -> Verdict:
    """Exact if the divisors work, with equally many parameters, and all others are refused."""
    found = {int(heads): sizes for heads, sizes in results["heads"].items()}
    works = {heads: sizes for heads, sizes in found.items() if "error" not in sizes}
    counts = {sizes["parameters"] for sizes in works.values()}
    same = all(sizes["output"] == [LENGTH, WIDTH] for sizes in works.values())
    reason = (
        f"For {WIDTH} features, {', '.join(map(str, works))} heads work, with "
        f"{' or '.join(map(str, sorted(counts)))} parameters; the other "
        f"{len(found) - len(works)} numbers up to {max(found)} are refused."
    )
    divisors = [heads for heads in found if WIDTH % heads == 0]
    exact = list(works) == divisors and same and len(counts) == 1
    return Verdict("exact" if exact else "does not hold here", reason)


def draw(results: Results):
    """Draws the features per head, and the numbers of heads that are refused."""
    figure = make_figure(width=5.0)
    (axes,) = figure.axes
    refused = [h for h in HEADS if "error" in results["heads"][str(h)]]
    works = [h for h in HEADS if h not in refused]
    axes.bar(works, [WIDTH / h for h in works], color=COLORS[0], alpha=0.6, label="works")
    axes.plot(refused, [1] * len(refused), "x", color=COLORS[1], label="refused")
    for heads in works:
        axes.text(heads, WIDTH / heads + 0.7, f"{WIDTH // heads}", ha="center", fontsize=9)
    axes.set(xlabel="heads", ylabel="features per head", xticks=HEADS)
    axes.set_axisbelow(True)
    axes.legend()
    return figure
