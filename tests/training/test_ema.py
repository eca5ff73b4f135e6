"""Moving averages in the training step: PyTorch's numbers, skipped steps, freezing, devices."""

from dataclasses import replace
from functools import cache, partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.devices import widened
from helpers.small_steps import NormalizedMlp, assert_trees_close, make_steps, quadrant_batch
from jax.sharding import PartitionSpec as P

from flaxdl import UserError
from flaxdl.layers import BatchNorm, Linear
from flaxdl.training import EMA, SGD
from flaxdl.training.distributed.mesh import MeshShape, make_mesh
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.distributed.placement import Placement, create_on, put_like, shapes_on
from flaxdl.training.precision import LossScale
from flaxdl.weights import state_dict

MODEL = NormalizedMlp(dropout=0.0)


def steps_with(ema, **changes):
    optimizer = SGD(learning_rate=0.2, momentum=0.9, weight_decay=0.01)
    return make_steps(**({"model": MODEL, "optimizer": optimizer, "ema": ema} | changes))


@cache
def compiled(steps):
    return jax.jit(steps.train)


@cache
def start_of(steps):
    return jax.jit(steps.initial_state)(quadrant_batch())


def wide(state):
    """The state with its arrays in float64, except what a step computes in float32."""
    names = ("params", "model_state", "optimizer_state", "average")
    values = {name: getattr(state, name) for name in names}
    return state.replace(**put_like(values, widened(jax.device_get(values))))


def wide_batch(seed):
    batch = quadrant_batch(seed=seed)
    return batch | {name: batch[name].astype(np.float64) for name in ("inputs", "weight")}


def variables(tree):
    return {"params": tree.params, **tree.model_state}


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(("every", "warmup"), [(1, 0), (4, 5), (3, 6)])
def test_twenty_steps_are_those_of_pytorch(every, warmup):
    """Parameters and buffers, trained by PyTorch and averaged as by torchvision's script."""
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

    network = torch.nn.Module()
    network.fc1, network.fc2 = torch.nn.Linear(64, 16), torch.nn.Linear(16, 4)
    network.bn1 = torch.nn.BatchNorm1d(16)
    network.double()
    with jax.enable_x64(True):
        steps = steps_with(EMA(decay=0.9, every=every, warmup_steps=warmup))
        state, train = wide(start_of(steps)), jax.jit(steps.train)
        initial = state_dict(variables(state))
        network.load_state_dict({k: torch.from_numpy(np.array(x)) for k, x in initial.items()})
        averaged = AveragedModel(network, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
        for step in range(20):
            batch = wide_batch(step)
            inputs = torch.from_numpy(batch["inputs"].reshape(16, -1))
            logits = network.fc2(torch.relu(network.bn1(network.fc1(inputs))))
            labels = torch.from_numpy(batch["label"]).long()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
            if step % every == 0:
                averaged.update_parameters(network)
                if step < warmup:
                    averaged.n_averaged.fill_(0)
            state = train(state, batch)
            if step not in (0, 4, 8, 9, 19):
                continue
            for ours, theirs in (
                (variables(state), network),
                (variables(state.average), averaged.module),
            ):
                expected = theirs.state_dict()
                for name, found in state_dict(ours).items():
                    if not name.endswith("num_batches_tracked"):  # of integers, which we lack
                        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-12)
        # The averages are neither the parameters nor the first ones.
        kernels = [x["fc1"]["kernel"] for x in (state.average.params, state.params)]
        assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
        assert np.abs(kernels[0] - initial["fc1.weight"].T).max() > 1e-2


def test_without_ema_the_state_has_no_further_leaf():
    plain, averaged = (
        jax.eval_shape(steps_with(ema).initial_state, quadrant_batch())
        for ema in (EMA(), EMA(decay=0.9))
    )
    assert plain.average is None
    more = len(jax.tree.leaves((plain.params, plain.model_state)))
    assert len(jax.tree.leaves(averaged)) == len(jax.tree.leaves(plain)) + more
    assert plain.averaged is plain


@pytest.mark.parametrize("every", [1, 2])
def test_only_steps_that_are_taken_count(every):
    steps = steps_with(EMA(decay=0.9, every=every))
    train = compiled(steps)
    bad = quadrant_batch()
    bad["inputs"][0] = np.nan
    start = start_of(steps)
    state = train(start, bad)
    same(state.average, start.average)  # the first step was skipped
    good, with_bad = start, state
    for seed in range(4):
        good = train(good, quadrant_batch(seed=seed))
        with_bad = train(train(with_bad, quadrant_batch(seed=seed)), bad)
        same(with_bad.average, good.average)
    assert (good.updates, with_bad.updates, with_bad.step) == (4, 4, 9)


def test_float16_averages_the_float32_parameters_and_only_after_the_scale_fits():
    steps = steps_with(EMA(decay=0.9), precision="float16")
    start, train = start_of(steps), compiled(steps)
    huge = start.replace(loss_scale=replace(LossScale.create(), scale=jnp.float32(2.0**24)))
    state = train(huge, quadrant_batch())
    assert state.updates == 0
    same(state.average, start.average)
    for seed in range(2):
        state = train(state.replace(loss_scale=LossScale.create()), quadrant_batch(seed=seed))
    assert state.updates == 2
    assert {x.dtype for x in jax.tree.leaves(state.average)} == {np.dtype(np.float32)}


def test_accumulated_micro_batches_are_averaged_once():
    steps = steps_with(EMA(decay=0.5), accumulate_steps=4)
    state, train = start_of(steps), compiled(steps)
    values = []
    for seed in range(3):
        state = train(state, quadrant_batch(seed=seed))
        values.append(variables(state))
    first, second, third = values  # the statistics after the last micro-batch
    expected = jax.tree.map(lambda x, y, z: (x + y) / 4 + z / 2, first, second, third)
    assert_trees_close(variables(state.average), expected, rtol=1e-5, atol=1e-6)


def test_a_frozen_part_is_its_own_average_and_an_unfrozen_one_starts_there():
    steps = steps_with(EMA(decay=0.7), freeze=("fc1.*", "bn1.*"), unfreeze_step=3)
    state, train = start_of(steps), compiled(steps)
    for seed in range(3):
        state = train(state, quadrant_batch(seed=seed))
    frozen = [(x.params["fc1"], x.params["bn1"], x.model_state) for x in (state, state.average)]
    same(*frozen)
    assert not np.array_equal(state.params["fc2"]["bias"], state.average.params["fc2"]["bias"])
    unfrozen = jax.jit(steps.unfreeze)(state)
    same(unfrozen.average, state.average)
    after = jax.jit(steps.unfrozen.train)(unfrozen, quadrant_batch(seed=9))
    expected = jax.tree.map(
        lambda old, new: 0.7 * old + 0.3 * new, variables(state.average), variables(after)
    )
    assert_trees_close(variables(after.average), expected, rtol=1e-5, atol=1e-7)
    for name in ("fc1", "bn1"):
        moved = jax.tree.map(np.array_equal, after.average.params[name], state.params[name])
        assert not any(jax.tree.leaves(moved))


def test_integers_of_the_model_state_are_copied():
    ema = EMA(decay=0.5)
    average = ema.start({"w": jnp.zeros(2)}, {"counts": {"n": jnp.int32(3)}})
    for updates in range(3):
        new = {"w": jnp.full(2, updates + 1.0)}, {"counts": {"n": jnp.int32(10 + updates)}}
        average = ema.update(average, *new, jnp.int32(updates))
    np.testing.assert_array_equal(average.params["w"], [2.25, 2.25])  # of 1, 2 and 3
    assert average.model_state["counts"]["n"] == 12


class Sharded(nn.Module):
    """BatchNorm after a layer that is large enough to be sharded."""

    tensor_axes: ClassVar[dict[str, int]] = {"fc1.*": 0, "fc2.weight": 1}

    @nn.compact
    def __call__(self, x, train=False):
        x = Linear(64, name="fc1")(x.reshape(len(x), -1))
        return Linear(4, name="fc2")(nn.relu(BatchNorm(name="bn1")(x, train)))


def averages_on(shape, devices, parallel):
    """The averages after eight steps in float64, two of them without an update."""
    mesh = make_mesh(shape, devices=devices)
    ema = EMA(decay=0.8, every=2, warmup_steps=2)
    steps = steps_with(ema, model=Sharded(), mesh=mesh)
    placement = Placement.for_model(Sharded(), mesh)
    state = wide(create_on(placement, partial(steps.initial_state, quadrant_batch())))
    train = compile_train(steps, mesh, parallel, state)
    for seed in range(8):
        batch = wide_batch(seed)
        if seed % 4 == 3:
            batch["inputs"][5] = np.nan
        state = jax.block_until_ready(train(state, batch))
    assert state.updates == 6
    return jax.device_get(state.average)


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    ("shape", "parallel"), [(MeshShape(fsdp=2, tensor=2), "jit"), (MeshShape(), "pmap")]
)
def test_eight_devices_equal_one(shape, parallel):
    with jax.enable_x64(True):
        one = averages_on(MeshShape(), jax.devices()[:1], "jit")
        assert_trees_close(averages_on(shape, jax.devices(), parallel), one, rtol=0, atol=1e-9)


@pytest.mark.eight_devices
def test_averages_are_sharded_as_the_parameters():
    mesh = make_mesh(MeshShape(fsdp=4, tensor=2))
    steps = steps_with(EMA(decay=0.9), model=Sharded(), mesh=mesh)
    placement = Placement.for_model(Sharded(), mesh)
    state = shapes_on(placement, partial(steps.initial_state, quadrant_batch()))
    ours, theirs = (
        jax.tree.map(lambda x: x.sharding.spec, (x.params, x.model_state))
        for x in (state.average, state)
    )
    assert ours == theirs
    assert ours[0]["fc1"]["kernel"] == P("fsdp", "tensor")


@pytest.mark.usefixtures("own_cache")
def test_averages_are_written_in_place():
    batch = {"inputs": np.zeros((4, 32, 32, 1), np.float32), "label": np.zeros(4, np.int32)}
    batch["weight"] = np.ones(4, np.float32)
    steps = steps_with(EMA(decay=0.9, every=4))
    state = jax.eval_shape(steps.initial_state, batch)
    step = jax.jit(steps.train, donate_argnums=0).lower(state, batch).compile()
    memory = step.memory_analysis()
    assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": 0.0}, r"ema\.decay must be a number in \(0, 1\) or None, got 0\.0"),
        ({"decay": 1}, r"ema\.decay must be a number in \(0, 1\) or None, got 1"),
        ({"decay": float("nan")}, r"ema\.decay must be .* got nan"),
        ({"decay": "0.9"}, r"ema\.decay must be .* got '0\.9'"),
        ({"decay": True}, r"ema\.decay must be .* got True"),
        ({"decay": 0.9, "every": 0}, r"ema\.every must be an integer, at least 1, got 0"),
        ({"decay": 0.9, "every": 2.0}, r"ema\.every must be an integer, at least 1, got 2\.0"),
        ({"decay": 0.9, "warmup_steps": -1}, r"ema\.warmup_steps must be an integer.*got -1"),
        ({"decay": 0.9, "warmup_steps": "5"}, r"ema\.warmup_steps must be an integer.*got '5'"),
        ({"every": 4}, r"need ema\.decay, .* must be 1 and 0, got 4 and 0"),
        ({"warmup_steps": 7}, r"need ema\.decay, .* must be 1 and 0, got 1 and 7"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        EMA(**fields)


def test_numbers_of_numpy_are_numbers():
    ema = EMA(decay=np.float32(0.5), every=np.int64(2), warmup_steps=np.int32(1))
    average = ema.start({"w": jnp.zeros(1)}, {})
    for updates in range(5):
        average = ema.update(average, {"w": jnp.full(1, 8.0)}, {}, jnp.int32(updates))
    assert average.params["w"].dtype == np.float32


def test_a_run_that_never_averages_is_refused():
    EMA(decay=0.9, every=4, warmup_steps=5).check(10)
    EMA().check(1)
    message = r"ema\.warmup_steps \+ ema\.every must be less than the 9 steps .* got 5 \+ 4"
    with pytest.raises(UserError, match=message):
        EMA(decay=0.9, every=4, warmup_steps=5).check(9)
