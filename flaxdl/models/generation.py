"""Autoregressive generation with a key-value cache or a recurrent state.

Generation is a single `lax.scan` that processes one token per step, so that only the cost of
attention grows with the length of the text. Prompts are read in the same scan, so the prompts in a
batch may have different lengths.

Legend: B batch, P prompt tokens, T all tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.checks import check_integers, check_shape
from flaxdl.errors import UserError
from flaxdl.models.beam_search import beam_search
from flaxdl.models.rnn_lm import RNNLM
from flaxdl.models.rnn_seq2seq import Seq2SeqRNN
from flaxdl.models.transformer import Seq2SeqTransformer, TransformerLM
from flaxdl.models.transformer_stack import TransformerOptions

PADDING = 0  # token that fills rows after their end token

EncoderDecoder = Seq2SeqRNN | Seq2SeqTransformer
"""Models that `translate` accepts."""


@partial(
    jax.jit,
    static_argnames=("model", "num_tokens", "temperature", "top_k", "top_p", "end_token"),
)
def generate(
    model: TransformerLM | RNNLM,
    variables: Mapping[str, Any],
    prompt: jax.Array,
    *,
    num_tokens: int,
    lengths: jax.Array | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end_token: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Generates at least `num_tokens` tokens after each prompt, by greedy decoding or sampling.

    >>> model = flaxdl.models.TransformerLM(vocab_size=10, hidden_size=8, num_heads=2, num_layers=1)
    >>> prompt = jnp.array([[5, 3]])  # [B, P]
    >>> variables = model.init(jax.random.key(0), prompt)
    >>> flaxdl.models.generate(model, variables, prompt, num_tokens=4).shape
    (1, 6)

    Args:
        model: the language model.
        variables: variables of the model, in the dtype to use for computations.
        prompt: int32[B, P], prompt tokens, at least one per prompt.
        num_tokens: number of tokens to generate after a prompt of P tokens; after shorter prompts,
            more tokens are generated.
        lengths: int32[B], number of tokens in each prompt; by default, P.
        temperature: sampling temperature, at least 0. With 0, the most likely token is selected
            (greedy decoding); with 1, tokens are sampled from the model's distribution. Lower
            values sharpen the distribution, higher values flatten it.
        top_k: number of most likely tokens to sample from; by default, all tokens.
        top_p: probability in (0, 1] for nucleus sampling from the smallest set of most likely
            tokens whose probabilities add up to `top_p` (Holtzman et al., "The Curious Case of
            Neural Text Degeneration", 2019), applied after `top_k`; by default, all tokens.
        end_token: token that ends a text, if any; zeros follow it.
        key: PRNG key for sampling, required if the temperature is above 0.

    Returns:
        int32[B, P + num_tokens], the prompts followed by the generated tokens.

    Raises:
        UserError: if shapes do not match, the model has too few positions, or an option is out of
            range.
    """
    check_shape("prompt", prompt, "B P")
    check_integers("prompt", prompt)
    batch_size, prompt_size = prompt.shape
    if lengths is None:
        lengths = jnp.full(batch_size, prompt_size)
    check_shape("lengths", lengths, "B", B=batch_size)
    check_sampling(temperature, top_k, top_p, key)

    def next_logits(token: jax.Array, position: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        if isinstance(model, RNNLM):
            logits, state = model.apply(variables, token, cache, method="read")
            return logits, {"cache": state}
        return model.apply(
            {**variables, "cache": cache}, token, position=position, mutable=["cache"]
        )  # type: ignore[return-value]

    def choose_token(logits: jax.Array, position: jax.Array) -> jax.Array:
        if temperature == 0 or key is None:
            return logits.argmax(-1)
        return sample(
            jax.random.fold_in(key, position),
            logits,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )

    prompts = jnp.pad(prompt, ((0, 0), (0, num_tokens)))
    if isinstance(model, RNNLM):
        cache = model.initial_state(batch_size, _dtype(variables))
    else:
        cache = {"encoder": init_cache(model, variables, *prompts.shape)}
    return decode(next_logits, choose_token, cache, prompts, lengths, end_token)


@partial(
    jax.jit,
    static_argnames=(
        *("model", "start_token", "end_token", "max_length"),
        *("beams", "length_penalty"),
    ),
)
def translate(
    model: EncoderDecoder,
    variables: Mapping[str, Any],
    inputs: jax.Array,
    *,
    start_token: int,
    end_token: int,
    max_length: int,
    lengths: jax.Array | None = None,
    beams: int = 1,
    length_penalty: float = 0.0,
) -> jax.Array:
    """Translates texts by greedy decoding or beam search.

    Args:
        model: the encoder-decoder model.
        variables: variables of the model, in the dtype to use for computations.
        inputs: int32[B, T], tokens of the texts to translate.
        start_token: first token of the decoder's input.
        end_token: token that ends a translation.
        max_length: number of tokens to generate per text.
        lengths: int32[B], number of non-padding tokens in each text; by default, T.
        beams: number of hypotheses of the beam search; with 1, the most likely token is selected
            (greedy decoding).
        length_penalty: exponent α ≥ 0 of the length L in the score of a hypothesis y, which is
            log P(y) / L^α; higher values favor longer translations. L counts the end token. There
            is no effect with 1 beam.

    Returns:
        int32[B, max_length], the translations without the start token; zeros follow the end token.

    Raises:
        UserError: if shapes do not match, the model has too few positions, or an option is out of
            range.
    """
    check_beams(beams, length_penalty)
    memory, memory_mask = jax.tree.map(
        lambda x: jnp.repeat(x, beams, axis=0),
        model.apply(variables, inputs, lengths, method="encode"),
    )

    def next_logits(token: jax.Array, position: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        # The memory's keys and values do not change: XLA hoists them out of the loop.
        return model.apply(
            {**variables, "cache": cache},
            token,
            memory,
            memory_mask=memory_mask,
            position=position,
            method="decode",
            mutable=["cache"],
        )  # type: ignore[return-value]

    batch_size = inputs.shape[0]
    if isinstance(model, Seq2SeqRNN):
        cache = {"state": memory[1]}
    else:
        cache = {"decoder": init_cache(model, variables, batch_size * beams, 1 + max_length)}
    if beams > 1:
        return beam_search(
            next_logits,
            cache,
            batch_size=batch_size,
            beams=beams,
            num_tokens=max_length,
            start_token=start_token,
            end_token=end_token,
            length_penalty=length_penalty,
        )
    prompts = jnp.full((batch_size, 1 + max_length), start_token)
    lengths = jnp.ones(batch_size, int)
    tokens = decode(
        next_logits, lambda logits, _: logits.argmax(-1), cache, prompts, lengths, end_token
    )
    return tokens[:, 1:]


def check_beams(beams: int, length_penalty: float) -> None:
    """Checks the options of beam search.

    Raises:
        UserError: if an option is out of range; the message states its value and the range.
    """
    if beams < 1:
        raise UserError(f"beams must be at least 1, got {beams}")
    if not 0 <= length_penalty < math.inf:
        raise UserError(f"length_penalty must be 0 or more and finite, got {length_penalty}")


def sample(
    key: jax.Array,
    logits: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Samples a token int32[B] for each row of logits [B, V], with the options of `generate`."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        ranked = jnp.sort(logits, descending=True)
        probabilities = jax.nn.softmax(ranked)
        more_likely = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(ranked, axis=-1, where=more_likely < top_p, initial=jnp.inf, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits)


def check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, key: jax.Array | None
) -> None:
    """Checks the sampling options of `generate`.

    Raises:
        UserError: if an option is out of range; the message states its value and the range.
    """
    if temperature < 0:
        raise UserError(f"temperature must be at least 0, got {temperature}")
    if temperature > 0 and key is None:
        raise UserError("key is required for a temperature above 0, got None")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")


def init_cache(
    model: TransformerOptions, variables: Mapping[str, Any], batch_size: int, length: int
) -> dict[str, Any]:
    """Returns an empty key-value cache for an encoder or decoder.

    Args:
        model: the model that contains the encoder or decoder.
        variables: variables of the model; the cache has the same dtype.
        batch_size: number of texts B.
        length: maximum number of tokens per text, including the prompt.

    Raises:
        UserError: if the model has fewer positions than `length`.
    """
    if length > model.max_length:
        raise UserError(
            "prompt plus generated tokens must be at most "
            f"max_length = {model.max_length}, got {length}"
        )
    zeros = jnp.zeros((batch_size, length, model.hidden_size), _dtype(variables))
    layers = (f"layers.{i}" for i in range(model.num_layers))
    return {layer: {"self_attn": {"keys": zeros, "values": zeros}} for layer in layers}


def _dtype(variables: Mapping[str, Any]) -> jnp.dtype:
    return jnp.result_type(*jax.tree.leaves(variables["params"]))


def decode(
    next_logits: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    choose_token: Callable[[jax.Array, jax.Array], jax.Array],
    cache: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    end_token: int | None,
) -> jax.Array:
    """Reads prompts up to their lengths and generates the remaining tokens.

    Args:
        next_logits: callable that maps tokens int32[B, 1], their position and the cache to the
            logits [B, 1, V] of the next tokens and `{"cache": updated cache}`.
        choose_token: callable that maps logits [B, V] and the position to tokens int32[B].
        cache: the initial cache.
        prompts: int32[B, T], the prompts, padded to the length of the result.
        lengths: int32[B], number of tokens in each prompt, at least one.
        end_token: token that ends a text, if any.

    Returns:
        int32[B, T], the prompts followed by the generated tokens.
    """

    def step(carry: tuple[jax.Array, jax.Array, Any], position: jax.Array) -> tuple[Any, jax.Array]:
        token, has_ended, cache = carry
        logits, updated = next_logits(token[:, None], position, cache)
        chosen = choose_token(logits[:, 0], position).astype(prompts.dtype)
        chosen = jnp.where(has_ended, PADDING, chosen)
        is_prompt = position + 1 < lengths
        token = jnp.where(is_prompt, prompts[:, position + 1], chosen)
        if end_token is not None:
            has_ended |= ~is_prompt & (token == end_token)
        return (token, has_ended, updated["cache"]), token

    first = prompts[:, 0]
    carry = (first, jnp.zeros(first.shape, bool), cache)
    _, rest = jax.lax.scan(step, carry, jnp.arange(prompts.shape[1] - 1))
    return jnp.concatenate([first[:, None], rest.T], axis=1)
