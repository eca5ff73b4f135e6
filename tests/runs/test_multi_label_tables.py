"""Multi-label runs from a table of images and a table of texts, from the data to predictions."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

import flaxdl
from flaxdl import Config
from flaxdl.cli import main
from flaxdl.data import Images, ImageTable, Text, TextTable
from flaxdl.models import SimpleCNN, TextRNN
from flaxdl.training import AdamW, MultiLabelClassification, Selection

COLORS = ("red", "green", "blue")
WORDS = {
    "comedy": ["funny", "laughs", "jokes"],
    "romance": ["love", "kiss", "heart"],
    "war": ["battle", "soldiers", "front"],
}


def write_photo(path, cast, rng):
    """Writes a photo of noise of random brightness, with a color cast."""
    photo = rng.integers(0, 60, (8, 8, 3)) + rng.uniform(0, 60) + np.array(cast)
    Image.fromarray(photo.astype(np.uint8)).save(path)


def photo_table(folder):
    """200 photos, and a table with a column of 0, 1 or nothing for each color."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(200):
        is_color = rng.random(3) < 0.4
        write_photo(folder / f"{number}.png", rng.uniform(20, 110, 3) * is_color, rng)
        cells = ["" if rng.random() < 0.05 else int(color) for color in is_color]
        rows.append([f"{number}.png", *cells])
    with (folder / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["photo", *COLORS], *rows])
    return ImageTable(str(folder / "photos.csv"), image="photo", targets=COLORS)


def film_table(folder):
    """200 plots of five words, and their genres in one column."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(200):
        genres = [name for name in WORDS if rng.random() < 0.4]
        words = [str(rng.choice(WORDS[name])) for name in genres]
        words += [str(word) for word in rng.choice(["a", "film", "story", "man"], 7 - len(words))]
        genres = [name for name in genres if rng.random() > 0.1]  # so that there are mistakes
        rows.append([" ".join(rng.permutation(words)), "|".join(genres)])
    with (folder / "films.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["plot", "genres"], *rows])
    return TextTable(str(folder / "films.csv"), text="plot", label="genres", label_separator="|")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    config = Config(
        model=SimpleCNN(num_classes=None),
        data=photo_table(folder),
        transform=Images(size=8),
        task=MultiLabelClassification(pos_weight="balanced", extra_metrics=("macro_f1",)),
        optimizer=AdamW(learning_rate=3e-3),
        batch_size=16,
        epochs=6,
        selection=Selection(metric="macro_f1"),
    )
    return config, folder / "run", flaxdl.train(config, folder / "run")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    config = Config(
        model=TextRNN(vocab_size=None, num_classes=None, embedding_size=16, hidden_size=16),
        data=film_table(folder),
        transform=Text("words", max_length=8),
        task=MultiLabelClassification(extra_metrics=("f1/war", "micro_f1")),
        optimizer=AdamW(learning_rate=2e-2),
        batch_size=16,
        epochs=8,
    )
    return config, folder / "run", flaxdl.train(config, folder / "run")


def words(page):
    page = re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", page)


def test_a_table_of_photos(photos, capsys):
    _, workdir, result = photos
    assert result.metrics["split"] == "test"
    assert result.metrics["macro_f1"] > 0.8
    assert result.run.classes == COLORS
    rng = np.random.default_rng(5)
    colors = {"red": [110, 0, 0], "none": [0, 0, 0], "two": [0, 110, 110]}
    for name, cast in colors.items():
        write_photo(workdir.parent / f"{name}.png", cast, rng)
    items = [str(workdir.parent / f"{name}.png") for name in colors]
    red, none, two = flaxdl.predict(workdir, items)
    assert (red.labels, none.labels, set(two.labels)) == (("red",), (), {"green", "blue"})

    main(["predict", "--workdir", str(workdir), *items])
    shown = capsys.readouterr().out
    assert f"red {red.probabilities['red']:.1%}" in shown
    assert "below threshold" in shown
    assert "none" in shown
    main(["predict", "--workdir", str(workdir), "--json", items[0]])
    record = json.loads(capsys.readouterr().out)
    assert record["labels"] == ["red"]
    assert record["probabilities"] == pytest.approx(red.probabilities, rel=1e-4)
    table = workdir.parent / "found.csv"
    main(["predict", "--workdir", str(workdir), "--to", str(table), *items])
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["labels"] for row in rows] == ["red", "", "|".join(two.labels)]
    main(["evaluate", "--workdir", str(workdir)])
    assert f"{result.metrics['macro_f1']:.4f}" in capsys.readouterr().out


def test_a_table_of_texts(films):
    config, workdir, result = films
    assert result.metrics["micro_f1"] > 0.8
    assert result.metrics["f1/war"] > 0.7
    plots = ["a man soldiers love", "story jokes battle film"]
    both, other = flaxdl.predict(workdir, plots, config=config)
    assert set(both.labels) == {"war", "romance"}
    assert set(other.labels) == {"war", "comedy"}


@pytest.mark.parametrize("fixture", ["photos", "films"])
def test_the_report_has_scores_and_mistakes_by_class(fixture, request):
    _, workdir, result = request.getfixturevalue(fixture)
    page = (workdir / "report.html").read_text()
    text = words(page)
    assert "class examples precision recall F1 threshold AUROC" in text
    assert "Confusion matrix" not in text
    for name, threshold in result.run.config.task.thresholds:
        assert re.search(rf"{name} \d+ [\d.]+% [\d.]+% [\d.]+% {threshold:.3f} [\d.]+", text), name
    assert re.search(r"\d of \d+ examples (has|have) a class that was missed or wrongly", text)
    assert re.search(r"(missed|wrongly predicted) \w+ \([\d.<>]+%\)", text)
    assert ('<img class="zoom" src="data:image/png' in page) == (fixture == "photos")
