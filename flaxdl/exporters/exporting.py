"""Export of a run to PyTorch weights, a Hugging Face folder or StableHLO."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxdl.config import Config
from flaxdl.data.text import FittedText
from flaxdl.errors import UserError
from flaxdl.exporters.hugging_face import export_hugging_face
from flaxdl.exporters.own_units import exported_predict, exported_variables
from flaxdl.exporters.stablehlo import write_stablehlo
from flaxdl.filesystem.outputs import output_file, writing
from flaxdl.filesystem.paths import local_path
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.training.tasks import MultiLabelClassification, Regression, Task
from flaxdl.weights import export_weights

_SUFFIXES = (".safetensors", ".stablehlo")


def export(workdir: str | Path, to: str | Path, *, config: Config | None = None) -> None:
    """Exports the best checkpoint of a run, in a format selected by the name of the output.

    - `NAME.safetensors`: weights with PyTorch names and layouts.
    - `NAME.stablehlo`: a program that includes its weights; see `export_stablehlo`. Its inputs are
      the batches of the data pipeline. Images are therefore uint8, and sounds int16 waveforms,
      and the program normalizes them. The program of a forecaster, however, takes standardized
      contexts and returns standardized values; mean and standard deviation of each series are
      only in the workdir's `scaling.json`.
    - A name without a dot: a folder in Hugging Face format, for BERT models; see
      `export_hugging_face`.

    The outputs of a regression model are in the targets' own units: in weights, mean and standard
    deviation are a part of the last layer, which must be linear with a bias. The outputs of a
    multi-label classifier are logits, without its thresholds: a class is predicted if the sigmoid
    of its logit is at least its threshold, which is in `tuned_task.json`.

    Args:
        workdir: folder of the run.
        to: output file or folder; replaced if it exists.
        config: config of the run; by default, the config is restored from config.json.

    Raises:
        UserError: if the workdir contains no checkpoint, if the output has another suffix, if the
            run cannot be exported to the format, or if the output exists and is not an export.
        RuntimeError: if the outputs of the exported program differ from those of the run.
    """
    path = local_path(to)
    if path.suffix not in (*_SUFFIXES, ""):
        raise UserError(
            "the output must be a .safetensors file, a .stablehlo file, or a folder "
            f"(a name without a dot), got {path}"
        )
    run = restore(workdir, config)
    match path.suffix:
        case ".safetensors":
            _make_folder(path)
            export_weights(exported_variables(run), path)
        case ".stablehlo":
            _make_folder(path)
            _export_run(run, path)
        case _:
            text = run.transform
            if not isinstance(text, FittedText):
                raise UserError(
                    "export to a folder needs a BERT and its tokenizer, "
                    f"but the run's transform is {type(text).__name__}"
                )
            task = run.config.task
            export_hugging_face(
                run.config.model,
                exported_variables(run),
                path,
                classes=_logit_names(run),
                problem_type=_problem_type(task),
                tokenizer=text.vocabulary,
                max_length=text.max_length,
            )


def _make_folder(path: Path) -> None:
    """Creates the parent folder of an output file.

    Raises:
        UserError: if the folder cannot be created, or `path` is itself a folder.
    """
    output_file(path, _SUFFIXES)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def _export_run(run: RestoredRun, path: Path) -> None:
    not_inputs = run.config.task.loss_fields
    shapes = {name: shape for name, shape in run.examples.items() if name not in not_inputs}
    with jax.default_device(_device_for(run)):
        write_stablehlo(exported_predict(run), run.state, _example(shapes), path)


def _device_for(run: RestoredRun) -> Any:
    """Returns the device to check an exported program on: the CPU if the model is sharded.

    None stands for the default device.
    """
    if run.mesh.shape["data"] == run.mesh.size:
        return None
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        return None


def _example(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """Returns a random batch of two examples; tokens are 0 or 1, and texts have full length."""
    rng = np.random.default_rng(0)
    example = {}
    for name, shape in shapes.items():
        size = (2, *shape.shape[1:])
        if name.endswith("lengths"):
            text = shapes["targets" if name == "target_lengths" else "inputs"]
            values = np.full(size, text.shape[1])
        elif shape.dtype == np.bool_:
            values = np.ones(size)
        elif shape.dtype in (np.uint8, np.int16):  # images and sounds
            limits = np.iinfo(shape.dtype)
            values = rng.integers(limits.min, limits.max, size, endpoint=True)
        elif np.issubdtype(shape.dtype, np.integer):
            values = rng.integers(0, 2, size)
        else:
            values = rng.standard_normal(size)
        example[name] = values.astype(shape.dtype)
    return example


def _logit_names(run: RestoredRun) -> tuple[str, ...] | None:
    """Returns the names of the model's outputs; None where they are up to a custom task."""
    task = run.config.task
    if isinstance(task, Regression):
        return task.targets
    is_known = run.has_class_labels or isinstance(task, MultiLabelClassification)
    return run.classes if is_known else None


def _problem_type(task: Task) -> str | None:
    """Returns the name that transformers has for a task; None for single labels, its default."""
    if isinstance(task, Regression):
        return "regression"
    return "multi_label_classification" if isinstance(task, MultiLabelClassification) else None
