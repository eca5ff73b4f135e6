"""Published models: what their weights fit into, and what they score.

B images or texts in a batch, H height, W width.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from flaxdl.checks import did_you_mean
from flaxdl.data import ImageFolder, Images, evaluation_batches
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path
from flaxdl.models import (
    VGG11,
    VGG13,
    VGG16,
    VGG19,
    AlexNet,
    Bert,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
)
from flaxdl.models.bert_options import BertOptions
from flaxdl.training.metrics import MetricSums
from flaxdl.training.precision import matmul_precision
from flaxdl.training.tasks import Classification
from flaxdl.weights import load_weights, read_weights
from flaxdl.weights.download import cache_folder, download
from flaxdl.weights.hub import PUBLISHED, imagenet_classes, locate, published

# torchvision's names, and ours.
_IMAGE_MODELS = {
    "alexnet": AlexNet,
    "vgg11": VGG11,
    "vgg11_bn": partial(VGG11, batch_norm=True),
    "vgg13": VGG13,
    "vgg13_bn": partial(VGG13, batch_norm=True),
    "vgg16": VGG16,
    "vgg16_bn": partial(VGG16, batch_norm=True),
    "vgg19": VGG19,
    "vgg19_bn": partial(VGG19, batch_norm=True),
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet152": ResNet152,
}
# What a BERT's checkpoint holds besides the encoder tells which model it is; the first that fits.
# What its config.json says does not: bert-base-uncased calls itself a BertForMaskedLM.
_BERT_HEADS = {
    "classifier.": BertForSequenceClassification,
    "cls.seq_relationship.": BertForPreTraining,
    "cls.predictions.": BertForMaskedLM,
}
_BERT_NAMES = ("BertModel", *(kind.__name__ for kind in _BERT_HEADS.values()))


def pretrained_model(name: str) -> nn.Module:
    """The model that published weights fit into.

    Args:
        name: an ImageNet checkpoint, such as `resnet50` or `vgg16_bn`; or a BERT: a folder as
            Hugging Face lays it out, `bert-base-uncased`, or `owner/name` on its hub, whose files
            are downloaded.

    Raises:
        UserError: if there is nothing of that name, or the BERT is of a kind that is not
            supported.
    """
    if name in PUBLISHED:
        return _IMAGE_MODELS[PUBLISHED[name].name]()
    folder = locate(name)
    file = folder / "config.json"
    try:
        description = json.loads(file.read_text("utf-8"))
        architectures = description.get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{name} must be a published model or a folder with a BERT's config.json; "
            f"{file} cannot be read: {error}"
        ) from error
    for architecture in architectures:
        if architecture not in _BERT_NAMES:
            raise UserError(
                f"{file} describes a {architecture}; supported are {', '.join(_BERT_NAMES)}"
                f"{did_you_mean(architecture, _BERT_NAMES)}"
            )
    keys = read_weights(folder)
    kinds = [kind for head, kind in _BERT_HEADS.items() if any(head in key for key in keys)]
    return [*kinds, Bert][0].from_hugging_face(description)


def load_pretrained(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The model and its variables, with all published weights.

    >>> model, variables = load_pretrained("resnet18")
    >>> logits = model.apply(variables, images)

    Args:
        name: as `pretrained_model` takes it. That of an ImageNet checkpoint means the published
            weights, whatever is called like it in the working directory.

    Raises:
        UserError: if there is nothing of that name, it cannot be downloaded, or is broken.
    """
    if name in PUBLISHED:
        checkpoint = PUBLISHED[name]
        path = download(checkpoint.url, cache_folder() / checkpoint.file, checkpoint.sha256)
        model = pretrained_model(name)
    else:
        path = locate(name)
        model = pretrained_model(str(path))
    if isinstance(model, BertOptions):
        example = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    else:
        side = published(name).crop
        example = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    return model, load_weights(shapes, path, ignore=getattr(model, "ignored_keys", ()))


def evaluate_pretrained(name: str, data: str | Path, *, batch_size: int = 64) -> dict[str, float]:
    """The metrics of a published ImageNet model on a folder of images, preprocessed as published.

    Args:
        name: an ImageNet checkpoint, such as `resnet50:IMAGENET1K_V2`.
        data: a folder with a folder for each class, called by its WordNet number (`n01440764`) or
            by its name (`tench`, `great_white_shark`), or such a folder's parent, if it is called
            `val` as ImageNet has it. Classes may be missing. Training images are scored only if
            their own folder is given.
        batch_size: how many images are computed at once; it changes nothing else.

    Returns:
        `loss`, `accuracy` and `top_5_accuracy` over all images, each counted once, among the
        logits of all 1000 classes.

    Raises:
        UserError: if there is no such model or folder, it holds a folder `train` and none called
            `val`, or a folder is called like no class, with the list of them.
    """
    checkpoint = published(name)
    folder = local_path(data)
    folder = folder / "val" if (folder / "val").is_dir() else folder
    if (folder / "train").is_dir():
        raise UserError(
            f"{folder} holds a folder train and none called val; give the folder of the images to "
            f"score, with a folder for each class, or {folder / 'train'} if those are meant"
        )
    everything = ImageFolder(str(folder), validation_fraction=0.0, test_fraction=0.0).load(seed=0)
    numbers = _class_numbers(everything.classes or (), folder)
    images = Images(
        mean=checkpoint.mean,
        std=checkpoint.std,
        size=checkpoint.crop,
        shorter_side=checkpoint.resize,
    )
    model, variables = load_pretrained(name)
    variables = jax.device_put(variables)
    task = Classification()

    @jax.jit
    def measure(variables: dict[str, Any], batch: dict[str, jax.Array]) -> MetricSums:
        with matmul_precision("float32"):
            logits: Any = model.apply(variables, images.normalize(batch["inputs"]))
        return MetricSums.of(task.metrics(logits, batch))

    sums = None
    batches = evaluation_batches(everything.train, images, batch_size=batch_size)
    count = -(-len(everything.train) // batch_size)
    for batch in track(batches, name, total=count, console=Console(stderr=True)):
        measured = measure(variables, batch | {"label": numbers[batch["label"]]})
        sums = measured if sums is None else sums + measured
    assert sums is not None, "a folder of images holds some"
    return sums.means()


def _class_numbers(folders: tuple[str, ...], where: Path) -> np.ndarray:
    """The number of the logit for each of the folders, int32[n]."""
    known = {
        word: number
        for number, one in enumerate(imagenet_classes())
        for word in (one.wordnet_id, one.name)
    }
    unknown = [folder for folder in folders if folder.replace("_", " ") not in known]
    if unknown:
        raise UserError(
            f"{where} has folders that are called like no class of ImageNet: {', '.join(unknown)}; "
            f"needed are WordNet numbers such as n01440764, or names such as tench"
            f"{did_you_mean(unknown[0].replace('_', ' '), known)}"
        )
    return np.array([known[folder.replace("_", " ")] for folder in folders], np.int32)
