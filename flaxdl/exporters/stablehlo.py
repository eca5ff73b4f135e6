"""Models in inference mode as StableHLO programs, which hold their weights and need no flaxdl.

B: examples in a batch, which a program leaves open.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.export
import numpy as np

from flaxdl.filesystem.atomic import atomic_write
from flaxdl.filesystem.outputs import writing
from flaxdl.filesystem.paths import local_path
from flaxdl.ops.cudnn_attention import without_cudnn
from flaxdl.training.precision import matmul_precision

PLATFORMS = ("cpu", "cuda", "tpu")  # what a program runs on


def export_program(
    model: nn.Module,
    variables: Mapping[str, Any],
    example: Mapping[str, Any],
    path: str | Path,
) -> None:
    """Writes a model in inference mode, with its weights, as a StableHLO program of `jax.export`.

    All of flaxdl's models take batches of any size; other axes are those of the example. Read it
    with

        program = jax.export.deserialize(bytearray(Path("model.stablehlo").read_bytes()))
        outputs = program.call({"inputs": inputs})

    on a CPU, NVIDIA GPU or TPU, without flaxdl. It is run on the example before it gets its name.

    Args:
        model: called as `model.apply(variables, inputs, train=False, **others)`.
        variables: its variables.
        example: arrays [B, ...]: `inputs`, and by their names what else the model takes.
        path: the file, which is replaced if it is there.

    Raises:
        UserError: if the file cannot be written.
        RuntimeError: if the program does not compute what the model does.
    """

    def predict(variables: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        others = {name: array for name, array in batch.items() if name != "inputs"}
        with matmul_precision("float32"):
            return model.apply(variables, batch["inputs"], train=False, **others)

    write_program(predict, variables, example, local_path(path))


@without_cudnn()
def write_program(
    predict: Callable[[Any, Mapping[str, Any]], Any],
    weights: Any,
    example: Mapping[str, Any],
    path: Path,
) -> None:
    """Writes `predict` with its first argument fixed, and checks it on the example.

    Args:
        predict: the function of weights and a batch.
        weights: a tree of arrays.
        example: a batch, arrays [B, ...] by name.
        path: the file, which is replaced if it is there.

    Raises:
        UserError: if the file cannot be written.
        RuntimeError: if the program does not compute what the function does.
    """
    weights = jax.tree.map(np.asarray, weights)  # on no device, so that it is bound to none
    (batch_size,) = jax.export.symbolic_shape("b")
    shapes = {
        name: jax.ShapeDtypeStruct((batch_size, *np.shape(array)[1:]), array.dtype)
        for name, array in example.items()
    }
    function = jax.jit(lambda batch: predict(weights, batch))
    program = jax.export.export(function, platforms=PLATFORMS)(shapes)
    with writing(path), atomic_write(path) as unfinished:
        unfinished.write_bytes(program.serialize())
        del program  # as large as the weights, and there will be another
        again = jax.export.deserialize(bytearray(unfinished.read_bytes()))
        _check_same(again.call(dict(example)), jax.jit(predict)(weights, dict(example)))


def _check_same(exported: Any, expected: Any) -> None:
    """Compares outputs, to half of the digits that their dtype has: compiled apart, they differ.

    Raises:
        RuntimeError: with the largest difference.
    """
    for ours, theirs in zip(jax.tree.leaves(exported), jax.tree.leaves(expected), strict=True):
        tolerance = float(jax.numpy.finfo(theirs.dtype).eps) ** 0.5
        wide = [np.asarray(x, np.float64) for x in (ours, theirs)]
        difference, scale = np.abs(wide[0] - wide[1]).max(), np.abs(wide[1]).max()
        if not difference <= tolerance * max(scale, 1.0):
            raise RuntimeError(
                f"the exported program differs from the model by {difference:.3g} "
                f"where its outputs are at most {scale:.3g}"
            )
