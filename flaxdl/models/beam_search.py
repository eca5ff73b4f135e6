"""Beam search: approximate search for the most likely output of an encoder-decoder model.

The K best hypotheses are extended by one token at a time. Those that have ended remain among the
K and compete with the extensions of the others, until all have ended or have the maximum length.
Hypotheses y are ranked by log P(y) / L^α, where L is their number of tokens, including the end
token, and α is the length penalty: 0 ranks by probability, which favors short outputs, 1 by the
mean log-probability of a token.

Graves, "Sequence Transduction with Recurrent Neural Networks", 2012; Wu et al., "Google's Neural
Machine Translation System", 2016, section 7, with another formula for the length penalty.

Legend: B batch, K beams, S tokens of an output, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Hypotheses(NamedTuple):
    """The K best outputs so far for each text, best first."""

    tokens: jax.Array
    """int32[B, K, S], with zeros after the end token and at later positions."""
    log_probability: jax.Array
    """[B, K], in float32 or higher precision."""
    lengths: jax.Array
    """int32[B, K], number of tokens, including the end token."""
    has_ended: jax.Array
    """bool[B, K]."""


def beam_search(
    next_logits: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    cache: Any,
    *,
    batch_size: int,
    beams: int,
    num_tokens: int,
    start_token: int,
    end_token: int,
    length_penalty: float,
) -> jax.Array:
    """Returns the best outputs found, int32[B, S], in a single scan over the tokens.

    Args:
        next_logits: callable that maps tokens int32[B K, 1], their position and the cache to the
            logits [B K, 1, V] of the next tokens and `{"cache": updated cache}`.
        cache: initial cache; the first axis of its arrays is B K.
        batch_size: number of texts B.
        beams: number of hypotheses per text K.
        num_tokens: maximum number of tokens of an output S.
        start_token: token that precedes an output.
        end_token: token that ends an output; zeros follow it.
        length_penalty: exponent α of the length.
    """
    wide = jnp.promote_types(jnp.result_type(*jax.tree.leaves(cache)), jnp.float32)
    shape = (batch_size, beams)
    start = Hypotheses(
        tokens=jnp.zeros((*shape, num_tokens), jnp.int32),
        # All hypotheses are still the same: only the first one is extended.
        log_probability=jnp.full(shape, -jnp.inf, wide).at[:, 0].set(0),
        lengths=jnp.zeros(shape, jnp.int32),
        has_ended=jnp.zeros(shape, bool),
    )

    def step(carry: tuple[jax.Array, Hypotheses, Any], position: jax.Array) -> tuple[Any, None]:
        last, hypotheses, cache = carry
        logits, updated = next_logits(last.reshape(-1, 1), position, cache)
        log_probabilities = jax.nn.log_softmax(logits.astype(wide)).reshape(*shape, -1)
        parents, last, hypotheses = extend(hypotheses, log_probabilities, length_penalty)
        hypotheses = hypotheses._replace(
            tokens=hypotheses.tokens.at[:, :, position].set(last),
            has_ended=hypotheses.has_ended | (last == end_token),
        )
        rows = (jnp.arange(batch_size)[:, None] * beams + parents).reshape(-1)
        cache = jax.tree.map(lambda x: x[rows], updated["cache"])
        return (last, hypotheses, cache), None

    carry = (jnp.full(shape, start_token, jnp.int32), start, cache)
    (_, hypotheses, _), _ = jax.lax.scan(step, carry, jnp.arange(num_tokens))
    return hypotheses.tokens[:, 0]


def extend(
    hypotheses: Hypotheses, log_probabilities: jax.Array, length_penalty: float
) -> tuple[jax.Array, jax.Array, Hypotheses]:
    """Extends hypotheses by one token and keeps the K best extensions.

    Args:
        hypotheses: hypotheses to extend.
        log_probabilities: log-probabilities of their next tokens, [B, K, V].
        length_penalty: exponent α of the length.

    Returns:
        The index of the hypothesis that each new one extends and the token added to it, int32[B, K]
        each, and the new hypotheses, without this token.
    """
    vocab_size = log_probabilities.shape[-1]
    # The only extension of a hypothesis that has ended is itself: token 0 with probability 1.
    itself = jnp.where(jnp.arange(vocab_size) == 0, 0.0, -jnp.inf)
    added = jnp.where(hypotheses.has_ended[:, :, None], itself, log_probabilities)
    totals = hypotheses.log_probability[:, :, None] + added  # [B, K, V]
    lengths = hypotheses.lengths + ~hypotheses.has_ended
    scores = totals / lengths[:, :, None].astype(totals.dtype) ** length_penalty

    batch_size, beams = lengths.shape
    best = jax.lax.top_k(scores.reshape(batch_size, -1), beams)[1]
    parents, tokens = jnp.divmod(best, vocab_size)
    rows = jnp.arange(batch_size)[:, None]
    return (
        parents,
        tokens,
        Hypotheses(
            tokens=hypotheses.tokens[rows, parents],
            log_probability=totals[rows, parents, tokens],
            lengths=lengths[rows, parents],
            has_ended=hypotheses.has_ended[rows, parents],
        ),
    )
