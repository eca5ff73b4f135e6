"""Plan of a run, derived from its config and from facts about its data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, Self

import jax
import jax.numpy as jnp

from flaxdl.config import Config
from flaxdl.data import Transform
from flaxdl.errors import UserError
from flaxdl.training.distributed.placement import Placement, shapes_on
from flaxdl.training.ema import EMA
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps

Examples = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Plan:
    """Everything about a run that can be rebuilt from its workdir without loading its data."""

    config: Config
    """Configuration of the run, with the model's sizes resolved from the data."""
    transform: Transform
    """Transform, fitted to the training split."""
    classes: tuple[str, ...] | None
    """Names of the classes, see `Splits.classes`."""
    examples: Examples
    """Shapes and dtypes of a batch with one example."""
    steps_per_epoch: int
    mesh: jax.sharding.Mesh

    @classmethod
    def extended(cls, plan: "Plan", **more: Any) -> Self:
        """Creates an instance of a subclass from a plan and the additional fields."""
        return cls(**{field.name: getattr(plan, field.name) for field in fields(Plan)}, **more)

    @property
    def has_class_labels(self) -> bool:
        """True if each example has one class as its label, and not, for example, several."""
        label = self.examples.get("label")
        if label is None:
            return False
        return label.ndim == 1 and jnp.issubdtype(label.dtype, jnp.integer)

    @property
    def total_steps(self) -> int:
        """Length of the run in training steps."""
        return max(round(self.config.epochs * self.steps_per_epoch), 1)

    @property
    def log_every(self) -> int:
        """Number of steps between lines of training metrics."""
        return self.config.log_every or min(50, max(self.total_steps // 20, 1))

    @property
    def evaluate_every(self) -> int:
        """Number of steps between evaluations."""
        return max(round(self.config.evaluate_every * self.steps_per_epoch), 1)

    @cached_property
    def steps(self) -> Steps:
        """Pure step functions of the run."""
        config = self.config
        unfreeze_step = None
        if config.freeze_epochs is not None:
            unfreeze_step = round(config.freeze_epochs * self.steps_per_epoch)
        # To be overfitted, batches must be the same in every step; averages would lag behind.
        overfits = config.overfit_batches is not None
        augments = Transform() if overfits else self.transform
        return Steps(
            model=config.model,
            task=config.task,
            optimizer=config.optimizer,
            total_steps=self.total_steps,
            precision=config.precision,
            seed=config.seed,
            accumulate_steps=config.accumulate_steps,
            freeze=config.freeze,
            unfreeze_step=unfreeze_step,
            ema=EMA() if overfits else config.ema,
            mesh=self.mesh,
            normalize=self.transform.normalize,
            augment=augments.augment_batch,
        )

    @property
    def placement(self) -> Placement:
        """Placement of the state on the devices."""
        return Placement.for_model(self.config.model, self.mesh)

    @cached_property
    def create_state(self) -> Callable[[], TrainState]:
        """Callable that creates the initial state, cached so that JAX traces it only once."""
        return partial(self.steps.initial_state, self.examples)

    def shapes(self, step: int = 0) -> TrainState:
        """Returns the abstract state after `step` steps: shapes, dtypes and shardings."""
        if self.steps.is_unfrozen_at(step - 1):
            create = partial(self.steps.unfrozen.initial_state, self.examples)
            return shapes_on(self.placement, create)
        return shapes_on(self.placement, self.create_state)

    def check(self) -> Any:
        """Checks that model, examples and task are compatible, by shape inference only.

        Returns:
            Shapes and dtypes of the model's outputs for `examples`.

        Raises:
            UserError: if model, examples and task are incompatible, or if the run has 2**31 or more
                steps.
        """
        if self.total_steps >= 2**31:  # counted in int32
            raise UserError(
                f"epochs {self.config.epochs:g} amount to {self.total_steps:.3g} steps; "
                "at most 2**31 - 1 are supported"
            )
        outputs = jax.eval_shape(self.steps.predict, self.shapes(), self.examples)
        self.config.task.check(outputs, None if self.classes is None else len(self.classes))
        return outputs


def resolve_model_sizes(
    config: Config, classes: tuple[str, ...] | None, transform: Transform
) -> Config:
    """Sets `num_classes`, `vocab_size` and `horizon` of the model from the data if they are None.

    Args:
        config: configuration of the run.
        classes: names of the classes, see `Splits.classes`.
        transform: fitted transform; its vocabulary, if it has one, determines `vocab_size`.
    """
    found = {
        "num_classes": config.task.num_outputs(classes),
        "vocab_size": transform.vocab_size,
        "horizon": getattr(transform, "horizon", None),
    }
    sizes = {
        name: size
        for name, size in found.items()
        if size is not None and getattr(config.model, name, size) is None
    }
    return replace(config, model=replace(config.model, **sizes)) if sizes else config
