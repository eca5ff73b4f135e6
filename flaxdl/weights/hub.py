"""Pretrained checkpoints: URLs, checksums, preprocessing and reference accuracies.

Image models are from torchvision and were trained on the 1000 classes of ImageNet; BERT models are
from the Hugging Face hub.
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
from flaxdl.filesystem.inputs import input_path
from flaxdl.filesystem.paths import cache_folder
from flaxdl.weights.download import download
from flaxdl.weights.members import split_member


@dataclass(frozen=True)
class PretrainedWeights:
    """Pretrained weights from torchvision, with their preprocessing."""

    name: str
    """Name of the architecture in torchvision, such as `vgg16_bn`."""
    file: str
    """File name, including the first eight digits of the file's SHA-256."""
    accuracy: float
    """Top-1 accuracy on ImageNet's validation images, in percent."""
    variant: str = "IMAGENET1K_V1"
    """Name of the training recipe in torchvision."""
    resize: int = 256
    """Shorter side after resizing, in pixels (bilinear with antialiasing, as in Pillow)."""
    crop: int = 224
    """Side length of the center crop, in pixels."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each RGB channel, for normalization of pixel values in [0, 1]."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each RGB channel, for normalization."""

    @property
    def url(self) -> str:
        """Download address of the file."""
        return f"https://download.pytorch.org/models/{self.file}"

    @property
    def sha256(self) -> str:
        """First eight digits of the file's SHA-256."""
        return Path(self.file).stem.rpartition("-")[2]


def _v2(name: str, file: str, accuracy: float) -> PretrainedWeights:
    return PretrainedWeights(name, file, accuracy, variant="IMAGENET1K_V2", resize=232)


_CHECKPOINTS = (
    PretrainedWeights("alexnet", "alexnet-owt-7be5be79.pth", 56.522),
    PretrainedWeights("vgg11", "vgg11-8a719046.pth", 69.020),
    PretrainedWeights("vgg11_bn", "vgg11_bn-6002323d.pth", 70.370),
    PretrainedWeights("vgg13", "vgg13-19584684.pth", 69.928),
    PretrainedWeights("vgg13_bn", "vgg13_bn-abd245e5.pth", 71.586),
    PretrainedWeights("vgg16", "vgg16-397923af.pth", 71.592),
    PretrainedWeights("vgg16_bn", "vgg16_bn-6c64b313.pth", 73.360),
    PretrainedWeights("vgg19", "vgg19-dcbb9e9d.pth", 72.376),
    PretrainedWeights("vgg19_bn", "vgg19_bn-c79401a0.pth", 74.218),
    PretrainedWeights("resnet18", "resnet18-f37072fd.pth", 69.758),
    PretrainedWeights("resnet34", "resnet34-b627a593.pth", 73.314),
    PretrainedWeights("resnet50", "resnet50-0676ba61.pth", 76.130),
    _v2("resnet50", "resnet50-11ad3fa6.pth", 80.858),
    PretrainedWeights("resnet101", "resnet101-63fe2227.pth", 77.374),
    _v2("resnet101", "resnet101-cd907fc2.pth", 81.886),
    PretrainedWeights("resnet152", "resnet152-394f9c45.pth", 78.312),
    _v2("resnet152", "resnet152-f82ba261.pth", 82.284),
)

# `resnet50` without a variant is the first recipe, as with `pretrained=True` in torchvision.
PRETRAINED = {one.name: one for one in _CHECKPOINTS if one.variant == "IMAGENET1K_V1"} | {
    f"{one.name}:{one.variant}": one for one in _CHECKPOINTS
}
# For messages: one name per checkpoint.
_SHORT_NAMES = [name for name in PRETRAINED if not name.endswith(":IMAGENET1K_V1")]


@dataclass(frozen=True)
class _Repository:
    """Model on the Hugging Face hub."""

    name: str
    revision: str | None = None
    sha256: str | None = None
    """SHA-256 of the file model.safetensors, if known."""


# BERT models whose names on the hub originally had no owner.
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
_CONFIG_FILES = (
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_SAFETENSORS, _PICKLES = "model*.safetensors*", "pytorch_model*.bin*"


def pretrained_weights(name: str) -> PretrainedWeights:
    """Returns the pretrained ImageNet weights with a name, such as `resnet50:IMAGENET1K_V2`.

    Raises:
        UserError: if there are no weights with this name; the message lists the available names.
    """
    if name not in PRETRAINED:
        raise UserError(
            f"there are no pretrained ImageNet weights {name!r}; "
            f"available are {', '.join(_SHORT_NAMES)}{did_you_mean(name, _SHORT_NAMES)}"
        )
    return PRETRAINED[name]


def locate(source: str | Path) -> Path:
    """Returns the path of weights that `read_weights` can read, downloading them if necessary.

    Args:
        source: file or folder, optionally with `:KEY` as in `read_weights`; name of a pretrained
            model, such as `resnet50`, `resnet50:IMAGENET1K_V2` or `bert-base-uncased`; or name of a
            BERT model on the Hugging Face hub, in the form `owner/name`. The name of a BERT model
            may end with a revision, as in `owner/name@revision`.

    Raises:
        UserError: if the source is none of these, or cannot be downloaded.
    """
    path = input_path(source)
    if path.exists():
        return path
    name = str(source)
    if name in PRETRAINED:
        checkpoint = PRETRAINED[name]
        return download(checkpoint.url, cache_folder() / checkpoint.file, checkpoint.sha256)
    if split_member(path)[1] is not None:
        return path
    if name in _REPOSITORIES:
        return _snapshot(_REPOSITORIES[name])
    short, _, revision = name.partition("@")
    if short in _REPOSITORIES and revision:
        return _snapshot(_Repository(_REPOSITORIES[short].name, revision=revision))
    match = _REPOSITORY_NAME.fullmatch(name)
    # If a folder `runs` exists, `runs/model` is a missing file, not a model on the hub.
    if match and not name.endswith(_FILE_SUFFIXES) and not Path(name).parent.exists():
        return _snapshot(_Repository(match[1], revision=match[2]))
    raise UserError(
        f"there is no file, folder or pretrained checkpoint {name!r}; weights can be a file, a "
        f"folder, a BERT on the Hugging Face hub as owner/name (google-bert's, such as "
        f"bert-base-uncased, need no owner), or one of {', '.join(_SHORT_NAMES)}{_hint(name)}"
    )


def _hint(name: str) -> str:
    """Returns a suggestion for the error message about an unknown name, or an empty string.

    BERT models have different vocabularies, so one is suggested only if at most one letter of its
    name differs.
    """

    def letters(text: str) -> Counter[str]:
        return Counter(filter(str.isalnum, text.lower()))

    def is_mistyped(known: str) -> bool:
        ours, theirs = letters(name), letters(known)
        return ((ours - theirs) + (theirs - ours)).total() <= 1

    berts = [known for known in _SHORT_BERTS if is_mistyped(known)]
    return did_you_mean(name, berts if "bert" in name.lower() else _SHORT_NAMES)


class ImageNetClass(NamedTuple):
    """Class of the ImageNet data set."""

    wordnet_id: str
    """WordNet ID, such as `n02099601`."""
    name: str
    """Unique name, such as `golden retriever`."""


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Returns ImageNet's 1000 classes in the order of the pretrained models' logits."""
    table = resources.files("flaxdl.weights").joinpath("imagenet_classes.tsv")
    lines = table.read_text("utf-8").splitlines()
    return tuple(ImageNetClass(*line.split("\t")) for line in lines)


def _snapshot(repository: _Repository) -> Path:
    """Downloads a model to the cache of Hugging Face libraries, and returns its folder."""
    from huggingface_hub import snapshot_download

    def folder_with(*patterns: str) -> Path:
        return Path(
            snapshot_download(
                repository.name,
                revision=repository.revision,
                allow_patterns=[*_CONFIG_FILES, *patterns],
            )
        )

    address = f"https://huggingface.co/{repository.name}"
    manually = (
        "To download it manually, put config.json, model.safetensors and tokenizer.json or "
        "vocab.txt into a folder, and pass it as --init.weights FOLDER, and for texts also as "
        "--transform.tokenizer FOLDER"
    )
    try:
        folder = folder_with(_SAFETENSORS)
        if not any(folder.glob(_SAFETENSORS)):
            folder = folder_with(_PICKLES)
    except Exception as error:  # errors of the library and of its HTTP client
        reason = str(error).rstrip(".")
        raise UserError(f"{address} could not be downloaded: {reason}. {manually}") from error
    if not any(file for kind in (_SAFETENSORS, _PICKLES) for file in folder.glob(kind)):
        raise UserError(f"{address} contains neither {_SAFETENSORS} nor {_PICKLES}")
    if repository.sha256 is not None:
        file = folder / "model.safetensors"
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != repository.sha256:
            raise UserError(
                f"{file} is not the file at {address}: its SHA-256 is {found}, expected "
                f"{repository.sha256}. Delete it to download it again"
            )
    return folder
