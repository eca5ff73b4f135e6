"""Orthogonalized updates of matrices, the core of the Muon optimizer.

Jordan et al., Muon, https://kellerjordan.github.io/posts/muon/. Liu et al., Muon is Scalable for
LLM Training, https://arxiv.org/abs/2502.16982.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxdl.weights.names import pattern_mask

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7


def newton_schulz(matrix: jax.Array) -> jax.Array:
    """Returns a matrix with the same singular vectors, and singular values roughly equal to 1.

    Five steps of X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, starting from X divided by its norm.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]  # the smaller product is cheaper
    x = matrix.T if is_tall else matrix
    x = x / jnp.maximum(jnp.linalg.norm(x), _EPSILON)
    for _ in range(_ITERATIONS):
        square = _product(x, x.T)
        x = a * x + _product(b * square + c * _product(square, square), x)
    return x.T if is_tall else x


def orthogonalize() -> optax.GradientTransformation:
    """Returns a transformation that orthogonalizes every update, an array of at least two axes.

    A convolution's kernel [*K, I, O] is a matrix [K·I, O]. Updates are scaled by
    0.2 √max(rows, columns), which gives them the root mean square of Adam's, so both can have the
    same learning rate and weight decay (`adjust_lr_fn="match_rms_adamw"` in PyTorch).
    """

    def update(leaf: Any, _: Any) -> jax.Array:
        matrix = leaf.reshape(-1, leaf.shape[-1])
        return 0.2 * max(matrix.shape) ** 0.5 * newton_schulz(matrix).reshape(leaf.shape)

    return optax.stateless_with_tree_map(update)


def matrices(params: Mapping[str, Any], excluded: Sequence[str]) -> Any:
    """Returns a tree like the parameters that is True for those that Muon updates.

    These are matrices and kernels of convolutions, but not embeddings.

    Args:
        params: the parameters or their shapes, with None for frozen ones.
        excluded: patterns of PyTorch parameter names that Muon does not update.

    Raises:
        UserError: if a pattern matches no parameter.
    """
    leaves = flatten_dict(dict(params))
    is_excluded = flatten_dict(pattern_mask(params, excluded, field="optimizer.adamw"))

    def is_matrix(name: str, leaf: Any) -> bool:
        axes = len(leaf.shape)
        return name != "embedding" if axes == 2 else name == "kernel" and axes > 2

    return unflatten_dict(
        {
            path: None if leaf is None else is_matrix(path[-1], leaf) and not is_excluded[path]
            for path, leaf in leaves.items()
        }
    )


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
