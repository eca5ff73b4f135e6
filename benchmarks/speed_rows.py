"""Rows of `speed.py`: a network with its batch and optimizer, in flaxdl and in PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One comparison; `ours` and `pytorch` create the network, given its dropout rate."""

    shape: tuple[int, ...]
    """Shape of the inputs, batch first: channels-last images, vector sequences, or token ids."""
    gpu_batch: int
    """Batch size on a GPU."""
    classes: int
    ours: Callable[[float], Any]
    pytorch: Callable[[float], Any]
    dropout: float = 0.0
    vocabulary: int | None = None
    """Vocabulary size if the inputs are token ids, else None."""
    optimizer: str = "adamw"

    @property
    def is_image(self) -> bool:
        """True if the inputs are images."""
        return len(self.shape) == 4

    def batch(self, size: int | None = None) -> dict[str, np.ndarray]:
        """Returns a batch of random numbers, the same in every process."""
        rng = np.random.default_rng(0)
        shape = (size or self.shape[0], *self.shape[1:])
        inputs = (
            rng.standard_normal(shape, np.float32)
            if self.vocabulary is None
            else rng.integers(1, self.vocabulary, shape).astype(np.int32)
        )
        return {
            "inputs": inputs,
            "label": rng.integers(0, self.classes, shape[0]).astype(np.int32),
            "weight": np.ones(shape[0], np.float32),
        }


def _ours(name: str, has_dropout: bool = False, **options: Any) -> Callable[[float], Any]:
    def make(dropout: float) -> Any:
        from flaxdl import models

        return getattr(models, name)(**options, **({"dropout": dropout} if has_dropout else {}))

    return make


def _bert(dropout: float) -> Any:
    from flaxdl.models import BertForSequenceClassification

    return BertForSequenceClassification(num_classes=2, dropout=dropout, attention_dropout=dropout)


def _encoder(dropout: float) -> Any:
    import torch
    from pytorch_networks import EncoderClassifier

    from flaxdl.layers import sinusoidal_positions

    positions = torch.tensor(sinusoidal_positions(512, 512), dtype=torch.float32)
    return EncoderClassifier(positions, dropout)


def _pytorch(name: str, *arguments: Any, has_dropout: bool = False) -> Callable[[float], Any]:
    def make(dropout: float) -> Any:
        import pytorch_networks

        values = (*arguments, dropout) if has_dropout else arguments
        return getattr(pytorch_networks, name)(*values)

    return make


def _simple_cnn(size: int, channels: int) -> Row:
    return Row(
        (128, size, size, channels),
        2048,
        10,
        _ours("SimpleCNN", has_dropout=True),
        _pytorch("simple_cnn", channels, has_dropout=True),
        dropout=0.5,
    )


def _recurrent(cell: str) -> Row:
    return Row(
        (32, 100, 128),
        512,
        10,
        _ours("SimpleRNN", hidden_size=256, num_classes=10, cell=cell),
        _pytorch("SimpleRNN", cell),
    )


_IMAGENET = {"classes": 1000, "optimizer": "sgd"}

ROWS: dict[str, Row] = {
    "simple_cnn_32": _simple_cnn(32, 3),
    "simple_cnn_8": _simple_cnn(8, 1),
    "lenet": Row((128, 32, 32, 1), 2048, 10, _ours("LeNet5"), _pytorch("LeNet5")),
    "alexnet": Row(
        (32, 224, 224, 3),
        1024,
        ours=_ours("AlexNet", has_dropout=True),
        pytorch=_pytorch("alexnet", has_dropout=True),
        dropout=0.5,
        **_IMAGENET,
    ),
    "vgg11": Row(
        (4, 224, 224, 3),
        256,
        ours=_ours("VGG11", has_dropout=True),
        pytorch=_pytorch("vgg11", has_dropout=True),
        dropout=0.5,
        **_IMAGENET,
    ),
    "resnet18": Row(
        (8, 224, 224, 3),
        512,
        ours=_ours("ResNet18"),
        pytorch=_pytorch("ResNet", (2, 2, 2, 2), False),
        **_IMAGENET,
    ),
    "resnet50": Row(
        (8, 224, 224, 3),
        256,
        ours=_ours("ResNet50"),
        pytorch=_pytorch("ResNet", (3, 4, 6, 3), True),
        **_IMAGENET,
    ),
    "rnn": _recurrent("rnn"),
    "lstm": _recurrent("lstm"),
    "gru": _recurrent("gru"),
    "text_rnn": Row(
        (32, 100),
        512,
        10,
        _ours("TextRNN", vocab_size=10_000, embedding_size=128, hidden_size=256, num_classes=10),
        _pytorch("TextRNN"),
        vocabulary=10_000,
    ),
    "encoder": Row(
        (8, 128),
        256,
        10,
        _ours("TransformerClassifier", has_dropout=True, vocab_size=10_000, num_classes=10),
        _encoder,
        dropout=0.1,
        vocabulary=10_000,
    ),
    "bert_base": Row(
        (4, 128),
        256,
        2,
        _bert,
        _pytorch("Bert", has_dropout=True),
        dropout=0.1,
        vocabulary=30522,
    ),
}
