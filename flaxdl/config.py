"""Configuration of a training run, set in a config file and by command-line flags."""

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
from flaxdl.training.ema import EMA
from flaxdl.training.optimizers import AdamW, Optimizer
from flaxdl.training.precision import Precision
from flaxdl.training.selection import Selection
from flaxdl.training.spike_recovery import SpikeRecovery
from flaxdl.training.tasks import Classification, Task


@dataclass(frozen=True, kw_only=True)
class Init:
    """Initial weights."""

    weights: str | None = None
    """Weights to load: a weights file, a Hugging Face folder, the name of a pretrained model such
    as `resnet50`, or the workdir of a run; None for random initialization. `FILE:KEY` selects one
    of several state dicts in a PyTorch checkpoint, for example `last.ckpt:ema`."""
    omit: tuple[str, ...] = ()
    """Patterns of PyTorch parameter names, such as `fc.*`; matching parameters are initialized
    randomly instead of loaded."""

    def __post_init__(self):
        if self.omit and self.weights is None:
            raise UserError(f"init.omit {self.omit} needs init.weights, got None")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Immutable configuration of a training run.

    >>> config = flaxdl.Config(
    ...     model=flaxdl.models.SimpleCNN(num_classes=10),
    ...     data=flaxdl.data.Tfds("digits"),
    ...     optimizer=flaxdl.training.AdamW(learning_rate=2e-3),
    ...     epochs=20,
    ... )

    NumPy numbers in the fields are converted to Python numbers.

    Raises:
        UserError: if the value of a field is invalid; the message names the field.
    """

    # --help lists the fields in this order, so the most used ones come first.
    model: nn.Module
    """Model to train."""
    data: Source
    """Data source: the training, validation and test splits."""
    transform: Transform = Transform()
    """Preprocessing and augmentation."""
    task: Task = Classification()
    """Training task, which defines the loss and the metrics."""
    init: Init = Init()
    """Initial weights: random or loaded."""
    optimizer: Optimizer = AdamW()
    """Optimizer and learning-rate schedule."""
    batch_size: int = 128
    """Global batch size: number of examples per step on all devices and processes together."""
    epochs: float = 10.0
    """Number of passes over the training split."""
    precision: Precision = "float32"
    """Numeric precision of the forward and backward passes (mixed precision); parameters and
    optimizer state are always stored in float32."""
    seed: int = 0
    """Random seed for weight initialization, data order, augmentation and dropout."""
    evaluate_every: float = 1.0
    """Number of epochs between evaluations on the validation split; each evaluation also saves a
    checkpoint."""
    freeze: tuple[str, ...] = ()
    """Patterns of PyTorch parameter names, such as `layer1.*`; matching parameters are frozen."""
    freeze_epochs: float | None = None
    """Number of epochs after which the frozen parameters are unfrozen; None to keep them frozen."""

    train_fraction: float = 1.0
    """Fraction of the training examples to use, stratified by class where labels are known without
    decoding the data."""
    balanced_sampling: bool = False
    """Drawing all classes equally often in each epoch: examples of rare classes are repeated, and
    only a part of those of frequent classes is shown. An epoch has the same number of steps."""
    repeated_augmentation: int = 1
    """Number of copies of each example in a batch, each augmented differently (repeated
    augmentation). An epoch has the same number of steps, and therefore shows only this part of the
    examples: a quarter with 4 copies."""
    overfit_batches: int | None = None
    """Number of batches to overfit, as a sanity check: the run trains on the first N batches only,
    each augmented once, without random erasing, mixup, cutmix and moving averages, until the
    training accuracy is at least 99.9 % or the loss has fallen to 1 % of its first value.
    Validation, test and report are skipped."""

    ema: EMA = EMA()
    """Moving averages of parameters and BatchNorm statistics, which are evaluated, used for
    prediction and exported in place of the last values."""
    selection: Selection = Selection()
    """Selection of the best checkpoint, and early stopping."""
    keep_checkpoints: int = 2
    """Number of latest checkpoints to keep, in addition to the best one."""

    log_every: int | None = None
    """Number of steps between log lines of training metrics; by default, 50, or fewer in short
    runs, so that there are at least 20 lines."""

    max_bad_steps: int = 10
    """Number of consecutive steps with a non-finite loss or gradient before the run aborts; checked
    at every log line of training metrics."""
    spike_recovery: SpikeRecovery = SpikeRecovery()
    """Rollback to a checkpoint after a loss spike."""

    accumulate_steps: int = 1
    """Number of micro-batches per step (gradient accumulation); higher values save memory."""

    # The hardware layout is not part of a run's identity, so it may change on resume.
    mesh: MeshShape = field(default=MeshShape(), compare=False)
    """Device mesh, which defines the sharding of batches, parameters and layers."""
    parallel: Parallel = field(default="jit", compare=False)
    """Parallelization method: `jit`, or the older `pmap` (data parallelism only)."""
    steps_per_call: int = field(default=1, compare=False)
    """Number of training steps per dispatch to the devices; values above 1 hide the dispatch
    overhead of small models on GPU and TPU, but slow down convolutions on CPU. Just before logging
    and evaluation, steps are dispatched one at a time."""

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
            "repeated_augmentation",
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
        if self.batch_size % self.repeated_augmentation:
            raise UserError(
                f"repeated_augmentation must divide batch_size {self.batch_size}, "
                f"got {self.repeated_augmentation}"
            )
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
        """Returns the step with the best validation metrics, or None if there are no metrics.

        Args:
            validation: parsed lines of `metrics.jsonl` for the validation split.

        Raises:
            UserError: if the lines do not contain `selection.metric`, or the task does not define
                whether higher or lower is better.
        """
        return self.selection.best_step(validation, self.task)


def _check_types(config: Config) -> None:
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        kinds = get_args(setting.type) if isinstance(setting.type, UnionType) else (setting.type,)
        if not any(_has_type(value, kind) for kind in kinds):
            allowed = " or ".join(map(_describe_type, kinds))
            raise UserError(f"{setting.name} must be {allowed}, got {value!r:.200}")


def _has_type(value: Any, kind: Any) -> bool:
    """Returns True if a value has the annotated type of a field."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_has_type(x, get_args(kind)[0]) for x in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _describe_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a tuple of strings"
    known = {
        int: "an integer",
        float: "a number",
        NoneType: "None",
        nn.Module: "a Linen module",
    }
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return known.get(kind, f"{article} {kind.__name__}")


def with_python_numbers(value: Any) -> Any:
    """Returns a value with NumPy numbers, including nested ones, converted to Python numbers.

    NumPy numbers have a dtype that takes part in JAX's dtype promotion; Python numbers are weakly
    typed. Without the conversion, a run resumed from its config.json could compute different
    values.
    """
    if type(value) in (tuple, list):
        items = [with_python_numbers(item) for item in value]
        is_same = all(item is original for item, original in zip(items, value, strict=True))
        return value if is_same else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: getattr(value, name) for name in setting_names(value)}
        plain = {name: with_python_numbers(item) for name, item in fields.items()}
        changes = {name: item for name, item in plain.items() if item is not fields[name]}
        return dataclasses.replace(value, **changes) if changes else value
    return python_number(value)


def python_number(value: Any) -> Any:
    """Converts a NumPy scalar to the built-in Python type; returns other values unchanged."""
    if not isinstance(value, np.generic):
        return value
    item = value.item()
    return item if isinstance(item, (bool, int, float, str)) else value


def setting_names(value: Any) -> list[str]:
    """Returns the names of the settings among the fields of a dataclass or dataclass instance."""
    # `parent` and `name` are the position of a Linen module in its tree. Fields with compare=False
    # are excluded too, for example in-memory arrays, whose hash is in another field.
    cls = value if isinstance(value, type) else type(value)
    excluded = ("parent", "name") if issubclass(cls, nn.Module) else ()
    return [
        field.name
        for field in dataclasses.fields(value)
        if field.compare and field.name not in excluded
    ]
