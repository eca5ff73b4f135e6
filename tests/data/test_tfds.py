import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from flaxdl.data import ArrayDataset, Tfds
from flaxdl.data import tfds as tfds_module
from flaxdl.data.dataset import RecordDataset
from flaxdl.data.embedded.languages import LANGUAGES, content_hash, distinct_names, in_test_split
from flaxdl.data.prepare import quiet


def whole(split):
    return split.arrays()


@pytest.fixture(scope="module")
def digits(data_dir):
    return Tfds("digits", validation_fraction=0.0, data_dir=data_dir).load(seed=0)


@pytest.fixture(scope="module")
def languages(data_dir):
    return Tfds("languages", validation_fraction=0.0, data_dir=data_dir).load(seed=0)


def test_digits_are_those_of_scikit_learn(digits):
    original = load_digits()
    pixels = np.rint(original.images * 255 / 16).astype(np.uint8)
    expected = sorted((p.tobytes(), int(t)) for p, t in zip(pixels, original.target, strict=True))
    found = []
    for split in (digits.train, digits.test):
        arrays = whole(split)
        assert arrays["inputs"].shape[1:] == (8, 8, 1)
        assert arrays["inputs"].dtype == np.uint8
        found += [
            (p.tobytes(), int(t)) for p, t in zip(arrays["inputs"], arrays["label"], strict=True)
        ]
    assert sorted(found) == expected
    assert max(p.max() for p in pixels) == 255


def test_digits_are_split_by_class(digits):
    assert (len(digits.train), digits.validation, len(digits.test)) == (1437, None, 360)
    totals = np.bincount(load_digits().target)
    counts = np.bincount(whole(digits.test)["label"])
    assert np.abs(counts - totals * 360 / 1797).max() <= 1
    assert digits.classes == tuple("0123456789")


def test_a_tenth_is_held_out_by_seed(data_dir):
    first, again, other = (Tfds("digits", data_dir=data_dir).load(seed=s) for s in (0, 0, 1))
    assert (len(first.train), len(first.validation), len(first.test)) == (1293, 144, 360)
    np.testing.assert_array_equal(
        whole(first.validation)["inputs"], whole(again.validation)["inputs"]
    )
    assert not np.array_equal(whole(first.validation)["inputs"], whole(other.validation)["inputs"])
    counts = np.bincount(whole(first.validation)["label"])
    assert counts.min() >= 13
    assert counts.max() <= 16


def test_splits_can_be_sliced(data_dir):
    source = Tfds("digits", train="train[:90%]", validation="train[90%:]", data_dir=data_dir)
    splits = source.load(seed=0)
    assert (len(splits.train), len(splits.validation)) == (1293, 144)
    assert Tfds("digits", test=None, data_dir=data_dir).load(seed=0).test is None


def test_languages_has_enough_names_of_each(languages):
    assert len(languages.train) + len(languages.test) >= 15_000
    assert len(languages.classes) >= 20
    assert languages.classes == tuple(LANGUAGES.values())
    assert 0.18 < len(languages.test) / (len(languages.train) + len(languages.test)) < 0.22
    for split in (languages.train, languages.test):
        assert np.bincount(whole(split)["label"], minlength=len(LANGUAGES)).min() >= 80


def test_no_name_is_in_two_languages_or_splits(languages):
    train, test = (whole(split)["inputs"] for split in (languages.train, languages.test))
    folded = [{name.casefold() for name in names} for names in (train, test)]
    assert not folded[0] & folded[1]
    languages_of = {}
    for split in (languages.train, languages.test):
        for name, label in zip(*whole(split).values(), strict=True):
            languages_of.setdefault(name.casefold(), set()).add(int(label))
    assert {len(labels) for labels in languages_of.values()} == {1}
    assert all(in_test_split(name) for name in test)
    assert not any(in_test_split(name) for name in train)


def test_languages_records_the_hash_of_its_content(languages, data_dir):
    examples = {
        name: languages.classes[label]
        for split in (languages.train, languages.test)
        for name, label in zip(*whole(split).values(), strict=True)
    }
    metadata = json.loads(Path(data_dir, "languages/1.0.0/metadata.json").read_text())
    assert metadata["sha256"] == content_hash(examples) == content_hash(distinct_names())


def test_the_hash_is_that_of_the_sorted_lines():
    # printf 'a\tEnglish\nb\tWelsh\n' | sha256sum
    assert content_hash({"b": "Welsh", "a": "English"}) == (
        "4789c3531d93ca3575113032c6a65e83c6916acbd35e6cb944164312bbf230c0"
    )


def test_preparation_is_silent_but_for_our_log(tmp_path, capfd, caplog):
    with caplog.at_level(logging.INFO):
        Tfds("digits", data_dir=str(tmp_path)).load(seed=0)
    assert capfd.readouterr() == ("", "")
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("flaxdl")]
    assert len(messages) == 2
    assert messages[0].startswith("preparing digits in ")
    assert messages[1].startswith("prepared digits in ")


def test_a_large_split_stays_in_its_files(data_dir, monkeypatch):
    monkeypatch.setattr(tfds_module, "_MEMORY_LIMIT", 10_000)
    splits = Tfds("digits", data_dir=data_dir, validation_fraction=0.0).load(seed=0)
    assert isinstance(splits.train, RecordDataset)
    monkeypatch.undo()
    loaded = Tfds("digits", data_dir=data_dir, validation_fraction=0.0).load(seed=0)
    assert isinstance(loaded.train, ArrayDataset)
    indices = np.array([1000, 3, 3])
    for name, array in loaded.train.gather(indices).items():
        np.testing.assert_array_equal(splits.train.gather(indices)[name], array)


def test_any_dataset_of_the_catalogue_is_read(tmp_path, monkeypatch):
    # The mock's own function asks for a `self` that nothing hands to it.
    monkeypatch.setattr(
        "tensorflow_datasets.testing.mocking._getitems",
        lambda keys, generator: [generator[key] for key in keys],
    )
    with tfds.testing.mock_data(num_examples=25, data_dir=str(tmp_path)):
        splits = Tfds("mnist", data_dir=str(tmp_path)).load(seed=0)
    batch = splits.train.gather(np.arange(3))
    assert batch["inputs"].shape == (3, 28, 28, 1)
    assert batch["inputs"].dtype == np.uint8
    assert (len(splits.train), len(splits.test), len(splits.classes)) == (23, 25, 10)
    assert "tensorflow" not in sys.modules


LOAD = (
    "from flaxdl.data import Tfds; s = Tfds('digits', data_dir={!r}).load(0); print(len(s.train))"
)


def run(code, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def test_two_processes_may_prepare_at_once(tmp_path):
    processes = [run(LOAD.format(str(tmp_path))) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [out.strip() for out, _ in results] == ["1293", "1293"], results
    assert sorted(p.name for p in (tmp_path / "digits").iterdir()) == [".1.0.0.lock", "1.0.0"]


KILLED = (
    """
import os
import tensorflow_datasets as tfds
from flaxdl.data.embedded.digits import Digits
make = Digits._generate_examples
def dying(*args):
    for number, example in enumerate(make(*args)):
        if number == 100:
            os._exit(9)
        yield example
Digits._generate_examples = dying
"""
    + LOAD
)


def test_an_interrupted_preparation_is_redone(tmp_path):
    killed = run(KILLED.format(str(tmp_path)))
    killed.communicate(timeout=120)
    assert killed.returncode == 9
    assert not (tmp_path / "digits/1.0.0").exists()
    assert len(Tfds("digits", data_dir=str(tmp_path)).load(seed=0).train) == 1293


def test_a_half_copied_dataset_is_redone(tmp_path):
    folder = tmp_path / "digits/1.0.0"
    folder.mkdir(parents=True)
    (folder / "digits-train.array_record-00000-of-00001").write_bytes(b"half")
    assert len(Tfds("digits", data_dir=str(tmp_path)).load(seed=0).train) == 1293


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit"}, r"no TFDS dataset is named 'digit'; did you mean 'digits'\?"),
        ({"name": "digits:7.0.0"}, r"TFDS cannot open 'digits:7\.0\.0'.*only: 1\.0\.0"),
        ({"train": "tarin[:5]"}, r"splits train, test, got 'tarin\[:5\]'; did you mean 'train'\?"),
        ({"validation": "valid"}, r"digits has the splits train, test, got 'valid'"),
        ({"test": "test[:0%]"}, r"split 'test\[:0%\]' of digits is empty"),
        ({"train": "train[:5"}, r"split 'train\[:5' of digits: Unrecognized split format"),
        ({"inputs": "imge"}, r"inputs must be .* image, label of digits, got 'imge'; .* 'image'\?"),
        ({"label": "digit"}, r"label must be one of the features image, label of digits"),
        ({"validation_fraction": 1.5}, r"validation_fraction .* got 1\.5 of 1437"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(data_dir, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        Tfds(**({"name": "digits", "data_dir": data_dir} | arguments)).load(seed=0)
    assert "\n" not in str(error.value)


class NeedsTensorflow(tfds.core.GeneratorBasedBuilder):
    """Yields arrays as images, which TFDS encodes with TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(2, 2, 1))})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"image": np.zeros((2, 2, 1), np.uint8)}


def test_a_dataset_that_needs_tensorflow_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="cannot be prepared here: it needs tensorflow") as error:
        Tfds("needs_tensorflow", data_dir=str(tmp_path)).load(seed=0)
    for part in ("pip install tensorflow", "tfds build needs_tensorflow --file_format=array_record",
                 f"--data_dir={tmp_path}", str(tmp_path / "needs_tensorflow/1.0.0")):  # fmt: skip
        assert part in str(error.value)


def test_records_in_another_format_are_refused(tmp_path, data_dir, digits):
    info = json.loads(Path(data_dir, "digits/1.0.0/dataset_info.json").read_text())
    folder = tmp_path / "digits/1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    features = Path(data_dir, "digits/1.0.0/features.json").read_text()
    (folder / "features.json").write_text(features)
    with pytest.raises(ValueError, match=r"not in ArrayRecord format.*tfds build digits"):
        Tfds("digits", data_dir=str(tmp_path)).load(seed=0)


@pytest.mark.parametrize("method", ["as_data_source", "download_and_prepare"])
def test_without_array_record_the_error_says_what_to_do(
    digits, data_dir, tmp_path, monkeypatch, method
):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'array_record'", name="array_record")

    monkeypatch.setattr(tfds.core.DatasetBuilder, method, missing)
    folder = data_dir if method == "as_data_source" else str(tmp_path)
    message = "digits cannot be read without .* array_record: .*pip install array-record.*WSL"
    with pytest.raises(ValueError, match=message):
        Tfds("digits", data_dir=folder).load(seed=0)


def test_an_unusable_data_dir_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match=r"digits cannot be prepared here: .*file/datasets"):
        Tfds("digits", data_dir=str(tmp_path / "file/datasets")).load(seed=0)


def test_importing_the_data_room_is_light():
    code = (
        "import sys, flaxdl.data; print([m for m in ('tensorflow_datasets', 'sklearn', 'grain', "
        "'orbax', 'babel', 'PIL', 'tokenizers', 'tensorflow') if m in sys.modules])"
    )
    out, err = run(code).communicate(timeout=60)
    assert out.strip() == "[]", err


def test_quiet_is_for_one_thread_alone(capsys, caplog):
    """Another thread is heard, and none is left with the streams of another one."""
    before, streams = (threading.Event() for _ in range(2)), (sys.stdout, sys.stderr)
    inside, said = before

    def other():
        inside.wait(5)
        print("out")
        print("err", file=sys.stderr)
        logging.getLogger("absl").warning("a warning of another library")
        said.set()
        with quiet():
            print("nothing")

    thread = threading.Thread(target=other)
    thread.start()
    with quiet():
        inside.set()
        assert said.wait(5)
        print("progress")
        print("progress", file=sys.stderr)
        logging.getLogger("absl").warning("a warning of TFDS")
        with quiet():
            print("progress")
    thread.join()
    assert (sys.stdout, sys.stderr) == streams
    assert capsys.readouterr() == ("out\n", "err\n")
    assert [message for message in caplog.messages if "warning" in message] == [
        "a warning of another library"
    ]
