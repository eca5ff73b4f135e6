"""Files and mappings into models: names, dtypes, strictness, and what it costs."""

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
    """Variables of a module that are all zero, without the time that `init` takes."""
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
    """Arbitrary bits, of half the size of float32, take the way through the file unchanged."""
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


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "module.model.", "model.module.", "module._orig_mod."]
)
def test_words_in_front_of_every_key_are_dropped(prefix, tmp_path):
    path = tmp_path / "model.safetensors"
    weights = {"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    write_weights({prefix + key: value for key, value in weights.items()}, path)
    loaded = load_weights(linear_shapes(), path)
    np.testing.assert_array_equal(loaded["params"]["kernel"], np.ones((3, 2)))

    write_weights({prefix + "weight": weights["weight"], "bias": weights["bias"]}, path)
    with pytest.raises(ValueError, match=f"missing: weight\n  unexpected: {prefix}weight"):
        load_weights(linear_shapes(), path)


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
    message = f"mismatched: weight has dtype {np.dtype(dtype)}, needed floating point"
    with pytest.raises(ValueError, match=message):
        load_weights(linear_shapes(), source)


def test_a_huge_shape_is_refused_before_it_costs_anything():
    huge = np.broadcast_to(np.float32(0), (2**30, 2**30))
    with pytest.raises(ValueError, match=r"weight has shape \[1073741824, 1073741824\], needed"):
        load_weights(linear_shapes(), {"weight": huge, "bias": np.zeros(2)})


def test_failed_loads_name_the_file_and_at_most_twenty_keys_of_a_kind(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights({f"more.{i:03}": np.zeros(1) for i in range(117)}, path)
    with pytest.raises(ValueError, match="do not fit") as error:
        load_weights(linear_shapes(), path)
    assert str(error.value) == (
        f"the weights in {path} do not fit the model:\n  missing: bias, weight\n  unexpected: "
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
    """Of processor time, so that a busy machine does not fail; memory includes the mapped file."""
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
