"""Resuming in a workdir whose data, config, checkpoints or metrics have changed meanwhile."""

import json
import os
import shutil
import signal
from contextlib import closing
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers import damage
from PIL import Image

import flaxdl
from flaxdl import Config
from flaxdl.data import Arrays, ImageFolder, Images, Text, TextTable, facts
from flaxdl.layers import Linear
from flaxdl.models import TextRNN
from flaxdl.training import Interrupted
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.writers import Writer
from flaxdl.training.writers.metrics_file import MetricsFile

STATE = damage.CREATE().replace(step=jax.numpy.int32(3))
STEPS = 12  # of eight images each: three epochs of the 38 of 50 images that are for training


class OneLayer(nn.Module):
    """Logistic regression, which compiles fast."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, images, train=False):
        return Linear(self.num_classes, name="fc")(images.reshape(len(images), -1))


def config(folder, **changes):
    settings = {
        "model": OneLayer(),
        "data": ImageFolder(str(folder)),
        "transform": Images(size=8),
        "batch_size": 8,
        "epochs": 3.0,
        "log_every": 2,
    }
    return Config(**(settings | changes))


def write_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


class NoFurther(Writer):
    """A writer that ends a run which trains beyond its end."""

    def progress(self, step):
        assert step < STEPS


class StopAt(NoFurther):
    """A writer that sends SIGTERM when a step starts."""

    def __init__(self, step):
        self.step = step

    def progress(self, step):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def train(*args, **keywords):
    return flaxdl.train(*args, report=False, writers=[NoFurther()], **keywords)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run, and its images beside it."""
    folder = tmp_path_factory.mktemp("original")
    for number in range(50):
        write_image(folder / "images" / ("cat", "dog")[number % 2] / f"{number}.png", number)
    train(config(folder / "images"), folder / "run")
    return folder


@pytest.fixture
def images(original, tmp_path, monkeypatch):
    """A copy of the run and its images, the latter under the same name as the original."""
    shutil.copytree(original, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    record = json.loads((tmp_path / "copy" / "run" / "config.json").read_text())
    record["config"]["data"]["path"] = "images"
    (tmp_path / "copy" / "run" / "config.json").write_text(json.dumps(record))
    return tmp_path / "copy" / "images"


@pytest.fixture
def run(images):
    return images.parent / "run"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(run, message, **changes):
    """Training is refused with a message, and nothing has changed."""
    before = contents(run)
    with pytest.raises(ValueError, match=message):
        train(config("images", **changes), run)
    assert contents(run) == before


def test_unchanged_it_was_already_finished(run, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    train(config("images"), run)
    assert "already finished" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before


def rename_class(images):
    (images / "cat").rename(images / "zebra")


def remove_image(images):
    next(images.glob("dog/*.png")).unlink()


def rename_image(images):
    """Gives an image of the training split another name that stays in it."""
    files = ImageFolder(str(images)).load(0).train.files()
    for number in range(100):
        (images.parent / files[0]).rename(images / "cat" / f"other{number}.png")
        files[0] = images / "cat" / f"other{number}.png"
        names = ImageFolder(str(images)).load(0).train.files()
        if str(files[0]) in names:
            return


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_class, "classes: cat, dog → dog, zebra"),
        (remove_image, "examples: [0-9]+ → [0-9]+"),
        (rename_image, "train examples: content differs, same number"),
    ],
)
def test_other_images_are_refused(images, run, caplog, change, message):
    change(images)
    assert_refused(run, f"has a run of other data:\n.*{message}(.|\n)*--accept-changes")
    train(config("images"), run, accept_changes=True)
    assert "resuming a run of other data:\n  " in caplog.text
    train(config("images"), run)  # the new data are now those of the run


def forget_splits(run):
    """Makes the facts about the data those of version 0.1.0."""
    record = json.loads((run / "config.json").read_text())
    del record["data"]["splits"]
    (run / "config.json").write_text(json.dumps(record))


@pytest.mark.parametrize("version", ["0.1.0", "now"])
def test_images_that_are_read_by_other_rules_are_refused_with_both_numbers(images, run, version):
    train(config("images"), run)
    write_image(images / "cat" / "deeper" / "2.png", 1000)
    (images / "dog" / "3.png").rename(images / "dog" / "3.jfif")
    rules = ""
    if version == "0.1.0":
        forget_splits(run)
        rules = " by the rules of flaxdl 0.1.0"
    assert_refused(run, f"of other data:\n(.*\n)?  [a-z]+ examples: [0-9]+{rules} → [0-9]+\n")


def test_the_form_of_the_name_of_a_class_is_no_change():
    old, new = (
        {"classes": [c, "z"], "steps_per_epoch": 1, "example": {}} for c in ("e\u0301", "é")
    )
    assert facts.differences(old, new) == []
    assert facts.differences({**old, "classes": ["z", "é"]}, new) == ["classes: z, é → é, z"]


def test_evaluation_refuses_other_classes_and_warns_of_other_images(images, run, caplog):
    before = flaxdl.evaluate(run, "train", config=config("images"))
    assert caplog.text == ""
    write_image(images / "dog" / "more.png", 1000)
    write_image(images / "dog" / "more2.png", 1001)
    write_image(images / "dog" / "more3.png", 1002)
    assert flaxdl.evaluate(run, "train", config=config("images")) != before
    assert "run was trained on:\n  " in caplog.text
    rename_class(images)
    with pytest.raises(ValueError, match="run was trained on:\n  classes: cat, dog → dog, zebra"):
        flaxdl.evaluate(run, "train", config=config("images"))


def test_another_file_of_arrays_under_the_same_name_is_refused(tmp_path):
    inputs = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    arrays = {"train_inputs": inputs, "train_label": np.arange(40) % 2}
    np.savez(tmp_path / "data.npz", **arrays)
    of_arrays = config("", data=Arrays(str(tmp_path / "data.npz")), transform=Images())
    train(of_arrays, tmp_path / "run")
    inputs[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(
        ValueError, match="other data:(.|\n)* examples: content differs, same number"
    ):
        train(of_arrays, tmp_path / "run")


def test_a_workdir_of_an_earlier_version_learns_which_data_it_has(images, run):
    forget_splits(run)
    train(config("images"), run)
    assert "splits" in json.loads((run / "config.json").read_text())["data"]
    remove_image(images)
    assert_refused(run, "of other data")


def test_without_fingerprints_classes_and_steps_are_compared(images, run):
    forget_splits(run)
    for image in sorted(images.glob("dog/*.png"))[:12]:
        image.unlink()
    assert_refused(run, "steps per epoch: 4 → 3")
    rename_class(images)
    assert_refused(run, "classes: cat, dog → dog, zebra")


def test_settings_that_a_run_did_not_have_yet_are_at_their_defaults(run):
    record = json.loads((run / "config.json").read_text())
    del record["config"]["spike_recovery"], record["config"]["transform"]["min_scale"]
    (run / "config.json").write_text(json.dumps(record))
    train(config("images"), run)
    changed = Images(size=8, crop_padding=1)
    assert_refused(run, "another config:\n  transform.crop_padding: 0 → 1\n", transform=changed)
    record["config"]["old_setting"] = 3
    (run / "config.json").write_text(json.dumps(record))
    assert_refused(run, "another config:\n  old_setting: 3 → null\n")


def test_a_run_made_shorter_ends_at_once_and_keeps_its_test_line(run, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    steps = sorted(path.name for path in (run / "checkpoints").iterdir())
    result = train(config("images", epochs=2.0), run, accept_changes=True)
    assert "the latest checkpoint, of step 12, is past the last step 8" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == steps
    assert result.metrics["split"] == "test"


def test_a_run_with_fewer_images_ends_at_once_and_is_tested_on_those_it_has(images, run):
    before = MetricsFile(run / "metrics.jsonl").of_split("test")
    for image in sorted(images.glob("*/*.png"))[:20]:
        image.unlink()
    result = train(config("images"), run, accept_changes=True)
    (after,) = MetricsFile(run / "metrics.jsonl").of_split("test")
    assert result.metrics == after
    assert before != [after]
    assert flaxdl.evaluate(run, config=config("images"))["loss"] == pytest.approx(after["loss"])


def test_a_run_made_shorter_before_its_first_line_is_evaluated(images, tmp_path):
    longer = config("images", log_every=50, evaluate_every=50.0, epochs=50.0)
    with pytest.raises(Interrupted):
        flaxdl.train(longer, tmp_path / "new", report=False, writers=[StopAt(5)])
    assert (tmp_path / "new" / "metrics.jsonl").read_text() == ""
    shorter = replace(longer, epochs=1.0)
    result = train(shorter, tmp_path / "new", accept_changes=True)
    lines = MetricsFile(tmp_path / "new" / "metrics.jsonl").lines
    assert [(line["step"], line["split"]) for line in lines] == [
        (5, "train"),
        (5, "validation"),
        (5, "test"),
    ]
    assert result.metrics == lines[-1]


def test_checkpoints_without_a_config_are_refused(run, caplog):
    (run / "config.json").unlink()
    assert_refused(run, "a run of unknown origin:\n  no config.json, which would record its config")
    train(config("images"), run, accept_changes=True)
    assert (run / "config.json").exists()


TEXTS = "text,label\n" + "".join(
    f"{word} {'good' if number % 2 else 'bad'} {word} {number},{number % 2}\n"
    for number, word in enumerate("abcdefghijklmnopqrst" * 3)
)


def test_token_ids_stay_those_that_the_network_has_learned(tmp_path):
    table = tmp_path / "texts.csv"
    table.write_text(TEXTS)
    of_texts = config(
        "",
        model=TextRNN(
            vocab_size=90, embedding_size=4, hidden_size=4, num_classes=2, pooling="final_states"
        ),
        data=TextTable(str(table)),
        transform=Text(max_length=8, tokenizer="words"),
        epochs=2.0,
    )
    flaxdl.train(of_texts, tmp_path / "run", report=False)
    tokenizer = (tmp_path / "run" / "tokenizer.json").read_bytes()
    table.write_text(TEXTS + "new words come first new words come first,1\n" * 9)
    with pytest.raises(ValueError, match="other data"):
        flaxdl.train(of_texts, tmp_path / "run", report=False)
    longer = replace(of_texts, epochs=3.0)
    flaxdl.train(longer, tmp_path / "run", report=False, accept_changes=True)
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == tokenizer


def test_other_versions_are_mentioned_where_training_continues(run, caplog, monkeypatch):
    record = json.loads((run / "config.json").read_text())
    record["versions"]["jax"] = "0.1.0"
    (run / "config.json").write_text(json.dumps(record))
    train(config("images"), run)
    assert "versions have changed" not in caplog.text  # nothing was computed
    flaxdl.train(config("images", epochs=3.5), run, accept_changes=True, report=False)
    assert (
        f"versions have changed since this run began: jax 0.1.0 → {jax.__version__};" in caplog.text
    )
    assert json.loads((run / "config.json").read_text())["versions"]["jax"] == "0.1.0"


@pytest.mark.parametrize("kept_bytes", [0, 200, None])
def test_metrics_that_were_lost_are_noticed(run, caplog, kept_bytes):
    metrics = run / "metrics.jsonl"
    if kept_bytes is None:
        metrics.unlink()
    else:
        metrics.write_bytes(metrics.read_bytes()[:kept_bytes])
    message = "metrics.jsonl ends at step [0-4], but lines up to step 12 were written"
    assert_refused(run, f"{message}.* Restore the file, or pass --accept-changes")
    train(config("images"), run, accept_changes=True)
    assert "the best checkpoint is unknown; resuming without them" in caplog.text
    assert MetricsFile(metrics).of_split("test")


def test_a_checkpoint_under_another_name_is_set_aside(run, caplog):
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "8", checkpoints / "99999")
    (checkpoints / "10").symlink_to(checkpoints / "8")
    train(config("images"), run)
    assert "step 10: it is a renamed checkpoint of step 8" in caplog.text
    assert "step 99999: it is a renamed checkpoint of step 8" in caplog.text
    assert {"8", "12", "damaged"} == {path.name for path in checkpoints.iterdir()}
    assert {"10", "99999"} == {path.name for path in (checkpoints / "damaged").iterdir()}


def forget_step(checkpoint):
    """Makes a checkpoint one of an earlier version, which does not state its step."""
    manifest = checkpoint / "SHA256SUMS"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if "flaxdl.json" not in line))
    (checkpoint / "flaxdl.json").unlink()


def test_a_checkpoint_that_does_not_state_its_step_is_valid_under_its_own_name_alone(run):
    for step in (8, 12):
        forget_step(run / "checkpoints" / f"{step}")
    before = (run / "metrics.jsonl").read_bytes()
    train(config("images"), run)
    assert (run / "metrics.jsonl").read_bytes() == before
    (run / "checkpoints" / "12").rename(run / "checkpoints" / "11")
    assert_refused(run, "checkpoints/11 contains the state of step 12; rename or remove it")


def test_names_that_are_no_steps_are_no_checkpoints(run):
    for name in ("0012", "²", "-1", "12a"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "13").write_text("a file")
    before = (run / "metrics.jsonl").read_bytes()
    train(config("images"), run)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["run [1]", "[a-z]", "a\\b"])
def test_a_path_that_orbax_cannot_read_back_is_refused(images, name):
    with pytest.raises(ValueError, match="checkpoints cannot be saved in .* with the folder '"):
        train(config("images"), images.parent / name)
    assert not (images.parent / name).exists()


@pytest.mark.parametrize(
    "name", ["run 1", "übung", "a%20b", "{a}", "a#b", "a;b", "a[b", "c*", "d?"]
)
def test_other_unusual_paths_work(run, name):
    """Orbax reads back what it writes there itself."""
    folder = run.parent / name
    with closing(Checkpoints(folder)) as checkpoints:
        folder.mkdir()
        checkpoints.save(STATE)
        checkpoints.wait()
        assert checkpoints.recover() == 3
        assert int(checkpoints.restore(STATE, 3).step) == 3


def damaged_data(key, value):
    return lambda data: data | {key: value}


@pytest.mark.parametrize(
    "damage",
    [
        damaged_data("classes", "cat"),
        damaged_data("classes", [1, 2]),
        damaged_data("steps_per_epoch", 0),
        damaged_data("steps_per_epoch", None),
        damaged_data("example", None),
        damaged_data("example", {"inputs": {"shape": [8], "dtype": "uint7"}}),
        damaged_data("example", {"inputs": {"shape": [8], "dtype": None}}),
        damaged_data("example", {"inputs": {"shape": [-1], "dtype": "f4"}}),
        damaged_data("example", {"inputs": {"shape": [8], "dtype": "f8,(2,"}}),
        damaged_data("example", {"inputs": {"shape": [8], "dtype": "f4,f4"}}),
        damaged_data("example", {"inputs": {"shape": [8], "dtype": "M8[s]"}}),
        damaged_data("example", {"inputs": {"shape": [8], "dtype": "S4"}}),
        damaged_data("example", {"inputs": {"shape": [8], "dtype": "complex64"}}),
        damaged_data("example", {"inputs": {"shape": {"a": 1}, "dtype": "f4"}}),
        damaged_data("splits", {"train": 3}),
        damaged_data("splits", {"train": {"examples": 3}}),
        lambda data: {},
    ],
)
def test_damaged_facts_about_the_data_are_named(run, damage):
    record = json.loads((run / "config.json").read_text())
    record["data"] = damage(record["data"])
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"config.json cannot be read: data\."):
        flaxdl.evaluate(run, config=config("images"))
    with pytest.raises(ValueError, match=r"config.json cannot be read: data\."):
        train(config("images"), run)


def damaged_example(**arrays):
    return lambda data: data | {"example": {**data["example"], **arrays}}


@pytest.mark.parametrize(
    "damage",
    [
        damaged_data("example", {}),
        damaged_example(label={"shape": [], "dtype": "float32"}),
        damaged_example(label={"shape": [3], "dtype": "int32"}),
        damaged_example(more={"shape": [3], "dtype": "int32"}),
        damaged_data("classes", ["one"]),
        damaged_data("classes", []),
    ],
)
def test_facts_that_do_not_fit_the_config_are_named(run, damage):
    record = json.loads((run / "config.json").read_text())
    record["data"] = damage(record["data"])
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="config.json in .* is inconsistent: "):
        flaxdl.evaluate(run, config=config("images"))


def test_long_lists_of_classes_are_shortened():
    others = {"steps_per_epoch": 1, "example": {}, "splits": {}}
    names = [f"c{number:03}" for number in range(100)]
    old, new = ({"classes": c, **others} for c in (names, [*names[:50], *names[51:], "zebra"]))
    assert facts.differences(old, new) == ["classes: 100 → 100 (missing: c050; new: zebra)"]
    (line,) = facts.differences(old, {"classes": names[::-1], **others})
    assert line == "classes: 100 → 100 (in a different order)"
    (line,) = facts.differences(old, {"classes": names[:20], **others})
    assert line.endswith("c028, c029, 70 more)")
