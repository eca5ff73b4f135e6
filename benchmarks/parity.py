"""Differences of the models' float32 outputs from PyTorch's, with the same weights and inputs.

    python benchmarks/parity.py

PyTorch's values were computed in float64 and are stored in tests/reference. The error is the
maximum absolute difference divided by the maximum absolute output. Writes
benchmarks/results/parity.json.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flaxdl import models
from flaxdl.layers import TransformerBlock, TransformerDecoderLayer, TransformerEncoderLayer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import reference  # noqa: E402
from helpers.parity import reference_variables  # noqa: E402

RESULTS = HERE / "results" / "parity.json"
BERT = json.loads((reference.FOLDER / "bert_small_config.json").read_text())
IMAGES = {
    "alexnet": models.AlexNet,
    **{
        f"vgg{depth}{'_bn' * batch_norm}": partial(
            getattr(models, f"VGG{depth}"), batch_norm=batch_norm
        )
        for depth in (11, 13, 16, 19)
        for batch_norm in (False, True)
    },
    **{f"resnet{depth}": getattr(models, f"ResNet{depth}") for depth in (18, 34, 50, 101, 152)},
}
SIZES = {"hidden_size": 32, "num_heads": 4, "feed_forward_size": 64}


def cases() -> Iterator[tuple[str, str, nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """Yields name of the weights, name of the stored output, module, and inputs of each case."""
    image = np.moveaxis(reference.inputs("image", (2, 3, 224, 224)), 1, -1)
    for name, kind in IMAGES.items():
        yield name, f"{name}/logits", kind(), (image,), {}
    small = np.moveaxis(reference.inputs("image", (4, 3, 32, 32)), 1, -1)
    yield "SimpleCNN", "SimpleCNN/logits_32x32", models.SimpleCNN(), (small,), {}
    rnn = models.SimpleRNN(hidden_size=16, num_classes=3)
    yield "SimpleRNN", "SimpleRNN/logits", rnn, (reference.inputs("sequence", (3, 7, 12)),), {}
    text = models.TextRNN(vocab_size=50, embedding_size=12, hidden_size=16, num_classes=4)
    tokens = reference.golden("TextRNN/token_ids").astype(np.int32)
    yield "TextRNN", "TextRNN/logits", text, (tokens,), {}
    x = reference.inputs("sequence", (2, 6, 32))
    memory = reference.inputs("memory", (2, 5, 32))
    yield "TransformerBlock", "TransformerBlock/output", TransformerBlock(**SIZES), (x,), {}
    pre = {**SIZES, "activation": "gelu", "norm_first": True}
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2], bool)[:, None, None]
    name, stored = "transformer_encoder_layer", "transformer_prenorm_gelu/encoder"
    yield name, stored, TransformerEncoderLayer(**pre), (x, mask), {}
    causal = np.tri(6, dtype=bool)[None, None]
    name, stored = "transformer_decoder_layer", "transformer_prenorm_gelu/decoder"
    yield name, stored, TransformerDecoderLayer(**pre), (x, memory, causal), {}
    tokens = reference.tokens("tokens", (2, 11), 97).astype(np.int32)
    others = {
        "token_types": np.array([[0] * 5 + [1] * 6, [0] * 11]),
        "mask": np.arange(11) < np.array([[11], [7]]),
    }
    bert = models.Bert.from_hugging_face(BERT)
    yield "bert", "bert/last_hidden_state", bert, (tokens,), others


def main() -> None:
    """Print and record the error of each model."""
    errors = {}
    for name, stored, module, inputs, others in cases():
        variables = reference_variables(module, name, np.float32, *inputs, **others)
        with jax.default_matmul_precision("highest"):
            outputs = jax.tree.leaves(jax.jit(module.apply)(variables, *inputs, **others))[0]
        golden = reference.golden(stored)
        errors[name] = float(np.abs(outputs - golden).max() / np.abs(golden).max())
        print(f"{name:<28} {errors[name]:.1e}")
    record = {"jax": jax.__version__, "platform": jax.default_backend(), "errors": errors}
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
