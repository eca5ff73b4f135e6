"""The ResNets against torchvision's stored values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from helpers.image_parity import (
    count_parameters,
    reference_images,
    reference_logits,
    variable_shapes,
)
from helpers.learning import assert_every_parameter_learns, assert_no_second_trace, overfit
from helpers.parity import assert_close, cast, names_and_shapes
from helpers.sampling import sampled

from flaxdl.models import ResNet, ResNet18, ResNet34, ResNet50, ResNet101, ResNet152
from flaxdl.weights import load_weights, state_dict

# name → model, parameters
MODELS = {
    "resnet18": (ResNet18(), 11_689_512),
    "resnet34": (ResNet34(), 21_797_672),
    "resnet50": (ResNet50(), 25_557_032),
    "resnet101": (ResNet101(), 44_549_160),
    "resnet152": (ResNet152(), 60_192_808),
}
IMAGES = reference_images("image", (2, 3, 224, 224))
SMALL = ResNet(10, depths=(1, 1, 1, 1), small_images=True)
SMALL_IMAGES = jax.random.normal(jax.random.key(3), (8, 9, 8, 1))


@pytest.mark.quick
@pytest.mark.parametrize("name", MODELS)
def test_has_the_names_of_torchvision(name):
    model, parameters = MODELS[name]
    shapes = variable_shapes(model, (1, 224, 224, 3))
    assert names_and_shapes(shapes) == reference.STATE_DICTS[name]
    assert count_parameters(model, (1, 224, 224, 3)) == parameters


@pytest.mark.parametrize("name", sampled(MODELS, ("resnet18", "resnet50").__contains__))
def test_reaches_the_stored_values(name):
    with jax.enable_x64(True):
        logits = reference_logits(MODELS[name][0], name, IMAGES, "float64")
    assert_close(logits, reference.golden(f"{name}/logits"), 1e-7)


@pytest.mark.whole
def test_reaches_the_stored_values_by_convolutions_of_xla():
    with jax.enable_x64(True):
        model = MODELS["resnet18"][0]
        logits = reference_logits(model, "resnet18", IMAGES, "float64", as_products=False)
    assert_close(logits, reference.golden("resnet18/logits"), 1e-7)


@pytest.mark.parametrize("name", sampled(MODELS, "resnet18".__eq__))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_reaches_the_stored_values_in_lower_precision(name, dtype, tolerance):
    logits = reference_logits(MODELS[name][0], name, IMAGES, dtype)
    assert_close(logits, reference.golden(f"{name}/logits"), tolerance)


def test_trains_as_torchvision_does():
    """Logits, loss, gradients and running statistics of one step of ResNet-18."""
    model, images = ResNet18(10), reference_images("image_train", (4, 3, 64, 64))
    labels = jnp.array([1, 2, 3, 4])
    golden = reference.golden_with_prefix("resnet18_train/")
    with jax.enable_x64(True):
        images = jnp.asarray(images, jnp.float64)
        shapes = {
            key: [10, *shape[1:]] if key.startswith("fc.") else shape
            for key, shape in reference.STATE_DICTS["resnet18"].items()
        }
        loaded = load_weights(variable_shapes(model, images.shape), reference.weights(shapes))
        variables = cast(loaded, jnp.float64)

        def loss(params):
            logits, updates = model.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (logits, updates)

        (value, (logits, updates)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            variables["params"]
        )
    gradients = state_dict({"params": gradients})
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    ours = {"logits": logits, "loss": value}
    ours |= {f"grad:{key}": gradient for key, gradient in gradients.items()}
    ours |= {f"after:{key}": statistic for key, statistic in state_dict(updates).items()}
    for key, theirs in golden.items():
        assert_close(ours[key], theirs, 1e-7, largest if key.startswith("grad:") else None)


def test_stem_for_small_images_keeps_the_size():
    params = variable_shapes(ResNet18(10, small_images=True), (1, 32, 32, 3))["params"]
    assert params["conv1"]["kernel"].shape == (3, 3, 3, 64)
    # ResNet-18 for CIFAR-10, as commonly counted.
    assert count_parameters(ResNet18(10, small_images=True), (1, 32, 32, 3)) == 11_173_962


@pytest.mark.parametrize("bottleneck", [False, True])
def test_every_parameter_learns(bottleneck):
    assert_every_parameter_learns(SMALL.clone(bottleneck=bottleneck), SMALL_IMAGES)


def test_overfits_one_batch():
    assert overfit(SMALL, SMALL_IMAGES, jnp.arange(8), steps=20, learning_rate=1e-3) == 1


def test_traces_once():
    assert_no_second_trace(SMALL, SMALL_IMAGES)


def test_starts_as_torchvision_does():
    params = SMALL.init(jax.random.key(0), SMALL_IMAGES)["params"]
    # The fan out of a 3 x 3 convolution with 128 outputs is 3 * 3 * 128.
    deviation = np.std(params["layer2.0"]["conv2"]["kernel"])
    assert deviation == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
    assert np.abs(params["fc"]["kernel"]).max() <= 1 / np.sqrt(512)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 8, 1), r"images must have shape \[B, H, W, C\], got \[8, 8, 1\]"),
        ((1, 8, 8, 3), r"inputs of conv1 must have shape .*C=1\], got \[1, 8, 8, 3\]"),
    ],
)
def test_refuses_other_images(shape, message):
    variables = SMALL.init(jax.random.key(0), SMALL_IMAGES)
    with pytest.raises(ValueError, match=message):
        SMALL.apply(variables, jnp.ones(shape))
