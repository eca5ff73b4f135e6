"""What a network does with its inputs, as arrays: maps, weights, gradients and states.

Every function takes a model, its variables, and the arguments of the call in inference mode, with
images normalized as the model wants them. Nothing in the models is made for it: what modules put
out is taken, and changed for a gradient, while they are called. Each call is traced and compiled
anew.

Legend: B batch, H height, W width, C channels, K classes, T tokens or steps, S tokens looked at, N
heads, D features.
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
    apply_changing,
    collect,
    jit_in_order,
    name_of,
)
from flaxdl.errors import UserError
from flaxdl.layers import Conv, Embedding
from flaxdl.layers.recurrent import Recurrent

_PROBES = 16  # noisy copies of an image, so that each pixel that can matter does so in one of them


def filters(model: nn.Module, variables: Variables, images: jax.Array, **others: Any) -> jax.Array:
    """The weights of the convolution that is called first, [height, width, C, filters].

    Raises:
        UserError: if there is no convolution over images.
    """

    def kernel(module: nn.Module, outputs: Any) -> Any:
        is_over_images = isinstance(module, Conv) and outputs.ndim == 4
        return module.get_variable("params", "kernel") if is_over_images else None

    kernels = collect(model, variables, kernel, images, **others)
    if not kernels:
        raise UserError(f"filters need a convolution over images; {_kind(model)} has none")
    return next(iter(kernels.values()))


def feature_maps(
    model: nn.Module, variables: Variables, images: jax.Array, **others: Any
) -> Outputs:
    """What each part of the model makes of images, [B, H, W, C] by name.

    The parts are the modules that the model calls itself: layers, or the blocks of a ResNet. Their
    outputs are as they are, before an activation that the model applies to them.

    Raises:
        UserError: if nothing in the model keeps the positions of an image.
    """

    def feature_map(module: nn.Module, outputs: Any) -> Any:
        return outputs if _is_map(module, outputs) else None

    maps = collect(model, variables, feature_map, images, **others)
    if not maps:
        raise UserError(
            f"feature maps need layers over images [B, H, W, C]; {_kind(model)} has none"
        )
    return maps


def receptive_fields(
    model: nn.Module, variables: Variables, image: jax.Array, **others: Any
) -> Outputs:
    """How much each pixel moves the middle position of each layer's feature maps, [H, W] by name.

    That is the gradient's size, its mean over the image [1, H, W, C] and noisy copies of it: a
    pixel that pooling or an activation hides in the one counts in others. Where it is zero, the
    position does not see; where it is large, it looks (Luo et al., "Understanding the Effective
    Receptive Field in Deep Convolutional Neural Networks", 2016).

    Raises:
        UserError: if nothing in the model keeps the positions of an image, or there are several.
    """
    if image.ndim != 4 or len(image) != 1:
        raise UserError(
            f"receptive fields need a model of images, and one image [1, H, W, C]; {_kind(model)} "
            f"got {list(image.shape)}"
        )
    noise = jax.random.normal(jax.random.key(0), (_PROBES, *image.shape[1:]))
    probes = jnp.concatenate([image, image + (jnp.std(image) + 1e-3) * noise])

    names: list[str] = []

    @jax.jit
    def middles(probes: jax.Array, variables: Variables) -> list[jax.Array]:
        maps = feature_maps(model, variables, probes, **others)
        names[:] = maps
        return [jnp.sum(x[:, x.shape[1] // 2, x.shape[2] // 2], axis=-1) for x in maps.values()]

    values, pull_back = jax.vjp(lambda probes: middles(probes, variables), probes)
    fields = {}
    for number, name in enumerate(names):
        (gradient,) = pull_back([jnp.full_like(x, i == number) for i, x in enumerate(values)])
        fields[name] = jnp.mean(jnp.sum(jnp.abs(gradient), axis=-1), axis=0)
    return fields


def attention(model: nn.Module, variables: Variables, tokens: jax.Array, **others: Any) -> Outputs:
    """Which tokens each token looks at, layer by layer, [B, N, T, S] by name; each row sums to 1.

    Raises:
        UserError: if the model has no attention.
    """

    def weights(variables: Variables, tokens: jax.Array, **others: Any) -> Outputs:
        _, state = model.apply(variables, tokens, train=False, mutable=["intermediates"], **others)
        found: dict[Any, Any] = flatten_dict(dict(state).get("intermediates", {}))
        return {
            ".".join(modules): calls[-1]  # where there are several, the last
            for (*modules, kind), calls in found.items()
            if kind == "attention_weights"
        }

    maps = jit_in_order(weights)(variables, tokens, **others)
    if not maps:
        raise UserError(f"attention maps need a layer of attention; {_kind(model)} has none")
    return maps


def saliency(
    model: nn.Module,
    variables: Variables,
    inputs: jax.Array,
    label: jax.Array | None = None,
    **others: Any,
) -> jax.Array:
    """How much a class's logit changes with each pixel or token.

    Of images it is the largest gradient of their channels, [B, H, W] (Simonyan et al., "Deep Inside
    Convolutional Networks", 2014), of sequences [B, T, D] and tokens int32[B, T] the norm of the
    gradient of each step's features or token's vector, [B, T].

    Args:
        model: a classifier.
        variables: its variables.
        inputs: images, sequences or tokens.
        label: int32[B], the classes; the most probable ones if None.
        **others: further arguments of the model.

    Raises:
        UserError: if the model does not give a logit for each class, or has no embedding of
            tokens.
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
    **others: Any,
) -> jax.Array:
    """Where the last feature maps speak for a class, [B, h, w], at least zero.

    relu(Σ_c α_c A_c) of the last of `feature_maps` A [B, h, w, C] before the positions are mixed;
    α_c is the mean over positions of the gradient of the class's logit (Selvaraju et al.,
    "Grad-CAM", 2017).

    Args:
        model: a classifier of images.
        variables: its variables.
        images: [B, H, W, C].
        label: int32[B], the classes; the most probable ones if None.
        **others: further arguments of the model.

    Raises:
        UserError: if the model does not give a logit for each class, or nothing in it keeps the
            positions of an image.
    """
    maps, gradient = _with_gradient(model, variables, _is_map, -1, images, label, **others)
    weights = jnp.mean(gradient, axis=(1, 2), keepdims=True)  # [B, 1, 1, C]
    return nn.relu(jnp.sum(weights * maps, axis=-1))


def hidden_states(
    model: nn.Module, variables: Variables, inputs: jax.Array, **others: Any
) -> Outputs:
    """The hidden state behind each step, [B, T, D] for each recurrent module by name.

    D is the hidden size, twice that where sequences are read in both directions; of stacked layers
    it is the last one's.

    Raises:
        UserError: if the model is not recurrent.
    """

    def hidden_state(module: nn.Module, outputs: Any) -> Any:
        return outputs[0] if isinstance(module, Recurrent) else None

    states = collect(model, variables, hidden_state, inputs, **others)
    if not states:
        raise UserError(f"hidden states need a recurrent layer; {_kind(model)} has none")
    return states


def _with_gradient(
    model: nn.Module,
    variables: Variables,
    is_meant: Callable[[nn.Module, Any], bool],
    which: int,
    inputs: jax.Array,
    label: jax.Array | None,
    **others: Any,
) -> tuple[jax.Array, jax.Array]:
    """What a module puts out, and the gradient of the classes' logits with respect to it.

    Of the modules that are meant it is the first (0) or the last (-1).
    """

    def meant(module: nn.Module, outputs: Any) -> Any:
        return outputs if is_meant(module, outputs) else None

    found = collect(model, variables, meant, inputs, **others)
    if not found:
        raise UserError(
            f"Grad-CAM needs layers over images [B, H, W, C], and saliency an embedding where "
            f"inputs are tokens; {_kind(model)} has none"
        )
    name = list(found)[which]

    def logit_of(shift: jax.Array, variables: Variables) -> jax.Array:
        def add(module: nn.Module, outputs: Any) -> Any:
            is_it = name_of(module) == name and is_meant(module, outputs)
            return outputs + shift if is_it else outputs

        return _logit_sum(apply_changing(model, variables, add, inputs, **others), label, model)

    return found[name], jax.jit(jax.grad(logit_of))(jnp.zeros_like(found[name]), variables)


def _logit_sum(logits: Any, label: jax.Array | None, model: nn.Module) -> jax.Array:
    """The sum over a batch of the logits [B, K] of its classes; examples do not meet in it."""
    if getattr(logits, "ndim", 0) != 2:
        raise UserError(f"this takes a classifier, with logits [B, K]; {_kind(model)} is none")
    label = jnp.argmax(logits, axis=-1) if label is None else jnp.asarray(label)
    return jnp.sum(jnp.take_along_axis(logits, label[:, None], axis=-1))


def _is_map(module: nn.Module, outputs: Any) -> bool:
    """Whether it is a part of the model that keeps the positions of an image, of more than one."""
    shape = getattr(outputs, "shape", ())
    return len(module.path) == 1 and len(shape) == 4 and max(shape[1:3]) > 1


def _kind(model: nn.Module) -> str:
    return type(model).__name__
