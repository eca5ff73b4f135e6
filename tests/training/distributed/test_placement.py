"""Which device stores which part of the state, and what models declare about it."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers.every_model import CLASSES, inputs_of, small
from helpers.small_runs import small_config
from helpers.small_steps import make_steps, quadrant_batch, small_bert, text_batch
from jax.sharding import PartitionSpec as P

from flaxdl.errors import UserError
from flaxdl.layers import Linear, TransformerBlock
from flaxdl.models import SimpleCNN
from flaxdl.runs.setup import set_up
from flaxdl.training import SGD, Lion, Muon, Optimizer
from flaxdl.training.distributed.mesh import MeshShape, make_mesh
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.distributed.placement import Placement, create_on, put_like, shapes_on

pytestmark = pytest.mark.eight_devices

# Model → leaf → the axes of the mesh that split its axes ("-" for none), with tensor=2, and with
# tensor=4 and fsdp=2. Computed from the table of names that `training` had before models declared
# their own; leaves that are split in neither case are left out.
EXPECTED = json.loads((Path(__file__).parent / "shardings.json").read_text())
MESHES = (MeshShape(tensor=2), MeshShape(tensor=4, fsdp=2))


def axes_of(model, shape, inputs, keywords):
    """The axes that split each leaf, separated by commas; empty for those that are not split."""
    zeros = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype))

    def create():
        variables = dict(model.init(jax.random.key(0), zeros(inputs), **zeros(keywords)))
        return variables.pop("params"), variables

    leaves = {}
    for tree in shapes_on(Placement.for_model(model, make_mesh(shape)), create):
        leaves |= flatten_dict(tree, sep="/")
    return {path: ",".join(axis or "-" for axis in x.sharding.spec) for path, x in leaves.items()}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_model_is_split_as_it_always_was(name):
    found = [axes_of(small(name), shape, *inputs_of(name)) for shape in MESHES]
    split = {path: [x[path] for x in found] for path in found[0] if any(x[path] for x in found)}
    assert split == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_declared_pattern_matches_a_parameter(name):
    inputs, keywords = inputs_of(name)
    model = small(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs, **keywords)
    Placement.for_model(model, make_mesh(MeshShape(tensor=8))).check(variables["params"])


class Blocks(nn.Module):
    """A user's model of a transformer block and two layers of its own."""

    tensor_axes: ClassVar[dict[str, int]] = {
        **TransformerBlock.tensor_axes,
        "up.*": 0,
        "down.weight": 1,
    }

    @nn.compact
    def __call__(self, inputs, train=False):
        x = Linear(8, name="embed")(inputs.reshape(len(inputs), -1, 8))
        x = TransformerBlock(8, num_heads=4, feed_forward_size=16, name="block")(x, None, train)
        return Linear(4, name="down")(nn.relu(Linear(12, name="up")(x.mean(1))))


def test_a_users_model_declares_what_tensor_splits():
    inputs = jax.ShapeDtypeStruct((2, 4, 8), np.float32)
    found = axes_of(Blocks(), MeshShape(tensor=4), inputs, {})
    assert {path: axes for path, axes in found.items() if axes} == {
        **{f"block/attn/W_{x}/kernel": "-,tensor" for x in "qkv"},
        **{f"block/attn/W_{x}/bias": "tensor" for x in "qkv"},
        "block/attn/W_o/kernel": "tensor,-",
        "block/ff.0/kernel": "-,tensor",
        "block/ff.0/bias": "tensor",
        "block/ff.2/kernel": "tensor,-",
        "up/kernel": "-,tensor",
        "up/bias": "tensor",
        "down/kernel": "tensor,-",
    }


def test_a_users_model_trains_to_the_same_parameters_when_split():
    ends = []
    for shape, devices in ((MeshShape(), jax.devices()[:1]), (MeshShape(tensor=4), None)):
        mesh, batch = make_mesh(shape, devices=devices), quadrant_batch()
        steps = make_steps(model=Blocks(), optimizer=SGD(learning_rate=0.1), mesh=mesh)
        state = create_on(
            Placement.for_model(steps.model, mesh), partial(steps.initial_state, batch)
        )
        train = compile_train(steps, mesh, "jit", state)
        for _ in range(3):
            state = jax.block_until_ready(train(state, batch))
        ends.append(state.params)
    one, split = ends
    assert split["up"]["kernel"].sharding.spec == P(None, "tensor")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), split, one)


class Plain(nn.Module):
    """A user's model that declares nothing."""

    @nn.compact
    def __call__(self, inputs, train=False):
        return Linear(4, name="fc")(inputs.reshape(len(inputs), -1))


class Misspelled(Blocks):
    """Declares a layer that it does not have."""

    tensor_axes: ClassVar[dict[str, int]] = {"up.*": 0, "dwon.weight": 1}


@pytest.mark.parametrize("axes", [None, {"*": 5}, {"*": None}, {3: 0}, ["*"]])
def test_axes_that_are_none_are_refused_on_any_mesh(axes):
    class Wrong(Blocks):
        tensor_axes = axes

    with pytest.raises(UserError, match=r"Wrong.tensor_axes must map patterns .* or 1 .*, got "):
        Placement.for_model(Wrong(), make_mesh())


@pytest.mark.parametrize(("model", "warns"), [(Plain(), True), (SimpleCNN(4), False)])
def test_a_model_of_which_nothing_is_split_is_named(model, warns, caplog):
    set_up(small_config(model=model, mesh=MeshShape(tensor=2)))
    message = "mesh.tensor 2 shards no parameters: Plain declares no tensor_axes"
    assert (message in caplog.messages) == warns
    caplog.clear()
    set_up(small_config(model=model))
    assert message not in caplog.messages


class OfNoAxis(Blocks):
    """Splits the inputs of a bias."""

    tensor_axes: ClassVar[dict[str, int]] = {"up.*": 0, "down.*": 1}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Misspelled(), r"model.tensor_axes: the pattern 'dwon.weight' matches no .* down.weight"),
        (
            OfNoAxis(),
            r"model.tensor_axes: 'down.\*' must map to an axis of down.bias.* got 1 for 1",
        ),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(model, message):
    batch = quadrant_batch()
    with pytest.raises(ValueError, match=message):
        make_steps(model=model, mesh=make_mesh(MeshShape(tensor=2))).initial_state(batch)
    # Without `tensor` nothing is split, and the declaration is not read.
    jax.eval_shape(partial(make_steps(model=model, mesh=make_mesh()).initial_state, batch))


def test_loaded_arrays_are_stored_like_those_they_replace():
    placement = Placement.for_model(SimpleCNN(), make_mesh(MeshShape(tensor=4, fsdp=2)))
    batch = quadrant_batch()
    state = create_on(placement, partial(make_steps(model=SimpleCNN(4)).initial_state, batch))
    old = {"params": state.params}
    new = jax.tree.map(lambda x: np.asarray(x) + 1, old)
    new["params"]["classifier.4"] = old["params"]["classifier.4"]
    put = put_like(old, new)
    assert put["params"]["classifier.1"]["kernel"].sharding.spec == P("fsdp", "tensor")
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, put, old))
    jax.tree.map(np.testing.assert_array_equal, put, new)


def test_with_fsdp_each_device_holds_its_part_and_what_is_too_small_to_split():
    mesh = make_mesh(MeshShape(fsdp=8))
    steps = make_steps(model=small_bert(), mesh=mesh)
    state = create_on(
        Placement.for_model(steps.model, mesh), partial(steps.initial_state, text_batch())
    )
    kept = (state.params, state.optimizer_state)
    whole = sum(x.nbytes for x in jax.tree.leaves(kept))
    small = sum(x.nbytes for x in jax.tree.leaves(kept) if x.size < 4096)
    for device in mesh.devices.flat:
        held = sum(
            shard.data.nbytes
            for x in jax.tree.leaves(kept)
            for shard in x.addressable_shards
            if shard.device == device
        )
        assert held <= whole / 8 + small
    assert small < whole / 20


def test_fsdp_splits_the_largest_axis():
    mesh = make_mesh(MeshShape(fsdp=8))
    steps = make_steps(model=SimpleCNN(num_classes=4))
    params = shapes_on(Placement(mesh), partial(steps.initial_state, quadrant_batch())).params
    large = {x.shape: x.sharding.spec for x in jax.tree.leaves(params) if x.size >= 4096}
    assert large[3, 3, 32, 64] == P(None, None, None, "fsdp")
    assert len(large) >= 2
    for shape, spec in large.items():
        assert shape[spec.index("fsdp")] == max(shape)


def test_running_means_are_stored_where_their_parameters_are():
    mesh = make_mesh(MeshShape(fsdp=2, tensor=4))
    steps = make_steps(model=small_bert(), mesh=mesh)
    state = create_on(
        Placement.for_model(steps.model, mesh), partial(steps.initial_state, text_batch())
    )
    adam = state.optimizer_state[0]
    same = jax.tree.map(
        lambda p, m, v: p.sharding == m.sharding == v.sharding, state.params, adam.mu, adam.nu
    )
    assert jax.tree.all(same)
    layer = state.params["bert"]["encoder.layer.0"]
    assert layer["intermediate.dense"]["kernel"].sharding.spec == P("fsdp", "tensor")
    assert layer["output.dense"]["kernel"].sharding.spec == P("tensor", "fsdp")
    assert layer["intermediate.dense"]["bias"].sharding.spec == P("tensor")
    assert layer["output.dense"]["bias"].sharding.is_fully_replicated


@dataclass(frozen=True, kw_only=True)
class Partitioned(Optimizer):
    """A user's optimizer, with labels and with moments that have fewer axes than parameters."""

    learning_rate: float = 0.1

    def direction(self, params):
        labels = jax.tree.map(lambda x: "matrices" if len(x.shape) > 1 else "others", params)
        parts = {"matrices": optax.adafactor(1.0, momentum=0.9), "others": optax.adam(1.0)}
        return optax.partition(parts, labels)


@pytest.mark.parametrize("optimizer", [Muon(adamw=("classifier.*",)), Lion(), Partitioned()])
def test_states_of_other_optimizers_are_stored_where_their_parameters_are(optimizer):
    mesh = make_mesh(MeshShape(fsdp=2, tensor=4))
    steps = make_steps(model=small_bert(), optimizer=optimizer, mesh=mesh)
    placement = Placement.for_model(steps.model, mesh)
    state = shapes_on(placement, partial(steps.initial_state, text_batch()))
    params = flatten_dict(state.params)
    found = set()
    for path, leaf in jax.tree.leaves_with_path(state.optimizer_state):
        keys = tuple(getattr(key, "key", None) for key in path)
        names = next((keys[i:] for i in range(len(keys)) if keys[i:] in params), None)
        if names is not None and leaf.shape == params[names].shape:
            assert leaf.sharding == params[names].sharding, names
            found.add(names)
    assert found == set(params)
