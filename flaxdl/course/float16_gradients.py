"""Are gradients lost in float16 without a gradient scaler?

Float16 has no number between 0 and 6e-8; anything below half of that becomes 0. Gradients are often
that small. A scaler multiplies the loss, and with it all gradients, by a large number, and divides
the gradients by it again, in float32, before the update.

The experiment trains a small CNN on handwritten digits in float32. Before and after the training,
it computes the gradients of one batch in float16 for scales from 1 to 2^24, and counts those that
are 0, but not in float32 (lost), and those that are infinite or not a number (overflow). The
control is bfloat16, which has fewer digits than float16 but the range of float32.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.course.experiment import INK, Results, Verdict, draw_range, is_larger, make_figure
from flaxdl.data import Tfds
from flaxdl.models import SimpleCNN
from flaxdl.training.precision import Precision, to_compute_dtype
from flaxdl.training.tasks.losses import cross_entropy

CLAIM = "Training in float16 needs a gradient scaler, or small gradients are lost."
EXPECTED = "holds"
SEEDS = 5

SCALES = tuple(2**power for power in range(0, 25, 2))
STEPS, BATCH, RATE = 400, 64, 0.05
SCALED = "65536"  # the scale that PyTorch's scaler begins with
MARGIN = 0.01  # of the gradients
MODEL = SimpleCNN(num_classes=10)


def loss_of(params: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy, in float32."""
    logits: Any = MODEL.apply({"params": params}, images)
    return cross_entropy(logits, labels).mean()


def trained(images: jax.Array, labels: jax.Array, seed: int, steps: int) -> tuple[dict, dict]:
    """Returns the parameters before and after training by SGD with momentum in float32."""
    order = jax.random.randint(jax.random.key(seed), (steps, BATCH), 0, len(labels))
    start: Any = MODEL.init(jax.random.key(seed + 1), images[:1])["params"]
    sgd = optax.sgd(RATE, momentum=0.9)

    def step(carry: tuple, rows: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        gradients = jax.grad(loss_of)(params, images[rows], labels[rows])
        updates, state = sgd.update(gradients, state)
        return (optax.apply_updates(params, updates), state), None

    (end, _), _ = jax.lax.scan(step, (start, sgd.init(start)), order)
    return start, end


def gradients(
    params: dict, images: jax.Array, labels: jax.Array, precision: Precision, scale: jax.Array
) -> jax.Array:
    """Returns all gradients as one array, still multiplied by the scale."""

    def scaled(params: dict) -> jax.Array:
        return scale * loss_of(params, to_compute_dtype(images, precision), labels)

    found = jax.grad(scaled)(to_compute_dtype(params, precision))
    return jnp.concatenate([array.ravel() for array in jax.tree.leaves(found)])


def lost_and_overflow(
    params: dict, images: jax.Array, labels: jax.Array, precision: Precision, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the fractions of lost and of not finite gradients, of those that are not 0."""
    exact = gradients(params, images, labels, "float32", jnp.float32(1))
    narrow = gradients(params, images, labels, precision, scale)
    relevant = exact != 0
    lost = jnp.mean(narrow == 0, where=relevant)
    return lost, jnp.mean(~jnp.isfinite(narrow), where=relevant)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns both fractions by time, precision, seed and scale."""
    train = Tfds("digits").load(0).train.arrays()
    images, labels = jnp.float32(train["inputs"]) / 255, jnp.asarray(train["label"])
    train_jit = jax.jit(trained, static_argnums=3)
    count = jax.jit(
        jax.vmap(lost_and_overflow, in_axes=(None, None, None, None, 0)), static_argnums=3
    )
    found: dict = {}
    for seed in seeds:
        steps = STEPS // 4 if quick else STEPS
        times = zip(("before", "after"), train_jit(images, labels, seed, steps), strict=True)
        for time, params in times:
            for precision in ("float16", "bfloat16"):
                batch = images[:BATCH], labels[:BATCH]
                lost, overflow = count(params, *batch, precision, jnp.float32(SCALES))
                by_seed = found.setdefault(time, {}).setdefault(precision, [])
                by_seed.append(
                    {
                        str(scale): [float(a), float(b)]
                        for scale, a, b in zip(SCALES, lost, overflow, strict=True)
                    }
                )
    return {"lost_and_overflow": found}


def saved(results: Results, precision: str, time: str) -> list[float]:
    """Returns the fraction of the gradients that scaling by 65,536 saves, by seed."""
    return [
        by_scale["1"][0] - sum(by_scale[SCALED])  # an overflow saves nothing
        for by_scale in results["lost_and_overflow"][time][precision]
    ]


def verdict(results: Results) -> Verdict:
    """Holds if the scaler saves gradients in float16 at both times, and not in bfloat16."""
    times = tuple(results["lost_and_overflow"])
    median = {t: 100 * np.median(saved(results, "float16", t)) for t in times}
    control = 100 * max(max(saved(results, "bfloat16", t)) for t in times)
    reason = (
        f"A scale of 65,536 saves {median['before']:.1f} % of the gradients in float16 before "
        f"training and {median['after']:.1f} % after it (medians); in bfloat16, at most "
        f"{control:.2f} %."
    )
    helps = [is_larger(saved(results, "float16", t), MARGIN) for t in times]
    if not any(helps) or any(is_larger(saved(results, "bfloat16", t), MARGIN) for t in times):
        return Verdict("does not hold here", reason)
    return Verdict("holds" if all(helps) else "holds in part", reason)


def draw(results: Results):
    """Draws the lost gradients by scale, and those that overflow."""
    figure = make_figure(2, width=3.8, height=3.2)
    for axes, time in zip(figure.axes, ("before", "after"), strict=True):
        arms = (("float16", 0, "lost, float16"), ("float16", 1, "overflow, float16"))
        for precision, place, label in (*arms, ("bfloat16", 0, "lost, bfloat16")):
            by_seed = [
                [100 * by_scale[str(scale)][place] for scale in SCALES]
                for by_scale in results["lost_and_overflow"][time][precision]
            ]
            draw_range(axes, SCALES, by_seed, label)
        axes.axvline(65536, color=INK, linestyle=":", linewidth=1)
        axes.set(xscale="log", xlabel="scale of the loss", title=f"{time} training", ylim=(-4, 104))
        axes.set_xticks([2**p for p in range(0, 25, 8)], ["1", "$2^8$", "$2^{16}$", "$2^{24}$"])
        axes.set_xticks([], minor=True)
    figure.axes[0].set_ylabel("gradients (%)")
    figure.axes[1].legend(fontsize=8, loc="upper left")
    return figure
