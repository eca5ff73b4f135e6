"""The plan of a run: what follows from its config and a few facts about its data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, Self

import jax

from flaxdl.config import Config
from flaxdl.data import Transform
from flaxdl.errors import UserError
from flaxdl.training.distributed.placement import Placement, shapes_on
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps

Examples = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Plan:
    """Everything about a run that can be rebuilt from its workdir without its data."""

    config: Config
    """The run, with the sizes of the model that its data decide."""
    transform: Transform
    """Fitted to the training split."""
    classes: tuple[str, ...] | None
    """Names of the classes, if labels are classes."""
    examples: Examples
    """A batch of one example, as shapes."""
    steps_per_epoch: int
    mesh: jax.sharding.Mesh

    @classmethod
    def extended(cls, plan: "Plan", **more: Any) -> Self:
        """A subclass's value that has everything of a plan, and more."""
        return cls(**{field.name: getattr(plan, field.name) for field in fields(Plan)}, **more)

    @property
    def total_steps(self) -> int:
        """Length of the run in training steps."""
        return max(round(self.config.epochs * self.steps_per_epoch), 1)

    @property
    def log_every(self) -> int:
        """Steps between two lines of training metrics."""
        return self.config.log_every or min(50, max(self.total_steps // 20, 1))

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations."""
        return max(round(self.config.evaluate_every * self.steps_per_epoch), 1)

    @cached_property
    def steps(self) -> Steps:
        """The pure functions of the run."""
        config = self.config
        thaw_step = None
        if config.freeze_epochs is not None:
            thaw_step = round(config.freeze_epochs * self.steps_per_epoch)
        return Steps(
            model=config.model,
            task=config.task,
            optimizer=config.optimizer,
            total_steps=self.total_steps,
            precision=config.precision,
            seed=config.seed,
            accumulate_steps=config.accumulate_steps,
            freeze=config.freeze,
            thaw_step=thaw_step,
            mesh=self.mesh,
            normalize=self.transform.normalize,
        )

    @property
    def placement(self) -> Placement:
        """Placement of the state on the devices."""
        return Placement.of(self.config.model, self.mesh)

    @cached_property
    def create_state(self) -> Callable[[], TrainState]:
        """Makes the state before the first step; one function, which JAX traces once."""
        return partial(self.steps.initial_state, self.examples)

    def shapes(self, step: int = 0) -> TrainState:
        """The state after so many steps, as shapes with their places on the devices."""
        if self.steps.is_thawed_at(step - 1):
            create = partial(self.steps.thawed.initial_state, self.examples)
            return shapes_on(self.placement, create)
        return shapes_on(self.placement, self.create_state)

    def check(self) -> Any:
        """Checks that model, examples and task fit together; nothing is computed.

        Returns:
            The model's outputs for `examples`, as shapes.

        Raises:
            UserError: if they do not.
        """
        if self.total_steps >= 2**31:  # counted in int32
            raise UserError(
                f"epochs {self.config.epochs:g} make {self.total_steps:.3g} steps, "
                "more than 2**31 - 1"
            )
        outputs = jax.eval_shape(self.steps.predict, self.shapes(), self.examples)
        self.config.task.check(outputs, None if self.classes is None else len(self.classes))
        return outputs


def with_sizes_of_data(
    config: Config, classes: tuple[str, ...] | None, transform: Transform
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
