"""BERT: a bidirectional Transformer encoder, with heads for pretraining and classification.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
2018. Parameters have Hugging Face's names, so `Bert` loads the weights of a `BertModel`, and so on.

Legend: B batch, T tokens, D features, V vocabulary, C classes.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, TypedDict, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_shape, did_you_mean
from flaxdl.errors import UserError
from flaxdl.layers import Dropout, Embedding, token_mask
from flaxdl.layers.attention import attend
from flaxdl.layers.initializers import constant, normal
from flaxdl.models.bert_options import BertOptions
from flaxdl.models.options import shared_options
from flaxdl.models.sizes import required_size
from flaxdl.ops.bias import add_bias


class BertInputs(TypedDict, total=False):
    """Keyword arguments of all BERT models, in addition to `train`."""

    token_types: jax.Array | None
    """int32[B, T], 0 for the first sentence, 1 for the second; by default, all zeros."""
    mask: jax.Array | None
    """bool[B, T], False for padding; an alternative to `lengths`."""
    lengths: jax.Array | None
    """int32[B], number of non-padding tokens in each text; by default, there is no padding."""


def _check_keywords(model: nn.Module, given: Mapping[str, Any]) -> None:
    allowed = [*BertInputs.__annotations__, "train"]
    for name in given:
        if name not in allowed:
            raise UserError(
                f"{type(model).__name__} takes the keyword arguments {', '.join(allowed)}, "
                f"got {name!r}{did_you_mean(name, allowed)}"
            )


class BertLayer(BertOptions, kw_only=True):
    """Encoder layer: post-norm self-attention and feed-forward network."""

    tensor_axes: ClassVar[dict[str, int]] = {
        "*attention.self.*": 0,
        "*intermediate.dense.*": 0,
        "*output.dense.weight": 1,  # also matches `attention.output.dense`
    }

    @nn.compact
    def __call__(
        self, inputs: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; `mask` bool[B, 1, 1, T] is False for padding."""
        dropout = Dropout(self.dropout, name="dropout")
        attended = attend(
            self,
            self.linear(self.hidden_size, "attention.self.query")(inputs),
            self.linear(self.hidden_size, "attention.self.key")(inputs),
            self.linear(self.hidden_size, "attention.self.value")(inputs),
            mask,
            train,
            num_heads=self.num_heads,
            dropout=Dropout(self.attention_dropout, name="attention.dropout"),
        )
        attended = self.linear(self.hidden_size, "attention.output.dense")(attended)
        x = self.norm("attention.output.LayerNorm")(inputs + dropout(attended, train))

        hidden = self.activate(self.linear(self.feed_forward_size, "intermediate.dense")(x))
        hidden = self.linear(self.hidden_size, "output.dense")(hidden)
        return self.norm("output.LayerNorm")(x + dropout(hidden, train))


class Bert(BertOptions, kw_only=True):
    """BERT encoder with its pooler, equivalent to Hugging Face's `BertModel`."""

    ignored_keys = ("cls.*",)
    tensor_axes: ClassVar[dict[str, int]] = {**BertLayer.tensor_axes, "*embeddings.weight": 0}

    def setup(self) -> None:
        """Creates the embeddings, layers and pooler."""
        hidden_size = required_size("hidden_size", self.hidden_size)
        embedding = partial(
            Embedding, features=hidden_size, embedding_init=normal(self.initializer_range)
        )
        self.word_embeddings = embedding(
            required_size("vocab_size", self.vocab_size),
            padding_index=self.padding_index,
            name="embeddings.word_embeddings",
        )
        self.position_embeddings = embedding(self.max_length, name="embeddings.position_embeddings")
        self.token_type_embeddings = embedding(
            self.type_vocab_size, name="embeddings.token_type_embeddings"
        )
        self.embedding_norm = self.norm("embeddings.LayerNorm")
        self.embedding_dropout = Dropout(self.dropout)
        # `train` is static; argument 0 is the module itself.
        Layer = nn.remat(BertLayer, static_argnums=3) if self.remat else BertLayer
        options = shared_options(self, BertLayer)
        self.layers = [Layer(**options, name=f"encoder.layer.{i}") for i in range(self.num_layers)]
        self.pooler = self.linear(self.hidden_size, "pooler.dense")

    @nn.nowrap
    def to_hugging_face(self) -> dict[str, Any]:
        """Returns the content of Hugging Face's `config.json` for this model."""
        return {**super().to_hugging_face(), "architectures": ["BertModel"]}

    def __call__(
        self, tokens: jax.Array, *, train: bool = False, **inputs: Unpack[BertInputs]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the features of each token [B, T, D] and the pooled features of each text [B, D].

        Args:
            tokens: int32[B, T]; each text begins with [CLS].
            train: whether to apply dropout, with random numbers from the RNG stream "dropout".
            inputs: token types and padding, as described in `BertInputs`.

        Raises:
            UserError: if shapes do not match, tokens are not integers, or a text is longer than
                `max_length`.
        """
        _check_keywords(self, inputs)
        x = self.encode(tokens, train=train, **inputs)
        return x, jnp.tanh(self.pooler(x[:, 0]))

    def encode(
        self,
        tokens: jax.Array,
        *,
        token_types: jax.Array | None = None,
        mask: jax.Array | None = None,
        lengths: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns the features of each token [B, T, D], without computing the pooled features."""
        check_shape("tokens", tokens, "B T")
        batch_size, length = tokens.shape
        if length > self.max_length:
            raise UserError(
                f"texts must have at most max_length = {self.max_length} tokens, got {length}"
            )
        if token_types is None:
            token_types = jnp.zeros_like(tokens)
        check_shape("token_types", token_types, "B T", B=batch_size, T=length)

        x = self.word_embeddings(tokens) + self.token_type_embeddings(token_types)
        x = add_bias(x, self.position_embeddings(jnp.arange(length)))
        x = self.embedding_dropout(self.embedding_norm(x), train)
        keep = token_mask(tokens, lengths, mask)
        for layer in self.layers:
            x = layer(x, keep, train)
        return x


class BertPredictionHead(BertOptions, kw_only=True):
    """Masked-language-modeling head: logits from the tied word embeddings, plus a bias."""

    @nn.compact
    def __call__(self, inputs: jax.Array, word_embeddings: jax.Array) -> jax.Array:
        """Maps [B, T, D] and the embedding table [V, D] to logits [B, T, V]."""
        x = self.activate(self.linear(self.hidden_size, "transform.dense")(inputs))
        x = self.norm("transform.LayerNorm")(x)
        bias = self.param(
            "bias", constant(0.0), (required_size("vocab_size", self.vocab_size),), jnp.float32
        )
        return add_bias(x @ word_embeddings.T, bias)


class BertForMaskedLM(BertOptions, kw_only=True):
    """BERT with a masked-language-modeling head."""

    supported = BertOptions.supported | {"tie_word_embeddings": (True,)}
    ignored_keys = ("cls.seq_relationship.*", "bert.pooler.*")
    tensor_axes = Bert.tensor_axes

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool = False, **inputs: Unpack[BertInputs]
    ) -> jax.Array:
        """Maps tokens int32[B, T] to logits [B, T, V]; see `BertInputs` for other arguments."""
        _check_keywords(self, inputs)
        options = shared_options(self, Bert)
        bert = Bert(**options, name="bert")
        head = BertPredictionHead(**options, name="cls.predictions")
        x = bert.encode(tokens, train=train, **inputs)
        return head(x, bert.word_embeddings.embedding)


class BertForPreTraining(BertOptions, kw_only=True):
    """BERT with both pretraining heads: masked language modeling and next-sentence prediction."""

    supported = BertOptions.supported | {"tie_word_embeddings": (True,)}
    tensor_axes = Bert.tensor_axes

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool = False, **inputs: Unpack[BertInputs]
    ) -> tuple[jax.Array, jax.Array]:
        """Maps tokens int32[B, T] to logits of both heads, [B, T, V] and [B, 2].

        In next-sentence prediction, class 0 means that the second sentence follows the first. See
        `BertInputs` for other arguments.
        """
        _check_keywords(self, inputs)
        options = shared_options(self, Bert)
        bert = Bert(**options, name="bert")
        head = BertPredictionHead(**options, name="cls.predictions")
        x, pooled = bert(tokens, train=train, **inputs)
        is_next = self.linear(2, "cls.seq_relationship")(pooled)
        return head(x, bert.word_embeddings.embedding), is_next


class BertForSequenceClassification(BertOptions, kw_only=True):
    """BERT with a linear classifier on the pooled features, for texts or pairs of texts."""

    num_classes: int | None
    """Number of classes; inferred from the data if None."""
    classifier_dropout: float | None = None
    """Dropout rate for the pooled features; by default, `dropout`."""

    supported = BertOptions.supported | {
        "problem_type": (
            None,
            "single_label_classification",
            "multi_label_classification",
            "regression",
        )
    }
    ignored_keys = ("cls.*",)
    tensor_axes = Bert.tensor_axes

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool = False, **inputs: Unpack[BertInputs]
    ) -> jax.Array:
        """Maps tokens int32[B, T] to logits [B, C]; see `BertInputs` for other arguments."""
        _check_keywords(self, inputs)
        bert = Bert(**shared_options(self, Bert), name="bert")
        _, pooled = bert(tokens, train=train, **inputs)
        rate = self.dropout if self.classifier_dropout is None else self.classifier_dropout
        pooled = Dropout(rate, name="dropout")(pooled, train)
        return self.linear(required_size("num_classes", self.num_classes), "classifier")(pooled)

    @classmethod
    def fields_from_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of this class that a Hugging Face configuration sets."""
        num_classes = len(config["id2label"]) if config.get("id2label") else 2
        return {
            **super().fields_from_config(config),
            "num_classes": config.get("num_labels", num_classes),
            "classifier_dropout": config.get("classifier_dropout"),
        }

    @nn.nowrap
    def to_hugging_face(self) -> dict[str, Any]:
        """Returns the content of `config.json`; classes are named LABEL_0, LABEL_1, and so on."""
        names = [
            f"LABEL_{number}" for number in range(required_size("num_classes", self.num_classes))
        ]
        return {
            **super().to_hugging_face(),
            "classifier_dropout": self.classifier_dropout,
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": "single_label_classification",
        }


# Sizes, used as in `Bert(**BERT_LARGE)`. Those smaller than BERT_BASE are from Turc et al.,
# "Well-Read Students Learn Better", 2019.
def _variant(num_layers: int, hidden_size: int) -> dict[str, int]:
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_heads": hidden_size // 64,
        "feed_forward_size": 4 * hidden_size,
    }


BERT_TINY = _variant(2, 128)
"""BERT-Tiny: 2 layers, hidden size 128."""
BERT_MINI = _variant(4, 256)
"""BERT-Mini: 4 layers, hidden size 256."""
BERT_SMALL = _variant(4, 512)
"""BERT-Small: 4 layers, hidden size 512."""
BERT_MEDIUM = _variant(8, 512)
"""BERT-Medium: 8 layers, hidden size 512."""
BERT_BASE = _variant(12, 768)
"""BERT-Base: 12 layers, hidden size 768."""
BERT_LARGE = _variant(24, 1024)
"""BERT-Large: 24 layers, hidden size 1024."""
