"""Export of models in inference mode to StableHLO programs that include the weights.

Legend: B batch size (symbolic in the exported program).
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

PLATFORMS = ("cpu", "cuda", "tpu")  # supported by exported programs


def export_stablehlo(
    model: nn.Module,
    variables: Mapping[str, Any],
    example: Mapping[str, Any],
    path: str | Path,
) -> None:
    """Writes a model in inference mode, with its weights, as a StableHLO program of `jax.export`.

    The batch size is symbolic; all of flaxdl's models support this. Other axes have the sizes of
    the example. The program runs on a CPU, NVIDIA GPU or TPU, without flaxdl::

        program = jax.export.deserialize(bytearray(Path("model.stablehlo").read_bytes()))
        outputs = program.call({"inputs": inputs})

    The program is checked on the example before the file is moved to `path`.

    Args:
        model: the model, called as `model.apply(variables, inputs, train=False, **others)`.
        variables: variables of the model.
        example: example batch, with arrays [B, ...] by argument name; one of them is `inputs`.
        path: output file; replaced if it exists.

    Raises:
        UserError: if the file cannot be written.
        RuntimeError: if the outputs of the program differ from those of the model.
    """

    def predict(variables: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        others = {name: array for name, array in batch.items() if name != "inputs"}
        with matmul_precision("float32"):
            return model.apply(variables, batch["inputs"], train=False, **others)

    write_stablehlo(predict, variables, example, local_path(path))


@without_cudnn()
def write_stablehlo(
    predict: Callable[[Any, Mapping[str, Any]], Any],
    weights: Any,
    example: Mapping[str, Any],
    path: Path,
) -> None:
    """Writes `predict` with fixed weights as a StableHLO program, and checks it on the example.

    Args:
        predict: callable that maps weights and a batch to outputs.
        weights: tree of arrays, stored in the program.
        example: example batch, with arrays [B, ...] by name.
        path: output file; replaced if it exists.

    Raises:
        UserError: if the file cannot be written.
        RuntimeError: if the outputs of the program differ from those of `predict`.
    """
    weights = jax.tree.map(np.asarray, weights)  # NumPy, so the program is not tied to a device
    (batch_size,) = jax.export.symbolic_shape("b")
    shapes = {
        name: jax.ShapeDtypeStruct((batch_size, *np.shape(array)[1:]), array.dtype)
        for name, array in example.items()
    }
    function = jax.jit(lambda batch: predict(weights, batch))
    program = jax.export.export(function, platforms=PLATFORMS)(shapes)
    with writing(path), atomic_write(path) as unfinished:
        unfinished.write_bytes(program.serialize())
        del program  # as large as the weights; it is loaded again from the file
        again = jax.export.deserialize(bytearray(unfinished.read_bytes()))
        _check_same(again.call(dict(example)), jax.jit(predict)(weights, dict(example)))


def _check_same(exported: Any, expected: Any) -> None:
    """Checks that outputs agree to half the digits of their dtype.

    The two programs are compiled separately, so rounding errors may differ.

    Raises:
        RuntimeError: if the outputs differ by more; the message states the largest difference.
    """
    for ours, theirs in zip(jax.tree.leaves(exported), jax.tree.leaves(expected), strict=True):
        tolerance = float(jax.numpy.finfo(theirs.dtype).eps) ** 0.5
        wide = [np.asarray(x, np.float64) for x in (ours, theirs)]
        difference, scale = np.abs(wide[0] - wide[1]).max(), np.abs(wide[1]).max()
        if not difference <= tolerance * max(scale, 1.0):
            raise RuntimeError(
                f"the exported program differs from the model by {difference:.3g}; "
                f"the largest output is {scale:.3g}"
            )
