"""BERT: results, parameter names and configurations of Hugging Face."""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers.learning import assert_every_parameter_learns, assert_no_second_trace, overfit
from helpers.parity import (
    assert_close,
    names_and_shapes,
    reference_variables,
    result_dtypes,
    with_inputs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.models import (
    BERT_BASE,
    BERT_LARGE,
    Bert,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
)
from flaxdl.weights import state_dict

CONFIG = json.loads((reference.FOLDER / "bert_small_config.json").read_text())
MODELS = {
    "bert": (Bert, ("last_hidden_state", "pooler_output")),
    "bert_sequence_classification": (BertForSequenceClassification, ("logits",)),
    "bert_masked_lm": (BertForMaskedLM, ("logits",)),
    "bert_pretraining": (
        BertForPreTraining,
        ("prediction_logits", "seq_relationship_logits"),
    ),
}
TOKENS = reference.tokens("tokens", (2, 11), 97).astype(np.int32)
TOKEN_TYPES = np.array([[0] * 5 + [1] * 6, [0] * 11])
LENGTHS = np.array([11, 7])
INPUTS = {"token_types": TOKEN_TYPES, "mask": np.arange(11) < LENGTHS[:, None]}
TINY = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_heads": 2,
    "num_layers": 1,
    "feed_forward_size": 12,
    "max_length": 11,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (jnp.float64, 1e-7),
        pytest.param(jnp.float32, 1e-5, marks=pytest.mark.quick),
        (jnp.bfloat16, 3e-2),
    ],
)
def test_golden_values(name, dtype, tolerance):
    kind, quantities = MODELS[name]
    with jax.enable_x64(True):
        model = kind.from_hugging_face(CONFIG)
        variables = reference_variables(model, name, dtype, TOKENS)
        results = jax.jit(model.apply)(variables, TOKENS, **INPUTS)
        for ours, quantity in zip(jax.tree.leaves(results), quantities, strict=True):
            assert ours.dtype == dtype
            assert_close(ours, reference.golden(f"{name}/{quantity}"), tolerance)


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8), np.int32))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((name, kind.from_hugging_face(CONFIG)) for name, (kind, _) in MODELS.items()),
        ("bert_base_uncased", BertForPreTraining(**BERT_BASE)),
        ("bert_large_uncased", BertForPreTraining(**BERT_LARGE)),
    ],
)
def test_names_and_shapes(name, model):
    assert names_and_shapes(shapes(model)) == reference.STATE_DICTS[name]


def test_parameter_counts():
    for options, count in (({}, 109_482_240), (BERT_LARGE, 335_141_888)):
        leaves = jax.tree.leaves(shapes(Bert(**options)))
        assert sum(math.prod(leaf.shape) for leaf in leaves) == count


def torch_bert(torch, weights, tokens, token_types, keep, num_layers, num_heads):
    """Both logits of BertForPreTraining, computed in PyTorch from the state dict."""
    functional = torch.nn.functional

    def linear(name, x):
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, x):
        scale, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-12)

    def embed(name, ids):
        return weights[f"bert.embeddings.{name}_embeddings.weight"][ids]

    def attend(prefix, x):
        query, key, value = (
            linear(f"{prefix}.{part}", x).unflatten(-1, (num_heads, -1)).movedim(2, 1)
            for part in ("query", "key", "value")
        )
        mask = keep[:, None, None, :]
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return found.movedim(1, 2).flatten(2)

    x = embed("word", tokens) + embed("token_type", token_types)
    x = norm("bert.embeddings.LayerNorm", x + embed("position", torch.arange(tokens.shape[1])))
    for i in range(num_layers):
        layer = f"bert.encoder.layer.{i}"
        attended = linear(f"{layer}.attention.output.dense", attend(f"{layer}.attention.self", x))
        x = norm(f"{layer}.attention.output.LayerNorm", x + attended)
        changed = functional.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", changed))
    pooled = torch.tanh(linear("bert.pooler.dense", x[:, 0]))
    x = functional.gelu(linear("cls.predictions.transform.dense", x))
    x = norm("cls.predictions.transform.LayerNorm", x)
    return linear("cls.predictions.decoder", x), linear("cls.seq_relationship", pooled)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(0, 1000))
def test_live_parity(num_layers, num_heads, seed):
    """Both logits and all gradients; that of the tied word embeddings is the sum of both uses."""
    torch = pytest.importorskip("torch")
    sizes = {"num_layers": num_layers, "num_heads": num_heads, "hidden_size": 4 * num_heads}
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 13, (2, 11))
    with jax.enable_x64(True):
        model = BertForPreTraining(**TINY | sizes)
        variables = jax.tree.map(
            lambda leaf: jnp.asarray(random.normal(0, 0.5, leaf.shape)), shapes(model)
        )

        def loss(variables):
            results = model.apply(variables, tokens, **INPUTS, train=True)
            return sum(jnp.sin(result).sum() for result in results), results

        gradients, results = jax.jit(jax.grad(loss, has_aux=True))(variables)

    weights = {
        key: torch.tensor(value, requires_grad=True)
        for key, value in state_dict(variables).items()
        if "cls.predictions.decoder" not in key
    }
    tied = weights | {
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"],
    }
    inputs = map(torch.tensor, (tokens, TOKEN_TYPES, INPUTS["mask"]))
    there = torch_bert(torch, tied, *inputs, num_layers, num_heads)
    sum(result.sin().sum() for result in there).backward()
    for ours, theirs in zip(results, there, strict=True):
        assert_close(ours, theirs.detach().numpy(), 1e-9)
    largest = max(weight.grad.abs().max().item() for weight in weights.values())
    for key, gradient in state_dict(gradients).items():
        assert_close(gradient, tied[key].grad.numpy(), 1e-9, largest)


def test_padding_has_no_effect():
    model = BertForSequenceClassification.from_hugging_face(CONFIG)
    variables = reference_variables(model, "bert_sequence_classification", jnp.float32, TOKENS)
    apply = jax.jit(model.apply)
    expected = apply(variables, TOKENS, mask=INPUTS["mask"])
    assert_close(apply(variables, TOKENS, lengths=LENGTHS), expected, 1e-6)
    longer = np.pad(TOKENS, ((0, 0), (0, 4)), constant_values=3)
    assert_close(apply(variables, longer, lengths=LENGTHS), expected, 1e-5)
    assert_close(apply(variables, TOKENS[1:, :7])[0], expected[1], 1e-5)
    nothing = apply(variables, TOKENS, mask=np.zeros((2, 11), bool))
    assert np.isfinite(nothing).all()


def test_models_learn():
    tokens, labels = TOKENS % 12 + 1, np.array([2, 0])
    for model in (
        BertForSequenceClassification(num_classes=3, **TINY),
        BertForMaskedLM(**TINY),
    ):
        is_classifier = isinstance(model, BertForSequenceClassification)
        inputs = {"token_types": TOKEN_TYPES, "lengths": LENGTHS} if is_classifier else {}
        model = with_inputs(model, **inputs)
        if is_classifier:
            assert_every_parameter_learns(model, tokens)
        assert_no_second_trace(model, tokens % 10)
        accuracy = overfit(
            model, tokens, labels if is_classifier else tokens, steps=80, learning_rate=0.02
        )
        assert accuracy == 1


def test_every_parameter_of_pre_training_gets_a_gradient():
    model = BertForPreTraining(**TINY | {"dropout": 0.1, "attention_dropout": 0.1})
    tokens = TOKENS % 13
    variables = jax.jit(model.init)(jax.random.key(0), tokens)

    def loss(variables):
        rngs = {"dropout": jax.random.key(1)}
        tokens_logits, next_logits = model.apply(
            variables, tokens, token_types=TOKEN_TYPES, train=True, rngs=rngs
        )
        return jnp.sum(jnp.sin(tokens_logits)) + jnp.sum(jnp.sin(next_logits))

    gradients = jax.jit(jax.grad(loss))(variables)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_initial_weights():
    model = BertForSequenceClassification(num_classes=3, **TINY | {"vocab_size": 2000})
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    table = params["bert"]["embeddings.word_embeddings"]["embedding"]
    assert abs(np.std(table) - 0.02) < 1e-3
    assert not np.any(table[0])
    assert not np.any(params["classifier"]["bias"])
    kernel = params["bert"]["encoder.layer.0"]["intermediate.dense"]["kernel"]
    assert 0.015 < np.std(kernel) < 0.025


def test_models_stay_in_the_dtype_of_their_parameters():
    with jax.enable_x64(True):
        for dtype in (jnp.float64, jnp.bfloat16):
            assert result_dtypes(BertForPreTraining(**TINY), dtype, TOKENS) == {jnp.dtype(dtype)}


def test_every_option_is_read():
    config = {
        "vocab_size": 100,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.3,
        "max_position_embeddings": 64,
        "type_vocab_size": 3,
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.1,
        "pad_token_id": None,
        "classifier_dropout": 0.4,
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "chunk_size_feed_forward": 7,
        "output_attentions": True,
    }
    assert BertForSequenceClassification.from_hugging_face(config) == BertForSequenceClassification(
        vocab_size=100,
        hidden_size=24,
        num_layers=3,
        num_heads=2,
        feed_forward_size=40,
        activation="gelu_new",
        dropout=0.2,
        attention_dropout=0.3,
        max_length=64,
        type_vocab_size=3,
        layer_norm_epsilon=1e-6,
        initializer_range=0.1,
        padding_index=None,
        classifier_dropout=0.4,
        num_classes=3,
    )
    assert Bert.from_hugging_face({}) == Bert()
    assert BertForSequenceClassification.from_hugging_face({}).num_classes == 2


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (Bert, "position_embedding_type", "relative_key"),
        (Bert, "hidden_act", "mish"),
        (Bert, "is_decoder", True),
        (Bert, "add_cross_attention", True),
        (Bert, "model_type", "roberta"),
        (Bert, "pruned_heads", {"0": [1]}),
        (BertForMaskedLM, "tie_word_embeddings", False),
        (BertForPreTraining, "tie_word_embeddings", False),
        (BertForSequenceClassification, "problem_type", "ranking"),
    ],
)
def test_unsupported_options_are_refused_by_name(kind, option, value):
    with pytest.raises(ValueError, match=f"not supported: {option} must be "):
        kind.from_hugging_face({**CONFIG, option: value})


def test_all_refusals_come_at_once():
    with pytest.raises(ValueError, match=r"hidden_act must be .*, got 'mish'; is_decoder must be"):
        Bert.from_hugging_face({"hidden_act": "mish", "is_decoder": True})


@pytest.mark.parametrize(
    ("tokens", "inputs", "message"),
    [
        (TOKENS[0], {}, r"tokens must have shape \[B, T\], got \[11\]"),
        (TOKENS * 1.0, {}, "tokens must be integers, got float"),
        (TOKENS.repeat(2, 1), {}, "at most max_length = 11 tokens, got 22"),
        (TOKENS, {"token_types": TOKEN_TYPES[:1]}, r"token_types .*B=2, T=11\], got \[1, 11\]"),
        (TOKENS, {"mask": np.ones((2, 4))}, r"mask .*T=11\], got \[2, 4\]"),
    ],
)
def test_wrong_arguments_are_named(tokens, inputs, message):
    with pytest.raises(ValueError, match=message):
        Bert(**TINY).init(jax.random.key(0), tokens, **inputs)


@pytest.mark.parametrize("kind", [kind for kind, _ in MODELS.values()])
def test_an_unknown_keyword_is_refused(kind):
    model = kind.from_hugging_face(CONFIG)
    keywords = "token_types, mask, lengths, train"
    message = f"^{kind.__name__} takes the keyword arguments {keywords}, got 'token_type_ids'; did"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(model.init, jax.random.key(0)), TOKENS, token_type_ids=TOKENS)


def test_heads_must_divide_the_features():
    with pytest.raises(ValueError, match="num_heads must divide the 8 features, got 3"):
        Bert(**TINY | {"num_heads": 3}).init(jax.random.key(0), TOKENS)
