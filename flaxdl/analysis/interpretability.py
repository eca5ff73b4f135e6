"""Interpretability methods as arrays: filters, feature maps, attention, saliency, hidden states.

Every function takes a model, its variables and the arguments of a call in inference mode, with
inputs normalized as the model expects. Models need no support for this: module outputs are
intercepted during the call. Each call is traced and compiled again.

Legend: B batch, H height, W width, C channels, K classes, T tokens or steps (queries), S tokens
attended to (keys), N heads, D features.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from flaxdl.analysis.intermediates import (
    Outputs,
    Variables,
    capture,
    intervene,
    jit_in_order,
    name_of,
)
from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError
from flaxdl.layers import Conv, Embedding
from flaxdl.layers.recurrent import Recurrent

_PROBES = 16  # noisy copies of an image; a pixel with zero gradient in one has one in another


def filters(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    layer: str | None = None,
    **others: Any,
) -> jax.Array:
    """Returns the weights of a convolution, [height, width, C, filters].

    Args:
        model: a model of images.
        variables: its variables.
        images: [B, H, W, C].
        layer: name of the convolution, such as `layer1.0.conv1`; the first one if None.
        **others: further arguments of the model.

    Raises:
        UserError: if there is no convolution over images, or none of this name.
    """

    def kernel(module: nn.Module, outputs: Any) -> Any:
        is_over_images = isinstance(module, Conv) and outputs.ndim == 4
        return module.get_variable("params", "kernel") if is_over_images else None

    kernels = capture(model, variables, kernel, images, **others)
    if not kernels:
        raise UserError(f"filters need a convolution over images; {_kind(model)} has none")
    return next(iter(chosen(kernels, layer).values()))


def feature_maps(
    model: nn.Module, variables: Variables, images: jax.Array, **others: Any
) -> Outputs:
    """Returns a dict from the names of the top-level modules to their outputs, [B, H, W, C].

    Top-level modules are those that the model calls directly: layers, or the blocks of a ResNet.
    An activation that the model applies to their outputs is not included.

    Raises:
        UserError: if no module keeps the spatial dimensions of an image.
    """

    def feature_map(module: nn.Module, outputs: Any) -> Any:
        return outputs if _is_map(module, outputs) else None

    maps = capture(model, variables, feature_map, images, **others)
    if not maps:
        raise UserError(
            f"feature maps need layers over images [B, H, W, C]; {_kind(model)} has none"
        )
    return maps


def receptive_fields(
    model: nn.Module, variables: Variables, image: jax.Array, **others: Any
) -> Outputs:
    """Returns a dict from layer names to the receptive field of the center unit, [H, W].

    This is the absolute gradient of the unit with respect to each pixel, averaged over the image
    [1, H, W, C] and noisy copies of it, because max pooling or an activation can hide a pixel in
    one of them. It is zero outside of the receptive field (Luo et al., "Understanding the
    Effective Receptive Field in Deep Convolutional Neural Networks", 2016).

    Raises:
        UserError: if no module keeps the spatial dimensions of an image, or there is more than one
            image.
    """
    if image.ndim != 4 or len(image) != 1:
        raise UserError(
            f"receptive fields need a model of images and a single image [1, H, W, C]; "
            f"{_kind(model)} got {list(image.shape)}"
        )
    noise = jax.random.normal(jax.random.key(0), (_PROBES, *image.shape[1:]))
    probes = jnp.concatenate([image, image + (jnp.std(image) + 1e-3) * noise])

    names: list[str] = []

    @jax.jit
    def middles(probes: jax.Array, variables: Variables) -> list[jax.Array]:
        maps = feature_maps(model, variables, probes, **others)
        names[:] = maps
        return [jnp.sum(x[:, x.shape[1] // 2, x.shape[2] // 2], axis=-1) for x in maps.values()]

    values, vjp = jax.vjp(lambda probes: middles(probes, variables), probes)
    fields = {}
    for number, name in enumerate(names):
        (gradient,) = vjp([jnp.full_like(x, i == number) for i, x in enumerate(values)])
        fields[name] = jnp.mean(jnp.sum(jnp.abs(gradient), axis=-1), axis=0)
    return fields


def chosen(outputs: Outputs, layer: str | None) -> Outputs:
    """Returns the output of one layer, or all of them if `layer` is None.

    Raises:
        UserError: if there is no output of this name, with all names.
    """
    if layer is None:
        return outputs
    if layer not in outputs:
        raise UserError(
            f"there is no layer {layer!r} with such outputs; choose one of "
            f"{', '.join(outputs)}{did_you_mean(layer, outputs)}"
        )
    return {layer: outputs[layer]}


def attention(model: nn.Module, variables: Variables, tokens: jax.Array, **others: Any) -> Outputs:
    """Returns the attention weights of each layer, [B, N, T, S] by name; each row sums to 1.

    Raises:
        UserError: if the model has no attention.
    """

    def weights(variables: Variables, tokens: jax.Array, **others: Any) -> Outputs:
        _, state = model.apply(variables, tokens, train=False, mutable=["intermediates"], **others)
        found: dict[Any, Any] = flatten_dict(dict(state).get("intermediates", {}))
        return {
            ".".join(modules): calls[-1]  # the last of several calls
            for (*modules, kind), calls in found.items()
            if kind == "attention_weights"
        }

    maps = jit_in_order(weights)(variables, tokens, **others)
    if not maps:
        raise UserError(f"attention maps need an attention layer; {_kind(model)} has none")
    return maps


def saliency(
    model: nn.Module,
    variables: Variables,
    inputs: jax.Array,
    label: jax.Array | None = None,
    **others: Any,
) -> jax.Array:
    """Returns the sensitivity of a class logit to each pixel or token.

    For images it is the largest absolute gradient over the channels, [B, H, W] (Simonyan et al.,
    "Deep Inside Convolutional Networks", 2014). For sequences [B, T, D] and tokens int32[B, T] it
    is the norm of the gradient with respect to the features of each step or the embedding of each
    token, [B, T].

    Args:
        model: a classifier.
        variables: its variables.
        inputs: images, sequences or tokens.
        label: class of each example, int32[B]; the most probable one if None.
        **others: further arguments of the model.

    Raises:
        UserError: if the model is not a classifier with logits [B, K], or has no token embedding.
    """
    if not jnp.issubdtype(inputs.dtype, jnp.integer):

        def logit_of(inputs: jax.Array, variables: Variables) -> jax.Array:
            return _logit_sum(model.apply(variables, inputs, train=False, **others), label, model)

        gradient = jax.jit(jax.grad(logit_of))(inputs, variables)
        if inputs.ndim == 4:
            return jnp.max(jnp.abs(gradient), axis=-1)
        return jnp.linalg.norm(gradient, axis=-1)

    def is_of_tokens(module: nn.Module, outputs: Any) -> bool:
        return isinstance(module, Embedding)

    _, gradient = _with_gradient(model, variables, is_of_tokens, 0, inputs, label, **others)
    return jnp.linalg.norm(gradient, axis=-1)


def grad_cam(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    label: jax.Array | None = None,
    layer: str | None = None,
    **others: Any,
) -> jax.Array:
    """Returns the Grad-CAM heatmap of a class, nonnegative [B, h, w].

    It is relu(Σ_c α_c A_c), where A [B, h, w, C] are feature maps of a layer and α_c is the mean
    over positions of the gradient of the class logit (Selvaraju et al., "Grad-CAM", 2017).

    Args:
        model: a classifier of images.
        variables: its variables.
        images: [B, H, W, C].
        label: class of each example, int32[B]; the most probable one if None.
        layer: name of one of the `feature_maps`; the last one if None.
        **others: further arguments of the model.

    Raises:
        UserError: if the model is not a classifier with logits [B, K], or no module keeps the
            spatial dimensions of an image, or none of them has this name.
    """

    def is_layer(module: nn.Module, outputs: Any) -> bool:
        return _is_map(module, outputs) and layer in (None, name_of(module))

    if layer is not None:
        chosen(feature_maps(model, variables, images, **others), layer)
    maps, gradient = _with_gradient(model, variables, is_layer, -1, images, label, **others)
    weights = jnp.mean(gradient, axis=(1, 2), keepdims=True)  # [B, 1, 1, C]
    return nn.relu(jnp.sum(weights * maps, axis=-1))


def hidden_states(
    model: nn.Module, variables: Variables, inputs: jax.Array, **others: Any
) -> Outputs:
    """Returns the hidden states after each step, [B, T, D] by name of the recurrent module.

    D is the hidden size, or twice that for a bidirectional module. For stacked layers it is the
    state of the last one. For an encoder-decoder, only the encoder is included, whose steps are
    those of the inputs.

    Raises:
        UserError: if the model is not recurrent.
    """

    def hidden_state(module: nn.Module, outputs: Any) -> Any:
        is_of_inputs = isinstance(module, Recurrent) and "decoder" not in module.path
        return outputs[0] if is_of_inputs else None

    states = capture(model, variables, hidden_state, inputs, **others)
    if not states:
        raise UserError(f"hidden states need a recurrent layer; {_kind(model)} has none")
    return states


def _with_gradient(
    model: nn.Module,
    variables: Variables,
    matches: Callable[[nn.Module, Any], bool],
    index: int,
    inputs: jax.Array,
    label: jax.Array | None,
    **others: Any,
) -> tuple[jax.Array, jax.Array]:
    """Returns the output of a module and the gradient of the class logits with respect to it.

    The module is the first (`index` 0) or last (-1) for which `matches` is true.
    """

    def matching(module: nn.Module, outputs: Any) -> Any:
        return outputs if matches(module, outputs) else None

    found = capture(model, variables, matching, inputs, **others)
    if not found:
        raise UserError(
            f"Grad-CAM needs layers over images [B, H, W, C], and saliency of tokens needs an "
            f"embedding; {_kind(model)} has none"
        )
    name = list(found)[index]

    def logit_of(shift: jax.Array, variables: Variables) -> jax.Array:
        def add(module: nn.Module, outputs: Any) -> Any:
            is_target = name_of(module) == name and matches(module, outputs)
            return outputs + shift if is_target else outputs

        return _logit_sum(intervene(model, variables, add, inputs, **others), label, model)

    return found[name], jax.jit(jax.grad(logit_of))(jnp.zeros_like(found[name]), variables)


def _logit_sum(logits: Any, label: jax.Array | None, model: nn.Module) -> jax.Array:
    """Returns the sum over the batch of one logit per example, so gradients stay per example."""
    if getattr(logits, "ndim", 0) != 2:
        raise UserError(
            f"saliency and Grad-CAM need a classifier with logits [B, K]; {_kind(model)} is not one"
        )
    label = jnp.argmax(logits, axis=-1) if label is None else jnp.asarray(label)
    return jnp.sum(jnp.take_along_axis(logits, label[:, None], axis=-1))


def _is_map(module: nn.Module, outputs: Any) -> bool:
    """Returns True for a top-level module with spatial outputs [B, H, W, C] larger than 1×1."""
    shape = getattr(outputs, "shape", ())
    return len(module.path) == 1 and len(shape) == 4 and max(shape[1:3]) > 1


def _kind(model: nn.Module) -> str:
    return type(model).__name__
