"""Does the number of dependent steps grow with the length of a sequence?

An LSTM needs the state of step t - 1 for step t; attention computes all positions from the same
inputs. The experiment traces both layers for 16 to 256 positions and follows the dependences in the
traced program, loops included: the chain is the largest number of matrix products of which each
needs the result of the one before. As a check, it adds up the iterations of all loops in the
program that XLA has compiled.

It does the same for a training step (the gradient), and for generation, where each input is the
output of the position before. There, attention must also wait, which is the control.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

import flaxdl.ops
from flaxdl.course.experiment import Results, Verdict, make_figure
from flaxdl.layers import LSTM, MultiHeadAttention, causal_mask

CLAIM = "An LSTM reads one position after another; attention processes all of them in parallel."
EXPECTED = "holds; generation is sequential for both"
SEEDS = 1

LENGTHS = (16, 32, 64, 128, 256)
WIDTH = 16
TASKS = ("reading", "training", "generation")
LAYERS = {"LSTM": LSTM(WIDTH), "attention": MultiHeadAttention(WIDTH, 4)}


def chain(program: core.Jaxpr, depths: Sequence[int]) -> list[int]:
    """Returns the number of matrix products in a row that each output of a program needs.

    Args:
        program: traced program.
        depths: the same number for each input.
    """
    of = dict(zip(program.invars, depths, strict=True))
    for equation in program.eqns:
        inputs = [0 if isinstance(v, core.Literal) else of.get(v, 0) for v in equation.invars]
        inner = _inner_programs(equation)
        if equation.primitive.name == "scan":
            outputs = _loop_chain(inner[0], inputs, equation.params)
        elif inner:
            of_inner = [chain(p, [max(inputs, default=0)] * len(p.invars)) for p in inner]
            outputs = [max(column) for column in zip(*of_inner, strict=True)]
        else:
            step = equation.primitive.name == "dot_general"
            outputs = [max(inputs, default=0) + step] * len(equation.outvars)
        of.update(zip(equation.outvars, outputs, strict=True))
    return [0 if isinstance(v, core.Literal) else of.get(v, 0) for v in program.outvars]


def _inner_programs(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    leaves = jax.tree.leaves(
        list(equation.params.values()),
        is_leaf=lambda leaf: isinstance(leaf, core.Jaxpr | core.ClosedJaxpr),
    )
    programs = [leaf.jaxpr if isinstance(leaf, core.ClosedJaxpr) else leaf for leaf in leaves]
    return [program for program in programs if isinstance(program, core.Jaxpr)]


def _loop_chain(body: core.Jaxpr, inputs: list[int], params: dict[str, Any]) -> list[int]:
    consts = params["num_consts"]
    end = consts + params["num_carry"]
    carry, stacked = inputs[consts:end], [0] * (len(body.outvars) - params["num_carry"])
    for _ in range(params["length"]):
        outputs = chain(body, [*inputs[:consts], *carry, *inputs[end:]])
        carry = outputs[: len(carry)]
        stacked = [max(pair) for pair in zip(stacked, outputs[len(carry) :], strict=True)]
    return [*carry, *stacked]


def task(name: str, layer: str, length: int) -> tuple[Callable, jax.Array]:
    """Returns the function of a task, and inputs for it."""
    x = jnp.ones((1, length, WIDTH))
    module = LAYERS[layer]
    if isinstance(module, LSTM):
        params = module.init(jax.random.key(0), x)

        def read(x: jax.Array) -> jax.Array:
            return module.apply(params, x)[0]
    else:
        params = module.init(jax.random.key(0), x, x, x)

        def read(x: jax.Array) -> jax.Array:
            return jnp.asarray(module.apply(params, x, x, x, causal_mask(x.shape[1])))

    def step(state: Any, position: jax.Array) -> tuple[Any, None]:
        if isinstance(module, LSTM):
            outputs, new = module.apply(params, state[0], initial_state=state[1])
            return (outputs, new), None
        following = read(state)[:, position]
        return state.at[:, position + 1].set(following, mode="drop"), None

    def generate(x: jax.Array) -> Any:
        zeros = jnp.zeros((1, 1, WIDTH))
        start = (x[:, :1], (zeros, zeros)) if isinstance(module, LSTM) else x
        return jax.lax.scan(step, start, jnp.arange(length))[0]

    if name == "training":
        return jax.grad(lambda x: jnp.square(read(x)).sum()), x
    return (read if name == "reading" else generate), x


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns chains and iterations of compiled loops by task, layer and length."""
    chains, loops = {}, {}
    with flaxdl.ops.reference():
        for name in TASKS:
            for layer in LAYERS:
                for length in LENGTHS:
                    function, x = task(name, layer, length)
                    program = jax.make_jaxpr(function)(x)
                    longest = max(chain(program.jaxpr, [0]))
                    chains.setdefault(name, {}).setdefault(layer, []).append(longest)
                compiled = jax.jit(function).lower(x).compile().as_text() or ""
                trips = re.findall(r'known_trip_count":\s*\{"n":"(\d+)"', compiled)
                loops.setdefault(name, {})[layer] = sum(map(int, trips))
    return {"lengths": list(LENGTHS), "chains": chains, "compiled_loops": loops}


def verdict(results: Results) -> Verdict:
    """Exact if only the LSTM's chains grow, in reading and training, and both in generation."""
    times = LENGTHS[-1] / LENGTHS[0]
    growth = {
        name: {layer: chains[-1] / chains[0] for layer, chains in of.items()}
        for name, of in results["chains"].items()
    }
    numbers = "; ".join(
        f"{name}: LSTM {of['LSTM'][-1]}, attention {of['attention'][-1]}"
        for name, of in results["chains"].items()
    )
    reason = f"Matrix products in a row for {LENGTHS[-1]} positions: {numbers}."
    exact = (
        all(growth[name]["LSTM"] >= times / 2 for name in TASKS)
        and all(growth[name]["attention"] == 1 for name in ("reading", "training"))
        and growth["generation"]["attention"] >= times / 2
    )
    return Verdict("exact" if exact else "does not hold here", reason)


def draw(results: Results):
    """Draws the chains by length."""
    figure = make_figure(3, width=2.8, height=3.2)
    for axes, (name, of) in zip(figure.axes, results["chains"].items(), strict=True):
        for layer, style in (("LSTM", "o-"), ("attention", "s--")):
            axes.plot(results["lengths"], of[layer], style, label=layer)
        axes.set(title=name, xscale="log", yscale="log", ylim=(1, 2000), xlabel="positions")
        axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
        axes.minorticks_off()
    figure.axes[0].set(ylabel="matrix products in a row")
    figure.axes[0].legend(fontsize=9)
    return figure
