"""The report of real, small runs: what is in it, what is not, and that no run fails for it."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.small_runs import bright_quadrants, small_config
from PIL import Image

import flaxdl
from flaxdl.cli import main
from flaxdl.config import Init
from flaxdl.data import Arrays, Dates, Documents, ImageFolder, Images, Text, TextPairs
from flaxdl.models import Seq2SeqTransformer, TransformerLM
from flaxdl.report import build, compare, metric_names, predictions
from flaxdl.report import write as reporting
from flaxdl.report.build import settings
from flaxdl.report.write import write_report
from flaxdl.runs.workdir import Workdir, command_line
from flaxdl.training import Classification, LanguageModeling, SequenceToSequence
from flaxdl.training.times import NAMES, Times, load_times
from flaxdl.training.writers.metrics_file import MetricsFile

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
    """A run of a few steps, after which some predictions are wrong."""
    folder = tmp_path_factory.mktemp("somebody")
    config = small_config(data=quadrants_file(folder), epochs=2.0)
    flaxdl.train(config, folder / "quadrants")
    return folder / "quadrants"


def words(html):
    """The text of a page, without its tags, style and script."""
    html = re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html)


def test_a_run_ends_with_its_report(run):
    html = (run / "report.html").read_text()
    text = words(html)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['accuracy']:.2%}" in text
    assert "37 examples of the test split" in text
    assert "optimizer.learning_rate 0.002" in text
    assert "flaxdl" in text
    assert "Time breakdown" in text
    assert "&lt;b&gt;right&lt;/b&gt;" in html
    assert "<b>right</b>" not in html
    for title in ("Loss", "Accuracy", "Learning rate", "Gradient norm", "Examples per second"):
        assert f'aria-label="{title} over steps.' in html
    found = predictions.load(run / "predictions.npz")
    accuracy = np.mean(found.label == found.predicted)
    assert accuracy == pytest.approx(last["accuracy"])
    assert f"{np.sum(found.label != found.predicted)} of 37 predictions" in text


def test_the_mistakes_are_the_most_confident_ones_and_look_as_they_are(run):
    found = predictions.load(run / "predictions.npz")
    wrong = np.flatnonzero(found.label != found.predicted)
    assert len(wrong) > 1
    best = wrong[np.argsort(-found.confidence[wrong], kind="stable")][:24]
    np.testing.assert_array_equal(found.shown, best)
    images, label = bright_quadrants(37, 1)
    np.testing.assert_array_equal(found.label, label)
    np.testing.assert_array_equal(found.inputs, images[found.shown, :, :, 0])
    html = (run / "report.html").read_text()
    shown = len(found.shown) + (len(found.uncertain) if len(wrong) < 12 else 0)
    assert html.count('src="data:image/png;base64,') == shown


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
        "epochs": 30.0,
        "rate": 0.5,
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
        "epochs": "30",  # as the integer: no difference between runs
        "rate": "0.5",
    }


def test_the_report_of_a_workdir_reads_what_the_run_has_kept(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("nothing is to be computed")

    with monkeypatch.context() as patch:
        patch.setattr(reporting, "restore", refuse)
        write_report([run], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == (run / "report.html").read_text()


def test_what_is_not_kept_or_broken_is_computed_again(run, tmp_path):
    kept = predictions.load(run / "predictions.npz")
    for damage in (None, b"broken"):
        (run / "predictions.npz").unlink()
        if damage:
            (run / "predictions.npz").write_bytes(damage)
        assert main(["report", "--workdir", str(run), "--to", str(tmp_path / "a.html")]) == 0
        again = predictions.load(run / "predictions.npz")
        np.testing.assert_array_equal(again.predicted, kept.predicted)
        np.testing.assert_allclose(again.confidence, kept.confidence, atol=1e-6)


def test_without_the_data_there_are_still_the_curves(run, tmp_path, caplog):
    file, data = run / "predictions.npz", run.parent / "secret_data.npz"
    kept = file.read_bytes()
    file.unlink()
    data.rename(run.parent / "gone.npz")
    write_report([run], tmp_path / "a.html")
    (run.parent / "gone.npz").rename(data)
    file.write_bytes(kept)
    assert f"the report of {run} has no predictions: no such file: {data}" in caplog.text
    html = (tmp_path / "a.html").read_text()
    assert "the data cannot be read here" in html
    assert 'aria-label="Loss over steps.' in html
    assert "Calibration" not in words(html)


def test_several_runs_side_by_side(run, tmp_path, capsys):
    other = run.parent / "<other>"
    flaxdl.train(small_config(seed=1, epochs=1.0), other, report=False)
    assert sorted(path.name for path in other.iterdir() if path.suffix == ".html") == []
    flags = ["--workdir", str(run), str(other), str(run)]
    assert main(["report", *flags]) == 2
    assert "set --to FILE.html" in capsys.readouterr().err
    assert main(["report", *flags, "--to", str(tmp_path / "both.html")]) == 0
    html = (tmp_path / "both.html").read_text()
    text = words(html)
    assert "Comparison of 3 runs" in text
    assert "quadrants (3)" in text  # the same run once more
    assert "seed 0 1 0" in text
    assert "batch_size 16 16" not in text  # the same in all
    assert html.count("<article") == 3
    assert 'aria-label="Validation loss over epochs. quadrants:' in html
    assert 'aria-label="Training loss over epochs. quadrants:' in html


def test_runs_on_other_data_are_not_ranked(run, tmp_path):
    other = tmp_path / "other"
    flaxdl.train(small_config(epochs=1.0), other, report=False)  # without names of classes
    write_report([run, other], tmp_path / "both.html")
    html = (tmp_path / "both.html").read_text()
    assert "scored on different data" in words(html)
    assert 'class="best"' not in html
    assert "Disagreements" not in html


def test_runs_on_the_same_data_are_compared_by_class_and_example(run, tmp_path):
    other = run.parent / "other seed"
    flaxdl.train(small_config(data=quadrants_file(run.parent), seed=1, epochs=1.0), other)
    write_report([run, other], tmp_path / "both.html")
    html = (tmp_path / "both.html").read_text()
    text = words(html)
    assert "scored on different data" not in text
    assert 'class="best"' in html
    assert "the difference, in percentage points, is other seed minus quadrants" in text
    one, two = (predictions.load(path / "predictions.npz") for path in (run, other))
    np.testing.assert_array_equal(one.index, np.arange(37))
    differ = np.sum(one.predicted != two.predicted)
    assert differ > 0
    assert f"predict different classes for {differ} examples" in text
    right = [found.predicted == found.label for found in (one, two)]
    assert f" {np.sum(right[0] & ~right[1])} ✓ ✗ " in text
    assert f" {np.sum(~right[0] & ~right[1])} ✗ ✗ " in text


def test_a_run_that_failed_early_does_not_hide_the_comparison_of_the_others(run, tmp_path):
    other = run.parent / "other one"
    flaxdl.train(small_config(data=quadrants_file(run.parent), seed=2, epochs=1.0), other)
    failed = tmp_path / "failed"
    shutil.copytree(other, failed)
    shutil.rmtree(failed / "checkpoints")
    (failed / "predictions.npz").unlink()
    first = (failed / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["split"] == "train"
    (failed / "metrics.jsonl").write_text(first + "\n")
    write_report([failed, run, other], tmp_path / "three.html")
    html = (tmp_path / "three.html").read_text()
    text = words(html)
    assert "scored on different data" not in text
    assert 'class="best"' in html
    assert "Disagreements" in text
    assert "examples quadrants other one" in text  # the columns of the table of outcomes
    assert "failed: This run is not finished" in text
    assert "Predictions are missing because the run has no checkpoint." in text
    assert "training loss" in text
    assert "last step" in text


def test_a_run_that_is_not_finished_says_so(run, tmp_path):
    copy = tmp_path / "stopped"
    shutil.copytree(run, copy)
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] < 8]
    (copy / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
    last = max(json.loads(line)["step"] for line in kept)
    write_report([copy], tmp_path / "a.html")
    note = f"This run is not finished: step {last} of "
    assert note in words((tmp_path / "a.html").read_text())
    assert "not finished: step" not in words((run / "report.html").read_text())


def test_the_header_has_date_and_rule_of_selection(run):
    text = words((run / "report.html").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["split"] == "validation"]
    best = max(validation, key=lambda line: (line["accuracy"], line["step"]))
    per_epoch = json.loads((run / "config.json").read_text())["data"]["steps_per_epoch"]
    assert (
        f"Checkpoint with the highest validation accuracy: {best['accuracy']:.2%} at step "
        f"{best['step']} of {2 * per_epoch} (epoch {best['step'] / per_epoch:.4g} of 2)."
    ) in text
    assert f"best validation accuracy {best['accuracy']:.2%}" in text
    assert re.search(r"trained on 1 x cpu, \d{4}-\d\d-\d\d \d\d:\d\d", text)


def test_the_command_is_recorded_and_shown_without_absolute_paths(tmp_path, monkeypatch):
    line = ["--config", "configs/a b.py", "--data.path=/home/me/pets", "--init.weights", "~/w.pth"]
    facts = {
        "classes": ["a", "b", "c", "d"],
        "steps_per_epoch": 4,
        "example": {"inputs": {"shape": [8, 8, 1], "dtype": "uint8"}},
    }
    folder = Workdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py", *line])
    folder.claim(small_config(), facts)
    assert folder.command() == ["python", "train.py", *line]
    shown = "python train.py --config 'configs/a b.py' --data.path=…/pets --init.weights …/w.pth"
    assert build._command(folder.command()) == shown
    monkeypatch.setattr("sys.argv", ["/venv/bin/flaxdl", "train", "--accept-changes"])
    folder.claim(small_config(), facts)  # resumed: the run is still that of the first command
    assert folder.command() == ["python", "train.py", *line]
    folder.claim(small_config(epochs=9.0), facts)
    assert folder.command() == ["flaxdl", "train", "--accept-changes"]


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/lib/flaxdl/__main__.py", ["python", "-m", "flaxdl", "x"]),
        ("/bin/flaxdl", ["flaxdl", "x"]),
        ("/bin/pytest", None),
        ("", None),
    ],
)
def test_only_commands_of_flaxdl_are_recorded(monkeypatch, program, command):
    monkeypatch.setattr("sys.argv", [program, "x"])
    assert command_line() == command


def classified(label, predicted, confidence, **others):
    """Predictions of a classifier without training one."""
    return predictions.Predictions(
        step=1,
        split="test",
        available=len(label),
        label=np.array(label, np.int32),
        predicted=np.array(predicted, np.int32),
        confidence=np.array(confidence, np.float32),
        **({"shown": np.zeros(0, np.int32), "inputs": np.zeros(0, np.uint8)} | others),
    )


def plan_of(classes, label_smoothing=0.0):
    config = SimpleNamespace(task=Classification(label_smoothing=label_smoothing))
    return SimpleNamespace(classes=classes, config=config)


def test_calibration_hides_small_bins_and_explains_label_smoothing():
    label = [0] * 24
    found = classified(label, label, [0.95] * 20 + [0.85] * 4)
    classes = build._classes(found, plan_of(("a", "b"), label_smoothing=0.1))
    assert "of 20 predictions" in classes.calibration.description
    assert "of 4 predictions" not in classes.calibration.description
    assert classes.calibration_note.startswith("Training with label smoothing 0.1 aims at a con")
    assert "confidence of 95%" in classes.calibration_note
    assert classes.calibration_note.endswith("1 bin with fewer than 5 predictions is not shown.")
    few = build._classes(classified([0], [0], [0.9]), plan_of(("a", "b")))
    assert few.calibration is None
    assert (
        build._classes(classified(label, label, [0.95] * 24), plan_of("ab")).calibration_note == ""
    )


def test_the_classes_with_the_lowest_f1_are_named_and_first_among_many():
    names = tuple(f"class {number}" for number in range(120))
    label = np.repeat(np.arange(120), 4)
    predicted = label.copy()
    predicted[4 * 77 : 4 * 77 + 3] = 5  # class 77 is mostly taken for class 5
    classes = build._classes(classified(label, predicted, [0.9] * 480), plan_of(names))
    assert [one.name for one in classes.lowest] == ["class 77", "class 5"]
    assert classes.unrecognized == 0
    assert len(classes.scores) == 120
    assert classes.scores[0].name == "class 77"
    assert classes.confusion is None


def test_uncertain_predictions_are_shown_if_there_are_few_mistakes():
    inputs = np.zeros((2, 8, 8), np.uint8)
    more = {"uncertain": np.array([1, 0], np.int32), "uncertain_inputs": inputs}
    confidence = [0.9, 0.4, *[1.0] * 18]
    label = [0] * 20
    found = classified(label, label, confidence, index=np.arange(20) + 100, **more)
    shown = build._classes(found, plan_of(("a", "b"))).uncertain
    assert [one.confidence for one in shown] == pytest.approx([0.4, 0.9])
    assert [one.name for one in shown] == ["test example 101", "test example 100"]
    found = classified(label, [1] * 12 + [0] * 8, confidence, **more)
    assert build._classes(found, plan_of(("a", "b"))).uncertain == []


def test_disagreements_come_with_the_confident_mistakes_first():
    index = np.array([3, 1, 2, 0], np.int32)
    one = classified([0, 1, 0, 1], [0, 1, 1, 1], [0.9, 0.8, 0.7, 0.6], index=index)
    order = np.array([3, 2, 1, 0])
    two = classified([1, 0, 1, 0], [0, 1, 1, 1], [0.5, 0.5, 0.5, 0.99], index=index[order])
    found = compare.disagreements([one, two], ("a", "b"))
    # By position: x has 0, 1, 3 right, and y has 1 right.
    assert found["disagreeing"] == 2
    assert [example.name for example in found["disagreements"]] == [
        "test example 3",
        "test example 0",
    ]
    first = found["disagreements"][0]
    assert first.label == "a"
    assert first.predictions == [
        ("a", pytest.approx(0.9), True),
        ("b", pytest.approx(0.99), False),
    ]
    assert found["outcomes"] == [
        ((True, False), 2),
        ((True, True), 1),
        ((False, False), 1),
        ((False, True), 0),
    ]
    unknown = classified([0], [0], [0.9])
    assert compare.disagreements([unknown, unknown], ("a", "b")) == {}
    other = classified([1, 1, 0, 1], [0, 1, 1, 1], [0.9, 0.8, 0.7, 0.6], index=index)
    assert compare.disagreements([one, other], ("a", "b")) == {}


def test_outcomes_of_many_runs_are_those_that_occur():
    """All subsets of forty runs could not be listed."""
    index = np.arange(3, dtype=np.int32)
    right = classified([0, 0, 1], [0, 0, 1], [0.9] * 3, index=index)
    wrong = classified([0, 0, 1], [0, 1, 1], [0.9] * 3, index=index)
    found = compare.disagreements([*[wrong] * 39, right], ("a", "b"))
    assert found["outcomes"] == [((True,) * 40, 2), ((*(False,) * 39, True), 1)]
    assert found["other_outcomes"] == 0


def test_rare_outcomes_are_counted_together():
    index = np.arange(21, dtype=np.int32)
    label = [0] * 21
    # The example with number n is wrong in run n, and the last one in none.
    found = [
        classified(label, [int(number == n) for number in range(21)], [0.9] * 21, index=index)
        for n in range(20)
    ]
    agreement = compare.disagreements(found, ("a", "b"))
    assert len(agreement["outcomes"]) == 12
    assert agreement["other_outcomes"] == 21 - 12


def test_classes_are_compared_by_f1():
    one = classified([0, 0, 1, 1], [0, 0, 1, 1], [0.9] * 4)
    two = classified([0, 0, 1, 1], [0, 1, 1, 1], [0.9] * 4)
    first, second = compare.class_differences([one, two], ("a", "b"))
    assert (first.name, first.values, first.examples) == ("a", pytest.approx([1, 2 / 3]), 2)
    assert first.difference == pytest.approx(-1 / 3)
    assert second.difference == pytest.approx(-0.2)


def test_the_best_of_a_row_is_marked():
    def page_of(name, numbers):
        return SimpleNamespace(
            results={key: str(value) for key, (value, _) in numbers.items()},
            numbers=numbers,
            parameters=3,
            settings={"seed": name},
        )

    runs = [
        page_of("0", {"test loss": (0.3, "lower"), "test accuracy": (0.9, "higher")}),
        page_of("1", {"test loss": (0.2, "lower"), "test accuracy": (0.9, "higher")}),
    ]
    marked = {row.name: row.best for row in compare.rows(runs)}
    assert marked == {
        "test loss": [False, True],
        "test accuracy": [False, False],  # the same
        "parameters": [False, False],
        "seed": [False, False],
    }
    assert not any(any(row.best) for row in compare.rows(runs, mark_best=False))


def test_files_are_named_in_the_report(tmp_path):
    for number, (image, label) in enumerate(zip(*bright_quadrants(80, 0), strict=True)):
        for split in ("train", "test"):
            folder = tmp_path / "pets" / split / f"class {label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(folder / f"{number}.png")
    data = ImageFolder(str(tmp_path / "pets"), channels=1)
    config = small_config(data=data, transform=Images(size=8), epochs=1.0)
    flaxdl.train(config, tmp_path / "run")
    found = predictions.load(tmp_path / "run" / "predictions.npz")
    assert len(found.names) == 80
    for name, label in zip(found.names, found.label, strict=True):
        assert (tmp_path / "pets" / name).is_file()
        assert f"class {label}/" in name
    html = (tmp_path / "run" / "report.html").read_text()
    assert f">{found.names[found.shown[0]]}</span></figcaption>" in html.replace("<wbr>", "")


def test_the_probability_of_the_true_class_is_kept_and_shown(run):
    found = predictions.load(run / "predictions.npz")
    right = found.label == found.predicted
    np.testing.assert_allclose(found.label_probability[right], found.confidence[right], rtol=1e-6)
    assert (found.label_probability[~right] <= found.confidence[~right]).all()
    worst = found.shown[0]
    text = words((run / "report.html").read_text())
    assert f"({found.label_probability[worst]:.1%}) predicted" in text
    assert f"test example {found.index[worst]}" in text
    least = np.flatnonzero(right)[np.argsort(found.confidence[right], kind="stable")][:12]
    np.testing.assert_array_equal(found.uncertain, least)
    images, _ = bright_quadrants(37, 1)
    np.testing.assert_array_equal(found.uncertain_inputs, images[least, :, :, 0])


def test_predictions_of_earlier_versions_are_read(run, tmp_path, monkeypatch):
    earlier = Path(__file__).parents[1] / "earlier_runs" / "1a4c004" / "digits_cnn"
    found = predictions.load(earlier / "predictions.npz")
    assert len(found.label) == len(found.predicted) > 0
    assert len(found.index) == len(found.label_probability) == len(found.uncertain) == 0
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    new = ("index", "label_probability", "names", "uncertain", "uncertain_inputs")
    with np.load(copy / "predictions.npz") as file:
        arrays = {name: file[name] for name in file.files if name not in new}
    np.savez(copy / "predictions.npz", **arrays)
    monkeypatch.setattr(reporting, "restore", None)  # nothing is computed again
    write_report([copy], tmp_path / "a.html")
    text = words((tmp_path / "a.html").read_text())
    assert "Most confident mistakes" in text
    assert "Least confident" not in text
    write_report([copy, run], tmp_path / "both.html")
    assert "F1 by class" in words((tmp_path / "both.html").read_text())


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
    found = predictions.load(tmp_path / "lm" / "predictions.npz")
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
    found = predictions.load(tmp_path / "dates" / "predictions.npz")
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
    assert "Initial weights from …/quadrants, except classifier.4.*" in text
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
    assert "the report cannot be written: RuntimeError: no ink; retry with `python" in caplog.text
    assert not (tmp_path / "report.html").exists()
    monkeypatch.undo()
    flaxdl.train(config, tmp_path)  # it is finished, and only the report is missing
    assert (tmp_path / "report.html").exists()


def test_no_run_and_no_metrics_are_errors(tmp_path, capsys):
    assert main(["report", "--workdir", str(tmp_path)]) == 2
    assert "has no run" in capsys.readouterr().err


def test_times_are_counted_once_each_and_added_up(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0, 10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    file = tmp_path / "times.json"
    times = Times()
    times.resume_from({"training": 100.0})
    with times.saved_to(file, "1 x cpu"), times.measure("training"), times.measure("saving"):
        pass  # from 1 to 10, of which from 3 to 7
    expected = {"setting up": 12 - 9, "training": 100 + 9 - 4, "saving": 4}
    assert load_times(file) == ({name: expected.get(name, 0) for name in NAMES}, "1 x cpu")
    file.write_text('{"seconds": 3}')
    assert load_times(file) == ({}, None)


def test_a_run_knows_where_its_time_went(run):
    seconds, devices = load_times(Workdir(run).times)
    assert devices == "1 x cpu"
    assert all(seconds[name] > 0 for name in NAMES)


def curves(tmp_path, **splits):
    """Rows of descriptions of the charts of runs that have these splits."""
    files = []
    for name, found in splits.items():
        lines = [json.dumps({"step": 20, "split": split, "loss": 0.5}) + "\n" for split in found]
        (tmp_path / name).write_text("".join(lines))
        files.append(MetricsFile(tmp_path / name))
    steps = [10] * len(files)
    rows = compare.curves(files, list(splits), steps, [20] * len(files))
    return [[chart.description for chart in row] for row in rows]


def test_curves_are_of_one_split_over_epochs(tmp_path):
    both, train = ("train", "validation"), ("train",)
    ((validation, training),) = curves(tmp_path, a=both, b=both)
    assert validation.startswith("Validation loss over epochs. a: 0.5000 at 2,")
    assert "0.5000 at the best checkpoint, epoch 2." in validation
    assert training.startswith("Training loss over epochs. a: 0.5000 at 2,")
    assert "best checkpoint" not in training
    ((training,),) = curves(tmp_path, c=train, d=train)
    assert training.startswith("Training loss over epochs. c: 0.5")
    ((validation, training),) = curves(tmp_path, e=both, f=train)
    assert "f:" not in validation
    assert "f: 0.5" in training


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("accuracy", "25.00%"),
        ("top_5_accuracy", "25.00%"),
        ("exact_match", "25.00%"),
        ("mismatches", "0.2500"),
        ("accuracy_in_meters", "0.2500"),
        ("matched_pairs", "0.2500"),
        ("loss", "0.2500"),
        ("recall/cat", "25.00%"),
        ("auroc", "0.2500"),
    ],
)
def test_only_fractions_are_shown_as_percent(name, shown):
    assert metric_names.figure(name, 0.25) == shown


def test_pipes_in_place_of_files_are_not_waited_for(tmp_path):
    for name in ("times.json", "predictions.npz", "config.json"):
        os.mkfifo(tmp_path / name)
    assert load_times(tmp_path / "times.json") == ({}, None)
    assert predictions.load(tmp_path / "predictions.npz") is None
    with pytest.raises(ValueError, match="config.json cannot be read: not a regular file"):
        Workdir(tmp_path).config()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("top_5_accuracy", "top-5 accuracy"),
        ("macro_f1", "macro F1"),
        ("recall/big_cat", "recall of big_cat"),
        ("f1/a/b", "F1 of a/b"),
        ("rmse", "RMSE"),
    ],
)
def test_names_of_metrics_are_words(name, words):
    assert metric_names.spelled(name) == words
