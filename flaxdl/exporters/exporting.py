"""Trained networks for other programs: PyTorch's names, a Hugging Face folder, StableHLO."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxdl.config import Config
from flaxdl.data.text import FittedText
from flaxdl.errors import UserError
from flaxdl.exporters.hugging_face import export_hugging_face
from flaxdl.exporters.stablehlo import write_program
from flaxdl.filesystem.outputs import output_file, writing
from flaxdl.filesystem.paths import local_path
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.weights import export_weights

_FILES = (".safetensors", ".stablehlo")


def export(workdir: str | Path, to: str | Path, *, config: Config | None = None) -> None:
    """Writes a run's best checkpoint for other programs; the name says in which form.

    - `NAME.safetensors`: the weights under PyTorch's names and in its layouts.
    - `NAME.stablehlo`: a program with its weights; see `export_program`. Of a batch it takes what
      the pipeline gives the model, so raw images as bytes, and normalizes them itself.
    - A name without a dot: a folder of a BERT; see `export_hugging_face`.

    Args:
        workdir: the run's folder.
        to: the file or folder, which is replaced if it is there.
        config: the run's config, where config.json cannot bring it back.

    Raises:
        UserError: if there is no run or checkpoint, the name says no form, the run does not have
            that form, or the place is taken by something else.
        RuntimeError: if the exported program does not compute what the run does.
    """
    path = local_path(to)
    if path.suffix not in (*_FILES, ""):
        raise UserError(
            f"{path} must be the name of a .safetensors or .stablehlo file, or of a folder, "
            "which is a name without a dot"
        )
    run = restore(workdir, config)
    match path.suffix:
        case ".safetensors":
            _make_folder(path)
            export_weights(run.variables, path)
        case ".stablehlo":
            _make_folder(path)
            _export_run(run, path)
        case _:
            text = run.transform
            if not isinstance(text, FittedText):
                raise UserError(
                    f"a folder is for a BERT and its tokenizer, "
                    f"but the run's transform is {type(text).__name__}"
                )
            export_hugging_face(
                run.config.model,
                run.variables,
                path,
                classes=run.classes,
                tokenizer=text.vocabulary,
                max_length=text.max_length,
            )


def _make_folder(path: Path) -> None:
    """Makes the folder that the file goes into.

    Raises:
        UserError: if it cannot be made, or there is a folder of the file's name.
    """
    output_file(path, _FILES)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def _export_run(run: RestoredRun, path: Path) -> None:
    shapes = {
        name: shape for name, shape in run.examples.items() if name not in ("label", "weight")
    }
    with jax.default_device(_device_for(run)):
        write_program(run.inference.predict, run.state, _example(shapes), path)


def _device_for(run: RestoredRun) -> Any:
    """The device to try an exported program on; a sharded model may not fit on one accelerator."""
    if run.mesh.shape["data"] == run.mesh.size:
        return None
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return None


def _example(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """A batch of two examples that every model takes: tokens are 0 or 1, texts of full length."""
    rng = np.random.default_rng(0)
    example = {}
    for name, shape in shapes.items():
        size = (2, *shape.shape[1:])
        if name.endswith("lengths"):
            text = shapes["targets" if name == "target_lengths" else "inputs"]
            values = np.full(size, text.shape[1])
        elif shape.dtype == np.bool_:
            values = np.ones(size)
        elif shape.dtype == np.uint8:
            values = rng.integers(0, 256, size)
        elif np.issubdtype(shape.dtype, np.integer):
            values = rng.integers(0, 2, size)
        else:
            values = rng.standard_normal(size)
        example[name] = values.astype(shape.dtype)
    return example
