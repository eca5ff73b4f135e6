"""Value of pretraining a BERT on unlabeled text, for classification with few labels.

    nice python benchmarks/pretraining.py

The task is to tell windows of 62 characters of Python's documentation from windows in which the
letters of each word are shuffled. Of ten long pages, the first 60 % are for training, the next 20 %
for validation, the rest for testing. A small BERT is pretrained once, by masked language modeling,
on the training parts and on other pages; those that share a line of text with the ten pages are
left out. Passages that the documentation repeats remain: apart from whitespace, 2.0 % of the
validation windows and 0.9 % of the test windows, before letters are shuffled, also occur in the
pretraining text. The model is then fine-tuned on few labeled windows, and compared with the same
model from random weights, trained on the same windows with the same seed.

Writes the results to benchmarks/results/pretraining.json; what is already in the file is not
measured again. The pretrained run is stored in runs/pretraining and resumed if it is incomplete.
"""

import itertools
import json
import re
import statistics
import tempfile
from datetime import date
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Literal

import numpy as np
import tyro

import flaxdl
from flaxdl import Config, Init
from flaxdl.data import Arrays, Documents, MaskedText, Text
from flaxdl.models import BertForMaskedLM, BertForSequenceClassification
from flaxdl.training import AdamW, Cosine, MaskedLanguageModeling, Selection

RESULTS = Path(__file__).parent / "results" / "pretraining.json"
PAGES = (  # the ten longest pages, without those that are a section of a longer one
    *("specialnames", "compound", "types", "formatstrings", "string-methods", "typesseq"),
    *("debugger", "typesmapping", "assignment", "comparisons"),
)
Arm = Literal["random", "pretrained"]
ARMS: tuple[Arm, ...] = ("random", "pretrained")
PRETRAINED = Path("runs/pretraining")
TRIED = (3e-4, 1e-3, 3e-3)  # learning rates
LABELED = (256, 1024)  # windows to fine-tune on
TUNING_SEEDS, SEEDS = (100,), (0, 1, 2, 3, 4)
WINDOW, HELD_OUT = 62, 800  # characters; windows for validation, and for the test
STEPS, BATCH_SIZE = 150, 32
BERT: dict[str, Any] = {
    "vocab_size": None,
    "hidden_size": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_size": 512,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "max_length": WINDOW + 2,  # with [CLS] and [SEP]
    "initializer_range": 0.1,
}


def parts(page: str) -> tuple[str, str, str]:
    """Returns the training, validation and test part of a page."""
    text = topics[page]
    first, second = round(0.6 * len(text)), round(0.8 * len(text))
    return text[:first], text[first:second], text[second:]


def pretraining_text() -> str:
    """Returns the training parts and the pages that share no line of text with the ten pages."""

    def lines(name: str) -> set[str]:
        stripped = (" ".join(line.split()) for line in topics[name].splitlines())
        return {line for line in stripped if len(line) > 40}

    known = set[str]().union(*map(lines, PAGES))
    others = [topics[name] for name in sorted(topics) if not lines(name) & known]
    return "\n\n".join([*others, *(parts(page)[0] for page in PAGES)])


def pretrain() -> dict[str, Any]:
    """Pretrains the model for 16 epochs and returns its results."""
    path = PRETRAINED.with_suffix(".txt")
    path.parent.mkdir(exist_ok=True)
    path.write_text(pretraining_text())
    config = Config(
        model=BertForMaskedLM(**BERT),
        data=Documents(str(path), window=WINDOW),
        transform=MaskedText("characters", max_length=WINDOW + 2),
        task=MaskedLanguageModeling(),
        optimizer=AdamW(
            learning_rate=3e-3, schedule=Cosine(warmup_steps=100), weight_decay=0.01, clip_norm=1.0
        ),
        batch_size=64,
        epochs=16.0,
        selection=Selection(metric="loss"),
    )
    metrics = flaxdl.train(config, PRETRAINED, report=False).metrics
    names = ("step", "loss", "accuracy")
    return {"characters": len(pretraining_text())} | {name: metrics[name] for name in names}


def labeled_windows(count: int, part: int, seed: int) -> Arrays:
    """Returns random training windows, and evenly spaced windows of another part as test split.

    The letters of every other window are shuffled (label 1).

    Args:
        count: number of training windows.
        part: part to evaluate on, 1 for validation or 2 for the test.
        seed: random seed of the training windows.
    """
    train, evaluated = ("\n\n".join(parts(page)[i] for page in PAGES) for i in (0, part))
    rng = np.random.default_rng(seed)
    starts = rng.choice(len(train) - WINDOW, count, replace=False)
    spaced = np.linspace(0, len(evaluated) - WINDOW, HELD_OUT).astype(int)
    return Arrays.from_memory(
        validation_fraction=0,
        train_inputs=_every_other_shuffled(train, starts, rng),
        train_label=np.arange(count) % 2,
        test_inputs=_every_other_shuffled(evaluated, spaced, np.random.default_rng(part)),
        test_label=np.arange(HELD_OUT) % 2,
    )


def _every_other_shuffled(text: str, starts: np.ndarray, rng: np.random.Generator) -> list[str]:
    windows = [text[start : start + WINDOW] for start in starts]
    windows[1::2] = [
        re.sub("[A-Za-z]+", lambda word: "".join(rng.permutation(list(word[0]))), window)
        for window in windows[1::2]
    ]
    return windows


def accuracy(arm: Arm, count: int, rate: float, *, part: int, seed: int) -> float:
    """Fine-tunes a classifier and returns its accuracy on windows of the given part."""
    weights = {
        "random": Init(),
        "pretrained": Init(weights=str(PRETRAINED), omit=("bert.pooler.*", "classifier.*")),
    }
    epochs = STEPS * BATCH_SIZE / count
    config = Config(
        model=BertForSequenceClassification(num_classes=2, **BERT),
        data=labeled_windows(count, part, seed),
        # Both arms use the vocabulary of the pretraining text.
        transform=Text(str(PRETRAINED / "tokenizer.json"), max_length=WINDOW + 2),
        init=weights[arm],
        optimizer=AdamW(
            learning_rate=rate, schedule=Cosine(warmup_steps=20), weight_decay=0.01, clip_norm=1.0
        ),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        evaluate_every=epochs,  # no checkpoints in between
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as workdir:
        return flaxdl.train(config, workdir, report=False).metrics["accuracy"]


def best_rate(found: dict[str, Any], arm: Arm, count: int) -> float:
    """Returns the learning rate with the highest mean accuracy on validation windows."""
    tuned = found[f"{arm}, {count}"]
    return max(TRIED, key=lambda rate: statistics.mean(tuned[f"{rate:g}"].values()))


def main(to: Path = RESULTS) -> None:
    """Pretrain, choose the learning rates on validation windows, and measure on test windows.

    Args:
        to: Results file.
    """
    results: dict[str, Any] = {"tuning": {}, "test": {}}
    if to.exists():
        results = json.loads(to.read_text())
    results["pretraining"] = pretrain()

    def measure(kind: str, arm: Arm, count: int, rates: tuple[float, ...], seeds: Any) -> None:
        for seed, rate in itertools.product(seeds, rates):
            cell = results[kind].setdefault(f"{arm}, {count}", {}).setdefault(f"{rate:g}", {})
            if str(seed) not in cell:
                part = 1 if kind == "tuning" else 2
                cell[str(seed)] = round(accuracy(arm, count, rate, part=part, seed=seed), 4)
                print(kind, arm, count, rate, seed, cell[str(seed)], flush=True)
                results["date"] = date.today().isoformat()
                to.write_text(json.dumps(results, indent=1) + "\n")

    for count, arm in itertools.product(LABELED, ARMS):
        measure("tuning", arm, count, TRIED, TUNING_SEEDS)
        measure("test", arm, count, (best_rate(results["tuning"], arm, count),), SEEDS)


if __name__ == "__main__":
    tyro.cli(main)
