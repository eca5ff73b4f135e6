"""Runs with masked language modeling: loss, devices, exact resume, and fine-tuning after it."""

import json
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.parity import assert_close
from helpers.small_runs import interrupt_at, small_config, train
from helpers.small_steps import assert_trees_close, make_steps, train_on

import flaxdl
from flaxdl import Init, UserError
from flaxdl.data import Arrays, Documents, MaskedText, Text
from flaxdl.layers import Embedding
from flaxdl.models import BertForMaskedLM, BertForSequenceClassification
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.runs.prediction import predict
from flaxdl.runs.setup import set_up
from flaxdl.training import Interrupted, LanguageModeling, MaskedLanguageModeling
from flaxdl.training.distributed.mesh import make_mesh
from flaxdl.weights import state_dict

SIZES = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_size": 32,
    "max_length": 20,
}
TEXTS = np.array(["the cat sat on the mat", "a dog ran", "cats and dogs", "on the dog"] * 10)
LABELS = np.arange(40, dtype=np.int32) % 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat, and a dog ran. " * 40)
    return str(path)


def config(path, **changes):
    settings = {
        "model": BertForMaskedLM(vocab_size=None, **SIZES),
        "data": Documents(path, window=18),
        "transform": MaskedText("characters", max_length=20),
        "task": MaskedLanguageModeling(),
        "batch_size": 16,
        "epochs": 3,
    }
    return small_config(**(settings | changes))


@pytest.fixture(scope="module")
def pretrained(path, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    return workdir, train(config(path), workdir)


def masked_batch(count=16):
    fitted = MaskedText("characters", max_length=20).fit(text_source().load(0).train)
    dataset = fitted.apply(text_source().load(0).train)
    batch = fitted.prepare(dataset.gather(np.arange(count)), {})
    weight = np.ones(count, np.float32)
    weight[3] = 0
    return fitted, {**batch, "weight": weight}


def text_source():
    return Arrays.from_memory(train_inputs=TEXTS, train_label=LABELS)


def test_the_loss_is_that_of_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fitted, batch = masked_batch()
    with jax.enable_x64(True):
        model = BertForMaskedLM(
            vocab_size=fitted.vocab_size, dropout=0.0, attention_dropout=0.0, **SIZES
        )
        task = MaskedLanguageModeling()
        inputs, keywords = task.model_arguments(batch)
        assert list(keywords) == ["lengths"]
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
        variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape)), shapes)

        def loss(variables):
            return task.loss(model.apply(variables, inputs, train=True, **keywords), batch)

        value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    settings = transformers.BertConfig(
        **model.to_hugging_face() | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0}
    )
    theirs = transformers.BertForMaskedLM(settings).double()
    weights = {name: torch.tensor(array) for name, array in state_dict(variables).items()}
    theirs.load_state_dict(weights, strict=True)
    label = np.where(batch["chosen"] & (batch["weight"] == 1)[:, None], batch["label"], -100)
    keep = np.arange(20) < batch["lengths"][:, None]
    tokens, label, keep = (torch.tensor(x).long() for x in (inputs, label, keep))
    expected = theirs(tokens, attention_mask=keep, labels=label).loss
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-9)
    names = dict(theirs.named_parameters())
    largest = max(parameter.grad.abs().max().item() for parameter in names.values())
    ours = {name: x for name, x in state_dict(gradients).items() if name in names}
    assert len(ours) == len(names)
    for name, gradient in ours.items():
        if "word_embeddings" in name:  # theirs is zero for padding also as an output
            gradient = gradient[1:]
            assert_close(gradient, names[name].grad[1:].numpy(), 1e-9, largest)
        else:
            assert_close(gradient, names[name].grad.numpy(), 1e-9, largest)


def test_only_the_chosen_tokens_count():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5))
    batch = {
        "inputs": np.zeros((2, 3), np.int32),
        "label": np.array([[4, 2, 3], [1, 3, 0]], np.int32),
        "chosen": np.array([[True, False, True], [True, True, True]]),
        "weight": np.array([1, 0], np.float32),
    }
    losses = [np.log(np.exp(logits[0, t]).sum()) - logits[0, t, y] for t, y in ((0, 4), (2, 3))]
    task = MaskedLanguageModeling()
    np.testing.assert_allclose(task.loss(logits, batch), np.mean(losses), rtol=1e-5)
    values, weights = task.metrics(logits, batch)["accuracy"]
    np.testing.assert_array_equal(weights, [[1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(values, logits.argmax(-1) == batch["label"])


class Unigrams(nn.Module):
    """Logits that depend only on the token; it compiles fast."""

    vocab_size: int

    @nn.compact
    def __call__(self, tokens, lengths, train=False):
        return Embedding(self.vocab_size, self.vocab_size, name="embedding")(tokens)


@pytest.mark.eight_devices
def test_eight_devices_equal_one():
    fitted, batch = masked_batch()
    steps = make_steps(
        model=Unigrams(fitted.vocab_size),
        task=MaskedLanguageModeling(),
        augment=fitted.augment_batch,
    )
    one, eight = (
        jax.device_get(train_on(make_mesh(devices=devices), steps, [batch] * 3))
        for devices in (jax.devices()[:1], jax.devices())
    )
    assert_trees_close(eight.params, one.params, rtol=0, atol=1e-5)
    assert_trees_close(eight.sums, one.sums, rtol=1e-5)
    assert one.sums.weights["loss"] > 30  # chosen tokens


def test_a_run_that_is_interrupted_ends_the_same(pretrained, path, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        with pytest.raises(Interrupted, match="saved at step 4"):
            train(config(path), tmp_path)
    resumed = train(config(path), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, pretrained[1].variables)


def test_each_evaluation_has_the_same_masks(pretrained):
    workdir, result = pretrained
    again = flaxdl.evaluate(workdir, "test")
    assert again["loss"] == pytest.approx(result.metrics["loss"], rel=1e-6)


def fine_tuning(weights):
    return small_config(
        model=BertForSequenceClassification(vocab_size=None, num_classes=4, **SIZES),
        data=text_source(),
        transform=Text(max_length=20),
        init=Init(weights=str(weights), omit=("classifier.*", "bert.pooler.*")),
        freeze=("bert.*",),  # so that the loaded weights can be compared at the end
        batch_size=8,
        epochs=1,
    )


def test_the_model_can_be_fine_tuned(pretrained, tmp_path):
    workdir, result = pretrained
    tuned = train(fine_tuning(workdir), tmp_path)
    ours, theirs = state_dict(tuned.variables), state_dict(result.variables)
    shared = [name for name in theirs if name.startswith("bert.")]
    assert {name for name in ours if name not in shared} == {
        *("bert.pooler.dense.weight", "bert.pooler.dense.bias"),
        *("classifier.weight", "classifier.bias"),
    }
    for name in shared:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_an_export_has_the_mask_token_and_the_same_ids(pretrained, tmp_path):
    workdir, _ = pretrained
    folder = tmp_path / "bert"
    flaxdl.export(workdir, folder)
    special = json.loads((folder / "special_tokens_map.json").read_text())
    names = ("cls_token", "sep_token", "mask_token")
    assert [special[name] for name in names] == ["[CLS]", "[SEP]", "[MASK]"]
    texts = ["the cat"]
    expected = flaxdl.restore(workdir).transform.encode(texts)["inputs"]
    assert list(expected[0, [0, 8]]) == [2, 3]  # [CLS] and [SEP]
    found = set_up(fine_tuning(folder)).transform.encode(texts)["inputs"]
    np.testing.assert_array_equal(found, expected)


def test_prediction_is_refused(pretrained):
    with pytest.raises(UserError, match="not available for masked language modeling; fine-tune"):
        predict(pretrained[0], ["the cat"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"transform": Text("characters", max_length=20)},
            "needs the fields label and chosen in each batch, got .*; use the transform MaskedText",
        ),
        (
            {"task": LanguageModeling()},
            "MaskedText needs the task MaskedLanguageModeling, got LanguageModeling",
        ),
        (
            {"model": BertForSequenceClassification(vocab_size=None, num_classes=4, **SIZES)},
            r"the model's outputs must have shape \[B, T, V\], got",
        ),
    ],
)
def test_what_does_not_fit_is_named(path, changes, message):
    with pytest.raises(UserError, match=message):
        set_up(config(path, **changes))


def test_the_config_is_stored(path):
    given = config(path, transform=MaskedText("x", 20, mask_fraction=0.2, whole_words=True))
    record = json.loads(json.dumps(to_json(given)))
    assert record["transform"]["class"] == "flaxdl.data.MaskedText"
    assert record["task"]["class"] == "flaxdl.training.MaskedLanguageModeling"
    assert from_json(record) == given
