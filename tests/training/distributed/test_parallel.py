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
from helpers.devices import Case, gradient_difference, train, trained_difference
from helpers.sampling import sampled
from helpers.small_steps import (
    assert_trees_close,
    make_steps,
    quadrant_batch,
    small_bert,
    text_batch,
    train_on,
)

from flaxdl.models import (
    SimpleCNN,
    TransformerClassifier,
    TransformerLM,
)
from flaxdl.training import SGD, AdamW, Classification, LanguageModeling, Muon, Steps
from flaxdl.training.distributed.mesh import MeshShape, make_mesh
from flaxdl.training.distributed.parallel import check_parallel, compile_train
from flaxdl.training.distributed.placement import (
    Placement,
    create_on,
    put_batch,
    shapes_on,
    shardings,
)

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


@pytest.mark.parametrize("case", [Case("CNN", 2, 2, 2), Case("CNN", 8, 1, 1, "pmap")], ids=str)
def test_muon_ends_on_any_mesh_where_it_does_on_one_device(case):
    optimizer = Muon(learning_rate=1e-2, adamw=("classifier.4.*",), clip_norm=0.5)
    with jax.enable_x64(True):
        ends = [train(x, optimizer, count=3, wide=True)[1] for x in (case, case.alone)]
    assert_trees_close(*ends, rtol=0, atol=1e-9)


def on_mesh(shape, model, batch, devices=None):
    """The step's functions, the state's shapes, and the compiled step."""
    mesh = make_mesh(shape, devices=devices)
    steps = make_steps(model=model, mesh=mesh)
    placement = Placement.for_model(model, mesh)
    state = shapes_on(placement, partial(steps.initial_state, batch))
    train = jax.jit(steps.train, out_shardings=shardings(state, placement), donate_argnums=0)
    return steps, state, train.lower(state, put_batch(batch, mesh)).compile()


def collectives(compiled):
    kinds = "all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute"
    return Counter(re.findall(rf" ({kinds})(?:-start)?\(", compiled.as_text()))


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
    state = create_on(Placement(mesh), partial(whole.initial_state, batch))
    start = jax.device_get(state)
    ends = []
    for steps in (whole, replace(whole, accumulate_steps=accumulate_steps)):
        train = compile_train(steps, mesh, parallel, state)
        begun = create_on(Placement(mesh), partial(steps.initial_state, batch))
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
        state = shapes_on(Placement(mesh), partial(steps.initial_state, batch))
        compiled = jax.jit(steps.train).lower(state, batch).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 2


def test_statistics_of_each_device_are_averaged_under_pmap():
    class PerDevice(nn.Module):
        """A user's model whose statistics each device takes of its own examples."""

        @nn.compact
        def __call__(self, x, train=False):
            norm = nn.BatchNorm(not train, momentum=0.9, use_fast_variance=False, name="bn")
            return norm(x.reshape(len(x), -1))[:, :4]

    batch, mesh = quadrant_batch(32), make_mesh()
    steps = make_steps(model=PerDevice())
    state = create_on(Placement(mesh), partial(steps.initial_state, batch))
    trained = compile_train(steps, mesh, "pmap", state)(state, batch)
    flat = batch["inputs"].reshape(8, 4, -1)
    expected = 0.9 + 0.1 * flat.var(1).mean(0)
    var = trained.model_state["batch_stats"]["bn"]["var"]
    np.testing.assert_allclose(var, expected, rtol=1e-5)


def test_pmap_takes_no_mesh_that_splits_the_state():
    with pytest.raises(ValueError, match="parallel 'pmap'.*got fsdp 4 and tensor 2"):
        check_parallel("pmap", make_mesh(MeshShape(fsdp=4, tensor=2)))
    check_parallel("pmap", make_mesh())


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
