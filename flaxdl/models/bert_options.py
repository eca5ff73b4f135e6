"""The options of BERT, and how they are read from a Hugging Face configuration."""

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

# The names of Hugging Face's BertConfig, and ours.
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
    """The options that all parts of BERT carry, with the values of bert-base-uncased."""

    vocab_size: int | None = 30522
    """Number of tokens; None takes it from the data of a run."""
    hidden_size: int = 768
    """Features of every token."""
    num_layers: int = 12
    """Layers of the encoder."""
    num_heads: int = 12
    """Heads of each attention."""
    feed_forward_size: int = 3072
    """Features between the two linear maps of a layer."""
    activation: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    """What lies between them: `gelu` is the exact one, `gelu_new` its approximation by tanh."""
    dropout: float = 0.1
    """Share of embeddings, and of what each sublayer adds, that is zeroed in training."""
    attention_dropout: float = 0.1
    """Share of attention weights that is zeroed in training."""
    max_length: int = 512
    """Number of positions, so the longest sequence."""
    type_vocab_size: int = 2
    """Number of token types: first and second sentence."""
    layer_norm_epsilon: float = 1e-12
    """Added to the variance in each LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    padding_index: int | None = 0
    """The token whose embedding is not trained."""
    remat: bool = False
    """Whether layers keep only their input for the backward pass, and are computed anew there."""

    # What else may stand in a configuration and change numbers, with the values that are supported.
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
    # Patterns over keys of checkpoints: parts of pretraining that this class does without.
    ignored_keys: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> Self:
        """Returns the model that a `config.json` of Hugging Face describes.

        Options that are missing have the defaults of Hugging Face's `BertConfig`. Options that do
        not change numbers, such as `chunk_size_feed_forward` or `output_attentions`, are passed
        over.

        Raises:
            UserError: naming every option that asks for something that is not supported.
        """
        refused = [
            f"{option} must be {' or '.join(map(repr, allowed))}, got {config[option]!r}"
            for option, allowed in cls.supported.items()
            if option in config and config[option] not in allowed
        ]
        if refused:
            raise UserError("this BERT is not supported: " + "; ".join(refused))
        return cls(**cls.read(config))

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of this class that the configuration has a value for."""
        return {ours: config[theirs] for theirs, ours in FIELDS.items() if theirs in config}

    @nn.nowrap
    def to_hugging_face(self) -> dict[str, Any]:
        """Returns the `config.json` of Hugging Face that describes this model.

        The inverse of `from_hugging_face`, with every option written out.
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
        """Applies the activation."""
        check_choice("activation", self.activation, ACTIVATIONS)
        return ACTIVATIONS[self.activation](x)

    @nn.nowrap
    def linear(self, features: int, name: str) -> Linear:
        """Returns a linear map with BERT's initial weights."""
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
