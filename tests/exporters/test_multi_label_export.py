"""Exports of multi-label classifiers: logits, and Hugging Face's problem type, both ways."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers.small_runs import train

import flaxdl
from flaxdl import Config
from flaxdl.config import Init
from flaxdl.data import Arrays, Images, Text
from flaxdl.exporters.exporting import export
from flaxdl.models import BertForSequenceClassification, ResNet, SimpleCNN
from flaxdl.pretrained import load_pretrained
from flaxdl.runs.initial_weights import described_initial_state
from flaxdl.runs.setup import set_up
from flaxdl.training import AdamW, MultiLabelClassification

TEXTS = ["a cat", "a dog", "cat dog", "nothing"]
LABELS = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)
BERT = BertForSequenceClassification(
    vocab_size=None,
    num_classes=None,
    max_length=8,
    hidden_size=16,
    num_heads=2,
    num_layers=1,
    feed_forward_size=24,
    dropout=0.0,
    attention_dropout=0.0,
)


def write_tokenizer(path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(pieces[:5])
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return Config(
        model=BERT,
        data=Arrays.from_memory(
            train_inputs=np.array(TEXTS * 4),
            train_label=np.tile(LABELS, (4, 1)),
            validation_inputs=np.array(TEXTS),
            validation_label=LABELS,
            classes=np.array(["cats", "dogs"]),
        ),
        transform=Text(tokenizer=str(path), max_length=8),
        task=MultiLabelClassification(),
        optimizer=AdamW(learning_rate=1e-2),
        batch_size=8,
        epochs=8,
    )


@pytest.fixture(scope="module")
def exported(config, tmp_path_factory):
    """A workdir, and the folder that was exported from it."""
    folder = tmp_path_factory.mktemp("bert")
    train(config, folder / "run")
    export(folder / "run", folder / "bert", config=config)
    return folder / "run", folder / "bert"


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_transformers_loads_a_multi_label_classifier(config, exported):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    workdir, folder = exported
    description = json.loads((folder / "config.json").read_text())
    assert description["problem_type"] == "multi_label_classification"
    assert description["id2label"] == {"0": "cats", "1": "dogs"}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    run = flaxdl.restore(workdir, config)
    batch = run.transform.read(TEXTS, {"inputs": (8,)})
    with torch.no_grad():
        theirs = model(**encoded, labels=torch.tensor(LABELS))
    ours = jax.jit(run.steps.predict)(run.state, batch)
    np.testing.assert_allclose(ours, theirs.logits.numpy(), atol=1e-5)
    batch = {"label": LABELS, "weight": np.ones(4, np.float32)}
    assert theirs.loss.item() == pytest.approx(float(run.config.task.loss(ours, batch)), abs=1e-5)

    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    found = flaxdl.predict(workdir, TEXTS, config=config)
    for one, scores in zip(found, pipeline(TEXTS, top_k=None), strict=True):
        expected = {score["label"]: score["score"] for score in scores}
        assert one.probabilities == pytest.approx(expected, abs=1e-5)


def test_a_folder_is_read_with_its_head(config, exported):
    workdir, folder = exported
    run = flaxdl.restore(workdir, config)
    model, variables = load_pretrained(str(folder))
    assert model.num_classes == 2
    jax.tree.map(np.testing.assert_array_equal, variables, jax.tree.map(np.asarray, run.variables))
    again = replace(config, init=Init(weights=str(folder)))
    state, text = described_initial_state(set_up(again))
    assert text == f"weights from {folder}"
    np.testing.assert_array_equal(
        state.params["classifier"]["kernel"], run.state.params["classifier"]["kernel"]
    )


def test_a_stablehlo_program_returns_logits(tmp_path):
    rng = np.random.default_rng(0)
    config = Config(
        model=SimpleCNN(num_classes=None),
        data=Arrays.from_memory(
            train_inputs=rng.integers(0, 256, (16, 8, 8, 1), np.uint8),
            train_label=rng.integers(0, 2, (16, 3)),
        ),
        transform=Images(),
        task=MultiLabelClassification(),
        batch_size=8,
        epochs=1,
    )
    train(config, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "model.stablehlo", config=config)
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    images = rng.integers(0, 256, (5, 8, 8, 1), np.uint8)
    run = flaxdl.restore(tmp_path / "run", config)
    expected = run.model.apply(run.variables, config.transform.normalize(images))
    np.testing.assert_allclose(program.call({"inputs": images}), expected, atol=1e-5)


def test_a_resnet_has_an_output_for_each_class():
    config = Config(
        model=ResNet(depths=(1, 1, 1, 1), num_classes=None),
        data=Arrays.from_memory(
            train_inputs=np.zeros((20, 32, 32, 3), np.uint8), train_label=np.eye(20, 5)
        ),
        transform=Images(),
        task=MultiLabelClassification(),
        batch_size=8,
    )
    setup = set_up(config)
    assert setup.classes == ("0", "1", "2", "3", "4")
    assert setup.shapes().params["fc"]["kernel"].shape[-1] == 5
