"""Every model of flaxdl, small where it can be, with inputs that it takes."""

import flax.linen as nn
import jax
import numpy as np

from flaxdl import models

_TRANSFORMER = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_heads": 8,
    "num_layers": 2,
    "feed_forward_size": 256,
    "max_length": 64,
    "positions": "learned",
}
_BERT = {name: value for name, value in _TRANSFORMER.items() if name != "positions"}
_RECURRENT = {"hidden_size": 64, "num_classes": 8, "cell": "lstm"}
_SIZES = {
    "Bert": _BERT,
    "BertForMaskedLM": _BERT,
    "BertForPreTraining": _BERT,
    "BertForSequenceClassification": _BERT | {"num_classes": 8},
    "CNN1d": {"num_classes": 8},
    "LinearForecaster": {"horizon": 8},
    "RNNForecaster": {"horizon": 8, "hidden_size": 64},
    "RNNLM": {"vocab_size": 128, "embedding_size": 64, "hidden_size": 64},
    "Seq2SeqRNN": {"hidden_size": 64, "vocab_size": 128, "embedding_size": 64},
    "Seq2SeqTransformer": _TRANSFORMER,
    "SimpleRNN": _RECURRENT,
    "TextRNN": _RECURRENT | {"vocab_size": 128, "embedding_size": 64},
    "TransformerClassifier": _TRANSFORMER | {"num_classes": 8},
    "TransformerLM": _TRANSFORMER,
}

CLASSES = {
    name: value
    for name, value in vars(models).items()
    if isinstance(value, type) and issubclass(value, nn.Module)
}


def small(name):
    """A model by the name of its class."""
    if issubclass(CLASSES[name], models.ResNet):
        return CLASSES[name](depths=(2, 2, 2, 2))
    return CLASSES[name](**_SIZES.get(name, {}))


def inputs_of(name):
    """Shapes of what the model takes: the inputs, and what goes in by keyword."""
    if name in ("CNN1d", "LinearForecaster", "RNNForecaster", "SimpleRNN"):
        return jax.ShapeDtypeStruct((2, 5, 12), np.float32), {}
    if name not in _SIZES:
        size = 32 if name == "LeNet5" else 224
        return jax.ShapeDtypeStruct((2, size, size, 1 if size == 32 else 3), np.float32), {}
    tokens = jax.ShapeDtypeStruct((2, 16), np.int32)
    return tokens, {"targets": tokens} if name.startswith("Seq2Seq") else {}
