"""Published models: the right class for every name, and scores that count every image once."""

import hashlib
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flaxdl.data import Images
from flaxdl.data.resizing import center_crop, resize
from flaxdl.exporters.hugging_face import export_hugging_face
from flaxdl.models import (
    VGG16,
    VGG19,
    AlexNet,
    Bert,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    ResNet18,
    ResNet50,
    ResNet152,
)
from flaxdl.pretrained import evaluate_pretrained, load_pretrained, pretrained_model
from flaxdl.weights import export_weights, load_weights
from flaxdl.weights.hub import PRETRAINED, PretrainedWeights, imagenet_classes

TINY = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_heads": 2,
    "num_layers": 1,
    "feed_forward_size": 12,
    "max_length": 11,
    "layer_norm_epsilon": 1e-10,
    "activation": "gelu_new",
    "padding_index": 3,
    "dropout": 0.25,
}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("alexnet", AlexNet()),
        ("vgg16_bn", VGG16(batch_norm=True)),
        ("vgg19:IMAGENET1K_V1", VGG19()),
        ("resnet18", ResNet18()),
        ("resnet50:IMAGENET1K_V2", ResNet50()),
        ("resnet152", ResNet152()),
    ],
)
def test_image_models(name, model):
    assert pretrained_model(name) == model


def test_every_image_checkpoint_has_a_model():
    for name in PRETRAINED:
        assert pretrained_model(name).num_classes == 1000


def test_an_unknown_name():
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        pretrained_model("resnet05")


BERTS = [
    Bert(**TINY),
    BertForMaskedLM(**TINY),
    BertForPreTraining(**TINY),
    BertForSequenceClassification(num_classes=5, classifier_dropout=0.5, **TINY),
]


@pytest.mark.parametrize("model", BERTS, ids=lambda model: type(model).__name__)
def test_a_bert_is_known_by_what_its_checkpoint_holds(model, tmp_path):
    tokens = jnp.ones((2, 4), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    export_hugging_face(model, variables, tmp_path)
    # bert-base-uncased says this of itself, and also holds the other head.
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["BertForMaskedLM"]}
    path.write_text(json.dumps(config))
    found, weights = load_pretrained(str(tmp_path))
    assert found == model
    assert type(found) is type(model)
    jax.tree.map(np.testing.assert_array_equal, weights, variables)


def test_berts_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "config.json"
    for text, message in [
        (
            '{"architectures": ["BertForTokenClassification"]}',
            "describes a BertForTokenClass.*Masked",
        ),
        ('{"model_type": "roberta", "architectures": null}', "model_type must be 'bert'"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
    ]:
        path.write_text(text)
        export_weights({"params": {"a": np.ones(1)}}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            pretrained_model(str(tmp_path))
    path.unlink()
    with pytest.raises(
        ValueError, match="must be a pretrained model or a folder with the config.json of a BERT"
    ):
        pretrained_model(str(tmp_path))


def photos(count):
    """Smooth images of different sizes, one of them gray."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(count):
        coarse = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        size = (int(rng.integers(180, 400)), int(rng.integers(180, 400)))
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        images.append(image.convert("L") if number == 2 else image)
    return images


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory):
    """A published ResNet-18 with random weights, and seven images whose ranks are known."""
    cache = tmp_path_factory.mktemp("cache")
    model = ResNet18()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    export_weights(variables, cache / "new.safetensors")
    sha256 = hashlib.sha256((cache / "new.safetensors").read_bytes()).hexdigest()[:8]
    (cache / "new.safetensors").rename(cache / f"resnet18-{sha256}.pth")
    checkpoint = PretrainedWeights("resnet18", f"resnet18-{sha256}.pth", 60.0, resize=232)

    # The preprocessing again, with Pillow alone and in the words of torchvision.
    batch = []
    images = photos(7)
    for image in images:
        width, height = image.size
        short, long = min(width, height), max(width, height)
        longer = int(232 * long / short)
        size = (232, longer) if width <= height else (longer, 232)
        left, top = round((size[0] - 224) / 2.0), round((size[1] - 224) / 2.0)
        small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        batch.append(np.asarray(small.crop((left, top, left + 224, top + 224))))
    scaled = (np.stack(batch) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    logits = np.asarray(jax.jit(model.apply)(variables, scaled.astype(np.float32)))

    # Each image goes to the folder of its best, second, ... class.
    folder = tmp_path_factory.mktemp("imagenet") / "val"
    classes = imagenet_classes()
    losses = []
    for number, (image, rank) in enumerate(zip(images, (0, 1, 4, 5, 0, 999, 0), strict=True)):
        label = int(np.argsort(-logits[number])[rank])
        wordnet_id, name = classes[label]
        called = folder / (wordnet_id if number % 2 else name.replace(" ", "_"))
        called.mkdir(parents=True, exist_ok=True)
        image.save(called / f"{number}.png")
        row = logits[number].astype(np.float64)
        losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[label])
    return (
        cache,
        checkpoint,
        folder,
        {
            "loss": np.mean(losses),
            "accuracy": 3 / 7,
            "top_5_accuracy": 5 / 7,
        },
    )


@pytest.mark.parametrize("batch_size", [3, 8])
def test_every_image_counts_once(tiny_imagenet, monkeypatch, batch_size):
    cache, checkpoint, folder, expected = tiny_imagenet
    monkeypatch.setenv("FLAXDL_CACHE", str(cache))
    monkeypatch.setitem(PRETRAINED, "resnet18", checkpoint)
    found = evaluate_pretrained("resnet18", folder.parent, batch_size=batch_size)
    assert found == pytest.approx(expected, rel=1e-5)
    assert list(found) == list(expected)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_published_name_is_no_file_of_the_working_directory(
    tiny_imagenet, monkeypatch, tmp_path, kind
):
    cache, checkpoint, *_ = tiny_imagenet
    monkeypatch.setenv("FLAXDL_CACHE", str(cache))
    monkeypatch.setitem(PRETRAINED, "resnet18", checkpoint)
    monkeypatch.chdir(tmp_path)
    export_weights({"params": {"other": np.ones(1)}}, tmp_path / "model.safetensors")
    if kind == "file":
        (tmp_path / "model.safetensors").rename("resnet18")
    else:
        (tmp_path / "resnet18").mkdir()
        (tmp_path / "model.safetensors").rename("resnet18/model.safetensors")
    model, variables = load_pretrained("resnet18")
    expected = load_weights(variables, cache / checkpoint.file)
    assert model == ResNet18()
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_training_images_are_not_scored_unasked(tmp_path, monkeypatch):
    for name in ("tench", "goldfish"):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / "train" / name / "1.png")
    # Were they read, it would be for the model to fail.
    monkeypatch.setattr("flaxdl.pretrained.load_pretrained", lambda _: pytest.fail("scores them"))
    message = "/images has a folder train but no folder val; .* may be .*/images/train"
    with pytest.raises(ValueError, match=message):
        evaluate_pretrained("resnet18", tmp_path / "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        evaluate_pretrained("resnet18", "~/images")
    for name in ("carp", "tench"):
        (tmp_path / "images" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / "val" / name / "1.png")
    with pytest.raises(ValueError, match="/images/val has folders .* no ImageNet class: carp"):
        evaluate_pretrained("resnet18", tmp_path / "images")


def test_folders_that_are_no_classes_are_listed(tmp_path):
    for name in ("tench", "n01443537", "golden_retreiver", "n99999999"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    message = "no ImageNet class: golden_retreiver, n99999999; .*did you mean 'golden retriever'"
    with pytest.raises(ValueError, match=message):
        evaluate_pretrained("resnet18", tmp_path)
    with pytest.raises(ValueError, match="no such folder of images"):
        evaluate_pretrained("resnet18", tmp_path / "missing")


SIZES = [  # height and width, before and after
    ((37, 53), (24, 24)),
    ((333, 500), (170, 256)),
    ((224, 224), (256, 256)),
    ((1, 1), (7, 5)),
    ((3, 2), (64, 63)),
    ((7, 2000), (32, 9142)),
    ((1023, 767), (2, 3)),
    ((900, 2), (100, 224)),
    ((256, 300), (256, 224)),
    ((1200, 1600), (232, 309)),
]


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def triangle(size, new_size):
    """The matrix [new_size, size] of bilinear interpolation, widened where an image shrinks."""
    scale = size / new_size
    places = (np.arange(new_size)[:, None] + 0.5) * scale - (np.arange(size) + 0.5)
    weights = np.maximum(0, 1 - np.abs(places) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_resizing_is_the_antialiased_triangle_to_the_last_level(before, after):
    image = noise(*before)
    rows, columns = (triangle(*sizes) for sizes in zip(before, after, strict=True))
    exact = np.einsum("hH,HWc->hWc", rows, np.einsum("wW,HWc->Hwc", columns, image, optimize=True))
    difference = np.abs(resize(image, *after) - exact)
    assert difference.max() <= 1.01  # rows and columns are each rounded to bytes
    assert difference.mean() < 0.5


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_torchs_with_antialias(before, after, channels):
    torch = pytest.importorskip("torch")
    image = noise(*before, channels)
    interpolate = partial(
        torch.nn.functional.interpolate,
        size=after,
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    ours = resize(image, *after).astype(np.float64)
    # Of bytes torch computes with coarser weights than Pillow: now and then one level apart, and
    # in an image of two columns a weight is used so often that it shows.
    theirs = interpolate(tensor)[0].permute(1, 2, 0).numpy()
    difference = np.abs(ours - theirs)
    assert difference.max() <= 1
    assert difference.mean() < (0.01 if min(before) > 30 else 0.2)
    exact = interpolate(tensor.double())[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - exact).max() <= 1.01


@pytest.mark.parametrize(
    "size", [(256, 256), (257, 311), (500, 333), (97, 64), (31, 640), (1024, 33), (225, 224)]
)
@pytest.mark.parametrize(("shorter_side", "side"), [(256, 224), (232, 224), (33, 32), (32, 31)])
@pytest.mark.parametrize("channels", [1, 3])
def test_preprocessing_is_pillows_to_the_pixel(size, shorter_side, side, channels):
    image = noise(*size, channels)
    height, width = size
    if width <= height:
        new = (shorter_side, int(shorter_side * height / width))
    else:
        new = (int(shorter_side * width / height), shorter_side)
    left, top = round((new[0] - side) / 2.0), round((new[1] - side) / 2.0)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    picture = picture.resize(new, Image.Resampling.BILINEAR)
    theirs = np.asarray(picture.crop((left, top, left + side, top + side)))
    ours = center_crop(image, size=side, shorter_side=shorter_side)
    np.testing.assert_array_equal(ours, theirs.reshape(side, side, channels))


def test_normalization_is_torchvisions():
    settings = PRETRAINED["resnet50"]
    images = Images(mean=settings.mean, std=settings.std)
    image = noise(5, 4)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(images.normalize(jnp.asarray(image)), expected, atol=1e-6)
