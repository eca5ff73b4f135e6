import dataclasses

import numpy as np
import pytest

from flaxdl.data import Arrays

pytestmark = pytest.mark.quick


def example(**changes):
    arrays = {
        "train_inputs": np.arange(40 * 6, dtype=np.float32).reshape(40, 3, 2),
        "train_label": np.arange(40) % 4,
        "test_inputs": np.zeros((5, 3, 2), np.float32),
        "test_label": np.array([0, 1, 2, 3, 0]),
    }
    arrays |= changes
    return {name: array for name, array in arrays.items() if array is not None}


def refused(match, **changes):
    with pytest.raises(ValueError, match=match):
        Arrays.from_memory(**example(**changes)).load(seed=0)


def test_a_file_is_read_with_a_tenth_held_out(tmp_path):
    np.savez(tmp_path / "data.npz", **example())
    splits = Arrays(str(tmp_path / "data.npz")).load(seed=0)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [36, 4, 5]
    np.testing.assert_array_equal(np.sort(splits.validation.arrays()["label"]), [0, 1, 2, 3])
    assert splits.test.arrays()["label"].dtype == np.int32
    assert splits.classes == ("0", "1", "2", "3")
    batch = splits.train.gather(np.array([0]))
    assert batch["inputs"].shape == (1, 3, 2)


def test_memory_gives_the_same_splits_as_a_file(tmp_path):
    np.savez(tmp_path / "data.npz", **example())
    for split in ("train", "validation", "test"):
        file = getattr(Arrays(str(tmp_path / "data.npz")).load(seed=1), split).arrays()
        memory = getattr(Arrays.from_memory(**example()).load(seed=1), split).arrays()
        for name in ("inputs", "label"):
            np.testing.assert_array_equal(file[name], memory[name])


def test_the_fingerprint_follows_the_content():
    source = Arrays.from_memory(**example())
    assert source == Arrays.from_memory(**example())
    assert source != Arrays.from_memory(**example(train_inputs=np.zeros((40, 3, 2), np.float32)))
    assert source.path.startswith("memory:")
    assert "array(" not in repr(source)
    assert len(dataclasses.replace(source, validation_fraction=0.5).load(seed=0).train) == 20


def test_named_classes_validation_and_further_fields():
    changes = {
        "classes": np.array(["ant", "bee", "cat", "dog"]),
        "train_lengths": np.arange(40),
        "validation_inputs": np.ones((2, 3, 2), np.float32),
        "validation_label": np.array([3, 3]),
        "validation_lengths": np.arange(2),
    }
    splits = Arrays.from_memory(**example(**changes)).load(seed=0)
    assert splits.classes == ("ant", "bee", "cat", "dog")
    assert (len(splits.train), len(splits.validation)) == (40, 2)
    np.testing.assert_array_equal(splits.train.gather(np.array([7]))["lengths"], [7])


def test_float_labels_are_no_classes():
    changes = {"train_label": np.linspace(0, 1, 40), "test_label": np.zeros(5)}
    splits = Arrays.from_memory(**example(**changes)).load(seed=0)
    assert splits.classes is None
    label = splits.train.arrays()["label"]
    assert (label.dtype, label.shape) == (np.float32, (36,))


def test_lists_and_texts_in_memory():
    source = {"train_inputs": ["yes", "no", "non", "oui"] * 5, "train_label": [0, 0, 1, 1] * 5}
    objects = source | {"train_inputs": np.array(source["train_inputs"], dtype=object)}
    assert Arrays.from_memory(**source).path == Arrays.from_memory(**objects).path
    splits = Arrays.from_memory(**source).load(seed=0)
    assert (len(splits.train), len(splits.validation), splits.classes) == (18, 2, ("0", "1"))
    whole = Arrays.from_memory(**source, validation_fraction=0.0).load(seed=0)
    assert whole.train.arrays()["inputs"].tolist() == source["train_inputs"]


def test_changing_an_array_later_does_not_change_the_source():
    arrays = example()
    source = Arrays.from_memory(**arrays)
    arrays["train_inputs"][:] = -1
    assert source.load(seed=0).train.arrays()["inputs"].min() >= 0


def test_test_may_be_left_out():
    splits = Arrays.from_memory(**example(test_inputs=None, test_label=None)).load(seed=0)
    assert splits.test is None


def test_wrong_arrays_are_refused_by_name():
    refused(
        r"lacks train_label; it contains test_inputs, test_label, train_inputs", train_label=None
    )
    refused(r"lacks test_inputs", test_inputs=None)
    refused(r"got 'trian_inputs'; did you mean 'train_inputs'\?", trian_inputs=np.zeros(3))
    refused(
        r"memory:\w+: train split: .*inputs \[40, 3, 2\], label \[39\]",
        train_label=np.zeros(39, int),
    )
    refused(
        r"memory:\w+: the test split is empty",
        test_inputs=np.zeros((0, 3, 2)), test_label=np.zeros(0, int),
    )  # fmt: skip
    refused(
        r"memory:\w+: .* 0\.\.3 in test_label, got -1 at example 4",
        test_label=np.array([0, 1, 2, 3, -1]),
        classes=np.array(list("abcd")),
    )
    refused(r"0\.\.1 in train_label, got 2 at example 2", classes=np.array(["ant", "bee"]))


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no such file: .*absent\.npz"):
        Arrays(str(tmp_path / "absent.npz")).load(seed=0)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(ValueError, match=r"broken\.npz cannot be read as a \.npz file"):
        Arrays(str(tmp_path / "broken.npz")).load(seed=0)
    np.savez(tmp_path / "objects.npz", train_inputs=np.array([{}, []], dtype=object))
    with pytest.raises(ValueError, match=r"objects\.npz cannot be read"):
        Arrays(str(tmp_path / "objects.npz")).load(seed=0)
    with pytest.raises(ValueError, match=r"memory:0123: the arrays of this run were in memory"):
        Arrays("memory:0123").load(seed=0)


def test_weights_of_examples():
    weight = np.linspace(0, 2, 40)
    splits = Arrays.from_memory(**example(train_weight=weight)).load(seed=0)
    arrays = splits.train.arrays()
    np.testing.assert_array_equal(
        arrays["weight"], weight[arrays["inputs"][:, 0, 0].astype(int) // 6]
    )
    assert "weight" not in splits.test.arrays()
    refused(
        "train_weight must be at least 0 and finite in float32, got -1.0 at example 3",
        train_weight=np.where(np.arange(40) == 3, -1.0, 1.0),
    )
    refused("train_weight must .* finite .* got nan at example 0", train_weight=np.full(40, np.nan))
    refused(r"finite in float32, got 1e\+39 at example 0", train_weight=np.full(40, 1e39))
    refused("train_weight must not be 0 for all", train_weight=np.zeros(40))
    refused("train_weight must not be 0 for all", train_weight=np.full(40, 1e-60))
    refused(
        r"train_weight must be one number per example, \[N\], got float64 \[40, 2\]",
        train_weight=np.ones((40, 2)),
    )
