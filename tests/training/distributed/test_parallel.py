"""Steps on meshes of devices: the same as on one, and laid out as promised."""

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import product

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.devices import Case, gradient_difference, trained_difference
from helpers.sampling import sampled
from helpers.small_steps import assert_trees_close, make_steps, quadrant_batch, train_on
from jax.sharding import PartitionSpec as P

from flaxdl.layers import BatchNorm
from flaxdl.models import (
    BertForSequenceClassification,
    SimpleCNN,
    TransformerClassifier,
    TransformerLM,
)
from flaxdl.training import SGD, AdamW, Classification, LanguageModeling, Steps
from flaxdl.training.distributed.parallel import check_parallel, compile_train
from flaxdl.training.distributed.mesh import MeshShape, make_mesh, process_rows
from flaxdl.training.distributed.placement import create_on, put_batch, shapes_on, shardings

pytestmark = pytest.mark.eight_devices

# `python tests/helpers/devices.py` runs every model on every mesh.
CASES = [
    Case("CNN", 2, 2, 2),
    Case("CNN", 8, 1, 1, "pmap"),
    Case("LSTM", 1, 4, 1),
    Case("LSTM", 8, 1, 1, "pmap"),
    Case("Transformer", 1, 2, 4),
    Case("Transformer", 8, 1, 1, "pmap"),
]


@pytest.mark.parametrize("case", sampled(CASES, lambda x: x.parallel == "jit"), ids=str)
def test_any_mesh_gives_the_gradients_of_one_device(case):
    assert gradient_difference(case) < 1e-5


@pytest.mark.parametrize(
    "case",
    sampled(CASES, lambda x: (x.model, x.parallel) in {("CNN", "pmap"), ("Transformer", "jit")}),
    ids=str,
)
def test_fifty_steps_on_any_mesh_end_where_one_device_does(case):
    assert trained_difference(case) < 1e-8


def small_bert(**changes):
    sizes = {"hidden_size": 64, "num_heads": 8, "num_layers": 2, "feed_forward_size": 256}
    return BertForSequenceClassification(
        vocab_size=128, num_classes=4, max_length=16, **(sizes | changes)
    )


def text_batch(count=16, length=16):
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.integers(1, 64, (count, length)).astype(np.int32),
        "label": rng.integers(0, 4, count).astype(np.int32),
        "weight": np.ones(count, np.float32),
    }


def on_mesh(shape, model, batch, devices=None):
    """The step's functions, the state's shapes, and the compiled step."""
    mesh = make_mesh(shape, devices=devices)
    steps = make_steps(model=model, mesh=mesh)
    state = shapes_on(mesh, partial(steps.initial_state, batch))
    train = jax.jit(steps.train, out_shardings=shardings(state, mesh), donate_argnums=0)
    return steps, state, train.lower(state, put_batch(batch, mesh)).compile()


def collectives(compiled):
    kinds = "all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute"
    return Counter(re.findall(rf" ({kinds})(?:-start)?\(", compiled.as_text()))


def test_with_fsdp_each_device_holds_its_part_and_what_is_too_small_to_split():
    mesh = make_mesh(MeshShape(fsdp=8))
    steps = make_steps(model=small_bert(), mesh=mesh)
    state = create_on(mesh, partial(steps.initial_state, text_batch()))
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
    params = shapes_on(mesh, partial(steps.initial_state, quadrant_batch())).params
    large = {x.shape: x.sharding.spec for x in jax.tree.leaves(params) if x.size >= 4096}
    assert large[3, 3, 32, 64] == P(None, None, None, "fsdp")
    assert len(large) >= 2
    for shape, spec in large.items():
        assert shape[spec.index("fsdp")] == max(shape)


def test_running_means_lie_where_their_parameters_lie():
    mesh = make_mesh(MeshShape(fsdp=2, tensor=4))
    steps = make_steps(model=small_bert(), mesh=mesh)
    state = create_on(mesh, partial(steps.initial_state, text_batch()))
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


@pytest.mark.usefixtures("own_cache")
def test_data_parallel_steps_exchange_gradients_once():
    _, _, compiled = on_mesh(MeshShape(), small_bert(), text_batch())
    assert set(collectives(compiled)) == {"all-reduce"}


@pytest.mark.usefixtures("own_cache")
def test_fsdp_gathers_each_split_parameter_where_it_is_used():
    _, state, compiled = on_mesh(MeshShape(fsdp=8), small_bert(), text_batch())
    split = [x for x in jax.tree.leaves(state.params) if not x.sharding.is_fully_replicated]
    found = collectives(compiled)
    assert found["all-gather"] >= len(split) > 0
    assert found["all-reduce"] + found["reduce-scatter"] > 0
    assert found["collective-permute"] == 0


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("num_layers", [1, 2])
def test_tensor_parallel_layers_exchange_two_sums_each_way(num_layers):
    bert = small_bert(num_layers=num_layers)
    _, _, compiled = on_mesh(MeshShape(data=1, tensor=8), bert, text_batch())
    # Beside those of the layers: the look-up of words, and the norm of the gradients.
    assert collectives(compiled) == {"all-reduce": 2 * 2 * num_layers + 2}


@pytest.mark.usefixtures("own_cache")
def test_packed_attention_is_split_by_heads_as_well():
    model = TransformerClassifier(
        vocab_size=64,
        num_classes=4,
        hidden_size=64,
        num_heads=8,
        num_layers=2,
        feed_forward_size=256,
        max_length=16,
    )
    _, _, compiled = on_mesh(MeshShape(tensor=4), model, text_batch())
    found = collectives(compiled)
    # The packed weight is whole on every device; its gradient and its bias's are put together.
    assert found["all-gather"] == 2 * 2
    assert found["collective-permute"] == found["all-to-all"] == 0


@pytest.mark.parametrize(
    ("parallel", "accumulate_steps"),
    sampled(product(["jit", "pmap"], [2, 4]), [("jit", 4), ("pmap", 2)].__contains__),
)
def test_accumulated_parts_make_the_gradient_of_the_whole_batch(parallel, accumulate_steps):
    rng = np.random.default_rng(0)
    model = TransformerClassifier(
        vocab_size=64, num_classes=4, hidden_size=32, num_heads=4, num_layers=1,
        feed_forward_size=64, max_length=16, dropout=0.0,
    )  # fmt: skip
    batch = text_batch(32)
    batch["weight"] = (rng.random(32) > 0.3).astype(np.float32)
    mesh = make_mesh()
    whole = make_steps(model=model, optimizer=SGD(learning_rate=1.0, momentum=0.0), mesh=mesh)
    state = create_on(mesh, partial(whole.initial_state, batch))
    start = jax.device_get(state)
    ends = []
    for steps in (whole, replace(whole, accumulate_steps=accumulate_steps)):
        train = compile_train(steps, mesh, parallel, state)
        begun = create_on(mesh, partial(steps.initial_state, batch))
        ends.append(jax.device_get(train(begun, batch)))
    one, parts = ends
    largest = max(
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(start.params), strict=True)
    )
    assert largest > 1e-3
    assert_trees_close(parts.params, one.params, rtol=0, atol=1e-6 * max(largest, 1))
    assert_trees_close(parts.sums, one.sums, rtol=1e-6)


def test_accumulated_language_models_count_every_token_alike():
    # Texts of different lengths: a mean over the parts' means would be another number.
    model = TransformerLM(
        vocab_size=64, hidden_size=32, num_heads=4, num_layers=1, feed_forward_size=64,
        max_length=16, dropout=0.0,
    )  # fmt: skip
    batch = {k: v for k, v in text_batch(8).items() if k != "label"}
    batch["lengths"] = np.array([2, 16, 3, 15, 4, 2, 9, 16], np.int32)
    mesh = make_mesh(devices=jax.devices()[:1])
    whole = make_steps(
        model=model, task=LanguageModeling(), optimizer=SGD(learning_rate=1.0, momentum=0.0)
    )
    ends = [
        train_on(mesh, steps, [batch]).params
        for steps in (whole, replace(whole, accumulate_steps=4))
    ]
    assert_trees_close(ends[1], ends[0], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("own_cache")
def test_accumulation_takes_a_part_of_the_activations():
    batch = quadrant_batch(256)
    mesh = make_mesh(devices=jax.devices()[:1])
    whole = make_steps(model=SimpleCNN(num_classes=4))
    sizes = []
    for steps in (whole, replace(whole, accumulate_steps=8)):
        state = shapes_on(mesh, partial(steps.initial_state, batch))
        compiled = jax.jit(steps.train).lower(state, batch).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 2


def test_statistics_of_each_device_are_averaged_under_pmap():
    class PerDevice(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return BatchNorm(per_device=True, name="bn")(x.reshape(len(x), -1), train)[:, :4]

    batch, mesh = quadrant_batch(32), make_mesh()
    steps = make_steps(model=PerDevice())
    state = create_on(mesh, partial(steps.initial_state, batch))
    trained = compile_train(steps, mesh, "pmap", state)(state, batch)
    flat = batch["inputs"].reshape(8, 4, -1)
    expected = 0.9 + 0.1 * flat.var(1, ddof=1).mean(0)
    var = trained.model_state["batch_stats"]["bn"]["var"]
    np.testing.assert_allclose(var, expected, rtol=1e-5)


def test_pmap_takes_no_mesh_that_splits_the_state():
    with pytest.raises(ValueError, match="parallel 'pmap'.*got fsdp 4 and tensor 2"):
        check_parallel("pmap", make_mesh(MeshShape(fsdp=4, tensor=2)))
    check_parallel("pmap", make_mesh())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (MeshShape(fsdp=3), "all 8 devices, got data any, fsdp 3, tensor 1, .* a multiple of 3"),
        (MeshShape(data=2, fsdp=2), "all 8 devices, got data 2, fsdp 2, tensor 1, which takes 4"),
        (MeshShape(tensor=16), "which takes a multiple of 16"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(shape)


def test_an_axis_without_devices_is_refused():
    with pytest.raises(ValueError, match="mesh.fsdp must be at least 1, got 0"):
        MeshShape(fsdp=0)


def test_one_process_has_all_rows():
    for shape in (MeshShape(), MeshShape(fsdp=2, tensor=4), MeshShape(tensor=8)):
        np.testing.assert_array_equal(process_rows(16, make_mesh(shape)), np.arange(16))


def test_steps_without_a_mesh_are_those_of_one_device():
    batch = text_batch(8)
    steps = Steps(
        model=small_bert(dropout=0.0, attention_dropout=0.0),
        task=Classification(),
        optimizer=AdamW(),
        total_steps=2,
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    plain, placed = (train_on(mesh, s, [batch] * 2) for s in (steps, replace(steps, mesh=mesh)))
    jax.tree.map(np.testing.assert_array_equal, plain.params, placed.params)
