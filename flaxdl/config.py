"""Configuration of a training run: frozen values, built by a config file and changed by flags."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import numpy as np

from flaxdl.data import Source, Transform
from flaxdl.errors import UserError
from flaxdl.training.distributed.mesh import MeshShape
from flaxdl.training.distributed.parallel import Parallel
from flaxdl.training.optimizers import AdamW, Optimizer
from flaxdl.training.precision import Precision
from flaxdl.training.rewind import Rewind
from flaxdl.training.selection import Selection
from flaxdl.training.tasks import Classification, Task


@dataclass(frozen=True, kw_only=True)
class Init:
    """Where the parameters start."""

    weights: str | None = None
    """A file of weights, a directory of Hugging Face's, a published name such as `resnet50`, or
    the workdir of a run; None draws them at random. `FILE:KEY` names one of several sets of
    weights in a checkpoint of PyTorch, such as `last.ckpt:ema`."""
    omit: tuple[str, ...] = ()
    """Patterns over PyTorch's parameter names: these are drawn all the same, as in `fc.*`."""

    def __post_init__(self):
        if self.omit and self.weights is None:
            raise UserError(f"init.omit {self.omit} needs init.weights, got None")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run.

    NumPy numbers become Python's, everywhere in it.

    Raises:
        UserError: naming the field whose value is impossible.
    """

    model: nn.Module
    """The network."""
    data: Source
    """Where the examples come from."""
    transform: Transform = Transform()
    """What happens to examples on their way to the model."""
    task: Task = Classification()
    """What the model is trained for."""
    init: Init = Init()
    """Where the parameters start: at random, or from other weights."""
    optimizer: Optimizer = AdamW()
    """How parameters follow their gradients."""
    freeze: tuple[str, ...] = ()
    """Patterns over PyTorch's parameter names: what is not trained, as in `layer1.*`."""
    freeze_epochs: float | None = None
    """After so many epochs everything is trained; None keeps it frozen to the end."""
    batch_size: int = 128
    """Examples per step, over all devices and processes."""
    accumulate_steps: int = 1
    """Parts of a batch that are computed one after the other, so that less memory is needed."""
    epochs: float = 10.0
    """Passes over the training split."""
    train_fraction: float = 1.0
    """Share of the training examples that is used; every class gives its part where the data say
    the labels beforehand."""
    overfit_batches: int | None = None
    """Train on the first so many batches over and over, augmented once, to see that the model can
    learn them by heart. The run ends when the training accuracy has risen to 1 or the loss fallen
    to a hundredth, and says whether it did; validation, test and report are left out."""
    precision: Precision = "float32"
    """In which format a step computes; parameters and optimizer state stay float32."""
    seed: int = 0
    """Decides initial parameters, order of the data, augmentation and dropout."""
    evaluate_every: float = 1.0
    """Epochs between two evaluations on the validation split, each with a checkpoint."""
    log_every: int | None = None
    """Steps between two lines of training metrics; by default 50, and fewer in a run so short that
    it would have fewer than twenty lines."""
    selection: Selection = Selection()
    """How the best checkpoint is chosen, and when to stop early."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay, besides the best one."""
    max_bad_steps: int = 10
    """Steps in a row whose loss or gradients may be not finite before the run gives up, which is
    checked at every line of training metrics."""
    rewind: Rewind = Rewind()
    """Whether to go back before a jump of the loss, and on without its batches."""
    # Where a run is computed is not what it is, so it may change when the run goes on.
    mesh: MeshShape = field(default=MeshShape(), compare=False)
    """How the devices share the work: by example, by parameter, by layer."""
    parallel: Parallel = field(default="jit", compare=False)
    """`jit`, or the older `pmap`, which splits nothing but the batch."""
    steps_per_call: int = field(default=1, compare=False)
    """Training steps that the devices are given at once, so that they do not wait for the next one:
    worth it for small models on a GPU or TPU, not on a CPU, where it makes convolutions slower.
    Steps are taken singly where a line of metrics or an evaluation is due in between."""

    def __post_init__(self):
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            plain = with_python_numbers(value)
            if plain is not value:
                object.__setattr__(self, setting.name, plain)
        for name in (
            "batch_size",
            "accumulate_steps",
            "keep_checkpoints",
            "max_bad_steps",
            "steps_per_call",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("log_every", "overfit_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        for name in ("epochs", "evaluate_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 < self.train_fraction <= 1:
            raise UserError(f"train_fraction must be in (0, 1], got {self.train_fraction}")
        if self.freeze_epochs is not None:
            if not self.freeze:
                raise UserError(f"freeze_epochs {self.freeze_epochs} needs patterns in freeze")
            if not 0 < self.freeze_epochs < self.epochs:
                raise UserError(
                    f"freeze_epochs must be between 0 and epochs = {self.epochs}, "
                    f"got {self.freeze_epochs}"
                )
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")

    def best_step(self, validation: Sequence[dict[str, Any]]) -> int | None:
        """The step of the best of these lines of validation metrics; None without lines.

        Raises:
            UserError: if the lines lack `selection.metric`.
        """
        return self.selection.best_step(validation, self.task)


def with_python_numbers(value: Any) -> Any:
    """The same value, or a copy in which NumPy numbers are Python's.

    JAX does not promote a dtype for a Python number, but does for one of NumPy, so a run resumed
    from its config.json would not compute the same.
    """
    if type(value) in (tuple, list):
        items = [with_python_numbers(item) for item in value]
        is_same = all(item is own for item, own in zip(items, value, strict=True))
        return value if is_same else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: getattr(value, name) for name in setting_names(value)}
        plain = {name: with_python_numbers(item) for name, item in fields.items()}
        changes = {name: item for name, item in plain.items() if item is not fields[name]}
        return dataclasses.replace(value, **changes) if changes else value
    return python_number(value)


def python_number(value: Any) -> Any:
    """A NumPy number, truth value or text as Python's; anything else as it is."""
    if not isinstance(value, np.generic):
        return value
    item = value.item()
    return item if isinstance(item, (bool, int, float, str)) else value


def setting_names(value: Any) -> list[str]:
    """The settings among the fields of a dataclass or of one of its values."""
    # A Linen module's `parent` and `name` are its place in a tree. Fields that are not compared are
    # no settings either, such as arrays in memory, whose hash is another field.
    cls = value if isinstance(value, type) else type(value)
    own = ("parent", "name") if issubclass(cls, nn.Module) else ()
    return [
        field.name for field in dataclasses.fields(value) if field.compare and field.name not in own
    ]
