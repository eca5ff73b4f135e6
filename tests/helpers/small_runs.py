"""Configs of runs that take a second, on images that can be learnt; and how they are stopped."""

import os

import numpy as np

import flaxdl
from flaxdl import Config
from flaxdl.data import Arrays, Images
from flaxdl.models import SimpleCNN
from flaxdl.training import AdamW, Cosine
from flaxdl.training.writers.console import ConsoleWriter


def bright_quadrants(count, seed, size=8):
    """uint8 images with one bright quarter; which one is the label."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (count, size, size, 1), dtype=np.uint8)
    labels = rng.integers(0, 4, count).astype(np.int32)
    half = size // 2
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[row * half :, column * half :][:half, :half] += 100
    return images, labels


def quadrant_source(train=80, test=37):
    """A source of such images; 37 test examples divide by no number of devices."""
    train_inputs, train_label = bright_quadrants(train, 0)
    test_inputs, test_label = bright_quadrants(test, 1)
    return Arrays.from_memory(
        train_inputs=train_inputs,
        train_label=train_label,
        test_inputs=test_inputs,
        test_label=test_label,
    )


def small_config(**changes):
    """A run of 18 steps with dropout, augmentation, clipping and a schedule."""
    settings = {
        "model": SimpleCNN(num_classes=4),
        "data": quadrant_source(),
        "transform": Images(crop_padding=1, rotation=5.0),
        "optimizer": AdamW(learning_rate=2e-3, schedule=Cosine(), clip_norm=1.0),
        "batch_size": 16,
        "epochs": 4.5,
        "evaluate_every": 1.25,
        "log_every": 3,
    }
    return Config(**(settings | changes))


def train(config, workdir, **settings):
    """Trains without the report at the end, which has its own tests."""
    return flaxdl.train(config, workdir, report=False, **settings)


def interrupt_at(monkeypatch, step, number):
    """Sends the process a signal when the loop starts the given step."""
    progress = ConsoleWriter.progress

    def with_signal(self, at):
        progress(self, at)
        if at == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(ConsoleWriter, "progress", with_signal)
