"""BERT: an encoder that reads a text in both directions, and the heads it is trained with.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
2018. All names are those of Hugging Face, so `Bert` loads a `BertModel` and so on.

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
from flaxdl.models.sizes import known_size
from flaxdl.ops.bias import add_bias


class BertInputs(TypedDict, total=False):
    """Keyword arguments of all BERT models, besides `train`."""

    token_types: jax.Array | None
    """int32[B, T], 0 in the first sentence, 1 in the second; 0 everywhere if None."""
    mask: jax.Array | None
    """bool[B, T], which tokens are real; an alternative to lengths."""
    lengths: jax.Array | None
    """int32[B], how many tokens of each text are real; all if neither is given."""


def _check_keywords(model: nn.Module, given: Mapping[str, Any]) -> None:
    allowed = [*BertInputs.__annotations__, "train"]
    for name in given:
        if name not in allowed:
            raise UserError(
                f"{type(model).__name__} takes the keywords {', '.join(allowed)}, got {name!r}"
                f"{did_you_mean(name, allowed)}"
            )


class BertLayer(BertOptions, kw_only=True):
    """One layer of the encoder: post-norm self-attention and feed-forward."""

    tensor_axes: ClassVar[dict[str, int]] = {
        "*attention.self.*": 0,
        "*intermediate.dense.*": 0,
        "*output.dense.weight": 1,  # `attention.output.dense` as well
    }

    @nn.compact
    def __call__(
        self, inputs: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; the mask bool[B, 1, 1, T] hides padding."""
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

        changed = self.activate(self.linear(self.feed_forward_size, "intermediate.dense")(x))
        changed = self.linear(self.hidden_size, "output.dense")(changed)
        return self.norm("output.LayerNorm")(x + dropout(changed, train))


class Bert(BertOptions, kw_only=True):
    """The encoder with its pooler: Hugging Face's `BertModel`."""

    ignored_keys = ("cls.*",)
    tensor_axes: ClassVar[dict[str, int]] = {**BertLayer.tensor_axes, "*embeddings.weight": 0}

    def setup(self) -> None:
        """Creates embeddings, layers and pooler."""
        hidden_size = known_size("hidden_size", self.hidden_size)
        embedding = partial(
            Embedding, features=hidden_size, embedding_init=normal(self.initializer_range)
        )
        self.word_embeddings = embedding(
            known_size("vocab_size", self.vocab_size),
            padding_index=self.padding_index,
            name="embeddings.word_embeddings",
        )
        self.position_embeddings = embedding(self.max_length, name="embeddings.position_embeddings")
        self.token_type_embeddings = embedding(
            self.type_vocab_size, name="embeddings.token_type_embeddings"
        )
        self.embedding_norm = self.norm("embeddings.LayerNorm")
        self.embedding_dropout = Dropout(self.dropout)
        # Static is `train`; the module itself is argument 0.
        Layer = nn.remat(BertLayer, static_argnums=3) if self.remat else BertLayer
        options = shared_options(self, BertLayer)
        self.layers = [Layer(**options, name=f"encoder.layer.{i}") for i in range(self.num_layers)]
        self.pooler = self.linear(self.hidden_size, "pooler.dense")

    @nn.nowrap
    def to_hugging_face(self) -> dict[str, Any]:
        """Returns the `config.json` of Hugging Face that describes this model."""
        return {**super().to_hugging_face(), "architectures": ["BertModel"]}

    def __call__(
        self, tokens: jax.Array, *, train: bool = False, **inputs: Unpack[BertInputs]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the features of every token [B, T, D], and of the text as a whole [B, D].

        Args:
            tokens: int32[B, T], the first of each text being [CLS].
            train: whether dropout is on; it draws from the stream "dropout".
            inputs: token types, and which tokens are real; see `BertInputs`.

        Raises:
            UserError: if shapes do not fit, tokens are not integers or more than `max_length`.
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
        """Returns the features of every token [B, T, D], without the pooler's parameters."""
        check_shape("tokens", tokens, "B T")
        batch_size, length = tokens.shape
        if length > self.max_length:
            raise UserError(
                f"tokens must be at most max_length = {self.max_length} a text, got {length}"
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
    """Maps features back to tokens, with the table of word embeddings and a bias of its own."""

    @nn.compact
    def __call__(self, inputs: jax.Array, word_embeddings: jax.Array) -> jax.Array:
        """Maps [B, T, D], with the table [V, D], to logits [B, T, V]."""
        x = self.activate(self.linear(self.hidden_size, "transform.dense")(inputs))
        x = self.norm("transform.LayerNorm")(x)
        bias = self.param(
            "bias", constant(0.0), (known_size("vocab_size", self.vocab_size),), jnp.float32
        )
        return add_bias(x @ word_embeddings.T, bias)


class BertForMaskedLM(BertOptions, kw_only=True):
    """Predicts the masked tokens of a text, from both sides."""

    supported = BertOptions.supported | {"tie_word_embeddings": (True,)}
    ignored_keys = ("cls.seq_relationship.*", "bert.pooler.*")
    tensor_axes = Bert.tensor_axes

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool = False, **inputs: Unpack[BertInputs]
    ) -> jax.Array:
        """Maps tokens int32[B, T] to logits [B, T, V]; the keywords are `BertInputs`."""
        _check_keywords(self, inputs)
        options = shared_options(self, Bert)
        bert = Bert(**options, name="bert")
        head = BertPredictionHead(**options, name="cls.predictions")
        x = bert.encode(tokens, train=train, **inputs)
        return head(x, bert.word_embeddings.embedding)


class BertForPreTraining(BertOptions, kw_only=True):
    """Predicts masked tokens, and whether the second sentence follows the first."""

    supported = BertOptions.supported | {"tie_word_embeddings": (True,)}
    tensor_axes = Bert.tensor_axes

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool = False, **inputs: Unpack[BertInputs]
    ) -> tuple[jax.Array, jax.Array]:
        """Maps tokens int32[B, T] to logits [B, T, V] and [B, 2]; the keywords are `BertInputs`.

        The first of the two classes says that the sentence follows.
        """
        _check_keywords(self, inputs)
        options = shared_options(self, Bert)
        bert = Bert(**options, name="bert")
        head = BertPredictionHead(**options, name="cls.predictions")
        x, pooled = bert(tokens, train=train, **inputs)
        is_next = self.linear(2, "cls.seq_relationship")(pooled)
        return head(x, bert.word_embeddings.embedding), is_next


class BertForSequenceClassification(BertOptions, kw_only=True):
    """Classifies a text, or a pair of texts, from the pooled features."""

    num_classes: int | None
    """Size of the logits; None takes it from the data of a run."""
    classifier_dropout: float | None = None
    """Share of the pooled features that is zeroed in training; `dropout` if None."""

    supported = BertOptions.supported | {"problem_type": (None, "single_label_classification")}
    ignored_keys = ("cls.*",)
    tensor_axes = Bert.tensor_axes

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, train: bool = False, **inputs: Unpack[BertInputs]
    ) -> jax.Array:
        """Maps tokens int32[B, T] to logits [B, C]; the keywords are `BertInputs`."""
        _check_keywords(self, inputs)
        bert = Bert(**shared_options(self, Bert), name="bert")
        _, pooled = bert(tokens, train=train, **inputs)
        rate = self.dropout if self.classifier_dropout is None else self.classifier_dropout
        pooled = Dropout(rate, name="dropout")(pooled, train)
        return self.linear(known_size("num_classes", self.num_classes), "classifier")(pooled)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of this class that the configuration has a value for."""
        num_classes = len(config["id2label"]) if config.get("id2label") else 2
        return {
            **super().read(config),
            "num_classes": config.get("num_labels", num_classes),
            "classifier_dropout": config.get("classifier_dropout"),
        }

    @nn.nowrap
    def to_hugging_face(self) -> dict[str, Any]:
        """Returns the `config.json` of Hugging Face; its classes have only numbers for names."""
        names = [f"LABEL_{number}" for number in range(known_size("num_classes", self.num_classes))]
        return {
            **super().to_hugging_face(),
            "classifier_dropout": self.classifier_dropout,
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": "single_label_classification",
        }


# The variants: `Bert(**BERT_LARGE)`. The smaller ones are those of Turc et al., "Well-Read Students
# Learn Better", 2019.
def _variant(num_layers: int, hidden_size: int) -> dict[str, int]:
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_heads": hidden_size // 64,
        "feed_forward_size": 4 * hidden_size,
    }


BERT_TINY = _variant(2, 128)
"""Two layers of width 128."""
BERT_MINI = _variant(4, 256)
"""Four layers of width 256."""
BERT_SMALL = _variant(4, 512)
"""Four layers of width 512."""
BERT_MEDIUM = _variant(8, 512)
"""Eight layers of width 512."""
BERT_BASE = _variant(12, 768)
"""Twelve layers of width 768."""
BERT_LARGE = _variant(24, 1024)
"""Twenty-four layers of width 1024."""
