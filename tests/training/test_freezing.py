"""Frozen parameters: the five properties, and learning rates by layer."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers.small_steps import small_bert, text_batch

from flaxdl.layers import BatchNorm, Dropout, Linear
from flaxdl.models import (
    BERT_TINY,
    VGG11,
    BertForPreTraining,
    BertForSequenceClassification,
    ResNet,
    Seq2SeqTransformer,
    SimpleCNN,
    TransformerClassifier,
    TransformerLM,
)
from flaxdl.training import SGD, AdamW, Classification, Steps
from flaxdl.training.freezing import inference_where_frozen, merge, split
from flaxdl.training.layer_decay import learning_rate_factors
from flaxdl.weights import pytorch_key


class Base(nn.Module):
    """What is frozen: normalization and dropout among it."""

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(name="bn1")(Linear(16, name="fc1")(x), train)
        return Dropout(0.5, name="drop")(nn.relu(x), train)


class Network(nn.Module):
    """A base and a head, both with statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        x = Base(name="base")(x, train)
        x = BatchNorm(name="bn2")(x, train)
        return Linear(4, name="fc")(x)


SMALL = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_heads": 2,
    "num_layers": 2,
    "feed_forward_size": 16,
    "norm_first": True,
}


def a_batch(count=16, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.standard_normal((count, 6)).astype(np.float32) * 3 + 1,
        "label": rng.integers(0, 4, count).astype(np.int32),
        "weight": np.ones(count, np.float32),
    }


def steps_of(**changes):
    settings = {
        "model": Network(),
        "task": Classification(),
        "optimizer": AdamW(learning_rate=1e-2, weight_decay=0.1, clip_norm=0.1),
        "total_steps": 10,
    }
    return Steps(**(settings | changes))


def by_key(tree):
    return {pytorch_key(path): leaf for path, leaf in flatten_dict(tree).items()}


def test_frozen_parameters_and_statistics_stay_bit_for_bit():
    steps = steps_of(freeze=("base.*",))
    state = steps.initial_state(a_batch())
    before = jax.device_get(state)
    traces = []

    def step(state, batch):
        traces.append(None)
        return steps.train(state, batch)

    train = jax.jit(step)
    for seed in range(5):
        state = train(state, a_batch(seed=seed))
    assert len(traces) == 1
    # A second entry is a second program; JAX does not keep one in every case.
    assert train._cache_size() <= 1
    for old, new in (
        (before.params, state.params),
        (before.model_state["batch_stats"], state.model_state["batch_stats"]),
    ):
        for name in old:
            same = jax.tree.map(np.array_equal, old[name], new[name])
            assert set(jax.tree.leaves(same)) == {name == "base"}, name


def test_the_frozen_part_has_no_optimizer_state():
    frozen, whole = steps_of(freeze=("base.*",)), steps_of()
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(s.initial_state(a_batch()).optimizer_state))
        for s in (frozen, whole)
    ]
    trained = 2 * 16 + 16 * 4 + 4  # bn2 and fc
    assert sizes == [2 * trained + 1, 2 * (trained + 6 * 16 + 16 + 2 * 16) + 1]


def test_a_frozen_part_computes_as_in_inference():
    """The step equals one that a head on fixed features of the base would take, by hand."""
    steps = steps_of(freeze=("base.*",), optimizer=SGD(learning_rate=0.5, clip_norm=0.1))
    state, batch = steps.initial_state(a_batch()), a_batch(seed=3)
    state = state.replace(
        model_state=jax.tree.map(lambda leaf: leaf + 0.25, state.model_state),
    )
    after = steps.train(state, batch)

    base = {"params": state.params["base"], "batch_stats": state.model_state["batch_stats"]["base"]}
    features = Base().apply(base, batch["inputs"])

    def loss(head):
        scale, bias = head["bn2"]["scale"], head["bn2"]["bias"]
        mean, var = features.mean(0), features.var(0)
        normal = (features - mean) / jnp.sqrt(var + 1e-5) * scale + bias
        logits = normal @ head["fc"]["kernel"] + head["fc"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    head = {name: state.params[name] for name in ("bn2", "fc")}
    gradients = jax.grad(loss)(head)
    norm = optax.tree.norm(gradients)  # of the head alone
    factor = jnp.minimum(0.1 / (norm + 1e-6), 1)
    expected = jax.tree.map(lambda p, g: p - 0.5 * factor * g, head, gradients)
    np.testing.assert_allclose(after.gradient_norm, norm, rtol=1e-5)
    for name in head:
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            after.params[name],
            expected[name],
        )


def test_weight_decay_leaves_frozen_parameters():
    optimizer = SGD(learning_rate=1.0, weight_decay=0.5, no_decay=("base.*.bias", "fc.bias"))
    steps = steps_of(freeze=("base.*",), optimizer=optimizer)
    state = steps.initial_state(a_batch())
    after = steps.train(state, a_batch())
    assert jax.tree.all(jax.tree.map(np.array_equal, after.params["base"], state.params["base"]))


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("bass.*",), "freeze: the pattern 'bass.*' matches no parameter.*base"),
        (("*",), "leaves no parameter to train"),
    ],
)
def test_what_cannot_be_frozen_is_named(freeze, message):
    with pytest.raises(ValueError, match=message):
        steps_of(freeze=freeze).initial_state(a_batch())


def test_unfreezing_gives_every_parameter_a_fresh_optimizer():
    steps = steps_of(freeze=("base.*",), unfreeze_step=2)
    state = steps.initial_state(a_batch())
    for seed in range(2):
        state = steps.train(state, a_batch(seed=seed))
    assert steps.for_state_at(2) is steps
    assert steps.for_state_at(3) == steps.unfrozen
    state = steps.unfreeze(state)
    fresh = steps_of().initial_state(a_batch()).optimizer_state
    jax.tree.map(np.testing.assert_array_equal, state.optimizer_state, fresh)
    after = steps.unfrozen.train(state, a_batch(seed=5))
    for old, new in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        assert not np.array_equal(old, new)


def test_split_and_merge_are_inverse():
    params = Network().init(jax.random.key(0), jnp.zeros((2, 6)))["params"]
    trainable, frozen = split(params, ("base.*", "*.bias"))
    here, there = (
        {key for key, leaf in by_key(tree).items() if leaf is not None}
        for tree in (trainable, frozen)
    )
    assert here == {"bn2.weight", "fc.weight"}
    assert there == set(by_key(params)) - here
    jax.tree.map(np.testing.assert_array_equal, merge(trainable, frozen), params)


def factors(model, inputs, decay=0.5):
    create = partial(model.init, jax.random.key(0), inputs)
    return by_key(learning_rate_factors(create, decay))


def test_layers_of_a_resnet_are_its_blocks():
    found = factors(ResNet(num_classes=3, depths=(2, 1, 1, 1)), jnp.zeros((1, 32, 32, 3)))
    depth = {"conv1": 6, "bn1": 6, "layer1.0": 5, "layer1.1": 4, "layer2.0": 3, "layer4.0": 1}
    assert found["fc.weight"] == found["fc.bias"] == 1
    for name, expected in depth.items():
        values = {v for key, v in found.items() if key.startswith(f"{name}.")}
        assert values == {0.5**expected}, name


def test_layers_of_vgg_and_bert():
    vgg = factors(VGG11(num_classes=3, batch_norm=True), jnp.zeros((1, 32, 32, 3)))
    assert vgg["classifier.6.weight"] == 1
    assert vgg["features.0.weight"] == vgg["features.1.weight"] == 0.5**10
    bert = BertForSequenceClassification(num_classes=2, vocab_size=30, max_length=16, **BERT_TINY)
    found = factors(bert, jnp.ones((1, 4), jnp.int32))
    assert found["classifier.weight"] == 1
    assert found["bert.pooler.dense.weight"] == 0.5
    assert found["bert.encoder.layer.0.attention.self.query.weight"] == 0.5**3
    embeddings = {v for key, v in found.items() if key.startswith("bert.embeddings.")}
    assert embeddings == {0.5**4}


@pytest.mark.parametrize(
    ("model", "keywords", "expected"),
    [
        (
            TransformerClassifier(num_classes=3, **SMALL),
            {},
            [
                "encoder.embedding",
                "encoder.layers.0",
                "encoder.layers.1 encoder.norm",
                "fc",
            ],
        ),
        (
            TransformerLM(**SMALL),
            {},
            ["encoder.embedding", "encoder.layers.0", "encoder.layers.1 encoder.norm", "fc"],
        ),
        (
            BertForPreTraining(vocab_size=30, max_length=16, **BERT_TINY),
            {},
            [
                "bert.embeddings",
                "bert.encoder.layer.0",
                "bert.encoder.layer.1",
                "bert.pooler",
                "cls",
            ],
        ),
        (
            Seq2SeqTransformer(**SMALL),
            {"targets": jnp.ones((1, 4), jnp.int32)},
            [
                "encoder.embedding",
                "encoder.layers.0",
                "encoder.layers.1 encoder.norm",
                "decoder.embedding",
                "decoder.layers.0",
                "decoder.layers.1 decoder.norm",
                "fc",
            ],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_of_transformers(model, keywords, expected):
    create = partial(model.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32), **keywords)
    found = by_key(learning_rate_factors(create, 0.5))
    seen = set()
    for depth, names in enumerate(reversed(expected)):
        for name in names.split():
            keys = {key for key in found if key.startswith(f"{name}.")}
            assert {found[key] for key in keys} == {0.5**depth}, name
            seen |= keys
    assert seen == set(found)


def test_updates_are_scaled_by_layer():
    model, batch = SimpleCNN(num_classes=4, dropout=0.0), a_batch()
    batch["inputs"] = np.random.default_rng(0).standard_normal((16, 8, 8, 1)).astype(np.float32)
    results = []
    for decay in (1.0, 0.5):
        optimizer = SGD(learning_rate=0.1, momentum=0.0, layer_decay=decay)
        steps = steps_of(model=model, optimizer=optimizer)
        state = jax.jit(steps.initial_state)(batch)
        results.append((by_key(state.params), by_key(jax.jit(steps.train)(state, batch).params)))
    expected = factors(model, batch["inputs"])
    assert len(set(expected.values())) > 2
    (start, plain), (_, scaled) = results
    for key, factor in expected.items():
        np.testing.assert_allclose(
            scaled[key] - start[key], factor * (plain[key] - start[key]), rtol=1e-4, atol=1e-7
        )


def test_layer_decay_must_be_a_share():
    with pytest.raises(ValueError, match="layer_decay must be in"):
        SGD(layer_decay=1.5)


def test_a_frozen_base_costs_no_gradient():
    """Counted by the compiler: the products of the backward pass are not there at all."""
    batch = a_batch()
    batch["inputs"] = np.zeros((8, 32, 32, 3), np.float32)
    batch["label"], batch["weight"] = batch["label"][:8], batch["weight"][:8]
    flops = []
    for freeze in ((), ("conv1.*", "bn1.*", "layer*")):
        steps = steps_of(model=ResNet(num_classes=4, depths=(1, 1, 1, 1)), freeze=freeze)
        state = jax.eval_shape(partial(steps.initial_state, batch))
        costs = jax.jit(steps.train).lower(state, batch).cost_analysis()
        flops.append(costs["flops"])
    assert flops[1] < 0.45 * flops[0]  # a forward pass is a third of a step


def test_a_frozen_bert_drops_nothing_whatever_goes_in_beside_the_tokens():
    batch = text_batch(4)
    inputs, lengths = batch["inputs"], np.array([16, 3, 9, 1], np.int32)
    model = small_bert(dropout=0.5, classifier_dropout=0.0)
    variables = model.init(jax.random.key(0), inputs)
    keywords = {"lengths": lengths, "token_types": np.ones_like(inputs)}
    keys = {"dropout": jax.random.key(1)}
    trainable, _ = split(variables["params"], ("bert.*",))
    expected = model.apply(variables, inputs, **keywords)
    dropped = model.apply(variables, inputs, train=True, rngs=keys, **keywords)
    with inference_where_frozen(trainable):
        found = model.apply(variables, inputs, train=True, rngs=keys, **keywords)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(dropped - expected).max() > 1e-3
