"""Setup of a run: loads its data and checks it against the config and the model."""

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from flax.errors import FlaxError

from flaxdl.backend.xla_flags import warn_if_cpu_is_wrong
from flaxdl.checks import did_you_mean
from flaxdl.config import Config
from flaxdl.data import (
    AudioFolder,
    Dataset,
    MaskedText,
    Splits,
    Transform,
    Waveforms,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from flaxdl.data.balanced_sampling import balanced_labels
from flaxdl.data.class_counts import warn_about_few_examples
from flaxdl.data.dataset import IndexDataset
from flaxdl.data.labels import check_class_labels
from flaxdl.data.numeric_labels import check_multi_label
from flaxdl.data.source import take_fraction
from flaxdl.data.values import check_inputs
from flaxdl.errors import UserError
from flaxdl.ops.dispatch import is_on_gpu
from flaxdl.runs.device_data import copy_to_devices
from flaxdl.runs.fitted_task import fit_task, fitted_fields
from flaxdl.runs.plan import Examples, Plan, resolve_model_sizes
from flaxdl.runs.regression import check_regression
from flaxdl.runs.tokens import check_tokens, fit_transform
from flaxdl.training.distributed.mesh import check_batch_size, make_mesh, process_rows
from flaxdl.training.distributed.parallel import check_parallel
from flaxdl.training.tasks import (
    Classification,
    MaskedLanguageModeling,
    MultiLabelClassification,
    Regression,
    Task,
)
from flaxdl.training.writers.metrics_file import SPLITS

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup(Plan):
    """Plan of a run together with its loaded data."""

    splits: Splits
    """Transformed splits; the training split is reduced to `train_fraction`."""
    identity: Mapping[str, Any]
    """Identity of the raw data, see `Splits.identity`."""
    task_fields: Mapping[str, Any]
    """Fields of the task that were fitted to the training split, see `fitted_fields`."""
    training_examples: Examples
    """Shapes and dtypes of a training batch with one example; `examples` are those of
    evaluation."""

    @property
    def evaluated_splits(self) -> Sequence[str]:
        """Names of the splits to evaluate; empty with `overfit_batches`."""
        if self.config.overfit_batches is not None:
            return ()
        return [name for name in ("validation", "test") if getattr(self.splits, name) is not None]

    def training_batches(self, start_step: int = 0) -> Generator[dict[str, np.ndarray]]:
        """Yields this process's rows of the training batches, indefinitely."""
        return self._training_batches(self.splits.train, self.transform, start_step)

    @cached_property
    def data_on_devices(self) -> Mapping[str, jax.Array] | None:
        """Training examples on every device; None if `copy_to_devices` does not copy them."""
        if self.config.parallel == "pmap":
            return None
        return copy_to_devices(self.splits.train, self.transform, self.mesh)

    def fed_batches(self, start_step: int = 0) -> Generator[dict[str, np.ndarray]]:
        """Yields training batches, or only example indices if the examples are on the devices."""
        if self.data_on_devices is None:
            return self.training_batches(start_step)
        return self._training_batches(IndexDataset(len(self.splits.train)), Transform(), start_step)

    def _training_batches(
        self, dataset: Dataset, transform: Transform, start_step: int
    ) -> Generator[dict[str, np.ndarray]]:
        return training_batches(
            dataset,
            transform,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            rows=process_rows(self.config.batch_size, self.mesh),
            repeat=self.config.overfit_batches,
            copies=self.config.repeated_augmentation,
            classes=balanced_labels(self.splits.train) if self.config.balanced_sampling else None,
        )

    def evaluation_batches(self, split: str) -> Generator[dict[str, np.ndarray]]:
        """Yields this process's rows of batches that contain each example of a split once."""
        return split_batches(self, self.splits, split, batch_size=self.config.batch_size)

    def facts(self) -> dict[str, Any]:
        """Returns the facts about the data to record in `config.json`, see `flaxdl.data.facts`."""
        return {
            **self.identity,
            "steps_per_epoch": self.steps_per_epoch,
            "example": {
                name: {"shape": list(x.shape[1:]), "dtype": str(x.dtype)}
                for name, x in self.examples.items()
            },
            **({"task": self.task_fields} if self.task_fields else {}),
        }


def set_up(
    config: Config,
    fitted: Transform | None = None,
    fitted_task: Task | None = None,
    *,
    devices: Sequence[Any] | None = None,
) -> Setup:
    """Loads the data and checks that config, data and model are compatible.

    Args:
        config: configuration of the run.
        fitted: fitted transform of the run to resume; by default, the transform of the config is
            fitted to the training split.
        fitted_task: fitted task of the run to resume, which is checked against the data; by
            default, the task of the config is fitted to the training split.
        devices: devices of the mesh, such as those of another machine, for which steps can only be
            compiled; by default, all devices of this one.

    Raises:
        UserError: if the data cannot be loaded, or if config, data and model are incompatible.
    """
    mesh = make_mesh(config.mesh, devices=devices)
    check_parallel(config.parallel, mesh, steps_per_call=config.steps_per_call)
    check_batch_size(config.batch_size, mesh, accumulate_steps=config.accumulate_steps)
    warn_if_cpu_is_wrong()
    splits = load_splits(config)
    identity = splits.identity()
    _check_masking(config)
    _check_sounds(config)
    _check_labels(config, splits)
    task = fit_task(fitted_task or config.task, splits)
    task_fields = fitted_fields(config.task, task)
    config = replace(config, task=task)
    transform = fitted or fit_transform(config, splits.train)
    splits = splits.map(transform.apply)
    check_inputs(splits.train, transform)
    warn_about_few_examples(splits, by_class=_learns_classes(config.task))
    config = resolve_model_sizes(config, splits.classes, transform)
    _check_tokens(config, transform, splits)
    examples, training_examples = _shapes(splits.train, transform)
    setup = Setup(
        config=config,
        transform=transform,
        classes=splits.classes,
        examples=examples,
        steps_per_epoch=steps_per_epoch(len(splits.train), config.batch_size),
        mesh=mesh,
        splits=splits,
        identity=identity,
        task_fields=task_fields,
        training_examples=training_examples,
    )
    _check_setup(setup)
    if mesh.shape["tensor"] > 1 and not setup.placement.tensor_axes:
        _LOGGER.warning(
            "mesh.tensor %d shards no parameters: %s declares no tensor_axes",
            mesh.shape["tensor"],
            type(config.model).__name__,
        )
    return setup


def _check_setup(setup: Setup) -> None:
    """Checks model, task, optimizer and mesh against each other and the number of steps."""
    config = setup.config
    _check_steps(setup)
    outputs = setup.check()
    _check_training_examples(setup)
    _check_augmentation(setup)
    if setup.splits.validation is not None:
        metrics = jax.eval_shape(config.task.metrics, outputs, setup.examples)
        names = config.task.finish(dict.fromkeys(metrics, 1.0))
        names = [*names, *config.task.evaluation_names()]
        config.selection.check(names, config.task, setup.classes)
    config.optimizer.schedule.check(setup.total_steps)
    config.ema.check(setup.total_steps)
    _check_steps_per_call(setup)
    _check_heads(config, setup.mesh)


def _check_steps(setup: Setup) -> None:
    unfreeze_step, total_steps = setup.steps.unfreeze_step, setup.total_steps
    if unfreeze_step is not None and not 0 < unfreeze_step < total_steps:
        raise UserError(
            f"freeze_epochs must end between the first and the last step, got "
            f"{setup.config.freeze_epochs}, which ends at step {unfreeze_step} of {total_steps}"
        )


def _check_steps_per_call(setup: Setup) -> None:
    count = setup.config.steps_per_call
    if count == 1:
        return
    if setup.splits.train.lengths() is not None:
        raise UserError(
            f"steps_per_call {count} needs batches of one shape, but the batches of this run have "
            "different lengths (transform.bucket_lengths)"
        )
    if count > min(setup.log_every, setup.evaluate_every):
        raise UserError(
            f"steps_per_call must be at most log_every ({setup.log_every} steps) and "
            f"evaluate_every ({setup.config.evaluate_every:g} epochs, {setup.evaluate_every} "
            f"steps), got {count}"
        )


def _check_heads(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Checks that no attention head is split, since cuDNN's 16-bit attention needs whole heads."""
    parts = mesh.shape["tensor"]
    heads = getattr(config.model, "num_heads", parts)
    is_narrow = config.precision in ("bfloat16", "float16")
    if is_narrow and heads % parts and is_on_gpu(mesh.devices.flat[0]):
        raise UserError(
            f"mesh.tensor must divide the {heads} attention heads in {config.precision}, "
            f"got {parts}"
        )


def load_splits(config: Config) -> Splits:
    """Loads the raw splits, with the training split reduced to `train_fraction`."""
    splits = config.data.load(config.seed)
    if not isinstance(splits, Splits):
        raise UserError(
            f"{type(config.data).__name__}.load must return Splits, got {splits!r:.200}"
        )
    if config.train_fraction == 1:
        return splits
    train = take_fraction(splits.train, fraction=config.train_fraction, seed=config.seed)
    return replace(splits, train=train)


def split_batches(
    plan: Plan, splits: Splits, split: str, *, batch_size: int
) -> Generator[dict[str, np.ndarray]]:
    """Yields this process's rows of batches that contain each example of a split once.

    Args:
        plan: plan of the run.
        splits: transformed splits.
        split: `train`, `validation` or `test`.
        batch_size: global batch size, summed over all devices.

    Raises:
        UserError: if the name is invalid, or if the data has no such split.
    """
    if split not in SPLITS:
        raise UserError(
            f"split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, got {split!r}"
            f"{did_you_mean(split, SPLITS)}"
        )
    dataset = getattr(splits, split)
    if dataset is None:
        raise UserError(f"the data has no {split} split")
    rows = process_rows(batch_size, plan.mesh)
    return evaluation_batches(dataset, plan.transform, batch_size=batch_size, rows=rows)


def _check_masking(config: Config) -> None:
    if isinstance(config.transform, MaskedText) and not isinstance(
        config.task, MaskedLanguageModeling
    ):
        raise UserError(
            "the transform MaskedText needs the task MaskedLanguageModeling, "
            f"got {type(config.task).__name__}"
        )


def _check_sounds(config: Config) -> None:
    if isinstance(config.data, AudioFolder) and not isinstance(config.transform, Waveforms):
        raise UserError(
            "the source AudioFolder needs the transform LogMel, Spectrogram or Waveforms, "
            f"got {type(config.transform).__name__}"
        )


def _check_labels(config: Config, splits: Splits) -> None:
    """Checks the raw labels against the task and the sampling."""
    if _learns_classes(config.task):
        check_class_labels(splits)
    if isinstance(config.task, Regression):
        check_regression(config, splits)
    if isinstance(config.task, MultiLabelClassification):
        check_multi_label(splits)
    if config.balanced_sampling:
        balanced_labels(splits.train)


def _learns_classes(task: Task) -> bool:
    return type(task).losses is Classification.losses


def _check_tokens(config: Config, transform: Transform, splits: Splits) -> None:
    if not hasattr(config.model, "vocab_size"):
        return
    for dataset in (splits.train, splits.validation, splits.test):
        if dataset is not None and dataset.in_memory:
            check_tokens(config.model, dataset.arrays(), vocab_size=transform.vocab_size)


def _shapes(dataset: Dataset, transform: Transform) -> tuple[Examples, Examples]:
    """Returns the shapes and dtypes of batches with one example, in evaluation and in training."""
    example = dataset.gather(np.arange(1))
    evaluated = transform.prepare(dict(example), draws={})
    draws = transform.draw(np.random.default_rng(0), 1)
    trained = transform.prepare(example, draws) if draws else evaluated
    return _abstract(evaluated), _abstract(trained)


def _abstract(batch: Mapping[str, np.ndarray]) -> Examples:
    arrays = {**batch, "weight": np.ones(1, np.float32)}
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}


def _check_training_examples(setup: Setup) -> None:
    """Checks that the model also accepts the inputs of training, which may have another size."""
    if setup.training_examples == setup.examples:
        return
    try:
        jax.eval_shape(setup.steps.predict, setup.shapes(), setup.training_examples)
    except (UserError, FlaxError) as error:
        evaluated, trained = (
            list(examples["inputs"].shape[1:])
            for examples in (setup.examples, setup.training_examples)
        )
        raise UserError(
            f"{type(setup.config.model).__name__} must accept the inputs of training, {trained}, "
            f"and those of evaluation, {evaluated}, with the same parameters; use one size for "
            f"both (no transform.train_size), or a model that pools over all positions: {error}"
        ) from error


def _check_augmentation(setup: Setup) -> None:
    """Checks that a micro-batch can be augmented on the device."""
    parts = setup.config.accumulate_steps
    if setup.config.parallel == "pmap":
        parts *= setup.mesh.size
    size = setup.config.batch_size // parts
    batch = {
        name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
        for name, x in setup.training_examples.items()
    }
    batch["inputs"] = jax.eval_shape(setup.transform.normalize, batch["inputs"])
    jax.eval_shape(setup.steps.augment, batch, jax.random.key(0))
