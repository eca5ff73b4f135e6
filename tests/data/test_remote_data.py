"""Data in buckets: the same examples as from local files."""

import io

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

import flaxdl
from flaxdl.data import (
    Arrays,
    Documents,
    ImageFolder,
    ImageParquet,
    Images,
    ImageTable,
    NextSentencePairs,
    SeriesTable,
    TextTable,
    Transform,
)
from flaxdl.data.vocabulary import learn, load
from flaxdl.errors import UserError
from flaxdl.filesystem.remote import RemoteFolder
from flaxdl.runs.items import SkippedItem, expand_items, read_items

pytest.importorskip("s3fs")
pytest.importorskip("gcsfs")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXDL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data of every kind."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows, listed = [], ["path,label"]
    for number in range(24):
        name = f"images/{('dark', 'light')[number % 2]}/{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        (folder / name).write_bytes(buffer.getvalue())
        rows.append({"bytes": buffer.getvalue(), "path": name})
        listed.append(f"{name},{number % 3}")
    (folder / "labels.csv").write_text("\n".join(listed))
    labels = [number % 2 for number in range(24)]
    table = pyarrow.table({"image": rows, "label": labels})
    (folder / "parquet").mkdir()
    parquet.write_table(table, folder / "parquet" / "train-0.parquet", row_group_size=4)
    texts = [f"a text with number {number}. Then another one.,{number % 2}" for number in range(40)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *texts]))
    (folder / "document.txt").write_text("\n\n".join(texts * 10))
    values = [f"{value:.3f}" for value in rng.normal(size=200)]
    (folder / "series.csv").write_text("\n".join(["value", *values]))
    inputs = rng.normal(size=(24, 3)).astype(np.float32)
    np.savez(folder / "arrays.npz", train_inputs=inputs, train_label=np.array(labels))
    np.save(folder / "one.npy", inputs[0])
    return folder


@pytest.fixture
def remote(bucket, folder):
    """The same folder in a bucket."""
    remote = RemoteFolder(f"{bucket}/data")
    for path in folder.rglob("*"):
        if path.is_file():
            remote.upload(path, path.relative_to(folder).as_posix())
    return remote


def sources(root):
    yield TextTable(path=f"{root}/texts.csv")
    yield Arrays(path=f"{root}/arrays.npz")
    yield Documents(path=f"{root}/document.txt", window=16)
    yield NextSentencePairs(path=f"{root}/document.txt")
    yield SeriesTable(path=f"{root}/series.csv", columns=("value",), context=8, horizon=4)
    yield ImageFolder(path=f"{root}/images")
    yield ImageParquet(path=f"{root}/parquet")
    yield ImageParquet(path=f"{root}/parquet/train-0.parquet")
    yield ImageTable(path=f"{root}/labels.csv")
    yield ImageTable(path=f"{root}/labels.csv", root=str(root))


def test_examples_are_those_of_local_files(folder, remote):
    for local, there in zip(sources(folder), sources(remote.url), strict=True):
        expected, found = local.load(seed=0), there.load(seed=0)
        assert found.classes == expected.classes
        for split in ("train", "validation", "test"):
            ours, theirs = getattr(expected, split), getattr(found, split)
            if ours is None:
                assert theirs is None
                continue
            assert theirs.fingerprint == ours.fingerprint
            arrays = ours.arrays()
            assert theirs.arrays().keys() == arrays.keys()
            for name, array in theirs.arrays().items():
                for one, other in zip(array, arrays[name], strict=True):
                    np.testing.assert_array_equal(one, other)


def test_a_table_that_changes_is_read_again(remote):
    source = Arrays(path=f"{remote.url}/arrays.npz")
    before = source.load(seed=0).train.arrays()["inputs"]
    buffer = io.BytesIO()
    np.savez(buffer, train_inputs=np.zeros((24, 3), np.float32), train_label=np.arange(24) % 2)
    remote.write("arrays.npz", buffer.getvalue())
    assert before.any()
    assert not source.load(seed=0).train.arrays()["inputs"].any()


def test_what_is_missing_is_one_message(remote):
    url = f"{remote.url}/none"
    for source in (
        TextTable(path=f"{url}.csv"),
        Arrays(path=f"{url}.npz"),
        Documents(path=f"{url}.txt"),
        ImageFolder(path=url),
        ImageParquet(path=url),
        ImageTable(path=f"{url}.csv", root=remote.url),
    ):
        with pytest.raises(UserError, match=f"^{url}[.a-z]* does not exist, or is empty$"):
            source.load(seed=0)


def test_predictions_read_files_and_folders_in_buckets(folder, remote):
    images = Images()
    file = f"{remote.url}/images/dark/0.png"
    (item,) = expand_items([file], images)
    assert item == file
    shapes = {"inputs": (8, 8, 3)}
    expected = images.read([str(folder / "images/dark/0.png")], shapes)["inputs"]
    np.testing.assert_array_equal(images.read([file], shapes)["inputs"], expected)
    found = expand_items([f"{remote.url}/images"], images)
    assert [item.rpartition("/")[2] for item in found] == [
        path.name for path in sorted((folder / "images").rglob("*.png"))
    ]
    (missing,) = expand_items([f"{remote.url}/none.png"], images)
    assert isinstance(missing, SkippedItem)
    assert "none.png does not exist" in missing.error
    read = Transform().read([f"{remote.url}/one.npy"], {"inputs": (3,)})["inputs"]
    np.testing.assert_array_equal(read[0], np.load(folder / "one.npy"))
    remote.write("items.txt", b"one\ntwo\n")
    assert read_items(f"{remote.url}/items.txt") == ["one", "two"]


def test_weights_and_tokenizers_are_read_from_buckets(bucket, tmp_path):
    remote = RemoteFolder(bucket)
    variables = {"params": {"fc": {"kernel": np.ones((3, 2)), "bias": np.arange(2.0)}}}
    flaxdl.export_weights(variables, tmp_path / "model.safetensors")
    remote.upload(tmp_path / "model.safetensors", "model.safetensors")
    zeros = {"params": {"fc": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}}}
    loaded = flaxdl.load_weights(zeros, f"{bucket}/model.safetensors")["params"]["fc"]
    assert loaded["kernel"].all()
    assert loaded["bias"].tolist() == [0, 1]
    words = learn(["one two three"], "words")
    remote.write("tokenizer.json", words.to_str().encode())
    assert load(f"{bucket}/tokenizer.json").get_vocab() == words.get_vocab()
