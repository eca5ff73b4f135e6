"""Beam search: against greedy decoding, exhaustive search, and a search written plainly."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.parity import cast
from helpers.sampling import sampled

from flaxdl.models import Seq2SeqRNN, Seq2SeqTransformer, translate
from flaxdl.models.beam_search import beam_search
from flaxdl.models.generation import init_cache

START, END, V, S = 1, 2, 4, 3  # a vocabulary of four tokens, outputs of up to three
TRANSFORMER = {"hidden_size": 8, "num_heads": 2, "num_layers": 1, "feed_forward_size": 8}
MODELS = {
    "rnn": Seq2SeqRNN(V, 4, 6, cell="lstm", num_layers=2),
    "transformer": Seq2SeqTransformer(vocab_size=V, max_length=8, **TRANSFORMER),
}
TOKENS = np.random.default_rng(0).integers(0, V, (5, 6)).astype(np.int32)
LENGTHS = np.array([6, 4, 1, 5, 3])
TEXT = {"lengths": LENGTHS, "start_token": START, "end_token": END}

every_model = pytest.mark.parametrize("name", MODELS)


def initial(model):
    """Variables for which some tokens, among them the end token, are more likely than others."""
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS, targets=TOKENS[:, :S])
    fc = variables["params"]["fc"]
    variables["params"]["fc"] = {"kernel": 4 * fc["kernel"], "bias": fc["bias"].at[END].add(1)}
    return variables


def log_probabilities(model, variables, outputs):
    """Log-probability of each token of the outputs int[N, S] for each text, [B, N, S]."""
    count = len(outputs)
    targets = np.concatenate([np.full((count, 1), START), outputs[:, :-1]], axis=1)
    logits = jax.jit(model.apply)(
        variables,
        TOKENS.repeat(count, axis=0),
        targets=np.tile(targets, (len(TOKENS), 1)),
        lengths=LENGTHS.repeat(count),
    )
    found = jax.nn.log_softmax(logits).reshape(len(TOKENS), count, S, V)
    return np.take_along_axis(np.asarray(found), outputs[None, :, :, None], axis=-1)[..., 0]


def best_of_all(log_probabilities, outputs, length_penalty):
    """The best output for each text, by computing the score of every one."""
    ends = outputs == END
    lengths = np.where(ends.any(1), ends.argmax(1) + 1, S)
    is_real = np.arange(S) < lengths[:, None]
    scores = (log_probabilities * is_real).sum(-1) / lengths**length_penalty
    return np.where(is_real, outputs, 0)[scores.argmax(1)]


@pytest.mark.parametrize("name", sampled(MODELS, "rnn".__eq__))
def test_as_many_beams_as_prefixes_are_exhaustive_search(name):
    outputs = np.array(list(itertools.product(range(V), repeat=S)))
    with jax.enable_x64(True):
        model = MODELS[name]
        variables = cast(initial(model), jnp.float64)
        found = log_probabilities(model, variables, outputs)
        results = []
        for length_penalty in (0.0, 1.0):
            expected = best_of_all(found, outputs, length_penalty)
            ours = translate(
                model, variables, TOKENS, **TEXT, max_length=S, beams=V**S,
                length_penalty=length_penalty,
            )  # fmt: skip
            np.testing.assert_array_equal(ours, expected)
            results.append(expected)
    assert (results[1] != 0).sum() > (results[0] != 0).sum()  # the penalty favors longer outputs


def plain_beam_search(next_log_probabilities, beams, num_tokens, length_penalty):
    """Beam search with lists: hypotheses are (score, tokens, log-probability)."""
    hypotheses = [(0.0, [], 0.0)]
    for _ in range(num_tokens):
        candidates = []
        for score, tokens, total in hypotheses:
            if tokens[-1:] == [END]:
                candidates.append((score, tokens, total))
                continue
            for token, more in enumerate(next_log_probabilities(tokens)):
                length = len(tokens) + 1
                extended = total + float(more)
                candidates.append((extended / length**length_penalty, [*tokens, token], extended))
        hypotheses = sorted(candidates, key=lambda one: -one[0])[:beams]
    return hypotheses[0][1]


@pytest.mark.parametrize(("name", "length_penalty"), [("rnn", 1.0), ("transformer", 0.0)])
def test_few_beams_are_those_of_a_search_with_lists(name, length_penalty):
    beams, num_tokens = 3, 6
    with jax.enable_x64(True):
        model = MODELS[name]
        variables = cast(initial(model), jnp.float64)
        apply = jax.jit(model.apply)
        expected = np.zeros((len(TOKENS), num_tokens), int)
        for row, result in enumerate(expected):

            def next_log_probabilities(tokens, row=row):
                targets = np.array([[START, *tokens, *[0] * num_tokens][: num_tokens + 1]])
                logits = apply(
                    variables,
                    TOKENS[row : row + 1],
                    targets=targets,
                    lengths=LENGTHS[row : row + 1],
                )
                return jax.nn.log_softmax(logits[0, len(tokens)])

            best = plain_beam_search(next_log_probabilities, beams, num_tokens, length_penalty)
            result[: len(best)] = best
        ours = translate(
            model, variables, TOKENS, **TEXT, max_length=num_tokens, beams=beams,
            length_penalty=length_penalty,
        )  # fmt: skip
    np.testing.assert_array_equal(ours, expected)


@every_model
def test_a_single_beam_is_greedy_decoding(name):
    model = MODELS[name]
    variables = initial(model)
    memory, mask = model.apply(variables, TOKENS, LENGTHS, method="encode")
    if name == "rnn":
        cache = {"state": memory[1]}
    else:
        cache = {"decoder": init_cache(model, variables, len(TOKENS), 7)}
    decode = partial(model.apply, memory_mask=mask, method="decode", mutable=["cache"])

    def next_logits(token, position, cache):
        return decode({**variables, "cache": cache}, token, memory, position=position)

    found = beam_search(
        next_logits, cache, batch_size=len(TOKENS), beams=1, num_tokens=6, start_token=START,
        end_token=END, length_penalty=1.0,
    )  # fmt: skip
    greedy = translate(model, variables, TOKENS, **TEXT, max_length=6)
    np.testing.assert_array_equal(found, greedy)
    np.testing.assert_array_equal(
        translate(model, variables, TOKENS, **TEXT, max_length=6, beams=1), greedy
    )


@every_model
def test_texts_are_translated_alone_as_in_their_batch_by_a_single_program(name):
    model = MODELS[name]
    variables = initial(model)
    options = {"start_token": START, "end_token": END, "max_length": 6, "beams": 4}
    before = translate._cache_size()
    expected = translate(model, variables, TOKENS, lengths=LENGTHS, **options)
    again = translate(model, variables, TOKENS[::-1], lengths=LENGTHS[::-1], **options)
    assert translate._cache_size() == before + 1
    np.testing.assert_array_equal(again, expected[::-1])
    for row in (1, 2):
        alone = translate(
            model, variables, TOKENS[row : row + 1], lengths=LENGTHS[row : row + 1], **options
        )
        np.testing.assert_array_equal(alone[0], expected[row])


def test_impossible_options_are_refused():
    for options, message in (
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"length_penalty": -0.5}, "length_penalty must be 0 or more and finite, got -0.5"),
        ({"length_penalty": float("nan")}, "length_penalty must be .* got nan"),
        ({"beams": 2, "max_length": 8}, "at most max_length = 8, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            translate(
                MODELS["transformer"],
                initial(MODELS["transformer"]),
                TOKENS,
                **TEXT | {"max_length": 4} | options,
            )
