"""Pretrained models with published weights, and evaluation on ImageNet."""

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
from flaxdl.filesystem.inputs import input_path
from flaxdl.filesystem.paths import cache_folder
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
from flaxdl.weights.download import download
from flaxdl.weights.hub import PRETRAINED, imagenet_classes, locate, pretrained_weights

# torchvision's name → model.
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
# Prefix of a head's parameters in a BERT checkpoint → model; the first match is used. The
# architecture in config.json is not reliable: for bert-base-uncased it is BertForMaskedLM.
_BERT_HEADS = {
    "classifier.": BertForSequenceClassification,
    "cls.seq_relationship.": BertForPreTraining,
    "cls.predictions.": BertForMaskedLM,
}
_BERT_NAMES = ("BertModel", *(kind.__name__ for kind in _BERT_HEADS.values()))


def pretrained_model(name: str) -> nn.Module:
    """Creates the module for a pretrained model, without its weights.

    Args:
        name: name of an ImageNet model, such as `resnet50` or `vgg16_bn`; name of a BERT model,
            such as `bert-base-uncased` or `owner/name` on the Hugging Face hub, which is downloaded
            if necessary; or a folder with a BERT model in Hugging Face format.

    Raises:
        UserError: if there is no model of that name, or its architecture is not supported.
    """
    if name in PRETRAINED:
        return _IMAGE_MODELS[PRETRAINED[name].name]()
    folder = locate(name)
    file = folder / "config.json"
    try:
        description = json.loads(file.read_text("utf-8"))
        architectures = description.get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{name} must be a pretrained model or a folder with the config.json of a BERT; "
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
    """Loads a pretrained model; returns the module and its variables.

    >>> model, variables = flaxdl.load_pretrained("resnet18")
    >>> logits = model.apply(variables, images)

    Args:
        name: name of the model, as in `pretrained_model`. The name of an ImageNet model always
            selects the published weights, even if the working directory contains a file of that
            name.

    Raises:
        UserError: if there is no model of that name, or its weights cannot be downloaded or are
            corrupt.
    """
    if name in PRETRAINED:
        checkpoint = PRETRAINED[name]
        path = download(checkpoint.url, cache_folder() / checkpoint.file, checkpoint.sha256)
        model = pretrained_model(name)
    else:
        path = locate(name)
        model = pretrained_model(str(path))
    if isinstance(model, BertOptions):
        example = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    else:
        side = pretrained_weights(name).crop
        example = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    return model, load_weights(shapes, path, ignore=getattr(model, "ignored_keys", ()))


def evaluate_pretrained(name: str, data: str | Path, *, batch_size: int = 64) -> dict[str, float]:
    """Evaluates a pretrained ImageNet model on a folder of images.

    Images are preprocessed as published with the weights.

    Args:
        name: name of an ImageNet model, such as `resnet50:IMAGENET1K_V2`.
        data: folder with one subfolder per class, named by WordNet ID (`n01440764`) or class name
            (`tench`, `great_white_shark`). If the folder contains a folder `val`, as in ImageNet,
            `val` is used instead. Classes may be missing. To evaluate training images, pass the
            folder of the training images.
        batch_size: number of images per batch; does not affect the results.

    Returns:
        Dictionary with `loss`, `accuracy` and `top_5_accuracy`, averaged over all images and
        computed from the logits of all 1000 classes.

    Raises:
        UserError: if there is no such model or folder, if the folder contains `train` but not
            `val`, or if subfolders match no class; the message lists them.
    """
    checkpoint = pretrained_weights(name)
    folder = input_path(data)
    folder = folder / "val" if (folder / "val").is_dir() else folder
    if (folder / "train").is_dir():
        raise UserError(
            f"{folder} has a folder train but no folder val; pass the folder with one folder of "
            f"images per class, which may be {folder / 'train'}"
        )
    everything = ImageFolder(str(folder), validation_fraction=0.0, test_fraction=0.0).load(seed=0)
    numbers = _class_numbers(everything.classes or (), folder)
    images = Images(
        mean=checkpoint.mean,
        std=checkpoint.std,
        size=checkpoint.crop,
        resize=checkpoint.resize,
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
    assert sums is not None, "ImageFolder refuses empty folders"
    return sums.means()


def _class_numbers(folders: tuple[str, ...], where: Path) -> np.ndarray:
    """Returns the logit index of each class folder, int32[number of folders]."""
    known = {
        word: number
        for number, one in enumerate(imagenet_classes())
        for word in (one.wordnet_id, one.name)
    }
    unknown = [folder for folder in folders if folder.replace("_", " ") not in known]
    if unknown:
        raise UserError(
            f"{where} has folders that match no ImageNet class: {', '.join(unknown)}; name them "
            f"by WordNet id, such as n01440764, or class name, such as tench"
            f"{did_you_mean(unknown[0].replace('_', ' '), known)}"
        )
    return np.array([known[folder.replace("_", " ")] for folder in folders], np.int32)
