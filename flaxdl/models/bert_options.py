"""Options of the BERT models, and conversion from and to Hugging Face configurations."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax

from flaxdl.checks import check_choice
from flaxdl.errors import UserError
from flaxdl.layers import LayerNorm, Linear
from flaxdl.layers.initializers import constant, normal
from flaxdl.ops.activations import gelu

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}

# Field of Hugging Face's BertConfig → our field.
FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "feed_forward_size",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "max_position_embeddings": "max_length",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
    "pad_token_id": "padding_index",
}


class BertOptions(nn.Module, kw_only=True):
    """Options shared by all parts of BERT; the defaults are those of bert-base-uncased."""

    vocab_size: int | None = 30522
    """Vocabulary size; inferred from the data if None."""
    hidden_size: int = 768
    """Number of features per token."""
    num_layers: int = 12
    """Number of encoder layers."""
    num_heads: int = 12
    """Number of attention heads."""
    feed_forward_size: int = 3072
    """Hidden width of the feed-forward network."""
    activation: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    """Activation function; `gelu` is exact, `gelu_new` its tanh approximation."""
    dropout: float = 0.1
    """Dropout rate for the embeddings and the output of each sublayer."""
    attention_dropout: float = 0.1
    """Dropout rate for the attention weights."""
    max_length: int = 512
    """Maximum sequence length (number of position embeddings)."""
    type_vocab_size: int = 2
    """Number of token types (first and second sentence)."""
    layer_norm_epsilon: float = 1e-12
    """Epsilon added to the variance in each LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    padding_index: int | None = 0
    """Index of the padding token, if any; its embedding is not trained."""
    remat: bool = False
    """Gradient checkpointing: recompute each layer in the backward pass to save memory."""

    # Other configuration options that change the results → supported values.
    supported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "model_type": ("bert",),
        "position_embedding_type": ("absolute",),
        "hidden_act": tuple(ACTIVATIONS),
        "is_decoder": (False,),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    }
    # Patterns of checkpoint keys to ignore: pretraining heads that this class does not have.
    ignored_keys: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> Self:
        """Returns the model described by a Hugging Face `config.json`.

        Missing options have the defaults of Hugging Face's `BertConfig`. Options that do not change
        the results, such as `chunk_size_feed_forward` or `output_attentions`, are ignored.

        Args:
            config: the parsed content of `config.json`.

        Raises:
            UserError: if options have unsupported values; the message lists all of them.
        """
        refused = [
            f"{option} must be {' or '.join(map(repr, allowed))}, got {config[option]!r}"
            for option, allowed in cls.supported.items()
            if option in config and config[option] not in allowed
        ]
        if refused:
            raise UserError("this BERT configuration is not supported: " + "; ".join(refused))
        return cls(**cls.fields_from_config(config))

    @classmethod
    def fields_from_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of this class that a Hugging Face configuration sets."""
        return {ours: config[theirs] for theirs, ours in FIELDS.items() if theirs in config}

    @nn.nowrap
    def to_hugging_face(self) -> dict[str, Any]:
        """Returns the content of Hugging Face's `config.json` for this model.

        This is the inverse of `from_hugging_face`; all options are explicit.
        """
        return {
            "architectures": [type(self).__name__],
            "model_type": "bert",
            **{theirs: getattr(self, ours) for theirs, ours in FIELDS.items()},
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
            "dtype": "float32",
        }

    @nn.nowrap
    def activate(self, x: jax.Array) -> jax.Array:
        """Applies the activation function."""
        check_choice("activation", self.activation, ACTIVATIONS)
        return ACTIVATIONS[self.activation](x)

    @nn.nowrap
    def linear(self, features: int, name: str) -> Linear:
        """Returns a linear layer with BERT's initialization."""
        return Linear(
            features,
            kernel_init=normal(self.initializer_range),
            bias_init=constant(0.0),
            name=name,
        )

    @nn.nowrap
    def norm(self, name: str) -> LayerNorm:
        """Returns a LayerNorm with BERT's epsilon."""
        return LayerNorm(epsilon=self.layer_norm_epsilon, name=name)
