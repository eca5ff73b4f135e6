"""`num_classes=None` and `vocab_size=None` in a config: the data of the run decide."""

import json
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_runs import quadrant_source, small_config

import flaxdl
from flaxdl import Config
from flaxdl.cli import main
from flaxdl.data import Arrays, Source, Text, TextTable
from flaxdl.models import (
    RNNLM,
    VGG11,
    AlexNet,
    Bert,
    BertForMaskedLM,
    BertForSequenceClassification,
    CNN1d,
    LeNet5,
    ResNet18,
    Seq2SeqRNN,
    Seq2SeqTransformer,
    SimpleCNN,
    SimpleRNN,
    TextRNN,
    TransformerClassifier,
    TransformerLM,
)
from flaxdl.runs.config_json import from_json
from flaxdl.runs.restored import read_plan
from flaxdl.runs.setup import set_up
from flaxdl.runs.workdir import Workdir

FROM_DATA = SimpleCNN(num_classes=None)
TINY = {"hidden_size": 4, "num_layers": 1, "num_heads": 1, "feed_forward_size": 4}
IMAGES = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((1, 8), jnp.int32)
UNKNOWN = [
    *((kind(num_classes=None), IMAGES) for kind in (SimpleCNN, LeNet5, AlexNet, VGG11, ResNet18)),
    (CNN1d(num_classes=None), jax.ShapeDtypeStruct((1, 8, 3), jnp.float32)),
    (SimpleRNN(hidden_size=4, num_classes=None), jax.ShapeDtypeStruct((1, 8, 3), jnp.float32)),
    (TextRNN(9, 4, 4, num_classes=None), TOKENS),
    (TextRNN(None, 4, 4, 2), TOKENS),
    (TransformerClassifier(vocab_size=9, num_classes=None, **TINY), TOKENS),
    (TransformerLM(vocab_size=None, **TINY), TOKENS),
    (RNNLM(None, 4, 4), TOKENS),
    (Seq2SeqRNN(None, 4, 4), TOKENS),
    (Seq2SeqTransformer(vocab_size=None, **TINY), TOKENS),
    (Seq2SeqTransformer(vocab_size=None, target_vocab_size=9, **TINY), TOKENS),
    (Bert(vocab_size=None, **TINY), TOKENS),
    (BertForMaskedLM(vocab_size=None, **TINY), TOKENS),
    (BertForSequenceClassification(num_classes=None, **TINY), TOKENS),
]


@pytest.mark.parametrize(("model", "inputs"), UNKNOWN, ids=lambda x: type(x).__name__)
def test_a_model_by_itself_needs_its_sizes(model, inputs):
    name = "num_classes" if getattr(model, "num_classes", 0) is None else "vocab_size"
    keywords = {"targets": TOKENS} if isinstance(model, Seq2SeqRNN | Seq2SeqTransformer) else {}
    with pytest.raises(ValueError, match=f"{name} is None, and there is no dataset .* a number"):
        jax.eval_shape(model.init, jax.random.key(0), inputs, **keywords)


IMPOSSIBLE = [
    (SimpleCNN(num_classes=0), IMAGES, "num_classes must be at least 1, got 0"),
    (ResNet18(num_classes=-1), IMAGES, "num_classes must be at least 1, got -1"),
    (TextRNN(9, 4, 0, 2), TOKENS, "hidden_size must be at least 1, got 0"),
    (TextRNN(9, 0, 4, 2), TOKENS, "embedding_size must be at least 1, got 0"),
    (RNNLM(9, 0, 4), TOKENS, "embedding_size must be at least 1, got 0"),
    (RNNLM(9, 4, 0), TOKENS, "hidden_size must be at least 1, got 0"),
    (SimpleRNN(0, 2), jax.ShapeDtypeStruct((1, 8, 3), jnp.float32), "hidden_size must be at least"),
    (TransformerLM(vocab_size=0, **TINY), TOKENS, "vocab_size must be at least 1, got 0"),
    (TransformerLM(vocab_size=9, **TINY | {"hidden_size": 0}), TOKENS, "hidden_size must be at"),
    (Bert(**TINY | {"hidden_size": 0}), TOKENS, "hidden_size must be at least 1, got 0"),
]


@pytest.mark.parametrize(("model", "inputs", "message"), IMPOSSIBLE)
def test_sizes_below_1_are_refused(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), inputs)


@dataclass(frozen=True)
class Forgetful(Source):
    """A source of the user's own that returns nothing."""

    def load(self, seed):
        pass


def test_a_source_that_returns_no_splits_is_named():
    with pytest.raises(ValueError, match=r"Forgetful\.load must return Splits, got None"):
        set_up(small_config(data=Forgetful()))


def test_defaults_of_models_stay():
    assert SimpleCNN().num_classes == LeNet5().num_classes == 10
    assert ResNet18().num_classes == AlexNet().num_classes == VGG11().num_classes == 1000
    assert Bert().vocab_size == 30522


def text_config(tmp_path, **sizes):
    rows = [f"{'good' if number % 2 else 'bad'} {number % 10},{number % 2}" for number in range(60)]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    model = TextRNN(embedding_size=4, hidden_size=4, pooling="final_states", **sizes)
    data = TextTable(str(tmp_path / "texts.csv"), validation_fraction=0.0, test_fraction=0.0)
    return Config(model=model, data=data, transform=Text(max_length=8), batch_size=8)


@pytest.mark.quick
def test_the_data_decide_before_anything_is_traced(tmp_path):
    setup = set_up(small_config(model=FROM_DATA))
    assert setup.config.model == SimpleCNN(num_classes=4)
    assert setup.shapes().params["classifier.4"]["kernel"].shape == (256, 4)
    texts = set_up(text_config(tmp_path, vocab_size=None, num_classes=None))
    model = texts.config.model
    assert isinstance(model, TextRNN)
    # Padding, unknown, the digits, a space, and the letters of good and bad.
    assert (model.vocab_size, model.num_classes) == (2 + 10 + 1 + 5, 2)
    given = text_config(tmp_path, vocab_size=100, num_classes=2)
    assert set_up(given).config == given


def test_a_vocabulary_that_the_transform_does_not_have_is_asked_for():
    arrays = {"train_inputs": np.arange(40).reshape(10, 4), "train_label": np.arange(10) % 2}
    model = TextRNN(None, 4, 4, None)
    config = Config(model=model, data=Arrays.from_memory(**arrays), batch_size=2)
    with pytest.raises(ValueError, match="vocab_size is None.*set --model.vocab-size 40 or more"):
        set_up(config)


class Own(nn.Module):
    """A model of the user's own, whose field means the same."""

    num_classes: int | None = None

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes or 1)(images.reshape(len(images), -1))


def test_a_model_of_ones_own_gets_its_size_too():
    assert set_up(small_config(model=Own())).config.model == Own(4)


@pytest.mark.quick
def test_the_identity_of_a_run_has_none(tmp_path):
    config = small_config(model=FROM_DATA)
    setup, folder = set_up(config), Workdir(tmp_path)
    folder.claim(config, setup.facts())
    record = json.loads((tmp_path / "config.json").read_text())["config"]
    assert record["model"]["num_classes"] is None
    assert from_json(record).model == FROM_DATA
    folder.check_config(config, accept_changes=False)
    with pytest.raises(ValueError, match=r"model\.num_classes: null → 4"):
        folder.check_config(setup.config, accept_changes=False)
    plan = read_plan(tmp_path)  # as predict, evaluate, export and report do
    assert plan.config.model == SimpleCNN(num_classes=4)
    assert plan.shapes().params["classifier.4"]["kernel"].shape == (256, 4)


def test_a_run_from_training_to_prediction(tmp_path):
    config = small_config(model=FROM_DATA, epochs=1, transform=flaxdl.data.Images())
    result = flaxdl.train(config, tmp_path / "run", report=False)
    assert result.model == SimpleCNN(num_classes=4)
    inputs = config.transform.normalize(quadrant_source().arrays["test_inputs"])
    logits = result.model.apply(result.variables, inputs)
    accuracy = (logits.argmax(-1) == quadrant_source().arrays["test_label"]).mean()
    assert accuracy == pytest.approx(result.metrics["accuracy"], abs=1e-6)
    again = flaxdl.train(config, tmp_path / "run", report=False)
    assert again.metrics == result.metrics
    more = replace(quadrant_source(), arrays={**quadrant_source().arrays, "classes": list("abcde")})
    with pytest.raises(ValueError, match="classes: 0, 1, 2, 3 → a, b, c, d, e"):
        flaxdl.train(replace(config, data=more), tmp_path / "run", report=False)
    with pytest.raises(ValueError, match="is from another model.*classifier.4"):
        flaxdl.train(
            replace(config, data=more), tmp_path / "run", report=False, accept_changes=True
        )


def test_inspect_shows_the_sizes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", train_inputs=np.zeros((20, 8, 8, 1), np.uint8), train_label=np.arange(20) % 3)
    (tmp_path / "sizes_config.py").write_text(
        "from flaxdl import Config\nfrom flaxdl.data import Arrays\n"
        "from flaxdl.models import SimpleCNN\n"
        "config = Config(model=SimpleCNN(), data=Arrays('d.npz'), batch_size=4)\n"
    )
    line = ["inspect", "--config", "sizes_config.py", "--model.num-classes", "None"]
    assert main(line) == 0
    assert f"{256 * 3 + 3:,}" in capsys.readouterr().out
