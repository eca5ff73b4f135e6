"""Drop path: torchvision's values, a fair coin for each example, and timm's rates by depth."""

import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.parity import assert_close

from flaxdl.errors import UserError
from flaxdl.layers import DropPath, drop_path_rates

BRANCH = np.random.default_rng(0).standard_normal((64, 3, 2, 5))


def drop(rate, inputs, *, seed=0):
    return DropPath(rate).apply({}, inputs, train=True, rngs={"dropout": jax.random.key(seed)})


def kept_rows(outputs):
    """bool[B], the rows that are not all zero."""
    return np.asarray(outputs).reshape(len(outputs), -1).any(1)


def stochastic_depth():
    """torchvision's function, also if its compiled part does not fit PyTorch's build."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType(""))
    from torchvision.ops import stochastic_depth

    return stochastic_depth


@pytest.mark.quick
@pytest.mark.parametrize("rate", [0.5, 0.75])  # by whose complements division is exact
def test_rows_are_dropped_or_scaled(rate):
    with jax.enable_x64(True):
        outputs = np.asarray(drop(rate, BRANCH))
    kept = kept_rows(outputs)
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(outputs[kept], BRANCH[kept] / (1 - rate))
    np.testing.assert_array_equal(BRANCH[~kept] + outputs[~kept], BRANCH[~kept])


@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_outputs_and_gradients_are_torchvisions_for_the_same_draws(rate, monkeypatch):
    theirs = stochastic_depth()
    import torch

    with jax.enable_x64(True):
        ours, pull_back = jax.vjp(lambda x: drop(rate, x), jnp.asarray(BRANCH))
        (gradient,) = pull_back(jnp.cos(ours))
    kept = torch.tensor(kept_rows(ours), dtype=torch.float64).reshape(-1, 1, 1, 1)
    asked = []

    def bernoulli_(noise, probability):
        asked.append((tuple(noise.shape), probability))
        return noise.copy_(kept)

    monkeypatch.setattr(torch.Tensor, "bernoulli_", bernoulli_)
    inputs = torch.tensor(BRANCH, requires_grad=True)
    outputs = theirs(inputs, rate, mode="row")
    outputs.backward(outputs.detach().cos())
    assert asked == [((64, 1, 1, 1), 1 - rate)]
    assert_close(ours, outputs.detach(), 1e-15)
    assert_close(gradient, inputs.grad, 1e-14)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_every_row_is_dropped_with_the_probability(rate):
    draws, rows = 20_000, 8

    @jax.jit
    @jax.vmap
    def outputs_of(key):
        return DropPath(rate).apply({}, jnp.ones((rows, 1)), train=True, rngs={"dropout": key})

    outputs = np.asarray(outputs_of(jax.random.split(jax.random.key(0), draws)))[:, :, 0]
    dropped = outputs == 0
    # Five deviations, of each row over the keys and of all of them: once in 10^5 times by chance.
    deviation = np.sqrt(rate * (1 - rate) / draws)
    assert np.abs(dropped.mean(0) - rate).max() < 5 * deviation
    assert abs(dropped.mean() - rate) < 5 * deviation / np.sqrt(rows)
    assert np.abs(outputs.mean(0) - 1).max() < 5 * deviation / (1 - rate)
    # Correlations of two rows, and of a row with itself under the next key.
    centered = (dropped - rate) / np.sqrt(rate * (1 - rate))
    products = centered.T @ centered / draws
    assert np.abs(products[~np.eye(rows, dtype=bool)]).max() < 5 / np.sqrt(draws)
    assert np.abs((centered[1:] * centered[:-1]).mean(0)).max() < 5 / np.sqrt(draws)


def test_inference_and_rate_0_return_the_inputs_and_draw_nothing():
    assert DropPath(0.9).apply({}, BRANCH) is BRANCH
    assert DropPath(0.0).apply({}, BRANCH, train=True) is BRANCH


def test_a_dropped_branch_may_overflow():
    outputs = drop(0.5, jnp.full((64, 2), jnp.nan))
    assert 0 < np.isnan(outputs).all(1).sum() == 64 - (outputs == 0).all(1).sum() < 64


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_stays_in_the_dtype_it_is_given(dtype):
    with jax.enable_x64(True):
        assert drop(0.3, jnp.ones((8, 2), dtype)).dtype == dtype


@pytest.mark.eight_devices
def test_the_same_rows_are_dropped_on_any_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    branch = BRANCH.astype(np.float32)
    split = jax.jit(lambda x: drop(0.4, x), out_shardings=sharding)(
        jax.device_put(branch, sharding)
    )
    np.testing.assert_array_equal(kept_rows(split), kept_rows(drop(0.4, branch)))


def test_rates_grow_linearly():
    np.testing.assert_allclose(
        drop_path_rates(0.35, 8), [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35], rtol=1e-15
    )
    assert [drop_path_rates(0.1, depth) for depth in (0, 1, 2)] == [(), (0,), (0, 0.1)]
    for depth in range(2, 60):
        np.testing.assert_allclose(
            drop_path_rates(0.1, depth), np.linspace(0, 0.1, depth), rtol=1e-15
        )
        assert drop_path_rates(0.1, depth)[-1] == 0.1


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
@pytest.mark.parametrize("train", [False, True])
def test_refuses_other_rates(rate, train):
    message = f"drop path rate must be at least 0 and less than 1, got {rate}"
    with pytest.raises(UserError, match=message):
        DropPath(rate).apply({}, BRANCH, train)
    with pytest.raises(UserError, match=message):
        drop_path_rates(rate, 1)
