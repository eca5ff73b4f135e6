"""Does dividing the scores by √d_k keep the softmax from saturating?

The dot product of two random vectors with d_k independent entries of variance 1 has variance d_k.
The experiment draws 64 queries and 64 keys, and computes the attention weights with and without the
division. It measures their entropy as a fraction of the largest possible one, and the size of the
gradient that they pass to the scores: the Frobenius norm of the derivative of the softmax, as a
median over queries. The difference between the two largest scores, also a median, explains it.

The control is d_k = 1, where the division changes nothing. A third arm divides, but each query is
also one of the keys, so that queries and keys are no longer independent.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.course.experiment import Results, Verdict, draw_range, is_larger, make_figure

CLAIM = "Dividing by the root of d_k keeps the softmax of attention from saturating."
EXPECTED = "holds"
SEEDS = 5

WIDTHS = (1, 4, 16, 64, 256, 1024)
COURSE, WIDEST = "64", "1024"  # a head of the course has 512 / 8 features
KEYS, BATCH = 64, 8
ARMS = ("divided by √d_k", "not divided", "divided, keys = queries")
FLATTER = 0.3  # of the largest entropy
ORDERS = 1.0  # a gradient ten times larger


def attention_weights(arm: str, width: int, seed: int) -> jax.Array:
    """Returns the attention weights [BATCH, KEYS, KEYS] of random queries and keys."""
    query, key = np.random.default_rng(seed).standard_normal((2, BATCH, KEYS, width))
    if arm == "divided, keys = queries":
        key = query
    scores = jnp.asarray(query @ key.swapaxes(-2, -1))
    return jax.nn.softmax(scores if arm == "not divided" else scores / math.sqrt(width))


def entropy(weights: jax.Array) -> float:
    """Returns the mean entropy, as a fraction of that of equal weights."""
    return float(jax.scipy.special.entr(weights).sum(-1).mean() / math.log(weights.shape[-1]))


def gradient(weights: jax.Array) -> float:
    """Returns the median norm of d(weights) / d(scores), which is diag(w) - w wᵀ."""
    outer = weights[..., :, None] * weights[..., None, :]
    derivative = weights[..., None] * jnp.eye(weights.shape[-1]) - outer
    return float(jnp.median(jnp.linalg.norm(derivative, axis=(-2, -1))))


def gap(weights: jax.Array) -> float:
    """Returns the median difference between the two largest scores of a query."""
    first, second = jnp.moveaxis(jax.lax.top_k(jnp.log(weights), 2)[0], -1, 0)
    return float(jnp.median(first - second))


MEASURES = {"entropy": entropy, "gradient": gradient, "gap": gap}


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns entropy, gradient and gap by arm, width of the head and seed."""
    found = {name: {} for name in MEASURES}
    with jax.enable_x64(True):
        for arm in ARMS:
            for width in WIDTHS:
                weights = [attention_weights(arm, width, seed) for seed in seeds]
                for name, function in MEASURES.items():
                    found[name].setdefault(arm, {})[str(width)] = [function(w) for w in weights]
    return found


def helps(results: Results, width: str) -> bool:
    """Returns True if dividing gives flatter weights and larger gradients at this width."""
    divided, plain, _ = ARMS
    flatter = [
        with_ - without
        for with_, without in zip(
            results["entropy"][divided][width], results["entropy"][plain][width], strict=True
        )
    ]
    orders = [
        math.log10(with_ / max(without, 1e-30))
        for with_, without in zip(
            results["gradient"][divided][width], results["gradient"][plain][width], strict=True
        )
    ]
    return is_larger(flatter, FLATTER) and is_larger(orders, ORDERS)


def verdict(results: Results) -> Verdict:
    """Holds if it helps at 64 and 1024 features per head; in part if only at 1024."""
    parts = []
    for width in (COURSE, WIDEST):
        e, g = ([np.median(results[n][a][width]) for a in ARMS] for n in ("entropy", "gradient"))
        parts.append(
            f"with {width} features, the entropy is {100 * e[0]:.0f} % of the largest with the "
            f"division and {100 * e[1]:.0f} % without, the gradient {g[0]:.2g} and {g[1]:.2g}"
        )
    reason = "; ".join(parts).capitalize() + " (medians)."
    if helps(results, "1") or not helps(results, WIDEST):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if helps(results, COURSE) else "holds in part", reason)


def draw(results: Results):
    """Draws entropy and gradient by the features per head."""
    figure = make_figure(2, width=4.0, height=3.4)
    for axes, name in zip(figure.axes, ("entropy", "gradient"), strict=True):
        for arm in ARMS:
            by_seed = list(zip(*(results[name][arm][str(w)] for w in WIDTHS), strict=True))
            draw_range(axes, WIDTHS, np.maximum(by_seed, 1e-12).tolist(), arm)
        axes.set(xscale="log", xlabel="features per head, d_k", ylabel=f"{name} of the softmax")
        axes.set_xticks(WIDTHS, [str(w) for w in WIDTHS])
    figure.axes[0].set(ylim=(0, 1), ylabel="entropy (fraction of the largest)")
    figure.axes[1].set(yscale="log", ylim=(1e-8, 3))
    figure.axes[1].legend(fontsize=8, loc="lower left")
    return figure
