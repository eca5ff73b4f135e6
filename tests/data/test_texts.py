import numpy as np
import pytest

from flaxdl.data import ArrayDataset, Arrays, Text, TextPairs
from flaxdl.data.texts import as_texts, chunks

pytestmark = pytest.mark.quick


def objects(*values):
    array = np.empty(len(values), object)
    for number, value in enumerate(values):
        array[number] = value
    return array


@pytest.mark.parametrize(
    "values",
    [
        ["a", "été"],
        np.array(["a", "été"]),
        np.array([b"a", "été".encode()]),
        np.array(["a", "été"], dtype=np.dtypes.StringDType()),
        objects("a", np.str_("été")),
        objects(b"a", "été".encode()),
    ],
)
def test_texts_become_plain_strings(values):
    texts = as_texts(values, "inputs")
    assert (texts.dtype, texts.tolist()) == (object, ["a", "été"])
    assert {type(text) for text in texts} == {str}


def test_plain_strings_are_not_copied():
    texts = objects("a", "b")
    assert as_texts(texts, "inputs") is texts


WRONG = [
    (None, "got None of type NoneType in row 1"),
    (float("nan"), "got nan of type float in row 1"),
    (np.float32("nan"), ".*of type float32 in row 1"),
    ([1, 14], r"got \[1, 14\] of type list in row 1"),
    (7, "got 7 of type int in row 1"),
    (b"\xff", r"got b'\\xff' of type bytes in row 1"),
    (np.zeros(3), ".*of type ndarray in row 1"),
]


@pytest.mark.parametrize(("value", "message"), WRONG)
def test_what_is_no_text_is_refused_by_name(value, message):
    values = objects("a", value)
    with pytest.raises(ValueError, match=f"inputs must be texts, {message}"):
        as_texts(values, "inputs")
    for make in (lambda: values, lambda: list(values)):
        with pytest.raises(ValueError, match=f"train_inputs must be texts, {message}"):
            Arrays.from_memory(train_inputs=make(), train_label=[0, 1])
    data = ArrayDataset({"inputs": values, "pair": objects("a", "b"), "label": values})
    for transform in (Text(), TextPairs()):
        with pytest.raises(ValueError, match="inputs must be texts"):
            transform.fit(data)
    fitted = Text().fit(ArrayDataset({"inputs": objects("a")}))
    with pytest.raises(ValueError, match="inputs must be texts"):
        fitted.apply(data)
    with pytest.raises(ValueError, match="pair must be texts"):
        fitted.apply(ArrayDataset({"inputs": objects("a", "b"), "pair": values}))


@pytest.mark.parametrize("values", [np.zeros(2), np.zeros((2, 1), int), np.array([["a"], ["b"]])])
def test_arrays_of_other_kinds_are_no_texts(values):
    with pytest.raises(ValueError, match=r"inputs must be texts \[N\], got .*\[2"):
        as_texts(values, "inputs")


def test_texts_in_memory_are_as_long_as_they_are():
    source = Arrays.from_memory(
        train_inputs=["a"] * 300 + ["x" * 20_000], train_label=np.arange(301) % 2
    )
    texts = source.arrays["train_inputs"]
    assert (texts.dtype, len(texts[0]), len(texts[-1])) == (object, 1, 20_000)


def test_texts_in_memory_keep_the_name_that_they_had():
    """Runs of earlier versions are known by a hash of NumPy's array of fixed width."""
    label = np.arange(4)
    for texts in (["a", "été", "", "x" * 40], np.array(["a", "été", "", "x" * 40])):
        assert Arrays.from_memory(train_inputs=texts, train_label=label).path == (
            "memory:43ad4212e4f2ee0c"
        )


def test_texts_in_files_are_python_strings(tmp_path):
    texts = np.array(["a", "été"] * 10)
    np.savez(tmp_path / "t.npz", train_inputs=texts, train_label=np.arange(20) % 2)
    found = Arrays(str(tmp_path / "t.npz")).load(seed=0).train.arrays()["inputs"]
    assert (found.dtype, set(found)) == (object, {"a", "été"})


def test_numbers_among_objects_are_numbers():
    label, inputs = objects(0, np.int64(1)), np.array([[1, 2.5], [3, 4]], object)
    arrays = Arrays.from_memory(train_inputs=inputs, train_label=label).arrays
    assert (arrays["train_label"].dtype.kind, arrays["train_label"].tolist()) == ("i", [0, 1])
    assert (arrays["train_inputs"].dtype.kind, arrays["train_inputs"].shape) == ("f", (2, 2))
    with pytest.raises(
        ValueError, match=r"train_inputs must be texts \[N\], got object \[2, 1\]; use "
    ):
        Arrays.from_memory(train_inputs=np.array([[None], [1]], object), train_label=label)


def test_rows_of_different_shapes_are_named():
    with pytest.raises(ValueError, match="train_inputs must be one array: "):
        Arrays.from_memory(train_inputs=[[1, 2], [3]], train_label=[0, 1])


def test_chunks_cover_everything_once():
    for count in (0, 1, 4, 5, 8):
        parts = list(chunks(count, 4))
        assert [n for part in parts for n in range(count)[part]] == list(range(count))
        assert all(part.stop - part.start <= 4 for part in parts)
