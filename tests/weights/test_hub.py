"""Pretrained checkpoints: names, addresses and cache; nothing is downloaded."""

import hashlib
import re

import pytest

from flaxdl.weights import hub
from flaxdl.weights.hub import (
    PRETRAINED,
    PretrainedWeights,
    imagenet_classes,
    locate,
    pretrained_weights,
)

pytestmark = pytest.mark.quick

NAMES = [
    "alexnet",
    *(f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
]


def test_every_published_checkpoint_has_its_names():
    second = {f"resnet{depth}:IMAGENET1K_V2" for depth in (50, 101, 152)}
    assert set(PRETRAINED) == {*NAMES, *(f"{name}:IMAGENET1K_V1" for name in NAMES), *second}
    for name in NAMES:
        assert pretrained_weights(name) is pretrained_weights(f"{name}:IMAGENET1K_V1")


def test_what_is_known_of_a_checkpoint():
    first, second = pretrained_weights("resnet50"), pretrained_weights("resnet50:IMAGENET1K_V2")
    assert first.url == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert (first.sha256, second.sha256) == ("0676ba61", "11ad3fa6")
    assert (first.accuracy, second.accuracy) == (76.130, 80.858)
    assert (first.resize, first.crop) == (256, 224)
    assert (second.resize, second.crop) == (232, 224)
    assert second.mean == (0.485, 0.456, 0.406)
    assert second.std == (0.229, 0.224, 0.225)
    assert pretrained_weights("alexnet").url.endswith("/alexnet-owt-7be5be79.pth")


def test_hashes_and_accuracies_are_plausible():
    checkpoints = set(PRETRAINED.values())
    assert len({one.sha256 for one in checkpoints}) == len(checkpoints) == 17
    for one in checkpoints:
        assert re.fullmatch("[0-9a-f]{8}", one.sha256)
        assert one.file.startswith(one.name)
        assert 56 < one.accuracy < 83
    assert pretrained_weights("vgg16_bn").accuracy == 73.360


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet05", "resnet50"), ("vgg16bn", "vgg16_bn"), ("bert-base-uncased", None)],
)
def test_a_name_that_is_not_published(name, near):
    hint = f"did you mean '{near}'[?]" if near else "resnet152:IMAGENET1K_V2"
    with pytest.raises(ValueError, match=f"no pretrained ImageNet weights '{name}'.*{hint}"):
        pretrained_weights(name)


def test_imagenet_classes():
    classes = imagenet_classes()
    assert len(classes) == 1000
    numbers = [one.wordnet_id for one in classes]
    assert numbers == sorted(set(numbers))
    assert all(re.fullmatch(r"n\d{8}", number) for number in numbers)
    assert len({one.name for one in classes}) == 1000
    assert not any("_" in one.name or one.name != one.name.strip() for one in classes)
    assert classes[0] == ("n01440764", "tench")
    known = {
        134: "crane (bird)",
        207: "golden retriever",
        281: "tabby",
        388: "giant panda",
        463: "bucket",
        517: "crane (machine)",
        620: "laptop",
        817: "sports car",
        954: "banana",
        999: "toilet tissue",
    }
    assert {number: classes[number].name for number in known} == known
    assert classes[207].wordnet_id == "n02099601"
    assert classes[281].wordnet_id == "n02123045"


def test_files_and_folders_are_taken_as_they_are(tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"")
    assert locate(file) == locate(str(file)) == file
    assert locate(tmp_path) == tmp_path
    # A file of a published name comes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet50").write_bytes(b"")
    assert locate("resnet50").read_bytes() == b""


def test_a_published_name_is_downloaded_to_the_cache(tmp_path, monkeypatch):
    content = b"weights"
    sha256 = hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setenv("FLAXDL_CACHE", str(tmp_path))
    monkeypatch.setitem(PRETRAINED, "tiny", PretrainedWeights("tiny", f"tiny-{sha256}.pth", 60.0))
    calls = []

    def download(url, path, sha256):
        calls.append((url, path, sha256))
        return path

    monkeypatch.setattr(hub, "download", download)
    path = tmp_path / f"tiny-{sha256}.pth"
    assert locate("tiny") == path
    assert calls == [(f"https://download.pytorch.org/models/{path.name}", path, sha256)]


def test_the_home_folder_and_names_behind_a_colon(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ckpt").write_bytes(b"")
    assert locate("~/a.ckpt") == tmp_path / "a.ckpt"
    assert locate("~/a.ckpt:ema") == tmp_path / "a.ckpt:ema"
    with pytest.raises(ValueError, match="no file, folder or pretrained checkpoint '~/b.ckpt:ema'"):
        locate("~/b.ckpt:ema")
    # A published name is no part of a file, unless the file has all of that name.
    (tmp_path / "tiny").write_bytes(b"")
    monkeypatch.setitem(PRETRAINED, "tiny:V2", PretrainedWeights("tiny", "tiny-00.pth", 60.0))
    monkeypatch.setattr(hub, "download", lambda url, path, sha256: path)
    assert locate("tiny:V2").name == "tiny-00.pth"
    assert str(locate("tiny:ema")) == "tiny:ema"
    (tmp_path / "tiny:V2").write_bytes(b"")
    assert str(locate("tiny:V2")) == "tiny:V2"


@pytest.mark.parametrize(
    "source",
    [
        "resnet05",
        "weights.pth",
        "owner/model.safetensors",
        "runs/digits",
        "a/b/c",
        "../x/y",
        "a b/c",
    ],
)
def test_what_is_nowhere(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="no file, folder or pretrained checkpoint") as raised:
        locate(source)
    assert repr(source) in str(raised.value)
    assert "bert-base-uncased" in str(raised.value)
    if source == "resnet05":
        assert str(raised.value).endswith("did you mean 'resnet50'?")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("bert-base-uncasd", "bert-base-uncased"),
        ("bert_base_cased", "bert-base-cased"),
        ("BERT-Large-Cased", "bert-large-cased"),
        ("bert-base-japanese", None),
        ("bert-base-german-uncased", None),
        ("bert-base-uncased-v2", None),
        ("distilbert-base-uncased", None),
        ("roberta-base", None),
        ("bert-base", None),
    ],
)
def test_another_bert_is_proposed_only_for_a_mistyped_name(name, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="BERT on the Hugging Face hub as owner/name") as raised:
        locate(name)
    hint = re.search("did you mean '(.*)'", str(raised.value))
    assert (hint and hint[1]) == near


class Repositories:
    """Fake Hugging Face hub with the files of one repository."""

    def __init__(self, folder, files):
        self.folder, self.files, self.calls = folder, files, []

    def snapshot_download(self, name, *, revision, allow_patterns):
        self.calls.append((name, revision))
        for file, content in self.files.items():
            if any(
                re.fullmatch(p.replace(".", "[.]").replace("*", ".*"), file) for p in allow_patterns
            ):
                (self.folder / file).write_bytes(content)
        return str(self.folder)


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    (tmp_path / "snapshot").mkdir()
    found = Repositories(
        tmp_path / "snapshot", {"config.json": b"{}", "README.md": b"", "vocab.txt": b""}
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def test_a_repository_with_safetensors(repositories):
    repositories.files |= {"model.safetensors": b"s", "pytorch_model.bin": b"p"}
    folder = locate("owner/some-bert@v1.0")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "vocab.txt",
        "model.safetensors",
    }
    assert repositories.calls == [("owner/some-bert", "v1.0")]


def test_pickles_are_fetched_only_where_there_is_nothing_else(repositories):
    repositories.files |= {"pytorch_model.bin": b"p", "tf_model.h5": b"t"}
    folder = locate("owner/some-bert")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "vocab.txt",
        "pytorch_model.bin",
    }
    assert repositories.calls == [("owner/some-bert", None)] * 2


def test_a_repository_without_weights(repositories):
    with pytest.raises(ValueError, match="huggingface.co/owner/some-bert contains neither"):
        locate("owner/some-bert")


def test_a_repository_that_cannot_be_had(repositories, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("401 Client Error: you need to log in")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValueError, match=r"co/owner/some-bert could not .*log in.*into a folder"):
        locate("owner/some-bert")


def test_bert_base_is_verified(repositories):
    repositories.files["model.safetensors"] = b"not BERT"
    with pytest.raises(ValueError, match="SHA-256 is [0-9a-f]{64}, expected 68d45e23"):
        locate("bert-base-uncased")
    assert repositories.calls == [
        ("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
    ]


@pytest.mark.parametrize(
    "name",
    [
        "bert-base-cased",
        "bert-large-uncased",
        "bert-base-multilingual-cased",
        "bert-base-chinese",
        "bert-base-german-dbmdz-uncased",
        "bert-large-cased-whole-word-masking",
    ],
)
def test_short_names_are_those_of_google_bert(name, repositories, monkeypatch):
    repositories.files["model.safetensors"] = b"s"
    locate(name)
    locate(f"{name}@v1")
    assert repositories.calls == [(f"google-bert/{name}", None), (f"google-bert/{name}", "v1")]

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = f"^https://huggingface.co/google-bert/{name} could not be downloaded: no network"
    with pytest.raises(ValueError, match=message) as raised:
        locate(name)
    assert "did you mean" not in str(raised.value)
    repositories.folder.with_name(name).mkdir()  # a folder of that name comes first
    assert str(locate(name)) == name


def test_another_revision_of_bert_base_is_not_compared(repositories):
    repositories.files["model.safetensors"] = b"not BERT"
    locate("bert-base-uncased@main")
    assert repositories.calls == [("google-bert/bert-base-uncased", "main")]
