"""Transformers: PyTorch's results, padding and causal masks, generation with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.learning import assert_every_parameter_learns, assert_no_second_trace, overfit
from helpers.parity import (
    assert_close,
    assert_gradients_match,
    cast,
    result_dtypes,
    torch_variables,
    with_inputs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.layers import AddPositions, sinusoidal_positions
from flaxdl.models import (
    Seq2SeqTransformer,
    TransformerClassifier,
    TransformerLM,
    generate,
    translate,
)
from flaxdl.models.generation import init_cache, sample

SMALL = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_heads": 2,
    "num_layers": 2,
    "feed_forward_size": 12,
    "max_length": 16,
}
CLASSIFIER = TransformerClassifier(num_classes=3, **SMALL)
LM = TransformerLM(positions="learned", norm_first=True, **SMALL)
SEQ2SEQ = Seq2SeqTransformer(target_vocab_size=7, **SMALL)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)
TARGETS = np.random.default_rng(1).integers(0, 7, (3, 5)).astype(np.int32)
LENGTHS, TARGET_LENGTHS = np.array([6, 4, 1]), np.array([2, 5, 3])
MODELS = {
    "classifier": (CLASSIFIER, {"lengths": LENGTHS}),
    "lm": (LM, {}),
    "seq2seq": (
        SEQ2SEQ,
        {"targets": TARGETS, "lengths": LENGTHS, "target_lengths": TARGET_LENGTHS},
    ),
}


def initial(model, *args, **kwargs):
    return jax.jit(model.init)(jax.random.key(0), *args, **kwargs)


def torch_stack(torch, kind, vocab_size, positions, norm_first, activation):
    """PyTorch's encoder or decoder, preceded by embeddings and positional encodings."""
    layer = getattr(torch.nn, f"Transformer{kind}Layer")(
        8, 2, 12, 0.0, activation, norm_first=norm_first, batch_first=True
    )
    options = {"enable_nested_tensor": False} if kind == "Encoder" else {}
    norm = torch.nn.LayerNorm(8)
    stack = getattr(torch.nn, f"Transformer{kind}")(layer, 2, norm, **options)
    stack.embedding = torch.nn.Embedding(vocab_size, 8)
    waves = torch.tensor(sinusoidal_positions(16, 8))
    if positions == "learned":
        stack.position_embedding = torch.nn.Embedding(16, 8)

    def embed(tokens):
        table = stack.position_embedding.weight if positions == "learned" else waves
        return stack.embedding(tokens) + table[: tokens.shape[1]]

    stack.embed = embed
    return stack.double()


def randomize(torch, module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def compare_with_torch(ours, theirs, there, *inputs, **options):
    """Compares logits and all gradients in float64; `there` computes the logits of `theirs`."""
    there.sin().sum().backward()
    with jax.enable_x64(True):
        variables = torch_variables(ours, theirs, *inputs, **options)

        def loss(variables):
            logits = ours.apply(variables, *inputs, **options, train=True)
            return jnp.sin(logits).sum(), logits

        gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(variables)
    assert_close(logits, there.detach().numpy(), 1e-9)
    assert_gradients_match(gradients, theirs)


OPTIONS = st.fixed_dictionaries(
    {
        "positions": st.sampled_from(["sinusoidal", "learned"]),
        "norm_first": st.booleans(),
        "activation": st.sampled_from(["relu", "gelu"]),
    }
)


@settings(max_examples=3, deadline=None, derandomize=True)
@given(OPTIONS, st.booleans())
def test_live_parity_of_classifier_and_language_model(options, is_causal):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Module()
    theirs.encoder = torch_stack(torch, "Encoder", 11, **options)
    theirs.fc = torch.nn.Linear(8, 11 if is_causal else 3).double()
    randomize(torch, theirs)
    x = theirs.encoder.embed(torch.tensor(TOKENS))
    if is_causal:
        future = torch.ones(6, 6, dtype=torch.bool).triu(1)
        there = theirs.fc(theirs.encoder(x, mask=future))
        ours = TransformerLM(**SMALL | options | {"dropout": 0.0})
        compare_with_torch(ours, theirs, there, TOKENS)
    else:
        is_padding = torch.tensor(np.arange(6) >= LENGTHS[:, None])
        x = theirs.encoder(x, src_key_padding_mask=is_padding)
        sums = x.masked_fill(is_padding[:, :, None], 0).sum(1)
        there = theirs.fc(sums / torch.tensor(LENGTHS)[:, None])
        ours = TransformerClassifier(num_classes=3, **SMALL | options | {"dropout": 0.0})
        compare_with_torch(ours, theirs, there, TOKENS, lengths=LENGTHS)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(OPTIONS)
def test_live_parity_of_encoder_and_decoder(options):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Module()
    theirs.encoder = torch_stack(torch, "Encoder", 11, **options)
    theirs.decoder = torch_stack(torch, "Decoder", 7, **options)
    theirs.fc = torch.nn.Linear(8, 7).double()
    randomize(torch, theirs)
    is_padding = torch.tensor(np.arange(6) >= LENGTHS[:, None])
    x = theirs.encoder.embed(torch.tensor(TOKENS))
    memory = theirs.encoder(x, src_key_padding_mask=is_padding)
    there = theirs.fc(
        theirs.decoder(
            theirs.decoder.embed(torch.tensor(TARGETS)),
            memory,
            tgt_mask=torch.ones(5, 5, dtype=torch.bool).triu(1),
            memory_key_padding_mask=is_padding,
        )
    )
    ours = SEQ2SEQ.clone(**options, dropout=0.0)
    compare_with_torch(ours, theirs, there, TOKENS, targets=TARGETS, lengths=LENGTHS)


def test_padding_has_no_effect():
    apply = jax.jit(CLASSIFIER.apply)
    variables = initial(CLASSIFIER, TOKENS)
    expected = apply(variables, TOKENS, lengths=LENGTHS)
    longer = jnp.pad(TOKENS, ((0, 0), (0, 3)), constant_values=5)
    assert_close(apply(variables, longer, lengths=LENGTHS), expected, 1e-5)
    as_mask = jnp.arange(6) < LENGTHS[:, None]
    assert_close(apply(variables, TOKENS, mask=as_mask), expected, 1e-6)
    assert_close(apply(variables, TOKENS[1:2, :4])[0], expected[1], 1e-5)

    apply = jax.jit(SEQ2SEQ.apply)
    variables = initial(SEQ2SEQ, TOKENS, targets=TARGETS)
    expected = apply(variables, TOKENS, targets=TARGETS, lengths=LENGTHS)
    assert_close(apply(variables, longer, targets=TARGETS, lengths=LENGTHS), expected, 1e-5)
    _, options = MODELS["seq2seq"]
    ours = apply(variables, TOKENS, **options)
    for row, length in enumerate(TARGET_LENGTHS):
        assert_close(ours[row, :length], expected[row, :length], 1e-5)


def test_no_token_sees_what_comes_after_it():
    for model, name, size, options in (
        (LM, "tokens", 11, {}),
        (SEQ2SEQ, "targets", 7, {"inputs": TOKENS}),
    ):
        tokens = TARGETS
        variables = initial(model, **options, **{name: tokens})
        changed = tokens.copy()
        changed[:, 3:] = (changed[:, 3:] + 1) % size
        apply = jax.jit(model.apply)
        before, after = (apply(variables, **options, **{name: x}) for x in (tokens, changed))
        np.testing.assert_array_equal(before[:, :3], after[:, :3])
        assert not np.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_generation_from_the_cache_equals_reading_all_again(positions):
    model = LM.clone(positions=positions)
    variables = initial(model, TOKENS)
    lengths = np.array([4, 2, 1])
    ours = generate(model, variables, TOKENS[:, :4], num_tokens=5, lengths=lengths)
    apply = jax.jit(model.apply)
    for row, length in enumerate(lengths):
        expected = np.zeros((1, 9), np.int32)
        expected[0, :length] = TOKENS[row, :length]
        for position in range(length, 9):
            expected[0, position] = apply(variables, expected)[0, position - 1].argmax()
        np.testing.assert_array_equal(ours[row], expected[0])


@pytest.mark.parametrize(("length", "beyond"), [(16, (15, 16, -1)), (8, (7, 8))])
def test_a_position_that_there_is_not_is_noticed(length, beyond):
    """Two tokens are read at the end of 16 positions, or of a cache of 8."""
    model = LM.clone(num_layers=1)
    variables = initial(model, TOKENS[:, :2])
    variables |= {"cache": {"encoder": init_cache(model, variables, len(TOKENS), length)}}

    def read(position):
        tokens = TOKENS[:, :2]
        return model.apply(variables, tokens, position=position, mutable=["cache"])[0]

    compiled = jax.jit(read)
    assert np.isfinite(compiled(length - 2)).all()
    for position in beyond:
        assert np.isnan(compiled(position)).all()


def test_a_known_position_that_there_is_not_is_an_error():
    for position in (-1, 15, jnp.int32(15)):
        with pytest.raises(ValueError, match=f"position must be from 0 to 14, got {position}"):
            AddPositions("sinusoidal", 16).apply({}, np.zeros((1, 2, 8), np.float32), position)


def test_translation_from_the_cache_equals_reading_all_again():
    variables = initial(SEQ2SEQ, TOKENS, targets=TARGETS)
    apply = jax.jit(SEQ2SEQ.apply)
    expected = np.full((3, 7), 1)
    for position in range(6):
        logits = apply(variables, TOKENS, targets=expected, lengths=LENGTHS)
        expected[:, position + 1] = logits[:, position].argmax(-1)
    expected = expected[:, 1:]
    end_token = int(expected[0, 2])
    for row in expected:
        ends = np.flatnonzero(row == end_token)
        row[ends[0] + 1 if ends.size else len(row) :] = 0
    options = {"start_token": 1, "end_token": end_token, "max_length": 6, "lengths": LENGTHS}
    np.testing.assert_array_equal(translate(SEQ2SEQ, variables, TOKENS, **options), expected)


def test_generation_draws_from_the_options():
    variables = initial(LM, TOKENS)
    greedy = generate(LM, variables, TOKENS, num_tokens=6)
    key = jax.random.key(0)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        options = {"temperature": 1.0, "key": key, **options}
        ours = generate(LM, variables, TOKENS, num_tokens=6, **options)
        np.testing.assert_array_equal(ours, greedy)
    drawn = generate(LM, variables, TOKENS, num_tokens=6, temperature=5.0, key=key)
    assert not np.array_equal(drawn, greedy)
    end_token = int(greedy[0, 6])
    ended = generate(LM, variables, TOKENS, num_tokens=6, end_token=end_token)
    np.testing.assert_array_equal(ended[0, 7:], np.zeros(5))


def test_samples_follow_the_probabilities():
    """Probabilities 1/2, 1/4, 1/8, 1/8: the top two are sampled 2 to 1; top_p 0.6 keeps both."""
    logits = jnp.log(jnp.tile(jnp.array([[0.125, 0.5, 0.125, 0.25]]), (4000, 1)))
    key = jax.random.key(0)
    for options, expected in (
        ({}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
        ({"temperature": 0.5}, [1 / 22, 16 / 22, 1 / 22, 4 / 22]),
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.6}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.5}, [0, 1, 0, 0]),
        ({"top_k": 9, "top_p": 1.0}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
    ):
        counts = np.bincount(sample(key, logits, **options), minlength=4)
        np.testing.assert_allclose(counts / 4000, expected, atol=0.025)
        np.testing.assert_array_equal(counts[np.array(expected) == 0], 0)


@pytest.mark.parametrize("name", MODELS)
def test_models_learn(name):
    model, options = MODELS[name]
    model = with_inputs(model.clone(num_layers=1, dropout=0.0), **options)
    # One text for the others, lest a token be followed by one thing here and another there.
    inputs, labels = {
        "classifier": (TOKENS, np.arange(3)),
        "lm": (TOKENS[:1], np.roll(TOKENS[:1], -1, axis=1)),
        "seq2seq": (TOKENS, TARGETS[:1].repeat(3, axis=0)),
    }[name]
    assert_every_parameter_learns(model, inputs)
    assert_no_second_trace(model, inputs % 10)
    assert overfit(model, inputs, labels, steps=80, learning_rate=0.02) == 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_models_stay_in_the_dtype_of_their_parameters(name, dtype):
    model, options = MODELS[name]
    with jax.enable_x64(True):
        assert result_dtypes(model, dtype, TOKENS, **options) == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_close_to_float32(name):
    model, options = MODELS[name]
    variables = initial(model, TOKENS, **options)
    apply = jax.jit(model.apply)
    expected = apply(variables, TOKENS, **options)
    assert_close(apply(cast(variables, jnp.bfloat16), TOKENS, **options), expected, 3e-2)


def test_a_text_without_tokens_is_finite():
    variables = initial(CLASSIFIER, TOKENS)
    logits = CLASSIFIER.apply(variables, TOKENS, lengths=np.zeros(3, int))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("model", "tokens", "options", "message"),
    [
        (CLASSIFIER, TOKENS[0], {}, r"tokens must have shape \[B, T\], got \[6\]"),
        (CLASSIFIER, TOKENS * 1.0, {}, "tokens must be integers, got float"),
        (CLASSIFIER, TOKENS.repeat(3, 1), {}, "at most max_length = 16 steps, got 18"),
        (CLASSIFIER, TOKENS, {"lengths": LENGTHS[:2]}, r"lengths .*B=3\], got \[2\]"),
        (CLASSIFIER, TOKENS, {"mask": TOKENS[:, :2]}, r"mask .*T=6\], got \[3, 2\]"),
        (
            CLASSIFIER,
            TOKENS,
            {"mask": TOKENS, "lengths": LENGTHS},
            "only one of lengths and mask can be given",
        ),
        (CLASSIFIER.clone(num_heads=3), TOKENS, {}, "num_heads must divide the 8 features, got 3"),
        (CLASSIFIER.clone(pooling="max"), TOKENS, {}, "pooling must be .* got 'max'"),
        (LM.clone(positions="none"), TOKENS, {}, "positions must be .* got 'none'"),
        (LM.clone(activation="selu"), TOKENS, {}, "activation must be .* got 'selu'"),
        (SEQ2SEQ, TOKENS, {"targets": TARGETS[:2]}, r"targets .*B=3, S\], got \[2, 5\]"),
    ],
)
def test_wrong_arguments_are_named(model, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), tokens, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 11}, "at most max_length = 16, got 17"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1"),
        ({"temperature": 1.0}, "key is required"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ],
)
def test_wrong_options_of_generation_are_named(options, message):
    variables = jax.eval_shape(LM.init, jax.random.key(0), TOKENS)
    with pytest.raises(ValueError, match=message):
        generate(LM, variables, TOKENS, **{"num_tokens": 2, **options})
