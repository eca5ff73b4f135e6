"""Configuration of a training run: frozen values, built by a config file and changed by flags."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

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
    """Initial weights."""

    weights: str | None = None
    """File of weights, Hugging Face folder, name of a pretrained model such as `resnet50`, or
    workdir of a run; None for random weights. `FILE:KEY` selects one of several sets of weights in
    a PyTorch checkpoint, as in `last.ckpt:ema`."""
    omit: tuple[str, ...] = ()
    """Patterns of PyTorch parameter names to initialize randomly all the same, such as `fc.*`."""

    def __post_init__(self):
        if self.omit and self.weights is None:
            raise UserError(f"init.omit {self.omit} needs init.weights, got None")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of a training run.

    NumPy numbers in it are converted to Python numbers.

    Raises:
        UserError: naming the field whose value is impossible.
    """

    # The order is that of --help: first what most runs set.
    model: nn.Module
    """Network to train."""
    data: Source
    """Source of the examples."""
    transform: Transform = Transform()
    """Preprocessing and augmentation of the examples."""
    task: Task = Classification()
    """Task that the model is trained for: its loss and metrics."""
    init: Init = Init()
    """Initial weights: random, or loaded."""
    optimizer: Optimizer = AdamW()
    """Optimizer and learning-rate schedule."""
    batch_size: int = 128
    """Examples per step, over all devices and processes."""
    epochs: float = 10.0
    """Passes over the training split."""
    precision: Precision = "float32"
    """Format of the computations in a step; parameters and optimizer state stay float32."""
    seed: int = 0
    """Random seed of initial weights, order of the data, augmentation and dropout."""
    evaluate_every: float = 1.0
    """Epochs between evaluations on the validation split, each with a checkpoint."""
    freeze: tuple[str, ...] = ()
    """Patterns of PyTorch parameter names to keep fixed, such as `layer1.*`."""
    freeze_epochs: float | None = None
    """Epochs after which frozen parameters are unfrozen; None for never."""

    train_fraction: float = 1.0
    """Fraction of the training examples to use, stratified by class where labels are known without
    decoding."""
    overfit_batches: int | None = None
    """Number of batches to overfit, as a check that the model can learn: the run trains on its
    first batches over and over, augmented once, and ends when the training accuracy reaches 1 or
    the loss has fallen to a hundredth. Validation, test and report are left out."""

    selection: Selection = Selection()
    """Choice of the best checkpoint, and early stopping."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, in addition to the best one."""

    log_every: int | None = None
    """Steps between lines of training metrics; by default 50, or fewer in a run so short that it
    would have fewer than twenty lines."""

    max_bad_steps: int = 10
    """Consecutive steps with a loss or gradients that are not finite after which the run fails;
    checked at every line of training metrics."""
    rewind: Rewind = Rewind()
    """Rolling back after a loss spike."""

    accumulate_steps: int = 1
    """Number of micro-batches per step (gradient accumulation); saves memory."""

    # The hardware layout is not part of a run's identity, so it may change on resume.
    mesh: MeshShape = field(default=MeshShape(), compare=False)
    """Layout of the devices: how they split batches, parameters and layers."""
    parallel: Parallel = field(default="jit", compare=False)
    """`jit`, or the older `pmap`, which splits nothing but the batch."""
    steps_per_call: int = field(default=1, compare=False)
    """Training steps per dispatch to the devices; more than 1 speeds up small models on a GPU or
    TPU, but slows down convolutions on a CPU. Before a line of metrics or an evaluation, steps are
    dispatched singly."""

    def __post_init__(self):
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            plain = with_python_numbers(value)
            if plain is not value:
                object.__setattr__(self, setting.name, plain)
        _check_types(self)
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
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")

    def best_step(self, validation: Sequence[dict[str, Any]]) -> int | None:
        """Returns the step of the best of these lines of validation metrics; None without lines.

        Raises:
            UserError: if the lines lack `selection.metric`.
        """
        return self.selection.best_step(validation, self.task)


def _check_types(config: Config) -> None:
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        kinds = get_args(setting.type) if isinstance(setting.type, UnionType) else (setting.type,)
        if not any(_is_of(value, kind) for kind in kinds):
            allowed = " or ".join(map(_described, kinds))
            raise UserError(f"{setting.name} must be {allowed}, got {value!r:.200}")


def _is_of(value: Any, kind: Any) -> bool:
    """Returns whether a value has the type of a field."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of(x, get_args(kind)[0]) for x in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a tuple of texts"
    known = {
        int: "a whole number",
        float: "a number",
        NoneType: "None",
        nn.Module: "a Linen module",
    }
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return known.get(kind, f"{article} {kind.__name__}")


def with_python_numbers(value: Any) -> Any:
    """Returns the value, or a copy in which NumPy numbers are converted to Python numbers.

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
    """Returns a NumPy number, boolean or string as a Python one; anything else as it is."""
    if not isinstance(value, np.generic):
        return value
    item = value.item()
    return item if isinstance(item, (bool, int, float, str)) else value


def setting_names(value: Any) -> list[str]:
    """Returns the names of the settings among the fields of a dataclass, given it or a value."""
    # A Linen module's `parent` and `name` are its place in a tree. Fields that are not compared are
    # no settings either, such as arrays in memory, whose hash is another field.
    cls = value if isinstance(value, type) else type(value)
    own = ("parent", "name") if issubclass(cls, nn.Module) else ()
    return [
        field.name for field in dataclasses.fields(value) if field.compare and field.name not in own
    ]
