"""A run made ready: its plan and its data, loaded and checked against each other."""

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from flaxdl.backend.xla_flags import warn_if_cpu_is_wrong
from flaxdl.checks import did_you_mean
from flaxdl.config import Config
from flaxdl.data import (
    Dataset,
    Splits,
    Transform,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from flaxdl.data.class_counts import warn_of_few_examples
from flaxdl.data.dataset import Numbers
from flaxdl.data.labels import check_class_labels
from flaxdl.data.source import share_of
from flaxdl.data.values import check_inputs
from flaxdl.errors import UserError
from flaxdl.ops.dispatch import is_on_gpu
from flaxdl.runs.device_data import keep_on_devices
from flaxdl.runs.plan import Examples, Plan, with_sizes_of_data
from flaxdl.runs.tokens import check_tokens, fit_transform
from flaxdl.training.distributed.mesh import check_batch_size, make_mesh, process_rows
from flaxdl.training.distributed.parallel import check_parallel
from flaxdl.training.tasks import Classification
from flaxdl.training.writers.metrics_file import SPLITS

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup(Plan):
    """A plan and the data to train with, before anything is computed."""

    splits: Splits
    """Transformed, and the training split cut to its `train_fraction`."""
    identity: Mapping[str, Any]
    """Of the raw data; see `Splits.identity`."""

    @property
    def evaluated_splits(self) -> Sequence[str]:
        """Those of `validation` and `test` that are measured; none where batches are overfitted."""
        if self.config.overfit_batches is not None:
            return ()
        return [name for name in ("validation", "test") if getattr(self.splits, name) is not None]

    def training_batches(self, start_step: int = 0) -> Generator[dict[str, np.ndarray]]:
        """This process's rows of the endless training batches, from a step on."""
        return self._training_batches(self.splits.train, self.transform, start_step)

    @cached_property
    def data_on_devices(self) -> Mapping[str, jax.Array] | None:
        """The training examples, if they fit into the memory of every device; None if not."""
        if self.config.parallel == "pmap":
            return None
        return keep_on_devices(self.splits.train, self.transform, self.mesh)

    def fed_batches(self, start_step: int = 0) -> Generator[dict[str, np.ndarray]]:
        """The training batches as the devices need them: indices where they have the examples."""
        if self.data_on_devices is None:
            return self.training_batches(start_step)
        return self._training_batches(Numbers(len(self.splits.train)), Transform(), start_step)

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
        )

    def evaluation_batches(self, split: str) -> Generator[dict[str, np.ndarray]]:
        """This process's rows of batches with all examples of a split, each exactly once."""
        return split_batches(self, self.splits, split, batch_size=self.config.batch_size)

    def facts(self) -> dict[str, Any]:
        """Facts about the data as JSON: for later commands, and to notice other data on resume."""
        return {
            **self.identity,
            "steps_per_epoch": self.steps_per_epoch,
            "example": {
                name: {"shape": list(x.shape[1:]), "dtype": str(x.dtype)}
                for name, x in self.examples.items()
            },
        }


def set_up(config: Config, fitted: Transform | None = None) -> Setup:
    """Loads the data and checks that config, data and model fit together.

    Args:
        config: the run.
        fitted: the transform as a run that is resumed has fitted it; by default it is fitted here.

    Raises:
        UserError: if they do not, saying where.
    """
    mesh = make_mesh(config.mesh)
    check_parallel(config.parallel, mesh, steps_per_call=config.steps_per_call)
    check_batch_size(config.batch_size, mesh, accumulate_steps=config.accumulate_steps)
    warn_if_cpu_is_wrong()
    splits = load_splits(config)
    identity = splits.identity()
    learns_classes = type(config.task).losses is Classification.losses
    if learns_classes:
        check_class_labels(splits)
    transform = fitted or fit_transform(config, splits.train)
    splits = splits.map(transform.apply)
    check_inputs(splits.train, transform)
    warn_of_few_examples(splits, by_class=learns_classes)
    config = with_sizes_of_data(config, splits.classes, transform)
    _check_tokens(config, transform, splits)
    setup = Setup(
        config=config,
        transform=transform,
        classes=splits.classes,
        examples=_shapes(splits.train, transform),
        steps_per_epoch=steps_per_epoch(len(splits.train), config.batch_size),
        mesh=mesh,
        splits=splits,
        identity=identity,
    )
    _check_steps(setup)
    outputs = setup.check()
    if splits.validation is not None:
        metrics = jax.eval_shape(config.task.metrics, outputs, setup.examples)
        config.selection.check(metrics, config.task)
    config.optimizer.schedule.check(setup.total_steps)
    _check_steps_per_call(setup)
    _check_heads(config, mesh)
    if mesh.shape["tensor"] > 1 and not setup.placement.tensor_axes:
        _LOGGER.warning(
            "mesh.tensor %d splits nothing of %s, which declares no tensor_axes",
            mesh.shape["tensor"],
            type(config.model).__name__,
        )
    return setup


def _check_steps(setup: Setup) -> None:
    thaw_step, total_steps = setup.steps.thaw_step, setup.total_steps
    if thaw_step is not None and not 0 < thaw_step < total_steps:
        raise UserError(
            f"freeze_epochs {setup.config.freeze_epochs} must end between the first and the last "
            f"step, got step {thaw_step} of {total_steps}"
        )


def _check_steps_per_call(setup: Setup) -> None:
    count = setup.config.steps_per_call
    if count == 1:
        return
    if setup.splits.train.lengths() is not None:
        raise UserError(
            f"steps_per_call {count} needs batches of one shape, but those of this run are as long "
            "as their longest text needs (transform.padded_lengths)"
        )
    if count > min(setup.log_every, setup.evaluate_every):
        raise UserError(
            f"steps_per_call {count} must be at most the {setup.log_every} steps between two lines "
            f"of metrics (log_every) and the {setup.evaluate_every} between two evaluations "
            f"(evaluate_every {setup.config.evaluate_every:g} epochs)"
        )


def _check_heads(config: Config, mesh: jax.sharding.Mesh) -> None:
    """cuDNN's attention, which GPUs use in 16 bits, cannot split a head over devices."""
    parts = mesh.shape["tensor"]
    heads = getattr(config.model, "num_heads", parts)
    is_narrow = config.precision in ("bfloat16", "float16")
    if is_narrow and heads % parts and is_on_gpu(mesh.devices.flat[0]):
        raise UserError(
            f"mesh.tensor must divide the {heads} heads of attention in {config.precision}, "
            f"got {parts}"
        )


def load_splits(config: Config) -> Splits:
    """The raw splits, that of training cut to its `train_fraction`."""
    splits = config.data.load(config.seed)
    if not isinstance(splits, Splits):
        raise UserError(
            f"{type(config.data).__name__}.load must return Splits, got {splits!r:.200}"
        )
    if config.train_fraction == 1:
        return splits
    train = share_of(splits.train, fraction=config.train_fraction, seed=config.seed)
    return replace(splits, train=train)


def split_batches(
    plan: Plan, splits: Splits, split: str, *, batch_size: int
) -> Generator[dict[str, np.ndarray]]:
    """This process's rows of batches with all examples of a split, each exactly once.

    Args:
        plan: the run.
        splits: its data, transformed.
        split: `train`, `validation` or `test`.
        batch_size: examples in a batch, over all devices.

    Raises:
        UserError: if there is no such split.
    """
    if split not in SPLITS:
        raise UserError(
            f"split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, got {split!r}"
            f"{did_you_mean(split, SPLITS)}"
        )
    dataset = getattr(splits, split)
    if dataset is None:
        raise UserError(f"the data have no {split} split")
    rows = process_rows(batch_size, plan.mesh)
    return evaluation_batches(dataset, plan.transform, batch_size=batch_size, rows=rows)


def _check_tokens(config: Config, transform: Transform, splits: Splits) -> None:
    if not hasattr(config.model, "vocab_size"):
        return
    for dataset in (splits.train, splits.validation, splits.test):
        if dataset is not None and dataset.in_memory:
            check_tokens(config.model, dataset.arrays(), vocab_size=transform.vocab_size)


def _shapes(dataset: Dataset, transform: Transform) -> Examples:
    """A batch of one example, as shapes."""
    batch = transform.prepare(dataset.gather(np.arange(1)), draws={})
    batch |= {"weight": np.ones(1, np.float32)}
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
