"""Texts with masked tokens, for masked language modeling.

B: texts in a batch, T: tokens per text.

Of the tokens of a text, 15 % are chosen to be predicted. Of these, 80 % are replaced by [MASK] and
10 % by a random token; 10 % remain unchanged. Padding and special tokens are neither chosen nor
drawn as random tokens. Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for
Language Understanding", 2018.

In training, the tokens are chosen in the compiled step, from new random numbers in each step. In
evaluation, the random numbers are a function of the text, so that each evaluation has the same
masks, whatever the batch size and the number of devices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.data.text import FittedText, Text
from flaxdl.data.texts import chunks
from flaxdl.data.vocabulary import learn, word_numbers
from flaxdl.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END, MASK = "[CLS]", "[SEP]", "[MASK]"  # BERT's names, also in learned vocabularies
_MASKED, _RANDOM = 0.8, 0.1  # fractions of the chosen tokens


@dataclass(frozen=True)
class MaskedText(Text):
    """Tokenization and masking of texts for the task `MaskedLanguageModeling`.

    A batch has the masked tokens as `inputs`, the original ones as `label`, int32[B, T], and the
    positions to predict as `chosen`, bool[B, T]. If examples have a field `burn_in`, as those of
    `Documents`, tokens before it are not chosen.

    A learned vocabulary also has the special tokens [CLS], [SEP] and [MASK], and each text is
    enclosed by the first two. A model that is pretrained on `MaskedText` can be fine-tuned on
    `Text`, which uses the same vocabulary if the workdir is `init.weights`.
    """

    mask_fraction: float = 0.15
    """Fraction of the tokens to predict, above 0 and below 1."""
    whole_words: bool = False
    """Whole-word masking: choose all pieces of a word together. It needs a pretrained tokenizer,
    since in a learned vocabulary, words have no pieces."""

    def __post_init__(self):
        super().__post_init__()
        is_number = isinstance(self.mask_fraction, (int, float, np.floating))
        if not is_number or not 0 < self.mask_fraction < 1:
            raise UserError(
                f"mask_fraction must be a number above 0 and below 1, got {self.mask_fraction!r}"
            )
        if not isinstance(self.whole_words, bool):
            raise UserError(f"whole_words must be True or False, got {self.whole_words!r}")

    def _learn(self, texts: Sequence[str], kind: str) -> "Tokenizer":
        from tokenizers import processors

        if self.whole_words:
            raise UserError(
                "whole_words needs a pretrained tokenizer, whose words consist of pieces, "
                f"got the learned vocabulary {kind!r}"
            )
        vocabulary = learn(
            texts,
            kind,
            max_vocabulary=self.max_vocabulary,
            lowercase=self.lowercase,
            marks=(START, END, MASK),
        )
        vocabulary.post_processor = processors.TemplateProcessing(
            single=f"{START}:0 $A:0 {END}:0",
            pair=f"{START}:0 $A:0 {END}:0 $B:1 {END}:1",
            special_tokens=[(token, vocabulary.token_to_id(token)) for token in (START, END)],
        )
        return vocabulary

    def _fitted(self, vocabulary: "Tokenizer") -> "FittedMaskedText":
        if vocabulary.token_to_id(MASK) is None:
            raise UserError(
                f"masked language modeling needs a tokenizer with the token {MASK}, "
                f"but {self.tokenizer!r} has none"
            )
        fitted = super()._fitted(vocabulary)
        settings = {setting.name: getattr(self, setting.name) for setting in fields(MaskedText)}
        return FittedMaskedText(**settings, vocabulary=fitted.vocabulary)


@dataclass(frozen=True)
class FittedMaskedText(MaskedText, FittedText):
    """A `MaskedText` transform with its vocabulary, ready to encode and mask texts."""

    vocabulary: "Tokenizer" = field(kw_only=True, repr=False, compare=False)
    """Tokenizer that maps texts to ids and back."""

    @cached_property
    def _mask_token(self) -> int:
        """Id of [MASK], which every fitted vocabulary has."""
        return self.vocabulary.get_vocab()[MASK]

    @cached_property
    def _special(self) -> np.ndarray:
        """Ids of special tokens, which are never masked."""
        added = self.vocabulary.get_added_tokens_decoder()
        return np.array([number for number, token in added.items() if token.special], np.int32)

    @cached_property
    def _ordinary(self) -> np.ndarray:
        """Ids of all other tokens, from which random tokens are drawn."""
        ids = np.array(sorted(self.vocabulary.get_vocab().values()), np.int32)
        return np.setdiff1d(ids, self._special)

    def encode_examples(
        self, texts: np.ndarray | Sequence[str], pairs: np.ndarray | Sequence[str] | None
    ) -> dict[str, np.ndarray]:
        """Encodes texts; for whole-word masking, also numbers their words, int32[N, T]."""
        arrays = self.encode(texts, pairs)
        if self.whole_words:
            words = np.zeros_like(arrays["inputs"])
            word_numbers(self.vocabulary, texts, pairs, out=words)
            arrays["words"] = words
        return arrays

    def prepare(
        self, batch: dict[str, np.ndarray], draws: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Masks texts, with random numbers that are a function of each text."""
        parts = []
        for rows in chunks(len(batch["inputs"])):  # random numbers need much memory
            part = {name: array[rows] for name, array in batch.items()}
            parts.append(self._masked(part, text_numbers(part["inputs"], part["lengths"])))
        return batch | {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def augment_batch(
        self, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Masks the original tokens again, with new random numbers."""
        tokens = batch["label"]
        numbers = jax.random.uniform(key, (3, *tokens.shape), jnp.float32)
        return {**batch, **self._masked({**batch, "inputs": tokens}, numbers)}

    def _masked(self, batch: Mapping[str, Any], numbers: Any) -> dict[str, Any]:
        """Returns the fields of a batch that masking changes, given unmasked `inputs`."""
        xp = _namespace(numbers)
        tokens, positions = batch["inputs"], np.arange(batch["inputs"].shape[1])
        candidates = (positions < batch["lengths"][:, None]) & ~xp.isin(tokens, self._special)
        if "burn_in" in batch:
            candidates &= positions >= batch["burn_in"][:, None]
        inputs, chosen = mask_tokens(
            tokens,
            numbers,
            candidates=candidates,
            fraction=self.mask_fraction,
            mask_token=self._mask_token,
            replacements=self._ordinary,
            words=batch.get("words"),
        )
        return {"inputs": inputs, "label": tokens, "chosen": chosen}


def mask_tokens(
    tokens: Any,
    numbers: Any,
    *,
    candidates: Any,
    fraction: float,
    mask_token: int,
    replacements: np.ndarray,
    words: Any = None,
) -> tuple[Any, Any]:
    """Chooses tokens to predict, and masks most of them, given random numbers.

    A pure function of NumPy or JAX arrays.

    Args:
        tokens: the original tokens, int32[B, T].
        numbers: random numbers, uniform in [0, 1), [3, B, T]. They decide which words are chosen,
            what happens to each chosen token, and the random tokens.
        candidates: tokens that may be chosen, bool[B, T].
        fraction: fraction of the candidates to choose, on average.
        mask_token: id of [MASK].
        replacements: ids of the random tokens, int32[n].
        words: number of the word of each token, from 0, int32[B, T], to choose the tokens of a
            word together; by default, each token is chosen independently.

    Returns:
        The masked tokens, int32[B, T], and the chosen positions, bool[B, T].
    """
    xp = _namespace(numbers)
    choice, kind, replacement = numbers
    if words is not None:
        choice = xp.take_along_axis(choice, words, axis=1)
    chosen = candidates & (choice < fraction)
    index = (replacement * len(replacements)).astype(np.int32)
    others = xp.where(kind < _MASKED + _RANDOM, xp.asarray(replacements)[index], tokens)
    return xp.where(chosen, xp.where(kind < _MASKED, mask_token, others), tokens), chosen


def text_numbers(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns random numbers that are a function of each text, whatever its padding.

    Args:
        tokens: tokens, int32[B, T].
        lengths: number of tokens in each text, int32[B].

    Returns:
        Numbers uniform in [0, 1), float64[3, B, T].
    """
    positions = np.arange(tokens.shape[1], dtype=np.uint64)
    places = _scrambled(positions + np.uint64(1))
    is_real = positions < lengths[:, None]
    parts = np.where(is_real, _scrambled(tokens.astype(np.uint64) + places), np.uint64(0))
    text = parts.sum(axis=1)[:, None]  # modulo 2^64
    streams = _scrambled(np.arange(1, 4, dtype=np.uint64))[:, None, None]
    bits = _scrambled(_scrambled(text + streams) + places)
    return (bits >> np.uint64(11)) * 2.0**-53


def _scrambled(numbers: np.ndarray) -> np.ndarray:
    """Returns the outputs of the generator SplitMix64 for states uint64[...].

    Steele et al., "Fast splittable pseudorandom number generators", 2014.
    """
    x = numbers * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _namespace(array: Any) -> Any:
    return jnp if isinstance(array, jax.Array) else np
