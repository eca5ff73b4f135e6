"""Measures how a vector of fixed size limits an encoder-decoder, by reversing strings.

    nice python benchmarks/bottleneck.py; python docs/images.py --bottleneck

Trains a recurrent encoder-decoder without attention, one with attention, and a Transformer, for
vectors of 16, 64 and 256 features, on strings of 5 to 40 random letters. Without attention, the
decoder only gets one vector of this size. Writes the exact match on test strings by length to
benchmarks/results/bottleneck.json. A model that is already in the file is not trained again.
"""

import json
import tempfile
import time
from datetime import date
from pathlib import Path

import flax.linen as nn
import tyro

import flaxdl
from flaxdl import Config
from flaxdl.data import ReversedStrings, TextPairs
from flaxdl.models import Seq2SeqRNN, Seq2SeqTransformer
from flaxdl.runs.prediction import predict_with_run
from flaxdl.training import AdamW, Cosine, Selection, SequenceToSequence

RESULTS = Path(__file__).parent / "results" / "bottleneck.json"
LEARNING_RATES = {16: 1e-2, 64: 5e-3, 256: 2e-3}
KINDS = ("none", "dot", "transformer")
WIDTH = 4  # lengths of a group in the results
BATCH_SIZE = 64


def make_model(kind: str, size: int) -> nn.Module:
    """Returns a model with vectors of `size` features."""
    if kind == "transformer":
        return Seq2SeqTransformer(
            vocab_size=None,
            hidden_size=size,
            num_heads=4,
            num_layers=2,
            feed_forward_size=2 * size,
            dropout=0.0,
            norm_first=True,
            positions="learned",
            max_length=41,
        )
    attention = None if kind == "none" else "dot"
    return Seq2SeqRNN(
        vocab_size=None, embedding_size=32, hidden_size=size, cell="gru", attention=attention
    )


def measure(kind: str, size: int, steps: int) -> dict[str, object]:
    """Trains a model and returns its exact match by length."""
    strings = 64_000
    config = Config(
        model=make_model(kind, size),
        data=ReversedStrings(train=strings, test=1800, validation_fraction=0.01),
        transform=TextPairs(max_length=40, max_target_length=41),
        task=SequenceToSequence(),
        optimizer=AdamW(
            learning_rate=LEARNING_RATES[size], schedule=Cosine(warmup_steps=100), clip_norm=1.0
        ),
        batch_size=BATCH_SIZE,
        epochs=steps * BATCH_SIZE / (0.99 * strings),
        log_every=100,
        selection=Selection(metric="exact_match"),
    )
    start = time.process_time()
    with tempfile.TemporaryDirectory() as workdir:
        result = flaxdl.train(config, workdir, report=False)
        test = config.data.load(config.seed).test
        assert test is not None
        pairs = test.arrays()
        generated = predict_with_run(result.run, list(pairs["inputs"]))
    groups: dict[str, list[bool]] = {}
    for text, expected, one in zip(pairs["inputs"], pairs["label"], generated, strict=True):
        first = 5 + WIDTH * ((len(text) - 5) // WIDTH)
        groups.setdefault(f"{first}-{first + WIDTH - 1}", []).append(one.text == expected)
    by_length = sorted(groups.items(), key=lambda item: int(item[0].partition("-")[0]))
    return {
        "exact_match": {group: round(sum(r) / len(r), 4) for group, r in by_length},
        "steps": result.metrics["step"],
        "processor_seconds": round(time.process_time() - start),
    }


def main(
    kinds: tuple[str, ...] = KINDS,
    sizes: tuple[int, ...] = tuple(LEARNING_RATES),
    steps: int = 2000,
    to: Path = RESULTS,
) -> None:
    """Measure and store the exact match by length.

    Args:
        kinds: Models to train: none (no attention), dot (dot-product attention), transformer.
        sizes: Vector sizes.
        steps: Training steps, with batches of 64 strings.
        to: Results file.
    """
    results = json.loads(to.read_text()) if to.exists() else {"models": {}}
    for size in sizes:
        for kind in kinds:
            stored = results["models"].setdefault(kind, {})
            if str(size) not in stored:
                stored[str(size)] = measure(kind, size, steps)
                print(kind, size, stored[str(size)], flush=True)
                results["date"] = date.today().isoformat()
                to.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
