"""Many items for a classifier: batch by batch, from folders and lists, with bad ones among them."""

import io
import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.small_runs import small_config
from PIL import Image

from flaxdl.data import Images, Text, TextPairs, Transform
from flaxdl.runs import prediction
from flaxdl.runs.items import SkippedItem, expand_items, read_items, summary
from flaxdl.runs.prediction import BeamSearch, Prediction, Sampling, predict_each, predict_with_run
from flaxdl.runs.restored import RestoredRun
from flaxdl.runs.setup import set_up

pytestmark = pytest.mark.quick

COUNT = 10
traced = []


class Linear(nn.Module):
    """Logits that depend on the image alone; notes the shapes that it is compiled for."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, images, train=False):
        traced.append(images.shape)
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


@dataclass(frozen=True)
class Counted(Images):
    """Images that note how many are read together."""

    reads: ClassVar = []

    def read(self, items, shapes):
        self.reads.append(len(items))
        return super().read(items, shapes)


@pytest.fixture(scope="module")
def classifier():
    """A network that was not trained, with data of 8 x 8 gray pixels."""
    setup = set_up(small_config(model=Linear(), transform=Counted()))
    state = jax.jit(setup.create_state)()
    classes = tuple("abcd")
    return RestoredRun.extended(replace(setup, classes=classes), state=state)


@pytest.fixture
def files(tmp_path):
    """Image files of different content."""
    names = [str(tmp_path / f"{number}.png") for number in range(COUNT)]
    for number, name in enumerate(names):
        Image.effect_noise((8, 8), 20 + 10 * number).save(name)
    return names


def test_items_are_predicted_in_batches_by_one_program(classifier, files, monkeypatch):
    whole = predict_with_run(classifier, files)
    monkeypatch.setattr(prediction, "_MAX_BATCH_SIZE", 4)
    Counted.reads.clear()
    traced.clear()
    found = predict_with_run(classifier, files)
    assert Counted.reads == [4, 4, 2]
    assert traced == [(4, 8, 8, 1)]
    assert [one.item for one in found] == files
    for one, expected in zip(found, whole, strict=True):
        assert one.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        assert list(one.probabilities.values()) == sorted(one.probabilities.values(), reverse=True)
    assert len({one.probabilities["a"] for one in found}) == COUNT  # each of its own image


def test_no_more_than_the_batch_size_of_the_run_is_computed_together(classifier, files):
    small = replace(classifier, config=replace(classifier.config, batch_size=3))
    Counted.reads.clear()
    predict_with_run(small, files)
    predict_with_run(small, files[:2])
    assert Counted.reads == [3, 3, 3, 1, 2]


def test_predictions_come_before_the_last_item_is_read(classifier, files, monkeypatch):
    monkeypatch.setattr(prediction, "_MAX_BATCH_SIZE", 2)
    Counted.reads.clear()
    each = predict_each(classifier, files)
    next(each)
    assert Counted.reads == [2]


@dataclass(frozen=True)
class Refusing(Images):
    """A user's transform that refuses files by name."""

    def read(self, items, shapes):
        if any(item.endswith("3.png") for item in items):
            raise ValueError("not this one")
        return super().read(items, shapes)


def test_an_item_that_a_users_transform_refuses_does_not_cost_the_others_theirs(classifier, files):
    found = list(predict_each(replace(classifier, transform=Refusing()), files))
    assert found[3] == SkippedItem(files[3], "not this one")
    assert [one.item for one in found if isinstance(one, Prediction)] == files[:3] + files[4:]


def test_bad_items_do_not_cost_the_others_theirs(classifier, files, monkeypatch, tmp_path):
    monkeypatch.setattr(prediction, "_MAX_BATCH_SIZE", 4)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    bad = [str(tmp_path / "broken.png"), str(tmp_path / "gone.png"), "s3:///x.png", "-", ""]
    items = [bad[0], *files[:4], *bad[1:], files[4]]
    found = list(predict_each(classifier, items))
    assert [one.item for one in found] == items
    good = [one for one in found if isinstance(one, Prediction)]
    assert good == predict_with_run(classifier, files[:5])
    errors = {one.item: one.error for one in found if isinstance(one, SkippedItem)}
    assert list(errors) == bad
    assert f"{bad[0]} cannot be read as an image" in errors[bad[0]]
    assert errors[bad[1]] == f"no such image file: {bad[1]}"
    assert "s3:///x.png names no bucket" in errors[bad[2]]
    assert "from stdin, use --from-file -" in errors["-"]
    message = "^5 of 10 items have no prediction:\n  .*broken.png cannot be.*\n  no such.*gone.png"
    with pytest.raises(ValueError, match=message):
        predict_with_run(classifier, items)
    assert list(predict_each(classifier, bad[:1])) == [SkippedItem(bad[0], errors[bad[0]])]
    assert predict_with_run(classifier, []) == []


def test_a_summary_names_the_first_reasons():
    unreadable = [SkippedItem(f"text {number}", "too long") for number in range(25)]
    lines = summary(unreadable, 1_000).splitlines()
    assert lines[0] == "25 of 1,000 items have no prediction:"
    assert lines[1] == "  'text 0': too long"
    assert (len(lines), lines[-1]) == (22, "  and 5 more")
    assert summary([SkippedItem("x.png", "no such file: x.png")], 1) == "no such file: x.png"


def test_a_folder_stands_for_its_images_at_any_depth(files, tmp_path, caplog):
    inner = tmp_path / "more" / "deep"
    inner.mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "@eaDir").mkdir()  # thumbnails
    (inner / "again").symlink_to(tmp_path)  # a circle
    used = ("more/B.JPEG", "more/deep/c.tiff", "more/from_a_hash")
    for name in (*used, ".hidden/d.png", "@eaDir/d.png", "._e.png", "notes.txt", "f"):
        (tmp_path / name).touch()
    shutil.copy(files[0], tmp_path / "more" / "from_a_hash")  # an image by its content
    images = [str(tmp_path / name) for name in used]
    expected = sorted([*files, *images])
    assert expand_items([files[3], str(tmp_path)], Images()) == [files[3], *expected]
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: skipped 3 files: ")
    kinds = set(message.rpartition(": ")[2].split(", "))
    assert kinds == {"1 hidden", "1 .txt", "1 without suffix"}


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "x.csv").touch()
    (found,) = expand_items([str(tmp_path)], Images())
    assert isinstance(found, SkippedItem)
    assert f"{tmp_path} contains no supported files (.jpg, " in found.error
    assert found.error.endswith("; found 1 .csv")
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert expand_items([str(tmp_path)], Transform()) == [str(tmp_path / "x.npy")]


@pytest.mark.parametrize("transform", [Text(), TextPairs()])
def test_texts_are_not_taken_for_files(transform, tmp_path):
    texts = [str(tmp_path), "https://a.org", "-", "~/x", ""]
    assert expand_items(texts, transform) == texts


def test_the_home_folder_is_found(files, tmp_path, monkeypatch, classifier):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_items(["~"], Images()) == sorted(files)
    (found,) = predict_with_run(classifier, ["~/3.png"])
    assert found.probabilities == predict_with_run(classifier, files[3:4])[0].probabilities


def test_items_are_read_from_a_file_line_by_line(tmp_path, monkeypatch, caplog):
    path = tmp_path / "items.txt"
    path.write_bytes("\ufeffone\r\n\r\n two\tand more\u2028here \n  \nthree".encode())
    assert read_items(str(path)) == ["one", " two\tand more\u2028here ", "three"]
    assert caplog.messages == [f"{path}: skipped 2 blank lines"]
    caplog.clear()
    path.write_text("one\n")
    assert read_items(str(path)) == ["one"]
    assert not caplog.messages
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a.png\nb.png\n")))
    assert read_items("-") == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"\xff\xfe", "as UTF-8 text"), (b"\n \n", "contains no texts")],
)
def test_a_list_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "items.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"items.txt .*{message}"):
        read_items(str(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_tokens", 0), ("temperature", -1.0), ("temperature", float("nan")), ("seed", -1)],
)
def test_impossible_ways_to_sample_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must .*, got {value}"):
        Sampling(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("beams", 0), ("length_penalty", -1.0)])
def test_impossible_beams_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must .*, got {value}"):
        BeamSearch(**{field: value})
