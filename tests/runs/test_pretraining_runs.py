"""Runs with BERT's pretraining objective: masked tokens and next sentences together."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.parity import assert_close
from helpers.small_runs import interrupt_at, small_config, train

import flaxdl
from flaxdl import Init, UserError
from flaxdl.data import Arrays, Documents, MaskedText, NextSentencePairs, Text
from flaxdl.models import BertForMaskedLM, BertForPreTraining, BertForSequenceClassification
from flaxdl.report.write import write_report
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.runs.prediction import predict
from flaxdl.runs.setup import set_up
from flaxdl.training import BertPreTraining, Interrupted, MaskedLanguageModeling, Selection
from flaxdl.training.metrics import MetricSums
from flaxdl.weights import state_dict

SIZES = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_size": 32,
    "max_length": 23,
}
MODEL = BertForPreTraining(vocab_size=None, **SIZES)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat, and a dog ran. " * 40)
    return str(path)


def config(path, **changes):
    settings = {
        "model": MODEL,
        "data": NextSentencePairs(path, segment_length=10),
        "transform": MaskedText("characters", max_length=23),
        "task": BertPreTraining(),
        "batch_size": 16,
        "epochs": 2,
        "selection": Selection(metric="next_sentence_accuracy"),
    }
    return small_config(**(settings | changes))


@pytest.fixture(scope="module")
def pretrained(path, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    return workdir, train(config(path), workdir)


def masked_batch(path):
    """16 masked pairs, of which one has weight 0."""
    data = NextSentencePairs(path, segment_length=10).load(0).train
    fitted = MaskedText("characters", max_length=23).fit(data)
    batch = fitted.prepare(fitted.apply(data).gather(np.arange(16)), {})
    weight = np.ones(16, np.float32)
    weight[3] = 0
    return fitted, {**batch, "weight": weight}


def test_loss_and_gradients_are_those_of_transformers(path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fitted, batch = masked_batch(path)
    assert set(batch["next_sentence_label"]) == {0, 1}
    with jax.enable_x64(True):
        model = MODEL.clone(vocab_size=fitted.vocab_size, dropout=0.0, attention_dropout=0.0)
        task = BertPreTraining()
        inputs, keywords = task.model_arguments(batch)
        assert set(keywords) == {"lengths", "token_types"}
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
        variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape)), shapes)

        def loss(variables):
            return task.loss(model.apply(variables, inputs, train=True, **keywords), batch)

        value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    settings = transformers.BertConfig(
        **model.to_hugging_face() | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0}
    )
    theirs = transformers.BertForPreTraining(settings).double()
    weights = {name: torch.tensor(array) for name, array in state_dict(variables).items()}
    theirs.load_state_dict(weights, strict=True)
    counts = batch["weight"] == 1
    expected = theirs(
        torch.tensor(inputs).long(),
        attention_mask=torch.tensor(np.arange(23) < batch["lengths"][:, None]).long(),
        token_type_ids=torch.tensor(batch["token_types"]).long(),
        labels=torch.tensor(
            np.where(batch["chosen"] & counts[:, None], batch["label"], -100)
        ).long(),
        next_sentence_label=torch.tensor(
            np.where(counts, batch["next_sentence_label"], -100)
        ).long(),
    ).loss
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-9)
    names = dict(theirs.named_parameters())
    largest = max(parameter.grad.abs().max().item() for parameter in names.values())
    ours = {name: x for name, x in state_dict(gradients).items() if name in names}
    assert len(ours) == len(names)
    for name, gradient in ours.items():
        rows = slice(1, None) if "word_embeddings" in name else slice(None)  # without padding
        assert_close(gradient[rows], names[name].grad.numpy()[rows], 1e-9, largest)


def hand_made_batch():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 2))
    batch = {
        "inputs": np.zeros((3, 2), np.int32),
        "label": np.array([[4, 2], [1, 3], [0, 0]], np.int32),
        "chosen": np.array([[True, True], [False, True], [True, True]]),
        "next_sentence_label": np.array([0, 1, 1], np.int32),
        "weight": np.array([1, 1, 0], np.float32),
    }
    return outputs, batch


def nll(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label]


def test_the_minimized_loss_and_the_metrics():
    (logits, pairs), batch = hand_made_batch()
    tokens = [nll(logits[0, 0], 4), nll(logits[0, 1], 2), nll(logits[1, 1], 3)]
    first, second = nll(pairs[0], 0), nll(pairs[1], 1)
    task = BertPreTraining()
    expected = np.mean(tokens) + np.mean([first, second])
    np.testing.assert_allclose(task.loss((logits, pairs), batch), expected, rtol=1e-5)

    metrics = task.metrics((logits, pairs), batch)
    assert set(metrics) <= set(task.better)
    means = {name: np.sum(v * w) / np.sum(w) for name, (v, w) in metrics.items()}
    # Two of the three chosen tokens are in the first pair.
    assert means["loss"] == pytest.approx(np.mean(tokens) + (2 * first + second) / 3, rel=1e-5)
    found = logits[[0, 0, 1], [0, 1, 1]].argmax(-1) == [4, 2, 3]
    assert means["accuracy"] == pytest.approx(found.mean())
    found = pairs[:2].argmax(-1) == [0, 1]
    assert means["next_sentence_accuracy"] == pytest.approx(found.mean())


def test_gradients_are_finite_without_any_example():
    outputs, batch = hand_made_batch()
    batch["weight"] = np.zeros(3, np.float32)

    def total(outputs):
        losses, weights = BertPreTraining().losses(outputs, batch)
        return jnp.sum(jnp.where(weights == 0, 0, losses * weights))

    for gradient in jax.grad(total)(jax.tree.map(jnp.float32, outputs)):
        np.testing.assert_array_equal(gradient, 0)


def test_an_interrupted_run_ends_the_same(pretrained, path, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        with pytest.raises(Interrupted, match="saved at step 4"):
            train(config(path), tmp_path)
    resumed = train(config(path), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, pretrained[1].variables)


def test_each_evaluation_is_the_same(pretrained):
    workdir, result = pretrained
    again = flaxdl.evaluate(workdir, "test")
    for name in ("loss", "accuracy", "next_sentence_accuracy"):
        assert again[name] == pytest.approx(result.metrics[name], rel=1e-6)


def test_metrics_do_not_depend_on_the_batch_size():
    outputs, batch = hand_made_batch()
    task = BertPreTraining()
    whole = MetricSums.of(task.metrics(outputs, batch))
    parts = [
        MetricSums.of(task.metrics(*jax.tree.map(lambda x, row=row: x[[row]], (outputs, batch))))
        for row in range(3)
    ]
    assert (parts[0] + parts[1] + parts[2]).means() == pytest.approx(whole.means(), rel=1e-5)


def test_the_encoder_and_its_pooler_can_be_fine_tuned(pretrained, tmp_path):
    workdir, result = pretrained
    tuned = train(
        small_config(
            model=BertForSequenceClassification(vocab_size=None, num_classes=2, **SIZES),
            data=Arrays.from_memory(
                train_inputs=["the cat", "a dog"] * 20, train_label=np.arange(40) % 2
            ),
            transform=Text(max_length=23),
            init=Init(weights=str(workdir), omit=("classifier.*",)),
            freeze=("bert.*",),  # so that the loaded weights can be compared at the end
            batch_size=8,
            epochs=1,
        ),
        tmp_path,
    )
    ours, theirs = state_dict(tuned.variables), state_dict(result.variables)
    shared = [name for name in theirs if name.startswith("bert.")]
    assert "bert.pooler.dense.weight" in shared
    for name in shared:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_an_export_is_a_pretraining_model(pretrained, tmp_path):
    folder = tmp_path / "bert"
    flaxdl.export(pretrained[0], folder)
    description = json.loads((folder / "config.json").read_text())
    assert description["architectures"] == ["BertForPreTraining"]
    model, variables = flaxdl.load_pretrained(str(folder))
    assert isinstance(model, BertForPreTraining)
    jax.tree.map(np.testing.assert_array_equal, variables, pretrained[1].variables)


def test_prediction_is_refused(pretrained):
    with pytest.raises(UserError, match="not available for masked language modeling; fine-tune"):
        predict(pretrained[0], ["the cat\ta dog"])


def test_the_report_has_both_accuracies(pretrained):
    html = write_report([pretrained[0]]).read_text()
    assert "next-sentence accuracy" in html.lower().replace("next sentence", "next-sentence")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": Documents},
            "needs the field next_sentence_label in each batch, got .*; use the source NextSent",
        ),
        (
            {"transform": Text("characters", max_length=23)},
            "needs the fields label and chosen in each batch, got .*; use the transform MaskedText",
        ),
        (
            {"model": BertForMaskedLM(vocab_size=None, **SIZES)},
            "a model with the two outputs of BertForPreTraining, got",
        ),
        (
            {"task": MaskedLanguageModeling(), "data": Documents},
            "needs a model with one output, got 2; use BertForMaskedLM, or the task BertPreTr",
        ),
    ],
)
def test_what_does_not_fit_is_named(path, changes, message):
    if changes.get("data") is Documents:
        changes = {**changes, "data": Documents(path, window=18)}
    with pytest.raises(UserError, match=message):
        set_up(config(path, **changes))


def test_the_config_is_stored(path):
    record = json.loads(json.dumps(to_json(config(path))))
    assert record["data"]["class"] == "flaxdl.data.NextSentencePairs"
    assert record["task"]["class"] == "flaxdl.training.BertPreTraining"
    assert from_json(record) == config(path)
