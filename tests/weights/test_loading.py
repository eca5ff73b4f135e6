"""Loading of weights into models: names, dtypes, strictness, time and memory."""

import json
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference
from helpers.image_parity import reference_images
from helpers.parity import assert_close
from helpers.processor_time import earlier_objects_frozen, takes_at_most
from helpers.sampling import sampled
from safetensors.numpy import save_file

from flaxdl.layers import (
    GRU,
    LSTM,
    RNN,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    PackedMultiHeadAttention,
    ResidualBlock,
    TransformerBlock,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from flaxdl.models import (
    BERT_BASE,
    BERT_LARGE,
    VGG11,
    VGG13,
    VGG16,
    VGG19,
    AlexNet,
    Bert,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    SimpleCNN,
    SimpleRNN,
    TextRNN,
)
from flaxdl.weights import load_weights, state_dict, write_weights
from flaxdl.weights.architectures import detect_architecture


class Perceptron(nn.Module):
    """`Sequential(Linear(20, 32), ReLU, LayerNorm(32), Linear(32, 5))`."""

    @nn.compact
    def __call__(self, x):
        x = LayerNorm(name="2")(nn.relu(Linear(32, name="0")(x)))
        return Linear(5, name="3")(x)


CONFIG = json.loads((reference.FOLDER / "bert_small_config.json").read_text())
IMAGES = np.zeros((1, 224, 224, 3), np.float32)
SMALL_IMAGES = np.zeros((1, 32, 32, 3), np.float32)
TOKENS = np.zeros((2, 11), np.int32)
SEQUENCE = reference.inputs("sequence", (3, 7, 12))
X, MEMORY = reference.inputs("sequence", (2, 6, 32)), reference.inputs("memory", (2, 5, 32))
RECURRENT = {"hidden_size": 16, "num_layers": 2, "bidirectional": True}
BLOCK = {"hidden_size": 32, "num_heads": 4, "feed_forward_size": 64}

# The layouts of `state_dicts.json`: name → module and its inputs.
SMALL = {
    "SimpleCNN": (SimpleCNN(), SMALL_IMAGES),
    "ResidualBlock": (ResidualBlock(8), np.zeros((1, 9, 9, 8), np.float32)),
    "SimpleRNN": (SimpleRNN(hidden_size=16, num_classes=3), SEQUENCE),
    "TextRNN": (TextRNN(vocab_size=50, embedding_size=12, hidden_size=16, num_classes=4), TOKENS),
    "MultiHeadAttention": (MultiHeadAttention(hidden_size=32, num_heads=4), X, X, X),
    "TransformerBlock": (TransformerBlock(**BLOCK), X),
    "mlp": (Perceptron(), reference.inputs("mlp", (16, 20))),
    "rnn": (RNN(**RECURRENT), SEQUENCE),
    "lstm": (LSTM(**RECURRENT), SEQUENCE),
    "gru": (GRU(**RECURRENT), SEQUENCE),
    "multihead_attention": (PackedMultiHeadAttention(hidden_size=32, num_heads=4), X, X, X),
    "transformer_encoder_layer": (TransformerEncoderLayer(**BLOCK), X),
    "transformer_decoder_layer": (TransformerDecoderLayer(**BLOCK), X, MEMORY),
    "bert": (Bert.from_hugging_face(CONFIG), TOKENS),
    "bert_masked_lm": (BertForMaskedLM.from_hugging_face(CONFIG), TOKENS),
    "bert_pretraining": (BertForPreTraining.from_hugging_face(CONFIG), TOKENS),
    "bert_sequence_classification": (
        BertForSequenceClassification.from_hugging_face(CONFIG),
        TOKENS,
    ),
}
LARGE = {
    "alexnet": (AlexNet(), IMAGES),
    "resnet18": (ResNet18(), IMAGES),
    "resnet34": (ResNet34(), IMAGES),
    "resnet50": (ResNet50(), IMAGES),
    "resnet101": (ResNet101(), IMAGES),
    "resnet152": (ResNet152(), IMAGES),
    "vgg11": (VGG11(), IMAGES),
    "vgg13": (VGG13(), IMAGES),
    "vgg16": (VGG16(), IMAGES),
    "vgg19": (VGG19(), IMAGES),
    "vgg11_bn": (VGG11(batch_norm=True), IMAGES),
    "vgg13_bn": (VGG13(batch_norm=True), IMAGES),
    "vgg16_bn": (VGG16(batch_norm=True), IMAGES),
    "vgg19_bn": (VGG19(batch_norm=True), IMAGES),
    "bert_base_uncased": (BertForPreTraining(**BERT_BASE), TOKENS),
    "bert_large_uncased": (BertForPreTraining(**BERT_LARGE), TOKENS),
}


def shapes(module, *inputs, dtype=None):
    """The shapes of a module's variables, in another dtype if one is given."""
    found = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype), found)


def zeros(module, *inputs):
    """All-zero variables of a module, which are faster than `init`."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes(module, *inputs))


def write_reference(name, path):
    """The reference weights of `name`, written with the safetensors library."""
    weights = reference.weights(reference.STATE_DICTS[name])
    save_file({key: np.asarray(value) for key, value in weights.items()}, path)
    return weights


# Every layout from a file


def test_no_layout_is_forgotten():
    assert {*SMALL, *LARGE} == {*reference.STATE_DICTS}


@pytest.mark.parametrize("name", SMALL)
def test_small_layouts(name, tmp_path):
    module, *inputs = SMALL[name]
    path = tmp_path / "model.safetensors"
    expected = write_reference(name, path)
    ours = state_dict(load_weights(shapes(module, *inputs), path))
    assert ours.keys() == expected.keys()
    for key, value in ours.items():
        assert value.dtype == expected[key].dtype
        np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize(
    "name", sampled(LARGE, ("alexnet", "vgg11_bn", "resnet50", "bert_base_uncased").__contains__)
)
def test_large_layouts(name, tmp_path):
    """Arbitrary 16-bit values pass through the file unchanged."""
    module, *inputs = LARGE[name]
    layout = reference.STATE_DICTS[name]
    sizes = {key: int(np.prod(shape)) for key, shape in layout.items()}
    bits = np.random.default_rng(0).integers(0, 0x7C00, 2**16 + max(sizes.values()), np.uint16)
    written = {
        key: bits[number : number + sizes[key]].view(np.float16).reshape(shape)
        for number, (key, shape) in enumerate(layout.items())
        if not key.endswith("num_batches_tracked") and not key.startswith("cls.predictions.decoder")
    }
    path = tmp_path / "model.safetensors"
    try:
        save_file(written, path)
        ours = state_dict(load_weights(shapes(module, *inputs, dtype=np.float16), path))
    finally:
        path.unlink()
    assert ours.keys() == layout.keys()
    for key, value in written.items():
        # All of what is small, and of the rest every axis, but not every element.
        part = tuple(slice(None, None, 1 + size // 256) for size in value.shape)
        assert np.array_equal(ours[key][part], value[part])


@pytest.mark.parametrize("name", ["SimpleRNN", "bert_sequence_classification", "resnet18"])
def test_golden_values_from_files(name, tmp_path):
    module, *inputs = (SMALL | LARGE)[name]
    path = tmp_path / "model.safetensors"
    write_reference(name, path)
    variables = load_weights(shapes(module, *inputs), path)
    options = {}
    if name == "resnet18":
        inputs = [reference_images("image", (2, 3, 224, 224))]
    elif name != "SimpleRNN":
        inputs = [reference.tokens("tokens", (2, 11), 97)]
        options["token_types"] = np.array([[0] * 5 + [1] * 6, [0] * 11])
        options["lengths"] = np.array([11, 7])
    logits = jax.jit(module.apply)(variables, *inputs, **options)
    assert_close(logits, reference.golden(f"{name}/logits"), 1e-5)


# Names


def linear_shapes():
    return shapes(Linear(2), np.zeros((1, 3), np.float32))


ONE = {"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
"""Weights of `Linear(2)`."""


def under(prefix, weights=ONE):
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "net.",
        "backbone.",
        "module.model.",
        "model.module.",
        "module._orig_mod.",
        "_forward_module.model._fsdp_wrapped_module.",
        "my.own.net_2.",
    ],
)
def test_a_prefix_that_makes_the_names_fit_is_dropped(prefix, tmp_path, caplog):
    path = tmp_path / "model.safetensors"
    write_weights(under(prefix), path)
    loaded = load_weights(linear_shapes(), path)
    np.testing.assert_array_equal(loaded["params"]["kernel"], np.ones((3, 2)))
    (record,) = caplog.records
    for word in prefix.split(".")[:-1]:
        assert f"{word}." in record.getMessage().removeprefix(f"the weights in {path}: ")
    assert "from 2 names" in record.getMessage()


def test_a_key_of_the_loss_does_not_prevent_it(caplog):
    more = {"criterion.weight": np.ones(4), "net.num_batches_tracked": np.int64(3)}
    weights = under("net.") | more | {"n_averaged": np.int64(2)}
    with pytest.raises(ValueError, match="do not fit") as error:
        load_weights(linear_shapes(), weights)
    assert str(error.value) == ("the weights do not fit the model:\n  unexpected: criterion.weight")
    variables = Linear(2).init(jax.random.key(0), np.zeros((1, 3)))
    loaded = load_weights(variables, weights, omit=("criterion.*",))
    np.testing.assert_array_equal(loaded["params"]["kernel"], np.ones((3, 2)))
    assert caplog.messages == ["the weights: dropped 'net.' from 2 names"]


def test_names_without_anything_to_drop_are_not_mentioned(caplog):
    load_weights(linear_shapes(), ONE)
    assert not caplog.records


def test_wrappers_are_dropped_inside_of_names():
    variables = {"params": {"features.0": {"kernel": np.zeros((3, 2))}, "fc": {"bias": np.ones(2)}}}
    for name in (
        "features.module.0.weight",
        "features.0._orig_mod.weight",
        "module.features.0.weight",
    ):
        source = {name: ONE["weight"], "fc.bias": ONE["bias"]}
        loaded = load_weights(variables, source)
        np.testing.assert_array_equal(loaded["params"]["features.0"]["kernel"], np.ones((3, 2)))
    twice = {"features.module.0.weight": ONE["weight"], "features.0.weight": ONE["weight"]}
    message = "ambiguous: features.module.0.weight and features.0.weight for features.0.weight"
    with pytest.raises(ValueError, match=message):
        load_weights(variables, twice | {"fc.bias": ONE["bias"]})


def test_a_prefix_of_some_names_only_is_not_dropped():
    source = {"net.weight": ONE["weight"], "bias": ONE["bias"]}
    with pytest.raises(ValueError, match="missing: weight\n  unexpected: net.weight"):
        load_weights(linear_shapes(), source)
    # That one is missing does not hide the rest.
    variables = {"params": {name: {"bias": np.zeros(2)} for name in "abc"}}
    source = {"net.a.bias": np.ones(2), "net.b.bias": np.ones(2), "loss": np.ones(1)}
    with pytest.raises(
        ValueError, match="do not fit the model:\n  missing: c.bias\n  unexpected: loss$"
    ):
        load_weights(variables, source)


def test_of_two_prefixes_one_is_omitted(tmp_path):
    path = tmp_path / "model.safetensors"
    teacher = {key: value + 1 for key, value in ONE.items()}
    write_weights(under("student.") | under("teacher.", teacher), path)
    message = (
        f"the weights in {path} contain the model's parameters more than once, under 'student.', "
        "'teacher.'; omit all but one of them, as in omit=('teacher.*',)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(linear_shapes(), path)
    variables = Linear(2).init(jax.random.key(0), np.zeros((1, 3)))
    for omit, expected in (("teacher.*", 1), ("student.*", 2)):
        loaded = load_weights(variables, path, omit=(omit,))
        assert loaded["params"]["kernel"][0, 0] == expected
    # What fits as it is needs no prefix, and the copy has to be omitted.
    write_weights(ONE | under("ema.", teacher), path)
    with pytest.raises(ValueError, match="model:\n  unexpected: ema.bias, ema.weight"):
        load_weights(variables, path)
    assert load_weights(variables, path, omit=("ema.*",))["params"]["kernel"][0, 0] == 1


def test_what_is_omitted_need_not_be_under_the_prefix():
    variables = {"params": {name: {"bias": np.zeros(2)} for name in ("layer", "fc")}}
    for head in ("net.fc.bias", "fc.bias", "net.head.bias"):
        source = {"net.layer.bias": np.ones(2), head: np.ones(7)}
        omit = ("fc.*", "head.*") if "head" in head else ("fc.*",)
        loaded = load_weights(variables, source, omit=omit)
        np.testing.assert_array_equal(loaded["params"]["layer"]["bias"], [1, 1])
        np.testing.assert_array_equal(loaded["params"]["fc"]["bias"], [0, 0])


def test_names_of_a_million_parts_take_but_a_moment():
    names = ["a." * 10**6 + end for end in ("weight", "bias", "x")]
    tensors = dict(zip(names, [*ONE.values(), np.ones(1)], strict=True))
    with (
        earlier_objects_frozen(),
        takes_at_most(2),
        pytest.raises(ValueError, match="unexpected: x$"),
    ):
        load_weights(linear_shapes(), tensors)


def test_words_that_the_model_has_itself_stay():
    variables = {"params": {"model": {"kernel": np.zeros((3, 2))}}}
    assert load_weights(variables, {"model.weight": np.ones((2, 3))})["params"]["model"]
    assert load_weights(variables, {"module.model.weight": np.ones((2, 3))})["params"]["model"]


@pytest.mark.parametrize(
    ("file", "model", "prefix", "omit"),
    [
        ("bert", "bert_sequence_classification", "bert.", ("classifier.*",)),
        ("bert", "bert_masked_lm", "bert.", ("cls.*", "pooler.*")),
        ("bert", "bert_pretraining", "bert.", ("cls.*",)),
        ("bert_pretraining", "bert", "", ("cls.*",)),
        ("bert_sequence_classification", "bert", "", ("classifier.*",)),
        ("bert_pretraining", "bert_sequence_classification", "bert.", ("cls.*", "classifier.*")),
        (
            "bert_pretraining",
            "bert_masked_lm",
            "bert.",
            ("cls.seq_relationship.*", "bert.pooler.*"),
        ),
    ],
)
def test_encoders_and_models_with_heads(file, model, prefix, omit):
    module, *inputs = SMALL[model]
    variables = zeros(module, *inputs)
    weights = reference.weights(reference.STATE_DICTS[file])
    loaded = state_dict(load_weights(variables, weights, omit=omit))
    inside = "" if file == "bert" else "bert."
    for key in ("embeddings.word_embeddings.weight", "encoder.layer.1.output.LayerNorm.bias"):
        np.testing.assert_array_equal(loaded[prefix + key], weights[inside + key])
    with pytest.raises(ValueError, match="do not fit the model"):
        load_weights(variables, weights)
    wrapped = {f"model.{key}": value for key, value in weights.items()}
    jax.tree.map(
        np.testing.assert_array_equal,
        load_weights(variables, wrapped, omit=omit),
        load_weights(variables, weights, omit=omit),
    )


@pytest.mark.parametrize(
    ("file", "model", "omit", "message"),
    [
        ("bert", "bert_sequence_classification", ("classifier.*",), "added 'bert.' to 55 names"),
        ("bert_pretraining", "bert_sequence_classification", ("classifier.*",), "ignored cls."),
        ("bert_sequence_classification", "bert_sequence_classification", ("classifier.*",), ""),
        ("bert_masked_lm", "bert", ("pooler.*",), "names; ignored cls."),
        ("bert_pretraining", "bert", (), "dropped 'bert.' from 55 names; ignored cls."),
        ("bert_pretraining", "bert_masked_lm", (), "ignored bert.pooler.dense.bias, bert.pooler"),
    ],
)
def test_berts_ignore_what_only_pretraining_needs(file, model, omit, message, caplog):
    module, *inputs = SMALL[model]
    weights = reference.weights(reference.STATE_DICTS[file])
    for prefix in ("", "model."):
        caplog.clear()
        source = {prefix + key: value for key, value in weights.items()}
        loaded = load_weights(
            zeros(module, *inputs), source, omit=omit, ignore=type(module).ignored_keys
        )
        outer = "bert." if model != "bert" else ""
        inner = "bert." if file != "bert" else ""
        key = "encoder.layer.1.output.LayerNorm.bias"
        np.testing.assert_array_equal(state_dict(loaded)[outer + key], weights[inner + key])
        assert message in caplog.text or prefix
        assert bool(caplog.records) == bool(message or prefix)


def test_a_classifier_is_not_ignored():
    module, *inputs = SMALL["bert"]
    weights = reference.weights(reference.STATE_DICTS["bert_sequence_classification"])
    with pytest.raises(
        ValueError, match="model:\n  unexpected: classifier.bias, classifier.weight"
    ):
        load_weights(shapes(module, *inputs), weights, ignore=type(module).ignored_keys)


def test_a_tied_tensor_is_not_ignored_if_it_is_the_only_one():
    module, *inputs = SMALL["bert_sequence_classification"]
    weights = reference.weights(reference.STATE_DICTS["bert_pretraining"])
    key, original = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
    tied = weights.pop(original)
    loaded = load_weights(
        zeros(module, *inputs), weights, omit=("classifier.*",), ignore=module.ignored_keys
    )
    np.testing.assert_array_equal(state_dict(loaded)[original], tied)
    weights[original] = tied + 1  # the other is not needed, whatever it is
    assert key in weights
    loaded = load_weights(
        zeros(module, *inputs), weights, omit=("classifier.*",), ignore=module.ignored_keys
    )
    np.testing.assert_array_equal(state_dict(loaded)[original], tied + 1)


@pytest.mark.parametrize(
    ("file", "model", "theirs", "ours"),
    [
        ("resnet18", "resnet50", "ResNet-18", "ResNet-50"),
        ("resnet50", "resnet18", "ResNet-50", "ResNet-18"),
        ("resnet152", "resnet101", "ResNet-152", "ResNet-101"),
        ("resnet34", "vgg16", "ResNet-34", "VGG-16"),
        ("vgg16_bn", "vgg16", "VGG-16 with batch norm", "VGG-16"),
        ("vgg11", "vgg19", "VGG-11", "VGG-19"),
        ("vgg13", "alexnet", "VGG-13", "AlexNet"),
        ("alexnet", "bert", "AlexNet", "BERT with 3 layers and hidden size 48"),
    ],
)
def test_another_architecture_is_named(file, model, theirs, ours):
    module, *inputs = (SMALL | LARGE)[model]
    layout = reference.STATE_DICTS[file]
    source = {f"net.{key}": np.broadcast_to(np.float32(0), shape) for key, shape in layout.items()}
    with pytest.raises(ValueError, match="do not fit") as error:
        load_weights(shapes(module, *inputs), source)
    message = f"do not fit the model, since they belong to {theirs} and the model is {ours}:\n"
    assert message in str(error.value)


def test_siblings_with_the_same_names_are_told_apart_by_their_shapes():
    layout = {key: tuple(shape) for key, shape in reference.STATE_DICTS["resnet50"].items()}
    assert detect_architecture(layout) == "ResNet-50"
    key = "layer1.0.conv2.weight"
    assert detect_architecture(layout | {key: (128, 128, 3, 3)}) == "Wide ResNet-50"
    assert detect_architecture(layout | {key: (128, 4, 3, 3)}) == "ResNeXt-50"
    few = {key: shape for key, shape in layout.items() if not key.startswith("layer3.5.")}
    assert detect_architecture(few) == "a ResNet with 3-4-5-3 blocks"
    bert = {
        f"bert.{key}": (9, 8) for key in ("embeddings.word_embeddings.weight", "encoder.layer.0.x")
    }
    assert detect_architecture(bert) == "BERT with 1 layers and hidden size 8"
    roberta = {key.replace("bert.", "roberta."): shape for key, shape in bert.items()}
    assert detect_architecture(roberta) == "RoBERTa with 1 layers and hidden size 8"
    assert detect_architecture({"blocks.0.attn.qkv.weight": (9, 3)}) == "a vision transformer"
    assert detect_architecture({"fc.weight": (2, 3), "layer1.x": ()}) is None


def test_another_head_is_not_another_architecture():
    module, *inputs = LARGE["resnet18"]
    layout = reference.STATE_DICTS["resnet18"] | {"fc.weight": (7, 512), "fc.bias": (7,)}
    source = {key: np.broadcast_to(np.float32(0), shape) for key, shape in layout.items()}
    with pytest.raises(
        ValueError, match=r"the model:\n  mismatched: fc.bias has shape \[7\], expected"
    ):
        load_weights(shapes(module, *inputs), source)


def test_old_names_and_buffers_of_bert():
    module, *inputs = SMALL["bert_pretraining"]
    expected = reference.weights(reference.STATE_DICTS["bert_pretraining"])
    old = {
        "module."
        + key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for key, value in expected.items()
    }
    old["module.bert.embeddings.position_ids"] = np.arange(40)
    old["module.bert.embeddings.token_type_ids"] = np.zeros(40, int)
    assert any(key.endswith("gamma") for key in old)
    loaded = state_dict(load_weights(shapes(module, *inputs), old))
    for key, value in expected.items():
        np.testing.assert_array_equal(loaded[key], value)


def test_two_keys_for_one_name():
    variables = {"params": {"LayerNorm": {"scale": np.ones(2)}}}
    with pytest.raises(
        ValueError, match=r"ambiguous: LayerNorm.weight and LayerNorm.gamma for LayerNorm.weight"
    ):
        load_weights(variables, {"LayerNorm.weight": np.zeros(2), "LayerNorm.gamma": np.ones(2)})


# Tied tensors


def test_a_tied_tensor_may_come_under_either_name():
    module, *inputs = SMALL["bert_pretraining"]
    expected = reference.weights(reference.STATE_DICTS["bert_pretraining"])
    for absent in (
        ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"),
    ):
        given = {key: value for key, value in expected.items() if key not in absent}
        loaded = state_dict(load_weights(shapes(module, *inputs), given))
        for key in expected:
            np.testing.assert_array_equal(loaded[key], expected[key])
    broken = {key: value for key, value in expected.items() if "word_embed" not in key}
    del broken["cls.predictions.decoder.weight"]
    with pytest.raises(ValueError, match="missing: bert.embeddings.word_embeddings.weight"):
        load_weights(shapes(module, *inputs), broken)


def test_tied_tensors_that_differ():
    module, *inputs = SMALL["bert_pretraining"]
    weights = reference.weights(reference.STATE_DICTS["bert_pretraining"])
    key, original = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
    weights[key] = weights[key].copy()
    weights[key][0, 0] = np.nan
    with pytest.raises(ValueError, match=f"mismatched: {key} differs from {original}"):
        load_weights(shapes(module, *inputs), weights)
    weights[original] = weights[key]
    load_weights(shapes(module, *inputs), weights)
    weights[key] = weights[key][1:]
    with pytest.raises(ValueError, match=f"mismatched: {key} differs from {original}"):
        load_weights(shapes(module, *inputs), weights)
    variables = zeros(module, *inputs)
    load_weights(variables, weights, omit=(key,))
    load_weights(variables, weights, omit=("*.word_embeddings.*", key))


# Dtypes, shapes and strictness


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("needed", [jnp.float32, jnp.bfloat16])
def test_leaves_keep_their_dtype(dtype, needed, tmp_path):
    path = tmp_path / "model.safetensors"
    weight = (np.arange(6).reshape(2, 3) / 8).astype(dtype)
    write_weights({"weight": weight, "bias": weight[:, 0]}, path)
    variables = shapes(Linear(2), np.zeros((1, 3), np.float32), dtype=needed)
    loaded = load_weights(variables, path)
    for leaf, expected in (
        (loaded["params"]["kernel"], weight.T),
        (loaded["params"]["bias"], weight[:, 0]),
    ):
        assert leaf.dtype == needed
        assert leaf.flags.c_contiguous
        assert leaf.flags.writeable
        assert leaf.flags.owndata
        np.testing.assert_array_equal(leaf.astype(float), expected.astype(float))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64])
def test_numbers_of_another_kind_do_not_fit(dtype):
    source = {"weight": np.ones((2, 3), dtype), "bias": np.ones(2, np.float32)}
    message = f"mismatched: weight has dtype {np.dtype(dtype)}, expected floating point"
    with pytest.raises(ValueError, match=message):
        load_weights(linear_shapes(), source)


def test_a_huge_shape_is_refused_before_it_costs_anything():
    huge = np.broadcast_to(np.float32(0), (2**30, 2**30))
    with pytest.raises(ValueError, match=r"weight has shape \[1073741824, 1073741824\], expected"):
        load_weights(linear_shapes(), {"weight": huge, "bias": np.zeros(2)})


def test_failed_loads_name_the_file_and_at_most_twenty_keys_of_a_kind(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights({f"more.{i:03}": np.zeros(1) for i in range(117)}, path)
    with pytest.raises(ValueError, match="do not fit") as error:
        load_weights(linear_shapes(), path)
    assert str(error.value) == (
        f"the weights in {path} do not fit the model and seem to be for another architecture "
        "(0 of 2 keys match):\n  missing: bias, weight\n  unexpected: "
        + ", ".join(f"more.{i:03}" for i in range(20))
        + " and 97 more, 117 in all"
    )


def test_omitted_keys_follow_the_renamed_names(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights({"module.weight": np.ones((7, 3)), "module.more.bias": np.ones(1)}, path)
    variables = Linear(2).init(jax.random.key(0), np.zeros((1, 3)))
    loaded = load_weights(variables, str(path), omit=("weight", "bias", "more.*"))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    with pytest.raises(ValueError, match="omit: the pattern 'module.*' matches no parameter"):
        load_weights(variables, path, omit=("module.*",))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: begins with b'nothing '"):
        load_weights(linear_shapes(), path)
    assert not os.path.exists(tmp_path / "nothing")
    with pytest.raises(ValueError, match="nothing"):
        load_weights(linear_shapes(), tmp_path / "nothing")


# Cost


MEASURE = """
import sys, time
import jax, numpy as np
import flaxdl
from flaxdl.models import ResNet50
from flaxdl.weights import load_weights

def memory(quantity):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(quantity)) * 1024

images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
shapes = jax.eval_shape(ResNet50().init, jax.random.key(0), images)
before = memory("VmRSS")
start = time.process_time()
variables = load_weights(shapes, sys.argv[1])
print(time.process_time() - start, memory("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_resnet50_takes_two_seconds_and_three_times_its_size(kind, tmp_path):
    """In processor time, to pass on a busy machine; memory includes the mapped file."""
    path = tmp_path / f"resnet50.{kind}"
    if kind == "safetensors":
        write_reference("resnet50", path)
    else:
        torch = pytest.importorskip("torch")
        layout = reference.STATE_DICTS["resnet50"].items()
        torch.save({key: torch.ones(shape) for key, shape in layout}, path)
    size = path.stat().st_size
    assert 97e6 < size < 107e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    path.unlink()
    seconds, memory = map(float, done.stdout.split())
    print(f"{seconds:.2f} seconds, {memory / size:.2f} times the file's size")
    assert seconds < 2
    assert memory < 3 * size
