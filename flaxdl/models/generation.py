"""Writing token by token with a trained transformer, from a cache of keys and values.

The whole of it is one scan: each step reads one token, which is why its cost does not grow with
what was read before, but for the attention to it. A prompt is read in the same way, so the prompts
of a batch may differ in length.

Legend: B batch, P prompt tokens, T all tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.checks import check_integers, check_shape
from flaxdl.errors import UserError
from flaxdl.models.transformer import Seq2SeqTransformer, TransformerLM
from flaxdl.models.transformer_stack import TransformerOptions

PADDING = 0  # what follows the end token


@partial(
    jax.jit,
    static_argnames=("model", "num_tokens", "temperature", "top_k", "top_p", "end_token"),
)
def generate(
    model: TransformerLM,
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
    """Continues prompts int32[B, P] by at least `num_tokens` tokens, to int32[B, P + num_tokens].

    Args:
        model: the language model.
        variables: what `model.init` or training gave, in the precision to compute in.
        prompt: the tokens to begin with, at least one.
        num_tokens: how many tokens to write after the longest prompt there can be.
        lengths: int32[B], the length of each prompt; writing begins there. P if None.
        temperature: 0 takes the most likely token; 1 draws from the model's probabilities; less
            sharpens them, more flattens them.
        top_k: draw from this many most likely tokens only.
        top_p: draw from the fewest tokens whose probabilities add up to this only (Holtzman et al.,
            "The Curious Case of Neural Text Degeneration", 2019); after `top_k` if both are given.
        end_token: the token after which a text is complete; zeros follow it.
        key: randomness, needed unless the temperature is 0.

    Raises:
        UserError: if shapes do not fit, the model has too few positions, or an option is out of
            its range.

    Example:
        >>> generate(model, variables, jnp.array([[5]]), num_tokens=20, temperature=0.8, top_k=40,
        ...          key=jax.random.key(0))
    """
    check_shape("prompt", prompt, "B P")
    check_integers("prompt", prompt)
    batch_size, prompt_size = prompt.shape
    if lengths is None:
        lengths = jnp.full(batch_size, prompt_size)
    check_shape("lengths", lengths, "B", B=batch_size)
    check_sampling(temperature, top_k, top_p, key)

    def read(token: jax.Array, position: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        return model.apply(
            {**variables, "cache": cache}, token, position=position, mutable=["cache"]
        )  # type: ignore[return-value]

    def choose(logits: jax.Array, position: jax.Array) -> jax.Array:
        if temperature == 0 or key is None:
            return logits.argmax(-1)
        return sample(
            jax.random.fold_in(key, position),
            logits,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )

    given = jnp.pad(prompt, ((0, 0), (0, num_tokens)))
    cache = {"encoder": empty_cache(model, variables, *given.shape)}
    return write(read, choose, cache, given, lengths, end_token)


@partial(jax.jit, static_argnames=("model", "start_token", "end_token", "max_length"))
def translate(
    model: Seq2SeqTransformer,
    variables: Mapping[str, Any],
    inputs: jax.Array,
    *,
    start_token: int,
    end_token: int,
    max_length: int,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """Writes, always taking the most likely token, what the model makes of int32[B, T].

    Returns:
        int32[B, max_length]: the end token is the last before zeros, the start token is left out.

    Raises:
        UserError: if shapes do not fit, or the model has too few positions.
    """
    memory, memory_mask = model.apply(variables, inputs, lengths, method="encode")

    def read(token: jax.Array, position: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        # Keys and values of the memory are the same in each step: XLA takes them out of the loop.
        return model.apply(
            {**variables, "cache": cache},
            token,
            memory,
            None,
            memory_mask,
            position=position,
            method="decode",
            mutable=["cache"],
        )  # type: ignore[return-value]

    batch_size = inputs.shape[0]
    given = jnp.full((batch_size, 1 + max_length), start_token)
    cache = {"decoder": empty_cache(model, variables, *given.shape)}
    lengths = jnp.ones(batch_size, int)
    tokens = write(read, lambda logits, _: logits.argmax(-1), cache, given, lengths, end_token)
    return tokens[:, 1:]


def sample(
    key: jax.Array,
    logits: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Draws a token for each row of logits [B, V]; the options are those of `generate`."""
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
    """Checks the options of `generate`.

    Raises:
        UserError: naming the option, what it got and what it takes.
    """
    if temperature < 0:
        raise UserError(f"temperature must be 0 or more, got {temperature}")
    if temperature > 0 and key is None:
        raise UserError("key must be given when the temperature is not 0, got None")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be 1 or more, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")


def empty_cache(
    model: TransformerOptions, variables: Mapping[str, Any], batch_size: int, length: int
) -> dict[str, Any]:
    """Returns the cache of an encoder or decoder that has not read anything yet.

    Raises:
        UserError: if the model has fewer positions than `length`.
    """
    if length > model.max_length:
        raise UserError(
            f"all tokens together must be at most max_length = {model.max_length}, got {length}"
        )
    dtype = jnp.result_type(*jax.tree.leaves(variables["params"]))
    zeros = jnp.zeros((batch_size, length, model.hidden_size), dtype)
    layers = (f"layers.{i}" for i in range(model.num_layers))
    return {layer: {"self_attn": {"keys": zeros, "values": zeros}} for layer in layers}


def write(
    read: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    choose: Callable[[jax.Array, jax.Array], jax.Array],
    cache: Any,
    given: jax.Array,
    lengths: jax.Array,
    end_token: int | None,
) -> jax.Array:
    """Reads the given tokens int32[B, T] up to each length and writes the rest.

    Args:
        read: (tokens int32[B, 1], their position, cache) → logits [B, 1, V] of the token that
            follows, and {"cache": what the cache has become}.
        choose: (logits [B, V], position) → tokens int32[B].
        cache: what `read` begins with.
        given: the tokens to begin with.
        lengths: int32[B], how many of them to keep, at least one.
        end_token: the token after which a row is complete, if there is one.
    """

    def step(carry: tuple[jax.Array, jax.Array, Any], position: jax.Array) -> tuple[Any, jax.Array]:
        token, has_ended, cache = carry
        logits, updated = read(token[:, None], position, cache)
        chosen = choose(logits[:, 0], position).astype(given.dtype)
        chosen = jnp.where(has_ended, PADDING, chosen)
        is_given = position + 1 < lengths
        token = jnp.where(is_given, given[:, position + 1], chosen)
        if end_token is not None:
            has_ended |= ~is_given & (token == end_token)
        return (token, has_ended, updated["cache"]), token

    first = given[:, 0]
    carry = (first, jnp.zeros(first.shape, bool), cache)
    _, rest = jax.lax.scan(step, carry, jnp.arange(given.shape[1] - 1))
    return jnp.concatenate([first[:, None], rest.T], axis=1)
