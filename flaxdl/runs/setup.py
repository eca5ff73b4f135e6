"""A run made ready: its data loaded, and its functions and shapes known."""

from flaxdl.errors import UserError
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

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
from flaxdl.runs.device_data import keep_on_devices
from flaxdl.checks import did_you_mean
from flaxdl.runs.tokens import check_tokens, fit_transform
from flaxdl.training.distributed.parallel import check_parallel
from flaxdl.training.distributed.sharding import check_batch_size, make_mesh, process_rows, shapes_on
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.tasks import Classification
from flaxdl.backend.xla_flags import warn_if_cpu_is_wrong

Examples = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Setup:
    """What a config comes to with its data, before anything is computed."""

    config: Config
    """The run, with the sizes of the model that its data decide."""
    splits: Splits
    """Transformed, and the training split cut to its `train_fraction`."""
    transform: Transform
    """Fitted to the training split."""
    mesh: jax.sharding.Mesh
    examples: Examples
    """A batch of one example, as shapes."""
    steps_per_epoch: int
    total_steps: int
    steps: Steps
    identity: Mapping[str, Any]
    """Of the raw data; see `Splits.identity`."""

    @property
    def log_every(self) -> int:
        """Steps between two lines of training metrics."""
        return self.config.log_every or min(50, max(self.total_steps // 20, 1))

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations."""
        return max(round(self.config.evaluate_every * self.steps_per_epoch), 1)

    @cached_property
    def create_state(self) -> Callable[[], TrainState]:
        """Makes the state before the first step; one function, which JAX traces once."""
        return partial(self.steps.initial_state, self.examples)

    def shapes(self, step: int = 0) -> TrainState:
        """The state after so many steps, as shapes with their places on the devices."""
        if self.steps.is_thawed_at(step - 1):
            return state_shapes(self.steps.thawed, self.examples, self.mesh)
        return shapes_on(self.mesh, self.create_state)

    def training_batches(self, start_step: int = 0) -> Generator[dict[str, np.ndarray]]:
        """This process's rows of the endless training batches, from a step on."""
        return self._training_batches(self.splits.train, self.transform, start_step)

    @cached_property
    def data_on_devices(self) -> Mapping[str, jax.Array] | None:
        """The training examples, if they can lie on every device; None if not."""
        if self.config.parallel == "pmap":
            return None
        return keep_on_devices(self.splits.train, self.transform, self.mesh)

    def fed_batches(self, start_step: int = 0) -> Generator[dict[str, np.ndarray]]:
        """The training batches as the devices need them: numbers will do where the data are."""
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
        batch_size = self.config.batch_size
        rows = process_rows(batch_size, self.mesh)
        return split_batches(self.splits, self.transform, batch_size, split, rows)

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
    epoch = steps_per_epoch(len(splits.train), config.batch_size)
    total_steps = _total_steps(config, epoch)
    examples = _shapes(splits.train, transform)
    steps = make_steps(config, transform, total_steps=total_steps, steps_per_epoch=epoch)
    steps = replace(steps, mesh=mesh)
    setup = Setup(config, splits, transform, mesh, examples, epoch, total_steps, steps, identity)
    if steps.thaw_step is not None and not 0 < steps.thaw_step < total_steps:
        raise UserError(
            f"freeze_epochs {config.freeze_epochs} must end between the first and the last step, "
            f"got step {steps.thaw_step} of {total_steps}"
        )
    outputs = jax.eval_shape(steps.predict, setup.shapes(), examples)
    config.task.check(outputs, None if splits.classes is None else len(splits.classes))
    if splits.validation is not None:
        metrics = jax.eval_shape(config.task.metrics, outputs, examples)
        config.selection.check(metrics, config.task)
    config.optimizer.schedule.check(total_steps)
    _check_steps_per_call(setup)
    _check_heads(config, mesh)
    return setup


def with_sizes_of_data(
    config: Config, classes: Sequence[str] | None, transform: Transform
) -> Config:
    """Replaces `num_classes` and `vocab_size` of the model where they are None.

    Args:
        config: the run.
        classes: names of the classes in the data, if they have any.
        transform: the fitted transform, which may have a vocabulary.
    """
    found = {
        "num_classes": None if classes is None else len(classes),
        "vocab_size": transform.vocab_size,
    }
    sizes = {
        name: size
        for name, size in found.items()
        if size is not None and getattr(config.model, name, size) is None
    }
    return replace(config, model=replace(config.model, **sizes)) if sizes else config


def _total_steps(config: Config, steps_per_epoch: int) -> int:
    steps = max(round(config.epochs * steps_per_epoch), 1)
    if steps >= 2**31:  # counted in int32
        raise UserError(f"epochs {config.epochs:g} make {steps:.3g} steps, more than 2**31 - 1")
    return steps


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
    is_on_gpu = mesh.devices.flat[0].platform == "gpu"
    if is_on_gpu and config.precision in ("bfloat16", "float16") and heads % parts:
        raise UserError(
            f"mesh.tensor must divide the {heads} heads of attention in {config.precision}, "
            f"got {parts}"
        )


def load_splits(config: Config) -> Splits:
    """The raw splits, that of training cut to its `train_fraction`."""
    splits = config.data.load(config.seed)
    if config.train_fraction == 1:
        return splits
    train = share_of(splits.train, fraction=config.train_fraction, seed=config.seed)
    return replace(splits, train=train)


def make_steps(
    config: Config, transform: Transform, *, total_steps: int, steps_per_epoch: int
) -> Steps:
    """The pure functions of a run.

    Args:
        config: the run.
        transform: the fitted transform.
        total_steps: length of the run.
        steps_per_epoch: how many of them are an epoch.
    """
    return Steps(
        model=config.model,
        task=config.task,
        optimizer=config.optimizer,
        total_steps=total_steps,
        precision=config.precision,
        seed=config.seed,
        accumulate_steps=config.accumulate_steps,
        freeze=config.freeze,
        thaw_step=None
        if config.freeze_epochs is None
        else round(config.freeze_epochs * steps_per_epoch),
        normalize=transform.normalize,
    )


def state_shapes(steps: Steps, examples: Examples, mesh: jax.sharding.Mesh) -> TrainState:
    """The state that these functions work on, as shapes with their places on the devices."""
    return shapes_on(mesh, partial(steps.initial_state, examples))


def split_batches(
    splits: Splits,
    transform: Transform,
    batch_size: int,
    split: str,
    rows: np.ndarray | None = None,
) -> Generator[dict[str, np.ndarray]]:
    """Batches of all examples of a split, each exactly once, or `rows` of the batches.

    Raises:
        UserError: if there is no such split.
    """
    names = ("train", "validation", "test")
    if split not in names:
        raise UserError(
            f"split must be {', '.join(names[:-1])} or {names[-1]}, got {split!r}"
            f"{did_you_mean(split, names)}"
        )
    dataset = getattr(splits, split)
    if dataset is None:
        raise UserError(f"the data have no {split} split")
    return evaluation_batches(dataset, transform, batch_size=batch_size, rows=rows)


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
