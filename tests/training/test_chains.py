"""The chain of an optimizer: taken out of the trainer, written by users, and refused."""

import signal
from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import own_optimizers
from helpers.own_optimizers import Adafactor, Factored
from helpers.small_runs import interrupt_at, small_config, train
from optax import contrib

import flaxdl
from flaxdl.analysis.learning_rate import find_learning_rate
from flaxdl.layers import LayerNorm, Linear
from flaxdl.runs.setup import set_up
from flaxdl.training import (
    SGD,
    AdamW,
    Classification,
    Cosine,
    Interrupted,
    Lion,
    Muon,
    OneCycle,
    Optimizer,
    Steps,
)
from flaxdl.training.freezing import inference_where_frozen, merge, split


class Mlp(nn.Module):
    """Three layers, without anything random."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(Linear(16, name="in")(x.reshape(len(x), -1)))
        x = LayerNorm(name="norm")(nn.relu(Linear(8, name="hidden")(x)))
        return Linear(self.num_classes, name="out")(x)


def batch_of(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.standard_normal((16, 6)).astype(dtype),
        "label": rng.integers(0, 4, 16).astype(np.int32),
        "weight": np.ones(16, dtype),
    }


def steps_of(**changes):
    settings = {"model": Mlp(), "task": Classification(), "optimizer": AdamW(), "total_steps": 6}
    return Steps(**(settings | changes))


SCHEDULE = {"schedule": Cosine(warmup_steps=2), "clip_norm": 0.5, "learning_rate": 0.02}
OPTIMIZERS = {
    "sgd": SGD(weight_decay=0.1, no_decay=("*.bias",), **SCHEDULE),
    "adamw by layer": AdamW(layer_decay=0.5, **SCHEDULE),
    "lion": Lion(weight_decay=0.1, **SCHEDULE),
    "muon": Muon(adamw=("out.*",), **SCHEDULE | {"schedule": OneCycle()}),
}


@pytest.mark.parametrize("freeze", [(), ("in.*",)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_chain_in_a_loop_of_ones_own_is_the_trainer(name, freeze):
    with jax.enable_x64(True):
        steps = steps_of(optimizer=OPTIMIZERS[name], freeze=freeze)
        widen = lambda x: x.astype(np.float64) if x.dtype == np.float32 else x  # noqa: E731
        state = steps.initial_state(batch_of(0))
        wide = jax.tree.map(widen, (state.params, state.optimizer_state))
        state = state.replace(params=wide[0], optimizer_state=wide[1])
        assert bool(freeze) == (len(jax.tree.leaves(split(state.params, freeze)[1])) > 0)

        trainable, frozen = split(state.params, freeze)
        create = partial(steps.model.init, jax.random.key(0), batch_of(0)["inputs"])
        chain = steps.optimizer.build(trainable, total_steps=6, create=create)
        chain_state = chain.init(trainable)

        def loss(trainable, batch):
            with inference_where_frozen(trainable):
                params = merge(trainable, frozen)
                logits = steps.model.apply({"params": params}, batch["inputs"], train=True)
            return steps.task.loss(logits, batch)

        @jax.jit
        def step(trainable, chain_state, batch):
            gradients = jax.grad(loss)(trainable, batch)
            updates, chain_state = chain.update(gradients, chain_state, trainable)
            return optax.apply_updates(trainable, updates), chain_state

        train_step = jax.jit(steps.train)
        for seed in range(5):
            batch = batch_of(seed, np.float64)
            trainable, chain_state = step(trainable, chain_state, batch)
            state = train_step(state, batch)
        ours = merge(trainable, frozen)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-13), ours, state.params)
        assert chain_state.schedule.count == state.updates == 5
        assert np.abs(ours["hidden"]["kernel"]).max() > 0.1


def test_only_steps_that_are_taken_count_for_the_schedule():
    steps = steps_of(optimizer=SGD(learning_rate=1.0, schedule=Cosine(warmup_steps=4)))
    state, rates = steps.initial_state(batch_of(0)), []
    step = jax.jit(steps.train)
    for seed in range(5):
        batch = batch_of(seed)
        if seed in (1, 2):
            batch["inputs"][0] = np.nan
        state = step(state, batch)
        rates.append(float(state.learning_rate))
    np.testing.assert_allclose(rates, [0.25, 0.25, 0.25, 0.5, 0.75], rtol=1e-6)


@dataclass(frozen=True, kw_only=True)
class Own(Optimizer):
    """Whatever a test puts there."""

    learning_rate: float = 1e-2
    make: object = None

    def build(self, params, *, total_steps, create=None):
        return self.make()


def test_a_direction_of_ones_own_has_clipping_decay_schedule_and_layers():
    optimizer = Factored(clip_norm=0.5, weight_decay=0.1, layer_decay=0.5, no_decay=("*.bias",))
    steps, batch = steps_of(optimizer=optimizer), batch_of(0)
    state = steps.initial_state(batch)
    after = jax.jit(steps.train)(state, batch)
    gradients = jax.grad(
        lambda params: steps.task.loss(
            steps.model.apply({"params": params}, batch["inputs"]), batch
        )
    )(state.params)
    norm = optax.tree.norm(gradients)
    np.testing.assert_allclose(after.gradient_norm, norm, rtol=1e-5)
    clipped = jax.tree.map(lambda g: g * jnp.minimum(0.5 / (norm + 1e-6), 1), gradients)
    scale = optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=4)
    direction, _ = scale.update(clipped, scale.init(state.params), state.params)
    rate = 1e-2 / 25
    assert after.learning_rate == pytest.approx(rate)
    for layer, factor in {"in": 0.25, "hidden": 0.5, "norm": 0.5, "out": 1.0}.items():
        for name, before in state.params[layer].items():
            decay = 0.1 * before * (name != "bias")
            expected = before - rate * factor * (direction[layer][name] + decay)
            np.testing.assert_allclose(after.params[layer][name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", [None, Factored(weight_decay=0.1)], ids=["file", "value"])
def test_a_run_with_an_optimizer_of_the_config_file_resumes_bit_for_bit(
    tmp_path, monkeypatch, optimizer
):
    config = flaxdl.load_config(own_optimizers.__file__)
    config = config if optimizer is None else replace(config, optimizer=optimizer)
    whole = train(config, tmp_path / "whole").run.state
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, signal.SIGTERM)
        with pytest.raises(Interrupted, match="saved at step 7"):
            train(config, tmp_path / "stopped")
    resumed = train(config, tmp_path / "stopped").run.state
    assert resumed.step == 18
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    with pytest.raises(ValueError, match="which is not a public class of flaxdl"):
        flaxdl.restore(tmp_path / "stopped")
    assert flaxdl.restore(tmp_path / "stopped", config).state.step == resumed.step


def test_their_learning_rates_are_logged_and_can_be_searched():
    curve = find_learning_rate(own_optimizers.config, steps=6)
    np.testing.assert_allclose(curve.learning_rates, np.geomspace(1e-7, 10, 6), rtol=1e-4)
    losses = [
        find_learning_rate(replace(own_optimizers.config, optimizer=optimizer), steps=6).losses
        for optimizer in (Muon(adamw=("out.*",)), Lion(), Factored())
    ]
    for first, *others in losses:
        assert first == pytest.approx(curve.losses[0], rel=1e-5)
        assert max(abs(loss - first) for loss in others) > 1e-3


def test_unfreezing_restarts_moments_but_no_schedule():
    for optimizer in (Adafactor(), AdamW(learning_rate=1e-2, schedule=OneCycle())):
        steps = steps_of(optimizer=optimizer, freeze=("in.*",), unfreeze_step=3)
        state, train_step = steps.initial_state(batch_of(0)), jax.jit(steps.train)
        for seed in range(3):
            state = train_step(state, batch_of(seed))
        unfrozen = steps.unfreeze(state)
        kinds = jax.tree.leaves(unfrozen.optimizer_state, is_leaf=is_schedule)
        counts = [int(node.count) for node in kinds if is_schedule(node)]
        assert counts == ([3] if isinstance(optimizer, Adafactor) else [])
        for node in kinds:
            if not is_schedule(node) and not jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
                assert np.abs(node).max() < 1e-20
        after = jax.jit(steps.unfrozen.train)(unfrozen, batch_of(3))
        rate = optimizer.learning_rates(6)
        assert after.learning_rate == pytest.approx(float(rate(3)), rel=1e-6)
        moved = np.abs(after.params["in"]["bias"] - unfrozen.params["in"]["bias"])
        assert moved.max() > 0
        if isinstance(optimizer, AdamW):  # whose first update is the learning rate
            assert moved.max() == pytest.approx(float(rate(3)), rel=1e-2)


def is_schedule(node):
    return isinstance(node, optax.ScaleByScheduleState)


def changing():
    """A transformation whose state becomes an integer."""
    return optax.GradientTransformation(
        lambda params: jnp.float32(0), lambda updates, state, params=None: (updates, jnp.int32(0))
    )


def broken():
    """A transformation with a mistake in it."""

    def update(updates, state, params=None):
        raise KeyError("mine")

    return optax.GradientTransformation(optax.init_empty_state, update)


NEEDS_LOSS = "optimizer Own: the update needs 'value'.* only gradients and parameters; line search"
OTHERS = "trains other parameters than those that should be evaluated, which is not supported"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (optax.polyak_sgd, NEEDS_LOSS),
        (optax.lbfgs, NEEDS_LOSS.replace("'value'", "'value', 'grad', and 'value_fn'")),
        (lambda: optax.chain(optax.adam(0.1), contrib.reduce_on_plateau()), NEEDS_LOSS),
        (contrib.schedule_free_adamw, f"optimizer Own: optax's schedule_free {OTHERS}"),
        (
            lambda: optax.chain(optax.clip(1.0), contrib.schedule_free_sgd()),
            f"optimizer Own: optax's schedule_free {OTHERS}",
        ),
        (
            lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),
            f"optimizer Own: optax's sam {OTHERS}",
        ),
        (
            lambda: contrib.sophia(0.1),
            "optimizer Own: the transformation fails for the model's parameters: ValueError: ",
        ),
        (
            changing,
            "optimizer Own: the update must not change shapes or dtypes of the state, but it "
            r"changes  from float32\[\] to int32\[\]",
        ),
    ],
)
def test_what_the_trainer_cannot_apply_is_refused_by_name(make, message):
    with pytest.raises(flaxdl.UserError, match=message):
        jax.eval_shape(steps_of(optimizer=Own(make=make)).initial_state, batch_of(0))


def test_a_mistake_in_a_transformation_of_ones_own_keeps_its_traceback():
    with pytest.raises(KeyError, match="mine"):
        steps_of(optimizer=Own(make=broken)).initial_state(batch_of(0))


def test_layer_decay_needs_the_order_of_the_layers():
    params = {"w": jnp.ones(2)}
    chain = SGD(layer_decay=0.5).build(params, total_steps=1)
    with pytest.raises(ValueError, match=r"layer_decay=0.5 requires the order of the model"):
        chain.update(params, chain.init(params), params)


def test_the_state_has_the_leaves_that_it_always_had():
    """Names and order in checkpoints: the schedule's count is `updates`."""
    params = {"fc": {"kernel": jnp.ones((2, 2))}}
    state = set_up(small_config(model=own_optimizers.Mlp())).shapes()
    adam = {f".{name}" for name in ("mu", "nu", "count")}
    found = {str(path[1]) + str(path[2]) for path, _ in leaves(state) if path[0].name == STATE}
    assert found == {f"[0]{name}" for name in adam}
    for optimizer, count in ((SGD(), 1), (SGD(momentum=0), 0), (Lion(), 2)):
        steps = optimizer.build(params, total_steps=1)
        assert len(jax.tree.leaves(steps.init(params))) == count + 1


STATE = "optimizer_state"
leaves = jax.tree.leaves_with_path
