"""Makes the runs in tests/earlier_runs/1a4c004: four small workdirs as commit 1a4c004 wrote them.

Run on 2026-11-29 with jax 0.10.2 on one CPU device, in an environment into which that commit is
installed (and no later one), from outside the clone:

    git clone . /srv/clone && git -C /srv/clone checkout 1a4c004
    python3.11 -m venv /srv/venv && /srv/venv/bin/pip install -e /srv/clone jax==0.10.2
    /srv/venv/bin/python tests/earlier_runs/make.py /srv/flaxdl/1a4c004

Orbax writes the absolute path of each checkpoint into its commit_success.txt, hence the neutral
place; the folder was copied here afterward. Each run NAME of configs/ leaves two things in it:

- NAME/: its workdir. Two runs are finished; the other two were stopped by SIGTERM, between two
  checkpoints that were due.
- NAME.json: the fingerprint of each array of each checkpoint; the metrics of the whole run without
  an interruption; and the probabilities that the best checkpoint in NAME/ gives for some inputs.

The data are made as well, in data/. Config files and data are versioned with the runs: later
versions of flaxdl resume them, see tests/test_earlier_runs.py. Do not make these runs again with a
later version; add a folder named after its commit.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
from checkpoint_arrays import fingerprints, read_arrays
from PIL import Image

HERE = Path(__file__).resolve().parent

# The step at which SIGTERM arrives (None for runs that finish), and inputs for predictions.
RUNS = {
    "digits_cnn": (None, ["data/predict/3.png", "data/predict/5.png", "data/predict/8.png"]),
    "narrow_resnet": (22, ["data/predict/bottom.png", "data/predict/top.png"]),
    "image_folder": (21, ["data/patterns/checked/00.png", "data/patterns/vertical/07.png"]),
    "text_table": (None, ["where is the old key", "Close the door", "my dog found a red ball"]),
}


class Stop:
    """A metrics writer that sends SIGTERM to its own process when a step starts."""

    def __init__(self, step):
        self.step = step

    def progress(self, step):
        """Sends the signal if this is the step."""
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def line(self, line):
        """Ignores the metrics."""

    def finish(self, run):
        """Ignores the end."""

    def close(self):
        """Has nothing to close."""


def main():
    """Makes the data and all runs."""
    parser = argparse.ArgumentParser(description="Make the runs of commit 1a4c004.")
    parser.add_argument("out", type=Path, help="folder for the runs, which must not exist")
    out = parser.parse_args().out.absolute()
    out.mkdir(parents=True)
    os.chdir(HERE)
    make_data()
    for name, (step, items) in RUNS.items():
        make_run(name, step, items, out)


def make_run(name, step, items, out):
    """Trains, stops at `step` if there is one, and writes what tests expect."""
    import flaxdl
    from flaxdl.training import Interrupted

    config, workdir = flaxdl.load_config(f"configs/{name}.py"), out / name
    try:
        flaxdl.train(config, workdir, writers=[Stop(step)])
    except Interrupted as stopped:
        print(stopped)
    with tempfile.TemporaryDirectory() as finished:
        flaxdl.train(config, finished, report=False)
        lines = (Path(finished) / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    for line in metrics:
        line.pop("examples_per_second", None)
    predictions = flaxdl.predict(workdir, items, config=config)
    checkpoints = sorted((workdir / "checkpoints").iterdir())
    expected = {
        "arrays": {folder.name: fingerprints(read_arrays(folder)) for folder in checkpoints},
        "metrics": metrics,
        "predictions": {one.item: one.probabilities for one in predictions},
    }
    (out / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")
    shutil.rmtree(workdir / "events")
    (workdir / "report.html").unlink(missing_ok=True)
    (workdir / ".lock").unlink(missing_ok=True)


def make_data():
    """Writes what the runs read, and images to classify."""
    shutil.rmtree("data", ignore_errors=True)
    Path("data/predict").mkdir(parents=True)
    _digits(Path("data/predict"))
    _bands(Path("data/bands.npz"), Path("data/predict"))
    _patterns(Path("data/patterns"))
    _sentences(Path("data/sentences.csv"))


def _digits(folder):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for digit in (3, 5, 8):
        image = images[np.flatnonzero(labels == digit)[-1]].reshape(8, 8)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / f"{digit}.png")


def _bands(file, folder):
    """Noisy images [8, 8, 1] with a bright band of two rows; its height is the class."""
    rng = np.random.default_rng(0)
    names, rows = ("top", "middle", "bottom"), (0, 3, 6)

    def draw(count):
        labels = (np.arange(count) % 3).astype(np.int32)
        images = 16 * rng.integers(0, 8, (count, 8, 8, 1), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[rows[label] :][:2] += 80
        return images, labels

    arrays = {}
    for split, count in (("train", 108), ("test", 33)):
        arrays[f"{split}_inputs"], arrays[f"{split}_label"] = draw(count)
    np.savez_compressed(file, classes=np.array(names), **arrays)
    for image, label in zip(*draw(3), strict=True):
        Image.fromarray(image[..., 0]).save(folder / f"{names[label]}.png")


def _patterns(folder):
    """Noisy color images of different sizes; the folders are not made in alphabetical order."""
    rng = np.random.default_rng(1)
    for name in ("vertical", "checked", "horizontal"):
        (folder / name).mkdir(parents=True)
        for number in range(15):
            height, width = rng.integers(9, 13, 2)
            y, x = np.mgrid[:height, :width] // 3
            on = {"vertical": x, "checked": x + y, "horizontal": y}[name] % 2 == 1
            color = rng.integers(80, 220, 3)
            image = 8 * rng.integers(0, 5, (height, width, 1)) + on[..., None] * color
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{number:02d}.png")


def _sentences(file):
    rng = random.Random(2)
    things = ("key", "door", "ball", "book", "lamp", "dog")
    kinds = {
        "question": (("where is", "who has", "did you find"), "?"),
        "command": (("close", "bring me", "please take"), "!"),
        "statement": (("I found", "we lost", "she has seen"), "."),
    }
    with file.open("w", newline="") as opened:
        rows = csv.writer(opened, lineterminator="\n")
        rows.writerow(["sentence", "kind"])
        for number in range(96):
            kind = list(kinds)[number % 3]
            starts, end = kinds[kind]
            words = [rng.choice(starts), rng.choice(("the", "a", "my"))]
            words += rng.sample(("old", "red", "big", "new"), rng.randrange(3))
            words += [rng.choice(things)]
            if rng.random() < 0.3:
                words += ["in the", rng.choice(("house", "garden"))]
            rows.writerow([" ".join(words) + rng.choice(("", end)), kind])


if __name__ == "__main__":
    main()
