"""Makes the pictures of the README and of docs/ again, in a few minutes on two idle CPU cores.

pip install -e '.[test]'
python docs/images.py

It trains `configs/digits_cnn.py`, `digits_lenet.py` and a small CNN on the embedded letters, in a
temporary folder or in the one that is given, and needs Chromium for screenshots. It writes to
docs/images:

four.png        a four of the digits' test split, the input of `predict` in the README
training.svg    `python train.py --config configs/digits_cnn.py` in a terminal
report.png      the report of that run, as Chromium shows it
comparison.png  the comparison with a run of `configs/digits_lenet.py`
saliency.png    saliency of the CNN for a letter of 32x32 pixels
grad_cam.png    Grad-CAM of its second convolution for the same letter
bottleneck.svg  the results of benchmarks/bottleneck.py, drawn alone with --bottleneck
sounds.svg      the results of benchmarks/sounds.py, drawn alone with --sounds
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from flaxdl.data import Dataset

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "images"
IMAGES = (
    "four.png",
    "training.svg",
    "report.png",
    "comparison.png",
    "saliency.png",
    "grad_cam.png",
    "bottleneck.svg",
    "sounds.svg",
)
_FOUR = 3  # index of a four in the test split that looks like one
_COLUMNS = 120
_LAST_STEP = 1000  # of the run in the terminal
_LETTER = "R"


def write(folder: Path, place: Path) -> None:
    """Writes all pictures to a folder.

    Args:
        folder: folder of the pictures.
        place: folder in which the runs are trained, as in a clone of the repository, so that
            reports show the command of the README; finished runs are not trained again.
    """
    place.mkdir(parents=True, exist_ok=True)
    for name in ("train.py", "configs"):
        if not (place / name).exists():
            (place / name).symlink_to(ROOT / name)
    output = _train("digits_cnn", place)
    _train("digits_lenet", place)
    runs = place / "runs"
    draw_four(folder / "four.png")
    draw_terminal(output, runs / "digits_cnn", folder / "training.svg")
    _run(place, "-m", "flaxdl", "report", "--workdir", "runs/digits_cnn")
    photograph(runs / "digits_cnn" / "report.html", folder / "report.png", height=1400)
    _run(place, "-m", "flaxdl", "report", "--to", "compared.html", "--workdir", "runs/digits_cnn",
         "runs/digits_lenet")  # fmt: skip
    photograph(place / "compared.html", folder / "comparison.png", height=1250)
    draw_letter(runs, folder)
    draw_bottleneck(folder / "bottleneck.svg")
    draw_sounds(folder / "sounds.svg")


def _train(name: str, place: Path) -> str:
    """Trains a config and returns the output of its run."""
    output = place / f"{name}.txt"
    if not output.exists():
        output.write_text(_run(place, "train.py", "--config", f"configs/{name}.py"))
    return output.read_text()


def _run(place: Path, *arguments: str) -> str:
    environment = os.environ | {"COLUMNS": str(_COLUMNS)}
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return finished.stdout


def draw_four(path: Path) -> None:
    """Draws a digit of the test split, enlarged from 8x8 to 128x128 pixels."""
    from PIL import Image

    from flaxdl.data import Tfds

    test = Tfds("digits").load(seed=0).test
    assert test is not None
    arrays = test.gather(_indices_of(test, 4)[_FOUR : _FOUR + 1])
    Image.fromarray(arrays["inputs"][0, ..., 0]).resize((128, 128), Image.Resampling.BICUBIC).save(
        path, optimize=True
    )


def _indices_of(dataset: "Dataset", label: int) -> np.ndarray:
    """Returns the indices of the examples of a class."""
    return np.flatnonzero(dataset.arrays()["label"] == label)


def draw_terminal(output: str, workdir: Path, path: Path) -> None:
    """Draws the output of a run as a terminal shows it while the run is under way.

    Args:
        output: plain lines of the whole run.
        workdir: folder of the run, with its metrics.
        path: SVG file to write.
    """
    import io

    from rich.console import Console

    from flaxdl.training.writers.console import ConsoleWriter
    from flaxdl.training.writers.metrics_file import MetricsFile

    lines = output.splitlines()
    validated = [number for number, line in enumerate(lines) if "  validation  " in line]
    end = next(n for n in validated if int(lines[n].split()[1].split("/")[0]) == _LAST_STEP)
    # On a terminal, a line of training is printed only before a line of validation.
    steps = [number for number, line in enumerate(lines[: end + 1]) if line.startswith("step ")]
    printed = [*range(steps[0]), *(n for n in steps if n in validated or n + 1 in validated)]

    screen = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    screen.print(f"$ python train.py --config configs/{workdir.name}.py", highlight=False)
    for number in printed:
        screen.print(lines[number], highlight=False, markup=False, soft_wrap=False)
    live = Console(width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    total = int(lines[end].split()[1].split("/")[1])
    facts = json.loads((workdir / "config.json").read_text())["data"]
    writer = ConsoleWriter(
        live,
        total_steps=total,
        steps_per_epoch=facts["steps_per_epoch"],
        has_validation=True,
    )
    times = json.loads((workdir / "times.json").read_text())["seconds"]
    now = 0.0  # of a clock that tells the bar how long steps took
    writer._progress.get_time = writer._progress.tasks[0]._get_time = lambda: now
    for line in MetricsFile(workdir / "metrics.jsonl", writes=False).of_split("train"):
        now = line["step"] / total * times["training"]
        writer.progress(line["step"])
        writer.line(line)
        if line["step"] > _LAST_STEP:
            break
    for line in writer._progress.get_renderables():
        screen.print(line)
    writer.close()
    path.write_text(screen.export_svg(title="python train.py"), encoding="utf-8")


def photograph(page: Path, path: Path, *, height: int) -> None:
    """Takes a screenshot of the upper part of a page, 1280 pixels wide."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("Chromium is needed for the screenshots of reports")
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            f"--window-size=1280,{height}",
            f"--screenshot={path}",
            page.as_uri(),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )


def draw_letter(runs: Path, folder: Path) -> None:
    """Draws saliency and Grad-CAM of a CNN for a letter, after three epochs of training."""
    from PIL import Image

    import flaxdl
    from flaxdl import Config
    from flaxdl.data import Images, Tfds
    from flaxdl.models import SimpleCNN
    from flaxdl.training import AdamW, Cosine

    config = Config(
        model=SimpleCNN(num_classes=62, dropout=0.1),
        data=Tfds("glyphs"),
        transform=Images(mean=(0.5,), std=(0.3,), crop_padding=2),
        optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup_steps=200), clip_norm=1.0),
        batch_size=64,
        epochs=3,
    )
    run = runs / "glyphs"
    result = flaxdl.train(config, run, report=False)
    test = config.data.load(config.seed).test
    assert test is not None
    letter = (result.run.classes or ()).index(_LETTER)
    index = _indices_of(test, letter)[0]
    picture = runs / "letter.png"
    Image.fromarray(test.gather(np.array([index]))["inputs"][0]).save(picture)
    for name, what, layer in (
        ("saliency.png", "saliency", None),
        ("grad_cam.png", "grad-cam", "features.3"),
    ):
        figure = flaxdl.visualize(run, str(picture), what, layer=layer)
        figure.savefig(folder / name, format="png")


def draw_bottleneck(path: Path) -> None:
    """Draws exact match by length: a panel for each kind of model, a line for each vector size."""
    import matplotlib
    from matplotlib.figure import Figure

    results = json.loads((ROOT / "benchmarks" / "results" / "bottleneck.json").read_text())
    titles = {
        "none": "GRU without attention",
        "dot": "GRU with attention",
        "transformer": "Transformer",
    }
    figure = Figure(figsize=(8.5, 2.9), layout="constrained")
    panels = figure.subplots(1, len(titles), sharey=True)
    for panel, (kind, title) in zip(panels, titles.items(), strict=True):
        for size, one in sorted(results["models"][kind].items(), key=lambda item: int(item[0])):
            groups = [[int(end) for end in group.split("-")] for group in one["exact_match"]]
            middles = [(first + last) / 2 for first, last in groups]
            percent = [100 * value for value in one["exact_match"].values()]
            panel.plot(middles, percent, "o-", label=size, markersize=3)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("length of the string")
        panel.set_ylim(-3, 103)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("exact match (%)")
    panels[0].legend(title="vector size")
    with matplotlib.rc_context({"svg.hashsalt": "bottleneck"}):  # the same file each time
        figure.savefig(path, metadata={"Date": None})


def draw_sounds(path: Path) -> None:
    """Draws accuracy by signal-to-noise ratio: a line for each config, and the range over seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    results = json.loads((ROOT / "benchmarks" / "results" / "sounds.json").read_text())
    titles = {
        "sounds_cnn": "log-mel spectrograms, SimpleCNN",
        "sounds_cnn1d": "waveforms, CNN1d",
    }
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name, title in titles.items():
        runs = [run["by_snr"] for run in results["configs"][name].values()]
        percent = 100 * np.array([list(run.values()) for run in runs])  # [seeds, groups]
        middles = [np.mean([int(end) for end in group.split("-")]) for group in runs[0]]
        (line,) = axes.plot(middles, percent.mean(axis=0), "o-", label=title, markersize=4)
        axes.fill_between(
            middles, percent.min(axis=0), percent.max(axis=0), color=line.get_color(), alpha=0.2
        )
    axes.set_xlabel("signal-to-noise ratio (dB)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with matplotlib.rc_context({"svg.hashsalt": "sounds"}):  # the same file each time
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    results = {"--bottleneck": draw_bottleneck, "--sounds": draw_sounds}
    if len(sys.argv) == 2 and sys.argv[1] in results:
        drawn = FOLDER / f"{sys.argv[1].removeprefix('--')}.svg"
        results[sys.argv[1]](drawn)
        print(f"wrote {drawn.name}")
        sys.exit()
    if len(sys.argv) > 1:
        write(FOLDER, Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            write(FOLDER, Path(place))
    print(f"wrote {', '.join(IMAGES)} to {FOLDER}")
