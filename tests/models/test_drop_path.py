"""Drop path in ResNets and Transformers: where it acts, its rates, and what does not change."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sampling import sampled
from helpers.small_steps import assert_trees_close, make_steps

from flaxdl.config import Config
from flaxdl.data import Tfds
from flaxdl.errors import UserError
from flaxdl.layers import (
    BatchNorm,
    DropPath,
    LayerNorm,
    TransformerBlock,
    TransformerDecoderLayer,
)
from flaxdl.models import (
    ResNet,
    ResNet50,
    Seq2SeqTransformer,
    TransformerClassifier,
    TransformerLM,
)
from flaxdl.models.resnet import BasicBlock, Bottleneck
from flaxdl.runs.config_json import from_json, to_json, upgraded
from flaxdl.training import SGD
from flaxdl.training.distributed.mesh import make_mesh
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.distributed.placement import Placement, create_on, put_like
from flaxdl.training.freezing import inference_where_frozen, split

RNG = np.random.default_rng(0)
SIZES = {"hidden_size": 16, "num_heads": 2, "feed_forward_size": 32}
TEXTS = {"vocab_size": 32, "num_layers": 2, "max_length": 8, "dropout": 0.0, **SIZES}
TOKENS = RNG.integers(1, 32, (16, 8)).astype(np.int32)
IMAGES = RNG.standard_normal((16, 6, 6, 3)).astype(np.float32)
RESNET = ResNet(num_classes=4, depths=(2, 0, 0, 0), small_images=True)
# Models with their inputs, without dropout.
MODELS = {
    "ResNet": (RESNET, IMAGES, {}),
    "Bottleneck": (RESNET.clone(bottleneck=True), IMAGES, {}),
    "TransformerClassifier": (TransformerClassifier(num_classes=4, **TEXTS), TOKENS, {}),
    "TransformerLM": (TransformerLM(norm_first=True, **TEXTS), TOKENS, {}),
    "Seq2SeqTransformer": (Seq2SeqTransformer(**TEXTS), TOKENS, {"targets": TOKENS}),
}


def wide(tree):
    """The tree with float64 for float32."""
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree)


def random_variables(model, *inputs):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: 0.3 * RNG.standard_normal(leaf.shape), shapes)


def train(model, variables, *inputs, key=None, **keywords):
    """Outputs in training and the new statistics."""
    rngs = {"dropout": jax.random.key(1) if key is None else key}
    return model.apply(
        variables, *inputs, train=True, mutable=["batch_stats"], rngs=rngs, **keywords
    )


def recorded(kinds, call):
    """Returns the result of `call`, and module, input and output of each call of `kinds`."""
    calls = {}

    def record(method, arguments, keywords, context):
        outputs = method(*arguments, **keywords)
        if isinstance(context.module, kinds) and context.method_name == "__call__":
            name = ".".join(context.module.path)
            calls[name] = (context.module, arguments[0], outputs)
        return outputs

    with nn.intercept_methods(record):
        return call(), calls


def compiled_and_recorded(kinds, model, variables, *inputs):
    """Outputs and statistics in training, and (input, output) of each module of `kinds`."""

    @jax.jit
    def run(variables, inputs):
        found, calls = recorded(kinds, partial(train, model, variables, *inputs))
        return *found, {name: arrays for name, (_, *arrays) in calls.items()}

    return jax.device_get(run(variables, inputs))


def rates_of(model, inputs, **keywords):
    """The rate of each DropPath by its name."""

    def call():
        return jax.eval_shape(partial(model.init, **keywords), jax.random.key(0), inputs)

    return {name: module.rate for name, (module, _, _) in recorded(DropPath, call)[1].items()}


def test_rates_of_a_resnet_grow_over_all_of_its_blocks():
    rates = rates_of(ResNet50(drop_path_rate=0.3), jnp.zeros((1, 32, 32, 3)))
    blocks = [f"layer{i + 1}.{j}" for i, depth in enumerate((3, 4, 6, 3)) for j in range(depth)]
    assert list(rates) == [f"{block}.drop_path" for block in blocks]
    np.testing.assert_allclose(list(rates.values()), np.linspace(0, 0.3, 16), rtol=1e-12)


def test_rates_of_transformers_grow_over_the_layers_of_each_stack():
    options = TEXTS | {"num_layers": 5, "drop_path_rate": 0.2}
    expected = [0, 0.05, 0.1, 0.15, 0.2]
    for model, keywords, stacks in [
        (TransformerClassifier(num_classes=4, **options), {}, {"encoder": 2}),
        (TransformerLM(**options), {}, {"encoder": 2}),
        (Seq2SeqTransformer(**options), {"targets": TOKENS}, {"encoder": 2, "decoder": 3}),
    ]:
        rates = rates_of(model, TOKENS, **keywords)
        names = {
            f"{stack}.layers.{i}.drop_path{n + 1}": rate
            for stack, sublayers in stacks.items()
            for i, rate in enumerate(expected)
            for n in range(sublayers)
        }
        assert rates == pytest.approx(names)


@pytest.mark.parametrize(
    ("kind", "stride", "norm"), [(BasicBlock, 2, "bn2"), (Bottleneck, 1, "bn3")]
)
def test_a_residual_block_adds_the_branch_to_the_shortcut_of_kept_examples(kind, stride, norm):
    x = RNG.standard_normal((32, 4, 4, 16))
    with jax.enable_x64(True):
        variables = random_variables(kind(4, stride), x)
        (_, expected_statistics, _), (outputs, statistics, calls) = (
            compiled_and_recorded((DropPath, BatchNorm), kind(4, stride, rate), variables, x)
            for rate in (0.0, 0.75)
        )
    branch, dropped = calls["drop_path"]
    np.testing.assert_array_equal(branch, calls[norm][1])
    # The first block has a projection, the other one adds its inputs.
    assert ("downsample.1" in calls) == (kind is BasicBlock)
    shortcut = calls["downsample.1"][1] if kind is BasicBlock else x
    kept = dropped.any((1, 2, 3))
    assert 0 < kept.sum() < 32
    np.testing.assert_array_equal(outputs[~kept], np.maximum(shortcut[~kept], 0))
    np.testing.assert_array_equal(outputs[kept], np.maximum(4 * branch[kept] + shortcut[kept], 0))
    # All examples count in the statistics of BatchNorm, as in timm.
    jax.tree.map(np.testing.assert_array_equal, statistics, expected_statistics)


@pytest.mark.parametrize(
    ("kind", "norm_first"), [(TransformerBlock, False), (TransformerDecoderLayer, True)]
)
def test_a_transformer_layer_adds_each_sublayer_of_kept_examples(kind, norm_first):
    layer = kind(**SIZES, dropout=0.0, norm_first=norm_first, drop_path=0.5)
    x, memory = RNG.standard_normal((2, 64, 3, 16))
    inputs = (x, memory) if kind is TransformerDecoderLayer else (x,)
    masks = []
    with jax.enable_x64(True):
        variables = random_variables(layer, *inputs)
        outputs, _, calls = compiled_and_recorded((DropPath, LayerNorm), layer, variables, *inputs)
    for number in range(1, 2 + len(inputs)):
        branch, dropped = calls[f"drop_path{number}"]
        kept = dropped.any((1, 2))
        masks.append(kept)
        np.testing.assert_array_equal(dropped, np.where(kept[:, None, None], 2 * branch, 0))
        norm_input, norm_output = calls[f"norm{number}"]
        np.testing.assert_array_equal(norm_input, x if norm_first else x + dropped)
        x = x + dropped if norm_first else norm_output
    np.testing.assert_array_equal(outputs, x)
    # Of 64 coins, fewer than 12 or more than 52 show heads once in 10^7 times.
    for found in (*masks, *(one == other for one, other in pairwise(masks))):
        assert 12 < found.sum() < 52


@pytest.mark.parametrize(
    "name", sampled(MODELS, ("ResNet", "TransformerLM", "Seq2SeqTransformer").__contains__)
)
def test_parameters_inference_and_rate_0_do_not_change(name, monkeypatch):
    """The shapes of the parameters, and the programs of inference and of a gradient."""
    model, inputs, keywords = MODELS[name]
    if not isinstance(model, ResNet):
        model = model.clone(dropout=0.1)  # whose random numbers must not change either
    with_rate = model.clone(drop_path_rate=0.5)
    variables = jax.eval_shape(partial(with_rate.init, **keywords), jax.random.key(0), inputs)

    def inference(model):
        return jax.jit(partial(model.apply, **keywords)).lower(variables, inputs).as_text()

    def gradient(model):
        def loss(params, rest, key):
            return train(model, {**rest, "params": params}, inputs, key=key, **keywords)[0].sum()

        key = jax.random.key(1)
        return jax.jit(jax.grad(loss)).lower(variables["params"], variables, key).as_text()

    found = inference(with_rate), gradient(model.clone(drop_path_rate=0.0))
    monkeypatch.setattr(DropPath, "__call__", lambda self, inputs, train=False: inputs)
    assert variables == jax.eval_shape(partial(model.init, **keywords), jax.random.key(0), inputs)
    assert found == (inference(model), gradient(model))


def test_a_frozen_block_keeps_all_branches():
    model = RESNET.clone(drop_path_rate=0.5)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    for frozen in ("layer1.1", "layer1.0"):
        trainable, _ = split(variables["params"], (f"{frozen}.*",))
        with inference_where_frozen(trainable):
            _, calls = recorded(
                DropPath, partial(jax.eval_shape, partial(train, model), variables, IMAGES)
            )
        _, branch, outputs = calls["layer1.1.drop_path"]
        assert (outputs is branch) == (frozen == "layer1.1")


@pytest.mark.parametrize("name", ["ResNet", "TransformerLM", "Seq2SeqTransformer"])
def test_other_rates_are_one_message(name):
    model, inputs, keywords = MODELS[name]
    for rate in (-0.1, 1.0):
        message = f"drop path rate must be at least 0 and less than 1, got {rate}"
        with pytest.raises(UserError, match=message):
            model.clone(drop_path_rate=rate).init(jax.random.key(0), inputs, **keywords)


def test_runs_of_earlier_versions_have_rate_0():
    for model in (RESNET, MODELS["TransformerLM"][0]):
        config = Config(model=model.clone(drop_path_rate=0.1), data=Tfds("digits"))
        record = to_json(config)
        assert from_json(record) == config
        assert record["model"].pop("drop_path_rate") == 0.1
        assert upgraded(record) == to_json(replace(config, model=model))


@pytest.mark.whole
@pytest.mark.eight_devices
def test_a_step_on_eight_devices_equals_that_on_one():
    # Here of a ResNet with micro-batches. The samples with the Transformer of
    # tests/helpers/devices.py, which has drop path, run in a plain `pytest`.
    rng = np.random.default_rng(1)
    batch = {
        "inputs": IMAGES,
        "label": rng.integers(0, 4, 16).astype(np.int32),
        # Weights that differ from device to device: a mean of means would be another mean.
        "weight": np.where(np.arange(16) % 5 == 3, 0, 1).astype(np.float32),
    }
    gradients = []
    for count in (1, 8):
        mesh = make_mesh(devices=jax.devices()[:count])
        steps = make_steps(
            model=RESNET.clone(drop_path_rate=0.5),
            optimizer=SGD(learning_rate=1.0, momentum=0.0),
            accumulate_steps=2,
            mesh=mesh,
        )
        with jax.enable_x64(True):
            state = create_on(Placement(mesh), partial(steps.initial_state, batch))
            values = (state.params, state.model_state)
            params, model_state = put_like(values, wide(jax.device_get(values)))
            before = jax.device_get(params)
            state = state.replace(params=params, model_state=model_state)
            after = compile_train(steps, mesh, "jit", state)(state, wide(batch))
            gradients.append(jax.tree.map(np.subtract, before, jax.device_get(after.params)))
    one, eight = gradients
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    assert_trees_close(eight, one, rtol=0, atol=1e-12 * largest)
