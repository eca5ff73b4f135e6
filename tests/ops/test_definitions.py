"""Every op against its definition: values, derivatives, precision, platforms and transformations.

One table of cases serves all tests. Arrays are compared relative to the largest value expected.
"""

import functools
import importlib
import operator
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sampling import sampled
from jax.sharding import Mesh, PartitionSpec

import flaxdl.ops
from flaxdl.ops import (
    activations,
    attention,
    batch_norm,
    bias,
    cells,
    convolution,
    embedding,
    layer_norm,
    pooling,
    products,
    recurrence,
    reductions,
    reference,
)

PLATFORMS = ("cpu", "cuda", "tpu")
BATCH = 8
TOKENS = np.array([[0, 3, 3], [1, 2, 0]] * 4, np.int32)
IS_REAL = np.arange(4)[:, None, None] < np.array([4, 2] * 4)[:, None]  # [T, B, 1]
MASK = np.arange(6) < np.array([[[[6]]], [[[3]]]] * 4)  # [B, 1, 1, S]


@dataclass(frozen=True)
class Case:
    """Arguments of an op."""

    op: Callable[..., Any]
    arrays: tuple[Any, ...]
    """Trees of shapes, for which normal numbers are drawn, or of arrays."""
    settings: dict[str, Any] = field(default_factory=dict)
    batch: tuple[int | None, ...] | None = None
    """Axis of each argument along which examples lie; None where examples share it. None as a whole
    if the op adds up over examples."""
    wide: tuple[int, ...] = ()
    """Arguments that are float32 at least, whatever the others are."""
    along_axis: dict[str, Any] = field(default_factory=dict)
    """Further settings under a named axis of devices."""


def window(size: int, stride: int = 1, padding: int = 0, axes: int = 2) -> dict[str, Any]:
    return {"window": (size,) * axes, "strides": (stride,) * axes, "padding": (padding,) * axes}


def convolve(images: tuple, kernel: tuple, stride: Any = 1, padding: Any = 0, **more: Any) -> Case:
    axes = len(kernel) - 2

    def each(value: Any) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * axes

    settings = {"strides": each(stride), "padding": each(padding), "dilation": (1,) * axes}
    settings |= {"groups": 1} | more
    return Case(convolution.convolve, ((BATCH, *images), kernel), settings, (0, None))


def pool(op: Callable[..., Any], spatial: tuple[int, ...], channels: int, **settings: Any) -> Case:
    return Case(op, ((BATCH, *spatial, channels),), settings, (0,))


def cell(op: Callable[..., Any], gates: int) -> Case:
    h = (BATCH, 5)
    state = (h, h) if gates == 4 else h
    return Case(op, ((BATCH, 5 * gates), (BATCH, 5 * gates), state), {}, (0, 0, 0))


def recur(op: Callable[..., Any], gates: int, **settings: Any) -> Case:
    h, width = (BATCH, 5), 5 * gates
    arrays = (
        (4, BATCH, 3),
        ((width, 3), (width, 5)),
        ((width,), (width,)),
        (h, h) if gates == 4 else h,
        IS_REAL,
    )
    settings = {"cell": op, "reverse": False} | settings
    return Case(recurrence.recur, arrays, settings, (1, None, None, 0, 1), wide=(2, 3))


CASES = {
    "add_bias": Case(bias.add_bias, ((BATCH, 5, 3), (3,)), {}, (0, None)),
    "add_bias with axes": Case(bias.add_bias, ((BATCH, 5, 3), (5, 3)), {}, (0, None)),
    "gelu": Case(activations.gelu, ((BATCH, 33),), {}, (0,)),
    "layer_norm": Case(
        layer_norm.layer_norm,
        ((BATCH, 5, 16), (16,), (16,)),
        {"epsilon": 1e-5},
        (0, None, None),
        wide=(1, 2),
    ),
    "batch_norm": Case(
        batch_norm.batch_norm,
        ((BATCH, 5, 3, 4), (4,), (4,)),
        {"epsilon": 1e-5},
        wide=(1, 2),
        along_axis={"axis": "data"},
    ),
    "multiply": Case(products.multiply, ((BATCH, 3, 5), (5, 4)), {}, (0, None)),
    "multiply wide": Case(products.multiply, ((BATCH, 130), (130, 4)), {}, (0, None)),
    "product_over_rows": Case(products.product_over_rows, ((BATCH, 3, 130), (BATCH, 3, 4))),
    "embed": Case(embedding.embed, (TOKENS, (20, 3)), {}, (0, None)),
    "embed of a few rows": Case(embedding.embed, (TOKENS, (5, 3)), {}, (0, None)),
    "embed with padding": Case(embedding.embed, (TOKENS, (9, 3)), {"padding_index": 3}, (0, None)),
    "embed of a few rows with padding": Case(
        embedding.embed, (TOKENS, (5, 3)), {"padding_index": 0}, (0, None)
    ),
    "sum_by_channel": Case(reductions.sum_by_channel, ((BATCH, 6, 16),)),
    "sum_of_squares": Case(reductions.sum_of_squares, ((BATCH, 6),)),
    "sum_of_squares by parts": Case(reductions.sum_of_squares, ((64, 4096),)),
    "attention_scores": Case(
        attention.attention_scores, ((BATCH, 5, 2, 4), (BATCH, 6, 2, 4)), {}, (0, 0)
    ),
    "attention_results": Case(
        attention.attention_results,
        ((BATCH, 5, 8), (BATCH, 6, 8), (BATCH, 6, 8), MASK),
        {"num_heads": 2},
        (0, 0, 0, 0),
    ),
    "convolve 1d in groups": convolve((7, 4), (3, 2, 6), padding=2, dilation=(2,), groups=2),
    "convolve 3d": convolve((3, 4, 5, 2), (2, 2, 2, 2, 3), stride=2),
    "convolve one position": convolve((5, 6, 9), (1, 1, 9, 4), stride=2),
    "convolve one position with a border": convolve((5, 6, 9), (1, 1, 9, 4), padding=1),
    "convolve copies side by side": convolve((6, 7, 1), (3, 3, 1, 16), padding=1),
    "convolve copies": convolve((6, 7, 1), (2, 2, 1, 16), stride=2),
    "convolve held": convolve((2, 3, 9), (3, 3, 9, 4), padding=1),
    "convolve four side by side": convolve((9, 11, 4), (5, 5, 4, 3), padding=(0, 2)),
    "convolve four over columns": convolve((9, 11, 4), (1, 3, 4, 1), padding=1),
    "convolve two side by side": convolve((9, 11, 6), (5, 5, 6, 16)),
    "convolve two with strides": convolve((9, 11, 16), (3, 3, 16, 12), stride=2, padding=1),
    "convolve few channels": convolve((8, 9, 3), (2, 2, 3, 16), stride=2),
    "convolve tiles": convolve((7, 8, 64), (3, 3, 64, 65), padding=1),
    "convolve tile gradients": convolve((7, 6, 33), (3, 3, 33, 32), padding=1),
    "convolve plainly": convolve((5, 6, 9), (3, 3, 9, 32), padding=1),
    **{
        f"{op.__name__} {name}": pool(op, *arguments, **window(*places))
        for op in (pooling.max_pool, pooling.avg_pool)
        for name, arguments, places in (
            ("few channels", ((7, 8), 3), (3, 2, 1)),
            ("many channels", ((7, 8), 17), (3, 2, 1)),
            ("1d", ((9,), 16), (2, 3, 1, 1)),
            ("3d", ((4, 5, 6), 16), (2, 2, 0, 3)),
        )
    },
    "lstm_cell": cell(cells.lstm_cell, 4),
    "gru_cell": cell(cells.gru_cell, 3),
    "recur tanh": recur(cells.tanh_cell, 1),
    "recur relu": recur(cells.relu_cell, 1, reverse=True),
    "recur lstm": recur(cells.lstm_cell, 4, reverse=True),
    "recur gru": recur(cells.gru_cell, 3),
}
# Cases with a lowering of their own, or none, on platforms other than a CPU.
ELSEWHERE = [
    ("max_pool many channels", "cuda"),
    ("max_pool many channels", "tpu"),
    ("avg_pool many channels", "tpu"),
    ("multiply wide", "tpu"),
    ("product_over_rows", "tpu"),
    ("sum_by_channel", "tpu"),
    ("sum_of_squares by parts", "tpu"),
    ("convolve tiles", "tpu"),
]
ONE_PER_OP = {case.op.__name__: name for name, case in reversed(CASES.items())}


def is_one_per_op(name):
    return name in ONE_PER_OP.values()


def is_shape(tree: Any) -> bool:
    return isinstance(tree, tuple) and isinstance(tree[0], int)


def draw(
    case: Case, dtype: Any = np.float64, seed: int = 0, *, is_rounded: bool = False
) -> tuple[Any, ...]:
    """Arguments; rounded to bfloat16, so that all precisions start from the same numbers."""
    rng = np.random.default_rng(seed)

    def array(leaf: Any, dtype: Any) -> jax.Array:
        if not is_shape(leaf):
            return jnp.asarray(leaf)
        drawn = jnp.asarray(rng.standard_normal(leaf))
        return (drawn.astype(jnp.bfloat16) if is_rounded else drawn).astype(dtype)

    return tuple(
        jax.tree.map(
            partial(array, dtype=jnp.promote_types(dtype, np.float32) if n in case.wide else dtype),
            tree,
            is_leaf=is_shape,
        )
        for n, tree in enumerate(case.arrays)
    )


def weighted_sum(outputs: Any, bend: Callable = lambda x: x) -> jax.Array:
    """A number whose gradient by each output is a small whole number, exact in every precision."""
    total = jnp.float32(0)
    for leaf in jax.tree.leaves(outputs):
        weights = (np.arange(leaf.size) * 7 % 13 - 6).reshape(leaf.shape)
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        total += jnp.sum(bend(wide) * weights)
    return total


def is_real_number(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def gradients_of(op: Callable[..., Any], bend: Callable = lambda x: x) -> Callable[..., Any]:
    """The gradients by all arguments that are real numbers, of the weighted sum of the outputs."""

    def gradients(*arrays: Any) -> list[jax.Array]:
        leaves, tree = jax.tree.flatten(arrays)
        places = [n for n, leaf in enumerate(leaves) if is_real_number(leaf)]

        def loss(chosen: Sequence[jax.Array]) -> jax.Array:
            all_leaves = list(leaves)
            for place, leaf in zip(places, chosen, strict=True):
                all_leaves[place] = leaf
            return weighted_sum(op(*jax.tree.unflatten(tree, all_leaves)), bend)

        return jax.grad(loss)([leaves[place] for place in places])

    return gradients


def results_of(op: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """Outputs and gradients of an op."""
    op = partial(op, **settings)
    return lambda *arrays: (op(*arrays), gradients_of(op)(*arrays))


def errors(found: Any, expected: Any) -> list[float]:
    """The largest difference of each array from the one expected, relative to its largest value."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    result = []
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        scale = np.abs(theirs).max(initial=0)
        result.append(np.abs(ours - theirs).max(initial=0) / (scale or 1))
    return result


def test_every_op_and_every_lowering_has_a_case():
    ops = set()
    for module in pkgutil.iter_modules(flaxdl.ops.__path__, "flaxdl.ops."):
        names = vars(importlib.import_module(module.name)).items()
        ops |= {name for name, value in names if hasattr(value, "__wrapped__") and name[0] != "_"}
    assert ops - {"reference", "has_ampere", "without_cudnn"} == set(ONE_PER_OP)
    chosen = set()
    for case in CASES.values():
        if case.op is convolution.convolve:
            x, kernel = draw(case, np.float32)
            seen = convolution._Window(kernel.shape[:-2], **case.settings)
            rows = convolution._LOWERINGS
            chosen.add(next(n for n, row in enumerate(rows) if row[0](seen, x, kernel)))
    assert chosen == set(range(len(convolution._LOWERINGS)))


@pytest.mark.parametrize(("name", "platform"), [*((name, "cpu") for name in CASES), *ELSEWHERE])
def test_values_and_derivatives_are_those_of_the_definition(name, platform, monkeypatch):
    """In float64: outputs, gradients, and products of the Hessian with a vector."""
    case = CASES[name]

    def choose(*arrays, default, **lowerings):
        """Takes the lowering for another platform, and computes it on this one."""
        return lowerings.get(platform, default)(*arrays)

    def results(*arrays):
        gradients = gradients_of(partial(case.op, **case.settings), jnp.sin)
        directions = jax.tree.map(
            lambda x, d: d if is_real_number(x) else np.zeros(x.shape, jax.dtypes.float0),
            arrays,
            draw(case, seed=1),
        )
        second = jax.jvp(gradients, arrays, directions)[1]
        return results_of(case.op, **case.settings)(*arrays), second

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    with jax.enable_x64(True):
        found = jax.jit(results)(*draw(case))
        with reference():
            expected = jax.jit(results)(*draw(case))
    assert max(errors(found, expected)) < 1e-12


@functools.cache
def exact_results(name: str) -> Any:
    """Returns the results of the definition in float64."""
    case = CASES[name]
    with jax.enable_x64(True), reference():
        results = jax.jit(results_of(case.op, **case.settings))(*draw(case, is_rounded=True))
        return jax.tree.map(np.asarray, results)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", sampled(CASES, is_one_per_op))
def test_is_as_exact_as_the_definition(name, dtype):
    """In lower precision: no further from the definition in float64 than the definition itself."""
    case = CASES[name]
    results = results_of(case.op, **case.settings)
    exact, arrays = exact_results(name), draw(case, dtype, is_rounded=True)
    found = jax.jit(results)(*arrays)
    with reference():
        plain = jax.jit(results)(*arrays)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, plain)
    for ours, theirs in zip(errors(found, exact), errors(plain, exact), strict=True):
        assert ours <= 1.5 * theirs + jnp.finfo(dtype).eps


@pytest.mark.parametrize("name", CASES)
def test_is_lowered_for_every_platform(name):
    case = CASES[name]
    traced = jax.jit(results_of(case.op, **case.settings)).trace(*draw(case, np.float32))
    for other in PLATFORMS:
        assert traced.lower(lowering_platforms=(other,)).as_text()


@pytest.mark.parametrize(
    "name", sampled([name for name, case in CASES.items() if case.batch], is_one_per_op)
)
def test_a_batch_may_be_empty(name):
    case = CASES[name]
    arrays = tuple(
        tree
        if axis is None
        else jax.tree.map(
            partial(jax.lax.slice_in_dim, start_index=0, limit_index=0, axis=axis), tree
        )
        for tree, axis in zip(draw(case, np.float32), case.batch, strict=True)
    )
    found = results_of(case.op, **case.settings)(*arrays)
    with reference():
        expected = results_of(case.op, **case.settings)(*arrays)
    assert max(errors(found, expected)) == 0


@pytest.mark.parametrize("is_definition", sampled([False, True], operator.not_))
@pytest.mark.parametrize("name", ONE_PER_OP.values())
def test_vmap_computes_each_item(name, is_definition):
    case = CASES[name]
    with jax.enable_x64(True):
        pairs = jax.tree.map(lambda *pair: jnp.stack(pair), draw(case), draw(case, seed=1))
        results = jax.jit(results_of(case.op, **case.settings))
        items = [results(*jax.tree.map(lambda x, n=n: x[n], pairs)) for n in range(2)]
        with reference() if is_definition else jax.enable_x64(True):
            found = jax.jit(jax.vmap(results))(*pairs)
    assert max(errors(found, jax.tree.map(lambda *pair: jnp.stack(pair), *items))) < 1e-12


def split(case: Case) -> tuple[int | None, ...]:
    """The axes along which the devices share the arguments."""
    return case.batch or tuple(None if n in case.wide else 0 for n in range(len(case.arrays)))


@pytest.mark.eight_devices
@pytest.mark.parametrize("is_definition", sampled([False, True], operator.not_))
@pytest.mark.parametrize(
    "name", [name for name in ONE_PER_OP.values() if CASES[name].batch or CASES[name].along_axis]
)
def test_devices_share_a_batch(name, is_definition):
    """Gradients under `shard_map`, those of shared arguments added up, are those of the batch."""
    case = CASES[name]
    axes = split(case)
    shared = partial(case.op, **case.settings, **case.along_axis)
    specs = tuple(
        PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data") for axis in axes
    )
    mesh = Mesh(np.array(jax.devices()), "data")

    def loss(op: Callable[..., Any], *arrays: Any) -> jax.Array:
        first, *_ = jax.tree.leaves(op(*arrays))
        return jnp.sum(jnp.sin(first))

    def whole(*arrays: Any) -> jax.Array:
        return loss(partial(case.op, **case.settings), *arrays)

    def sharded(*arrays: Any) -> jax.Array:
        return jax.shard_map(
            lambda *parts: jax.lax.psum(loss(shared, *parts), "data"),
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(),
        )(*arrays)

    def mapped(*arrays: Any) -> list[Any]:
        """Gradients under `pmap`, which adds up nothing."""
        parts = [
            tree if axis is None else jax.tree.map(partial(jnp.expand_dims, axis=axis + 1), tree)
            for tree, axis in zip(arrays, axes, strict=True)
        ]
        out_axes = tuple(axes[place] or 0 for place in places)
        gradient = jax.grad(partial(loss, shared), places)
        parts = jax.pmap(gradient, "data", in_axes=axes, out_axes=out_axes)(*parts)
        return [
            jax.tree.map(lambda x: x.sum(0), tree)
            if axes[place] is None
            else jax.tree.map(partial(jnp.squeeze, axis=axes[place] + 1), tree)
            for place, tree in zip(places, parts, strict=True)
        ]

    with jax.enable_x64(True):
        arrays = draw(case)
        places = tuple(
            n for n, tree in enumerate(arrays) if all(map(is_real_number, jax.tree.leaves(tree)))
        )
        expected = jax.jit(jax.grad(whole, places))(*arrays)
        with reference() if is_definition else jax.enable_x64(True):
            found = jax.jit(jax.grad(sharded, places))(*arrays), mapped(*arrays)
    for gradients in found:
        assert max(errors(gradients, expected)) < 1e-12
