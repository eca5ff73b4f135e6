"""Published checkpoints: where they are, how to know them, and what they were measured with.

The image models are torchvision's, trained on ImageNet's 1000 classes; BERTs are those of the
Hugging Face hub.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path
from flaxdl.weights.download import cache_folder, download
from flaxdl.weights.members import split_member


@dataclass(frozen=True)
class Published:
    """Weights of torchvision, and the preprocessing that belongs to them."""

    name: str
    """The architecture in torchvision's words, such as `vgg16_bn`."""
    file: str
    """The name of the file; the digits in it begin its SHA-256."""
    accuracy: float
    """Percentage of ImageNet's validation images whose class comes first."""
    variant: str = "IMAGENET1K_V1"
    """Which training recipe, in torchvision's words."""
    resize: int = 256
    """Pixels of the shorter side after resizing: bilinear, antialiased, as Pillow does it."""
    crop: int = 224
    """Pixels of the side of the square that is cut out of the middle."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """What is subtracted from red, green and blue; 1 is full brightness."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """What the differences are divided by."""

    @property
    def url(self) -> str:
        """Where the file is."""
        return f"https://download.pytorch.org/models/{self.file}"

    @property
    def sha256(self) -> str:
        """The first eight digits of the file's SHA-256."""
        return Path(self.file).stem.rpartition("-")[2]


def _v2(name: str, file: str, accuracy: float) -> Published:
    return Published(name, file, accuracy, variant="IMAGENET1K_V2", resize=232)


_CHECKPOINTS = (
    Published("alexnet", "alexnet-owt-7be5be79.pth", 56.522),
    Published("vgg11", "vgg11-8a719046.pth", 69.020),
    Published("vgg11_bn", "vgg11_bn-6002323d.pth", 70.370),
    Published("vgg13", "vgg13-19584684.pth", 69.928),
    Published("vgg13_bn", "vgg13_bn-abd245e5.pth", 71.586),
    Published("vgg16", "vgg16-397923af.pth", 71.592),
    Published("vgg16_bn", "vgg16_bn-6c64b313.pth", 73.360),
    Published("vgg19", "vgg19-dcbb9e9d.pth", 72.376),
    Published("vgg19_bn", "vgg19_bn-c79401a0.pth", 74.218),
    Published("resnet18", "resnet18-f37072fd.pth", 69.758),
    Published("resnet34", "resnet34-b627a593.pth", 73.314),
    Published("resnet50", "resnet50-0676ba61.pth", 76.130),
    _v2("resnet50", "resnet50-11ad3fa6.pth", 80.858),
    Published("resnet101", "resnet101-63fe2227.pth", 77.374),
    _v2("resnet101", "resnet101-cd907fc2.pth", 81.886),
    Published("resnet152", "resnet152-394f9c45.pth", 78.312),
    _v2("resnet152", "resnet152-f82ba261.pth", 82.284),
)

# `resnet50` alone means the first recipe, as "pretrained" did before there were two.
PUBLISHED = {one.name: one for one in _CHECKPOINTS if one.variant == "IMAGENET1K_V1"} | {
    f"{one.name}:{one.variant}": one for one in _CHECKPOINTS
}
# For messages, each checkpoint once.
_SHORT_NAMES = [name for name in PUBLISHED if not name.endswith(":IMAGENET1K_V1")]


@dataclass(frozen=True)
class _Repository:
    """A model on the Hugging Face hub."""

    name: str
    revision: str | None = None
    sha256: str | None = None
    """Of its model.safetensors, where it is known."""


# The BERTs whose names on the hub had no owner at first.
_SHORT_BERTS = (
    "bert-base-uncased",
    "bert-base-cased",
    "bert-base-multilingual-uncased",
    "bert-base-multilingual-cased",
    "bert-base-chinese",
    "bert-base-german-cased",
    "bert-base-german-dbmdz-uncased",
    "bert-base-german-dbmdz-cased",
    "bert-base-cased-finetuned-mrpc",
    "bert-large-uncased",
    "bert-large-cased",
    "bert-large-uncased-whole-word-masking",
    "bert-large-cased-whole-word-masking",
    "bert-large-uncased-whole-word-masking-finetuned-squad",
    "bert-large-cased-whole-word-masking-finetuned-squad",
)
_REPOSITORIES = {name: _Repository(f"google-bert/{name}") for name in _SHORT_BERTS} | {
    "bert-base-uncased": _Repository(
        "google-bert/bert-base-uncased",
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        sha256="68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
    )
}

_REPOSITORY_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".json")
_DESCRIPTION = (
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_SAFETENSORS, _PICKLES = "model*.safetensors*", "pytorch_model*.bin*"


def published(name: str) -> Published:
    """The published ImageNet checkpoint of that name, such as `resnet50:IMAGENET1K_V2`.

    Raises:
        UserError: if there is none, with the names there are.
    """
    if name not in PUBLISHED:
        raise UserError(
            f"there are no published ImageNet weights {name!r}; "
            f"known are {', '.join(_SHORT_NAMES)}{did_you_mean(name, _SHORT_NAMES)}"
        )
    return PUBLISHED[name]


def locate(source: str | Path) -> Path:
    """The file or folder that holds the weights, downloaded if it is not at hand.

    Args:
        source: a file or folder, with `:KEY` as `read_weights` takes it; the name of a published
            checkpoint, such as `resnet50`, `resnet50:IMAGENET1K_V2` or `bert-base-uncased`; or a
            BERT on the Hugging Face hub, as `owner/name`. A revision may follow the name of a BERT,
            as in `owner/name@revision`.

    Raises:
        UserError: if the source is none of these, or cannot be downloaded.
    """
    path = local_path(source)
    if path.exists():
        return path
    name = str(source)
    if name in PUBLISHED:
        checkpoint = PUBLISHED[name]
        return download(checkpoint.url, cache_folder() / checkpoint.file, checkpoint.sha256)
    if split_member(path)[1] is not None:
        return path
    if name in _REPOSITORIES:
        return _snapshot(_REPOSITORIES[name])
    short, _, revision = name.partition("@")
    if short in _REPOSITORIES and revision:
        return _snapshot(_Repository(_REPOSITORIES[short].name, revision=revision))
    match = _REPOSITORY_NAME.fullmatch(name)
    # `runs/model` where there is a folder `runs` is a file that is missing, not one on the hub.
    if match and not name.endswith(_FILE_SUFFIXES) and not Path(name).parent.exists():
        return _snapshot(_Repository(match[1], revision=match[2]))
    raise UserError(
        f"there is no file, folder or published checkpoint {name!r}; weights come from a file, a "
        f"folder, a BERT on the Hugging Face hub as owner/name, or bert-base-uncased and others of "
        f"google-bert by their name alone, or one of {', '.join(_SHORT_NAMES)}{_hint(name)}"
    )


def _hint(name: str) -> str:
    """The end of the message about an unknown name.

    Another BERT has another vocabulary, so one is proposed only if at most one letter differs.
    """

    def letters(text: str) -> Counter[str]:
        return Counter(filter(str.isalnum, text.lower()))

    def is_mistyped(known: str) -> bool:
        ours, theirs = letters(name), letters(known)
        return ((ours - theirs) + (theirs - ours)).total() <= 1

    berts = [known for known in _SHORT_BERTS if is_mistyped(known)]
    return did_you_mean(name, berts if "bert" in name.lower() else _SHORT_NAMES)


class ImageNetClass(NamedTuple):
    """One of ImageNet's classes."""

    wordnet_id: str
    """Its number in WordNet, such as `n02099601`."""
    name: str
    """Its name, which no other class has, such as `golden retriever`."""


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The 1000 classes of ImageNet in the order of the logits of every published model."""
    table = resources.files("flaxdl.weights").joinpath("imagenet_classes.tsv")
    lines = table.read_text("utf-8").splitlines()
    return tuple(ImageNetClass(*line.split("\t")) for line in lines)


def _snapshot(repository: _Repository) -> Path:
    """The folder of a model of the hub, in the cache that all of Hugging Face's libraries share."""
    from huggingface_hub import snapshot_download

    def folder_with(*patterns: str) -> Path:
        return Path(
            snapshot_download(
                repository.name,
                revision=repository.revision,
                allow_patterns=[*_DESCRIPTION, *patterns],
            )
        )

    address = f"https://huggingface.co/{repository.name}"
    by_hand = (
        "To do it by hand, put config.json, model.safetensors and tokenizer.json or vocab.txt "
        "into a folder, and pass it as --init.weights FOLDER, and for texts as "
        "--transform.tokenizer FOLDER as well"
    )
    try:
        folder = folder_with(_SAFETENSORS)
        if not any(folder.glob(_SAFETENSORS)):
            folder = folder_with(_PICKLES)
    except Exception as error:  # those of the library, and of the HTTP client that it is built on
        reason = str(error).rstrip(".")
        raise UserError(f"{address} could not be downloaded: {reason}. {by_hand}") from error
    if not any(file for kind in (_SAFETENSORS, _PICKLES) for file in folder.glob(kind)):
        raise UserError(f"{address} holds neither {_SAFETENSORS} nor {_PICKLES}")
    if repository.sha256 is not None:
        file = folder / "model.safetensors"
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != repository.sha256:
            raise UserError(
                f"{file} is not the file of {address}: its SHA-256 is {found}, and should be "
                f"{repository.sha256}. Delete it to have it downloaded again"
            )
    return folder
