"""Is the recurrence of an RNN the formula of the course?

The course writes `hidden_state = tanh(W_hh * prev_hidden + W_ih * input + bias)`. The experiment
writes the formula as a loop over time steps, in float64, and compares it with the layer `RNN`,
which has the parameters of PyTorch's `nn.RNN`. These have two biases. Only their sum matters, so
the formula with one bias is the same function, with H parameters fewer.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.course.experiment import Results, Verdict, make_figure
from flaxdl.layers import RNN

CLAIM = "An RNN computes h = tanh(W_hh h + W_ih x + b) at each step."
EXPECTED = "exact; the layer has two biases instead of one"
SEEDS = 5

EXACT = 1e-12  # difference in float64 that rounding explains


def by_hand(params: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """Computes the hidden states [T, H] for inputs [T, I] with the formula of the course."""
    hidden = np.zeros(params["weight_hh_l0"].shape[0])
    bias = params["bias_ih_l0"] + params["bias_hh_l0"]
    states = []
    for x in inputs:
        hidden = np.tanh(params["weight_hh_l0"] @ hidden + params["weight_ih_l0"] @ x + bias)
        states.append(hidden)
    return np.array(states)


def measure(seeds: Sequence[int], *, quick: bool) -> Results:
    """Returns the largest difference between layer and formula at each step, by seed."""
    differences = []
    with jax.enable_x64(True):
        for seed in seeds:
            inputs = np.random.default_rng(seed).standard_normal((50, 8))
            layer = RNN(hidden_size=16)
            variables = layer.init(jax.random.key(seed), jnp.asarray(inputs[None]))
            variables = jax.tree.map(lambda array: array.astype(jnp.float64), variables)
            outputs, _ = layer.apply(variables, jnp.asarray(inputs[None]))
            params = jax.tree.map(np.asarray, variables["params"])
            differences.append(np.abs(outputs[0] - by_hand(params, inputs)).max(-1).tolist())
    return {"differences": differences}


def verdict(results: Results) -> Verdict:
    """Exact if no hidden value differs by more than rounding."""
    largest = max(map(max, results["differences"]))
    outcome = "exact" if largest <= EXACT else "does not hold here"
    return Verdict(outcome, f"The layer and the formula differ by at most {largest:.1e}.")


def draw(results: Results):
    """Draws the largest difference at each time step."""
    figure = make_figure()
    (axes,) = figure.axes
    for of_seed in results["differences"]:
        axes.plot(np.maximum(of_seed, 1e-17))
    axes.set(yscale="log", ylim=(1e-17, 1e-11), xlabel="time step", ylabel="largest difference")
    axes.axhline(EXACT, linestyle="--", color="#d55e00")
    return figure
