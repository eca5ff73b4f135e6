"""Does masking with minus infinity hide later positions?

The course writes `scores.masked_fill(mask == 0, float('-inf'))` before the softmax, whose weights
for masked keys are then exactly 0. The experiment computes, in float64, the derivative of each
output of a causal attention layer with respect to the input at each position. The control is the
same layer without a mask.

With padding at the front of a sequence, the first queries have no key left, and a softmax of
nothing but minus infinity is 0 / 0. The experiment counts outputs that are not a number in the
course's code and in `MultiHeadAttention`. It also finds the weights whose gradients are not a
number although the loss leaves these queries out.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.course.experiment import Results, Verdict, make_figure
from flaxdl.layers import MultiHeadAttention

CLAIM = "Masking scores with minus infinity hides later positions from each query."
EXPECTED = "holds; a query whose keys are all masked is not a number in the course's code"
SEEDS = 1

LENGTH, WIDTH, HEADS, PADDING = 8, 16, 4, 2
LAYER = MultiHeadAttention(WIDTH, HEADS)


def by_course(params: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes self-attention [B, T, D] as the course does, for a mask [T, T]."""
    q, k, v = (
        (x @ params[name]["kernel"] + params[name]["bias"])
        .reshape(*x.shape[:2], HEADS, WIDTH // HEADS)
        .swapaxes(1, 2)
        for name in ("W_q", "W_k", "W_v")
    )
    scores = q @ k.swapaxes(-2, -1) / math.sqrt(WIDTH // HEADS)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    outputs = (weights @ v).swapaxes(1, 2).reshape(x.shape)
    return outputs @ params["W_o"]["kernel"] + params["W_o"]["bias"]


def by_layer(params: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes self-attention [B, T, D] with flaxdl's layer."""
    outputs = LAYER.apply({"params": params}, x, x, x, mask)
    assert isinstance(outputs, jax.Array)
    return outputs


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns derivatives by query and position, and what is not a number with empty queries."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(seeds[0]).standard_normal((1, LENGTH, WIDTH)))
        params = LAYER.init(jax.random.key(seeds[0]), x, x, x)["params"]
        params = jax.tree.map(lambda array: array.astype(jnp.float64), params)
        causal = jnp.tri(LENGTH, dtype=bool)
        masks = {"causal": causal, "no mask": jnp.ones_like(causal)}
        derivatives = {}
        for name, mask in masks.items():
            jacobian = jax.jacobian(lambda x, mask=mask: by_course(params, x, mask)[0])(x)[:, :, 0]
            derivatives[name] = jnp.sqrt((jacobian**2).sum((1, 3))).tolist()  # [T, T]
        padded = causal & (jnp.arange(LENGTH) >= PADDING)

        def not_numbers(attention: Callable) -> dict[str, Any]:
            def loss(params: Any) -> jax.Array:
                return attention(params, x, padded)[:, PADDING:].sum()

            outputs = jnp.isnan(attention(params, x, padded)).any(-1).sum()
            gradients = jax.grad(loss)(params)
            layers = [n for n in gradients if jnp.isnan(gradients[n]["kernel"]).any()]
            return {"outputs": int(outputs), "gradients": sorted(layers)}

        found = {"course": not_numbers(by_course), "flaxdl": not_numbers(by_layer)}
    return {"derivatives": derivatives, "not_numbers": found}


def verdict(results: Results) -> Verdict:
    """Exact if only later positions are hidden; in part if empty queries are not numbers."""
    later = np.triu_indices(LENGTH, 1)
    earlier = np.tril_indices(LENGTH)
    masked, unmasked = (np.array(results["derivatives"][name]) for name in ("causal", "no mask"))
    course, flaxdl = (results["not_numbers"][name] for name in ("course", "flaxdl"))
    reason = (
        f"The derivatives for later positions are at most {masked[later].max():g} with the mask, "
        f"and at least {unmasked[later].min():.1g} without. Of {PADDING} queries without keys, "
        f"{course['outputs']} are not a number in the course's code and {flaxdl['outputs']} in "
        f"flaxdl's layer; left out of the loss, they still make the gradients of "
        f"{len(course['gradients'])} and {len(flaxdl['gradients'])} of 4 weights not a number."
    )
    hidden = masked[later].max() == 0 and masked[earlier].min() > 0
    if not hidden or unmasked[later].min() == 0:
        return Verdict("does not hold here", reason)
    return Verdict("holds in part" if course["outputs"] else "exact", reason)


def draw(results: Results):
    """Draws the derivative of each output with respect to the input at each position."""
    figure = make_figure(2, width=3.2, height=3.2)
    for axes, (name, values) in zip(figure.axes, results["derivatives"].items(), strict=True):
        shown = np.array(values)
        axes.imshow(np.where(shown == 0, np.nan, shown), cmap="viridis", vmin=0)
        axes.set(title=name, xlabel="input position", ylabel="output position")
        axes.set(xticks=range(LENGTH), yticks=range(LENGTH))
        axes.grid(visible=False)
    return figure
