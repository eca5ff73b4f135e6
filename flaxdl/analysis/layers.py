"""What each layer of a model puts out and costs, from shapes alone.

The model is traced, never run. In the trace, a jaxpr, every operation carries the scopes it was
made in; `inspect` opens one for each module, so that operations can be counted by layer.

A multiply-add is two FLOPs (papers often call it one); matrix products and convolutions are
counted, and nothing else. The receptive field is the number of input positions along each spatial
axis that one position of the output depends on; there is none once positions are mixed, as in
flattening, attention or recurrence.
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

SCOPE = "layer:"  # begins the names of our scopes, to tell them from those of others


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """What a layer puts out and costs."""

    name: str
    """Path of the layer in the model, as in `layer1.0.conv1`; empty for the model itself."""
    output_shape: tuple[int, ...]
    """Shape of its (first) output."""
    parameters: int
    """Number of trained values of its own, without those of layers inside it."""
    flops: int
    """FLOPs of its own, two for each multiply-add."""
    receptive_field: tuple[int, ...] | None
    """Input positions along each spatial axis behind one output position, where that is defined."""


class Reach(NamedTuple):
    """How positions along one axis of an activation lie over those of the input."""

    size: int
    """Input positions behind one position."""
    step: int
    """Input positions from one position to the next."""

    def through(self, window: int, stride: int, dilation: int) -> "Reach":
        """Returns the reach after a sliding window."""
        return Reach(self.size + (window - 1) * dilation * self.step, self.step * stride)


# The reach along each spatial axis; None where positions have been mixed.
Field = tuple[Reach, ...] | None


def inspect(module: nn.Module, *args: Any, **kwargs: Any) -> list[LayerRow]:
    """Returns a row for each layer that has parameters or costs FLOPs, in the order of calls.

    >>> rows = inspect(ResNet50(), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    >>> sum(row.flops for row in rows)  # about 2 x 4.09 billion
    8178368512

    Args:
        module: the model, called in inference.
        *args: its arguments, as arrays or `jax.ShapeDtypeStruct`; the first is the input [B,
            *spatial, C] that receptive fields are counted in.
        **kwargs: further arrays or shapes, by keyword.
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
        LayerRow(name, shape, parameters[name], trace.flops[name], trace.field(name))
        for name, shape in shapes.items()
        if parameters[name] or trace.flops[name]
    ]


def layer_table(rows: Sequence[LayerRow]) -> Table:
    """Returns the rows as a table for `rich.print`, with the totals below."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_footer=True,
        caption="MFLOPs: millions, a multiply-add is two; field: the receptive field",
    )
    table.add_column("layer", "total", overflow="fold")
    table.add_column("output", no_wrap=True)
    table.add_column(
        "parameters", f"{sum(row.parameters for row in rows):,}", justify="right", no_wrap=True
    )
    table.add_column(
        "MFLOPs", f"{sum(row.flops for row in rows) / 1e6:,.1f}", justify="right", no_wrap=True
    )
    table.add_column("field", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            "×".join(map(str, row.output_shape[1:])),
            f"{row.parameters:,}",
            f"{row.flops / 1e6:,.1f}",
            "×".join(map(str, row.receptive_field)) if row.receptive_field else "-",
        )
    return table


class _Trace:
    """Follows a jaxpr, counting FLOPs by layer and widening receptive fields."""

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
        """Follows operations that run `times` times within a layer; returns the outputs' fields.

        `fields` holds the variables that depend on the input.
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
                # The first operand of a choice says which branch to take.
                given = eqn.invars[1:] if eqn.primitive.name == "cond" else eqn.invars
                # A function called once takes the variables as they are; a loop's are its own.
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
    """Returns two FLOPs for each multiply-add of a matrix product or a convolution."""
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

    Windows widen it; what else keeps the shape of all operands, but for matrix products, is taken
    to keep the positions.
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
    elif {_shape(v) for v in operands} == {_shape(v) for v in eqn.outvars}:
        windows = [(1, 1, 1)] * len(fields[0])
    else:
        return None
    widest = [
        Reach(max(reach.size for reach in axis), max(reach.step for reach in axis))
        for axis in zip(*fields, strict=True)
    ]
    return tuple(reach.through(*window) for reach, window in zip(widest, windows, strict=True))


def _inner_jaxpr(eqn: JaxprEqn) -> Jaxpr | None:
    if eqn.primitive.name == "cond":  # one form for a platform or another, the general one last
        return eqn.params["branches"][-1].jaxpr
    for value in eqn.params.values():
        if isinstance(value, ClosedJaxpr):
            return value.jaxpr
        if isinstance(value, Jaxpr):
            return value
    return None
