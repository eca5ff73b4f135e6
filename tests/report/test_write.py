"""The report of real, small runs: what is in it, what is not, and that no run fails for it."""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.small_runs import bright_quadrants, small_config

import flaxdl
from flaxdl.cli import main
from flaxdl.config import Init
from flaxdl.data import Arrays, Dates, Documents, Text, TextPairs
from flaxdl.models import Seq2SeqTransformer, TransformerLM
from flaxdl.report import build as run_page
from flaxdl.report import predictions as answers
from flaxdl.report import write as reporting
from flaxdl.report.build import settings
from flaxdl.report.write import write_report
from flaxdl.runs.workdir import Workdir
from flaxdl.training import LanguageModeling, SequenceToSequence
from flaxdl.training.times import NAMES, Times, load_times

SMALL = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "feed_forward_size": 16}
NAMES_OF_CLASSES = ["top left", "<b>right</b>", "bottom & left", "bottom right"]


def quadrants_file(folder):
    inputs, label = bright_quadrants(80, 0)
    test_inputs, test_label = bright_quadrants(37, 1)
    np.savez(
        folder / "secret_data.npz",
        train_inputs=inputs,
        train_label=label,
        test_inputs=test_inputs,
        test_label=test_label,
        classes=NAMES_OF_CLASSES,
    )
    return Arrays(str(folder / "secret_data.npz"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps, after which some answers are wrong."""
    folder = tmp_path_factory.mktemp("somebody")
    config = small_config(data=quadrants_file(folder), epochs=2.0)
    flaxdl.train(config, folder / "quadrants")
    return folder / "quadrants"


def words(html):
    """The text of a page, without its tags and style."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL))


def test_a_run_ends_with_its_report(run):
    html = (run / "report.html").read_text()
    text = words(html)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['accuracy']:.2%}" in text
    assert "37 examples of the test split" in text
    assert "optimizer.learning_rate 0.002" in text
    assert "flaxdl" in text
    assert "Where time went" in text
    assert "&lt;b&gt;right&lt;/b&gt;" in html
    assert "<b>right</b>" not in html
    for title in ("Loss", "Accuracy", "Learning rate", "Gradient norm", "Examples per second"):
        assert f'aria-label="{title} over steps.' in html
    found = answers.load(run / "predictions.npz")
    accuracy = np.mean(found.label == found.predicted)
    assert accuracy == pytest.approx(last["accuracy"])
    assert f"{np.sum(found.label != found.predicted)} of 37 answers" in text


def test_the_mistakes_are_the_most_confident_ones_and_look_as_they_are(run):
    found = answers.load(run / "predictions.npz")
    wrong = np.flatnonzero(found.label != found.predicted)
    assert len(wrong) > 1
    best = wrong[np.argsort(-found.confidence[wrong], kind="stable")][:24]
    np.testing.assert_array_equal(found.shown, best)
    images, label = bright_quadrants(37, 1)
    np.testing.assert_array_equal(found.label, label)
    np.testing.assert_array_equal(found.inputs, images[found.shown, :, :, 0])
    html = (run / "report.html").read_text()
    assert html.count('src="data:image/png;base64,') == len(found.shown)


def test_nothing_of_the_machine_is_in_it(run):
    html = (run / "report.html").read_text()
    assert str(run.parent) not in html
    assert "somebody" not in html
    assert "…/secret_data.npz" in html


def test_settings_are_lines_and_paths_are_shortened():
    record = {
        "class": "flaxdl.Config",
        "model": {"class": "mine.Net", "sizes": [1, 2], "parts": [{"class": "mine.Part", "a": 1}]},
        "data": {"class": "flaxdl.data.Arrays", "path": "/home/me/pets.npz"},
        "init": {"class": "x.Init", "weights": "https://me:key@host/w.pth?token=1", "omit": []},
        "other": "C:\\Users\\me\\data",
        "seed": None,
    }
    assert settings(record, shorten=True) == {
        "model": "Net",
        "model.sizes": "1, 2",
        "model.parts.0": "Part",
        "model.parts.0.a": "1",
        "data": "Arrays",
        "data.path": "…/pets.npz",
        "init": "Init",
        "init.weights": "…/w.pth",
        "init.omit": "none",
        "other": "…/data",
        "seed": "none",
    }


def test_the_report_of_a_workdir_reads_what_the_run_has_kept(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("nothing is to be computed")

    with monkeypatch.context() as patch:
        patch.setattr(reporting, "restore", refuse)
        write_report([run], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == (run / "report.html").read_text()


def test_what_is_not_kept_or_broken_is_computed_again(run, tmp_path):
    kept = answers.load(run / "predictions.npz")
    for damage in (None, b"broken"):
        (run / "predictions.npz").unlink()
        if damage:
            (run / "predictions.npz").write_bytes(damage)
        assert main(["report", "--workdir", str(run), "--to", str(tmp_path / "a.html")]) == 0
        again = answers.load(run / "predictions.npz")
        np.testing.assert_array_equal(again.predicted, kept.predicted)
        np.testing.assert_allclose(again.confidence, kept.confidence, atol=1e-6)


def test_without_the_data_there_are_still_the_curves(run, tmp_path, caplog):
    predictions, data = run / "predictions.npz", run.parent / "secret_data.npz"
    kept = predictions.read_bytes()
    predictions.unlink()
    data.rename(run.parent / "gone.npz")
    write_report([run], tmp_path / "a.html")
    (run.parent / "gone.npz").rename(data)
    predictions.write_bytes(kept)
    assert f"the report of {run} lacks answers: no such file: {data}" in caplog.text
    html = (tmp_path / "a.html").read_text()
    assert "its data cannot be read" in html
    assert 'aria-label="Loss over steps.' in html
    assert "Calibration" not in words(html)


def test_several_runs_side_by_side(run, tmp_path, capsys):
    other = run.parent / "<other>"
    flaxdl.train(small_config(seed=1, epochs=1.0), other, report=False)
    assert sorted(path.name for path in other.iterdir() if path.suffix == ".html") == []
    flags = ["--workdir", str(run), str(other), str(run)]
    assert main(["report", *flags]) == 2
    assert "give --to FILE.html" in capsys.readouterr().err
    assert main(["report", *flags, "--to", str(tmp_path / "both.html")]) == 0
    html = (tmp_path / "both.html").read_text()
    text = words(html)
    assert "3 runs side by side" in text
    assert "quadrants (3)" in text  # the same run once more
    assert "seed 0 1 0" in text
    assert "batch_size 16 16" not in text  # the same in all
    assert html.count("<article") == 3
    assert 'aria-label="Loss on validation over steps. quadrants:' in html


def test_a_language_model_shows_a_sample_and_no_classes(tmp_path):
    (tmp_path / "text.txt").write_text("abcdefghij<" * 200)
    config = small_config(
        model=TransformerLM(vocab_size=16, max_length=24, **SMALL),
        data=Documents(str(tmp_path / "text.txt"), window=24),
        transform=Text(max_length=24),
        task=LanguageModeling(),
        epochs=4.0,
    )
    flaxdl.train(config, tmp_path / "lm")
    html = (tmp_path / "lm" / "report.html").read_text()
    found = answers.load(tmp_path / "lm" / "predictions.npz")
    written = found.texts[0].removeprefix(found.items[0])
    assert len(written) > 0
    assert f"</mark>{written.replace('<', '&lt;')}</pre>" in html
    assert "Confusion" not in html.split("</style>")[1]
    assert 'aria-label="Bits per token over steps.' in html


def test_texts_that_are_rewritten_are_shown_with_what_was_expected(tmp_path):
    config = small_config(
        model=Seq2SeqTransformer(vocab_size=64, max_length=32, **SMALL),
        data=Dates(train=64, test=16),
        transform=TextPairs(max_length=32, max_target_length=11),
        task=SequenceToSequence(),
        epochs=1.0,
    )
    flaxdl.train(config, tmp_path / "dates")
    found = answers.load(tmp_path / "dates" / "predictions.npz")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", text) for text in found.expected)
    assert words((tmp_path / "dates" / "report.html").read_text()).count("✗") == len(found.items)


def test_what_was_taken_over_and_frozen(run, tmp_path):
    config = small_config(
        data=quadrants_file(tmp_path),
        init=Init(weights=str(run), omit=("classifier.4.*",)),
        freeze=("features.*",),
        epochs=1.0,
    )
    flaxdl.train(config, tmp_path / "tuned")
    text = words((tmp_path / "tuned" / "report.html").read_text())
    assert "The first weights came from …/quadrants, all but classifier.4.*" in text
    # Kernels of 3 x 3, from 1 to 32 to 64 to 128 channels, and a bias for each channel.
    frozen = 9 * (1 * 32 + 32 * 64 + 64 * 128) + 32 + 64 + 128
    assert f"features.* : {frozen:,} of" in text
    assert "features.0.weight" in text


def test_a_report_that_fails_is_a_warning(run, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(reporting.page, "render", fail)
    config = small_config(epochs=1.0)
    result = flaxdl.train(config, tmp_path)
    assert result.metrics["split"] == "test"
    assert "the report cannot be written: RuntimeError: no ink; `python" in caplog.text
    assert not (tmp_path / "report.html").exists()
    monkeypatch.undo()
    flaxdl.train(config, tmp_path)  # it is finished, and only the report is missing
    assert (tmp_path / "report.html").exists()


def test_no_run_and_no_metrics_are_errors(tmp_path, capsys):
    assert main(["report", "--workdir", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_times_are_counted_once_each_and_added_up(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0, 10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    file = tmp_path / "times.json"
    times = Times()
    times.go_on({"training": 100.0})
    with times.kept(file, "1 x cpu"), times.spent("training"), times.spent("saving"):
        pass  # from 1 to 10, of which from 3 to 7
    expected = {"setting up": 12 - 9, "training": 100 + 9 - 4, "saving": 4}
    assert load_times(file) == ({name: expected.get(name, 0) for name in NAMES}, "1 x cpu")
    file.write_text('{"seconds": 3}')
    assert load_times(file) == ({}, None)


def test_a_run_knows_where_its_time_went(run):
    seconds, devices = load_times(Workdir(run).times)
    assert devices == "1 x cpu"
    assert all(seconds[name] > 0 for name in NAMES)


def side_by_side(tmp_path, **splits):
    """Titles and lines of the charts of runs that have these splits."""
    folders = [Workdir(tmp_path / name) for name in splits]
    for folder, names in zip(folders, splits.values(), strict=True):
        folder.path.mkdir()
        lines = [json.dumps({"step": 1, "split": name, "loss": 0.5}) + "\n" for name in names]
        folder.metrics.write_text("".join(lines))
    runs = [SimpleNamespace(name=name) for name in splits]
    return [chart.words for chart in reporting._compared(folders, runs)]


def test_curves_say_which_split_they_are_of(tmp_path):
    both, train = ("train", "validation"), ("train",)
    (words,) = side_by_side(tmp_path, a=both, b=both)
    assert words.startswith("Loss on validation over steps. a: 0.5")
    assert "(training)" not in words
    (words,) = side_by_side(tmp_path, c=train, d=train)
    assert words.startswith("Loss on training over steps. c: 0.5")
    (words,) = side_by_side(tmp_path, e=both, f=train)
    assert words.startswith("Loss on validation over steps. e: 0.5")
    assert "f (training): 0.5" in words


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("accuracy", "25.00%"),
        ("top_5_accuracy", "25.00%"),
        ("exact_match", "25.00%"),
        ("mismatches", "0.25"),
        ("accuracy_in_meters", "0.25"),
        ("matched_pairs", "0.25"),
        ("loss", "0.25"),
    ],
)
def test_only_fractions_are_shown_as_percent(name, shown):
    assert run_page._figure(name, 0.25) == shown


def test_pipes_in_place_of_files_are_not_waited_for(tmp_path):
    for name in ("times.json", "predictions.npz", "config.json"):
        os.mkfifo(tmp_path / name)
    assert load_times(tmp_path / "times.json") == ({}, None)
    assert answers.load(tmp_path / "predictions.npz") is None
    with pytest.raises(ValueError, match="config.json cannot be read: it is no file"):
        Workdir(tmp_path).config()
