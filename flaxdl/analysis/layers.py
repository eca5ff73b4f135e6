"""Model summary: output shape, parameters, FLOPs and receptive field of each layer.

The model is traced to a jaxpr, but not run. Each operation in a jaxpr has a name stack; `inspect`
opens a named scope for each module, so that operations can be counted per layer.

A multiply-add counts as two FLOPs (papers often count one). Only matrix products and convolutions
are counted. The receptive field is the number of input positions along each spatial axis that one
output position depends on; it is undefined once positions are mixed, as by flattening, attention or
recurrence.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from rich import box
from rich.table import Table

from flaxdl.errors import UserError

SCOPE = "layer:"  # prefix that distinguishes these scopes from those of the model


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """Output shape and cost of a layer."""

    name: str
    """Path of the layer in the model, such as `layer1.0.conv1`; empty for the model itself."""
    output_shape: tuple[int, ...]
    """Shape of the (first) output."""
    parameters: int
    """Number of parameters, without those of submodules."""
    flops: int
    """Number of FLOPs, two per multiply-add, without those of submodules."""
    receptive_field: tuple[int, ...] | None
    """Number of input positions along each spatial axis that one output position depends on; None
    if undefined."""
    activations: int
    """Number of values in the output."""


class Reach(NamedTuple):
    """Extent of the receptive field along one axis of an activation."""

    size: int
    """Number of input positions that one position of the activation depends on."""
    step: int
    """Distance between the receptive fields of neighboring positions, in input positions."""

    def through(self, window: int, stride: int, dilation: int) -> "Reach":
        """Returns the receptive field after a convolution or pooling with the given window."""
        return Reach(self.size + (window - 1) * dilation * self.step, self.step * stride)


# The extent along each spatial axis; None if positions have been mixed.
Field = tuple[Reach, ...] | None


def inspect(module: nn.Module, *args: Any, **kwargs: Any) -> list[LayerRow]:
    """Returns a row for each layer that has parameters or FLOPs, in the order of calls.

    >>> images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    >>> rows = flaxdl.analysis.layers.inspect(flaxdl.models.ResNet18(), images)
    >>> sum(row.flops for row in rows)  # about 2 x 1.82 billion
    3628146688

    Args:
        module: model, called in inference mode.
        *args: arguments of the model, as arrays or `jax.ShapeDtypeStruct`. The first one is the
            input `[B, *spatial, C]`; receptive fields are measured in its positions.
        **kwargs: keyword arguments of the model, as arrays or `jax.ShapeDtypeStruct`.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def record(call, call_args, call_kwargs, context):
        if context.method_name != "__call__":
            return call(*call_args, **call_kwargs)
        name = ".".join(context.module.path)
        shapes[name] = ()  # outer layers before inner ones
        with jax.named_scope(SCOPE + name):
            outputs = call(*call_args, **call_kwargs)
        shapes[name] = jax.tree.leaves(outputs)[0].shape
        return outputs

    def apply(variables, args, kwargs):
        with nn.intercept_methods(record):
            return module.apply(variables, *args, **kwargs)

    variables = jax.eval_shape(module.init, jax.random.key(0), *args, **kwargs)
    jaxpr = jax.make_jaxpr(apply)(variables, args, kwargs).jaxpr
    inputs = jaxpr.invars[len(jax.tree.leaves(variables))]
    trace = _Trace()
    trace.follow(jaxpr, {inputs: (Reach(1, 1),) * (len(args[0].shape) - 2)}, layer="", times=1)

    parameters = Counter()
    for path, leaf in jax.tree.leaves_with_path(variables["params"]):
        parameters[".".join(entry.key for entry in path[:-1])] += math.prod(leaf.shape)
    return [
        LayerRow(
            name, shape, parameters[name], trace.flops[name], trace.field(name), math.prod(shape)
        )
        for name, shape in shapes.items()
        if parameters[name] or trace.flops[name]
    ]


def group_layers(rows: Sequence[LayerRow], depth: int) -> list[LayerRow]:
    """Returns a row for each module at a depth, summed over its layers.

    Depth is the number of components of a PyTorch name: 1 groups `layer1.0.conv1` into `layer1`, 2
    into `layer1.0`. The output shape is that of the last layer; the receptive field is the largest
    one.

    Args:
        rows: rows returned by `inspect`.
        depth: depth to group by, at least 1.

    Raises:
        UserError: if the depth is less than 1.
    """
    if depth < 1:
        raise UserError(f"depth must be at least 1, got {depth}")
    groups: dict[str, list[LayerRow]] = {}
    for row in rows:
        groups.setdefault(".".join(row.name.split(".")[:depth]), []).append(row)
    return [
        LayerRow(
            name,
            layers[-1].output_shape,
            sum(row.parameters for row in layers),
            sum(row.flops for row in layers),
            _largest_field(layers),
            sum(row.activations for row in layers),
        )
        for name, layers in groups.items()
    ]


def _largest_field(layers: Sequence[LayerRow]) -> tuple[int, ...] | None:
    """Returns the largest receptive field; None if that of the last layer is undefined."""
    if layers[-1].receptive_field is None:
        return None
    return max(row.receptive_field for row in layers if row.receptive_field is not None)


def layer_table(rows: Sequence[LayerRow], input_shape: Sequence[int] | None = None) -> Table:
    """Returns the rows as a table for `rich.print`, with totals in the footer.

    Args:
        rows: rows returned by `inspect` or `group_layers`.
        input_shape: shape of one example, shown in the caption.
    """
    activations = sum(row.activations for row in rows)
    facts = [
        f"activations: {activations:,} values, {4 * activations / 2**20:,.1f} MiB in float32",
        "MFLOPs: a multiply-add counts as two",
        "layers without parameters or FLOPs, such as ReLU and pooling, are not listed",
    ]
    if input_shape is not None:
        facts.insert(0, f"input: {_times(input_shape)}")
    table = Table(
        box=box.SIMPLE_HEAD, show_footer=True, caption="\n".join(facts), caption_justify="left"
    )
    table.add_column("layer", "total", overflow="fold")
    table.add_column("output", no_wrap=True)
    table.add_column(
        "parameters", f"{sum(row.parameters for row in rows):,}", justify="right", no_wrap=True
    )
    table.add_column(
        "MFLOPs", f"{sum(row.flops for row in rows) / 1e6:,.1f}", justify="right", no_wrap=True
    )
    table.add_column("receptive field", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            _times(row.output_shape[1:]),
            f"{row.parameters:,}",
            f"{row.flops / 1e6:,.1f}",
            _times(row.receptive_field) if row.receptive_field else "-",
        )
    return table


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


class _Trace:
    """FLOPs and receptive fields per layer, accumulated by traversing a jaxpr."""

    def __init__(self):
        self.flops: Counter[str] = Counter()
        self._fields: dict[str, Field] = {}

    def field(self, layer: str) -> tuple[int, ...] | None:
        """Returns the receptive field of the last activation of a layer."""
        field = self._fields.get(layer)
        return tuple(reach.size for reach in field) if field else None

    def follow(
        self, jaxpr: Jaxpr, fields: dict[Var, Field], *, layer: str, times: int
    ) -> list[Field]:
        """Traverses a jaxpr that a layer runs `times` times; returns the outputs' receptive fields.

        `fields` contains the receptive fields of the variables that depend on the input.
        """
        for eqn in jaxpr.eqns:
            scopes = str(eqn.source_info.name_stack).split("/")
            names = [scope.removeprefix(SCOPE) for scope in scopes if scope.startswith(SCOPE)]
            innermost = names[-1] if names else layer
            self.flops[innermost] += times * _flops(eqn)

            tracked = {v: fields[v] for v in eqn.invars if isinstance(v, Var) and v in fields}
            outputs = [_field_after(eqn, tracked)] * len(eqn.outvars)
            inner = _inner_jaxpr(eqn)
            if inner is not None:
                # The first operand of `cond` is the index of the branch.
                given = eqn.invars[1:] if eqn.primitive.name == "cond" else eqn.invars
                # A call passes its variables through; a loop has separate ones.
                is_call = len(inner.invars) == len(given) and "length" not in eqn.params
                pairs = zip(inner.invars, given, strict=True) if is_call else ()
                passed = {i: tracked[v] for i, v in pairs if isinstance(v, Var) and v in tracked}
                repeats = times * eqn.params.get("length", 1)
                found = self.follow(inner, passed, layer=innermost, times=repeats)
                outputs = found if is_call else outputs
            if tracked:
                fields.update(zip(eqn.outvars, outputs, strict=True))
                self._fields[innermost] = outputs[0]
        return [fields.get(v) if isinstance(v, Var) else None for v in jaxpr.outvars]


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())


def _flops(eqn: JaxprEqn) -> int:
    """Returns the FLOPs of a matrix product or a convolution, two per multiply-add, otherwise 0."""
    outputs = math.prod(_shape(eqn.outvars[0])) if eqn.outvars else 0
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * outputs * math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        kernel = _shape(eqn.invars[1])
        out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * outputs * math.prod(kernel) // out_features
    return 0


def _field_after(eqn: JaxprEqn, operands: Mapping[Var, Field]) -> Field:
    """Returns the receptive field of an operation's output, if its operands have one.

    Convolutions and pooling widen it; padding at the ends does not. Any other operation that
    preserves the shape of its operands, except a matrix product, is assumed to preserve positions.
    """
    fields = [field for field in operands.values() if field]
    if not fields or len(fields) < len(operands):
        return None
    if eqn.primitive.name == "conv_general_dilated":
        kernel, spec = _shape(eqn.invars[1]), eqn.params["dimension_numbers"].rhs_spec
        sizes = [kernel[axis] for axis in spec[2:]]
        windows = zip(sizes, eqn.params["window_strides"], eqn.params["rhs_dilation"], strict=True)
    elif eqn.primitive.name.startswith("reduce_window"):
        names = "window_dimensions", "window_strides", "window_dilation"
        windows = zip(*(eqn.params[name][1:-1] for name in names), strict=True)
    elif eqn.primitive.name == "dot_general":
        return None
    elif (
        eqn.primitive.name == "pad"
        and not any(inner for _, _, inner in eqn.params["padding_config"])
    ) or {_shape(v) for v in operands} == {_shape(v) for v in eqn.outvars}:
        windows = [(1, 1, 1)] * len(fields[0])
    else:
        return None
    widest = [
        Reach(max(reach.size for reach in axis), max(reach.step for reach in axis))
        for axis in zip(*fields, strict=True)
    ]
    return tuple(reach.through(*window) for reach, window in zip(widest, windows, strict=True))


def _inner_jaxpr(eqn: JaxprEqn) -> Jaxpr | None:
    if eqn.primitive.name == "cond":  # a choice by platform, with the default last
        return eqn.params["branches"][-1].jaxpr
    for value in eqn.params.values():
        if isinstance(value, ClosedJaxpr):
            return value.jaxpr
        if isinstance(value, Jaxpr):
            return value
    return None
