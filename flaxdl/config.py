"""What a run is: one frozen value, built by a config file, changed by flags, kept as JSON."""

import ast
import contextlib
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from flaxdl.data import Source, Transform
from flaxdl.paths import local_path
from flaxdl.spelling import did_you_mean
from flaxdl.training.optimizers import AdamW, Optimizer
from flaxdl.training.parallel import Parallel
from flaxdl.training.precision import Precision
from flaxdl.training.rewind import Rewind
from flaxdl.training.selection import Selection
from flaxdl.training.sharding import MeshShape
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
            raise ValueError(f"init.omit {self.omit} needs init.weights, got None")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run.

    NumPy numbers become Python's, everywhere in it.

    Raises:
        ValueError: naming the field whose value is impossible.
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
            plain = _with_python_numbers(value)
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
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("log_every", "overfit_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("epochs", "evaluate_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction must be in (0, 1], got {self.train_fraction}")
        if self.freeze_epochs is not None:
            if not self.freeze:
                raise ValueError(f"freeze_epochs {self.freeze_epochs} needs patterns in freeze")
            if not 0 < self.freeze_epochs < self.epochs:
                raise ValueError(
                    f"freeze_epochs must be between 0 and epochs = {self.epochs}, "
                    f"got {self.freeze_epochs}"
                )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    def best_step(self, validation: Sequence[dict[str, Any]]) -> int | None:
        """The step of the best of these lines of validation metrics; None without lines.

        Raises:
            ValueError: if the lines lack `selection.metric`.
        """
        return self.selection.best_step(validation, self.task)


def load_config(path: str | Path) -> Config:
    """Runs a config file, which is Python and may do anything, and returns its `config`.

    The file is imported under its own name, so that worker processes find what it defines. It can
    import modules beside it, unless Python or an installed package has one of the same name.

    Raises:
        ValueError: if there is no such file, it fails, it defines no `config`, or it has the name
            of another module.
    """
    path = local_path(path)
    if not path.is_file():
        known = {
            p.name: p for folder in (Path("configs"), path.parent) for p in folder.glob("*.py")
        }
        near = get_close_matches(path.name, known, n=1)
        hint = f"; did you mean {str(known[near[0]])!r}?" if near else ""
        raise ValueError(f"there is no config file {path}{hint}")
    config = getattr(_import(path), "config", None)
    if not isinstance(config, Config):
        del sys.modules[path.stem]
        raise ValueError(
            f"{path} must define config = flaxdl.Config(...), "
            + ("but defines no config" if config is None else f"but config is a {type(config)}")
        )
    return config


def _import(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"a config file must end in .py, got {path}")
    if _is_taken(path.stem):
        raise ValueError(
            f"a config file cannot be called {path.name}, since it would replace Python's or an "
            f"installed module {path.stem!r}; rename it"
        )
    _add_to_path(str(path.resolve().parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise ValueError(f"{path} failed with {type(error).__name__}: {error}") from error
    return module


def _add_to_path(folder: str) -> None:
    """Makes modules beside a config file importable, before others of the same name.

    If one of them is named like a module of Python or an installed one, all come last.
    """
    if folder not in sys.path:
        beside = [path.stem for path in Path(folder).glob("*.py")]
        beside += [path.parent.name for path in Path(folder).glob("*/__init__.py")]
        sys.path.insert(len(sys.path) if any(map(_is_installed, beside)) else 0, folder)


def _is_taken(name: str) -> bool:
    """Returns whether code that imports this name expects another module than a config file."""
    if name in sys.modules and name not in sys.stdlib_module_names:
        return not isinstance(getattr(sys.modules[name], "config", None), Config)
    return _is_installed(name)


def _is_installed(name: str) -> bool:
    """Returns whether a module of this name belongs to Python or an installed package."""
    if name in sys.stdlib_module_names:
        return True
    installed = [
        folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")
    ]
    spec = importlib.machinery.PathFinder.find_spec(name, installed)
    return spec is not None and spec.origin is not None  # not a mere folder


def list_configs(folder: Path) -> dict[str, str]:
    """Path → first line of the docstring, for each config file; nothing is run."""
    return {str(path): _first_line(path) for path in sorted(folder.glob("*.py"))}


def _first_line(path: Path) -> str:
    try:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
    except (OSError, ValueError, SyntaxError) as error:  # a list shows what else there is
        return f"(cannot be read: {error})"
    return (docstring or "(says nothing of itself)").partition("\n")[0]


def to_json(value: Any, name: str = "") -> Any:
    """A config, or any value in it, as JSON: dataclasses as their qualified name and fields.

    Args:
        value: the config or value.
        name: what error messages call it, as in `model.activation`.

    Raises:
        ValueError: naming the first field whose value has no JSON form, or is not a number.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        prefix = f"{name}." if name else ""
        return {
            "class": _class_name(type(value)),
            **{f: to_json(getattr(value, f), f"{prefix}{f}") for f in _field_names(value)},
        }
    if isinstance(value, (tuple, list)):
        return [to_json(item, f"{name}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, dict):
        return {str(key): to_json(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    value = _python_number(value)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name or 'a value of a config'} must be a number, got nan")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(
        f"{name}{': ' if name else ''}a config holds numbers, texts, tuples and dataclasses, "
        f"got {value!r:.200} (a {type(value).__name__})"
    )


def _with_python_numbers(value: Any) -> Any:
    """The same value, or a copy in which NumPy numbers are Python's.

    JAX does not promote a dtype for a Python number, but does for one of NumPy, so a run resumed
    from its config.json would not compute the same.
    """
    if type(value) in (tuple, list):
        items = [_with_python_numbers(item) for item in value]
        is_same = all(item is own for item, own in zip(items, value, strict=True))
        return value if is_same else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: getattr(value, name) for name in _field_names(value)}
        plain = {name: _with_python_numbers(item) for name, item in fields.items()}
        changes = {name: item for name, item in plain.items() if item is not fields[name]}
        return dataclasses.replace(value, **changes) if changes else value
    return _python_number(value)


def _python_number(value: Any) -> Any:
    """A NumPy number, truth value or text as Python's; anything else as it is."""
    if not isinstance(value, np.generic):
        return value
    item = value.item()
    return item if isinstance(item, (bool, int, float, str)) else value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`, for classes that are public in flaxdl.

    Raises:
        ValueError: if a value was of a class of the user's own, which needs the config file that
            it came from.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "class" not in value:
        return {key: from_json(item) for key, item in value.items()}
    fields = {name: from_json(item) for name, item in value.items() if name != "class"}
    public_class = _public_class(value["class"])
    known = [field.name for field in dataclasses.fields(public_class)]
    for name in fields:
        if name not in known:
            raise ValueError(
                f"config.json sets the field {name!r}, which {public_class.__name__} does not have"
                f"{did_you_mean(name, known)}"
            )
    return public_class(**fields)


def with_defaults(value: Any, like: Any = None) -> Any:
    """Adds the fields that a config's JSON lacks because they have been added to a class since.

    They get what earlier runs had without them: the field's default, or the value `earlier` of its
    metadata where that is another one.

    Args:
        value: the JSON of a config, or of any value in it.
        like: a config that may have classes of the user's own, which are looked up there.
    """
    if isinstance(value, list):
        items = like if isinstance(like, (list, tuple)) and len(like) == len(value) else value
        return [with_defaults(item, other) for item, other in zip(value, items, strict=True)]
    if not isinstance(value, dict):
        return value
    record = {name: with_defaults(item, _part(like, name)) for name, item in value.items()}
    try:
        name = str(record.get("class"))
        is_own = dataclasses.is_dataclass(like) and _class_name(type(like)) == name
        found: Any = type(like) if is_own else _public_class(name)
    except ValueError:  # no dataclass, or one of the user's own
        return record
    names = _field_names(found)
    for added in dataclasses.fields(found):
        if added.name in names and added.name not in record:
            record |= _earlier_value(added)
    return record


def _part(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _earlier_value(field: dataclasses.Field) -> dict[str, Any]:
    """The value of a field in runs that began before it existed; nothing where it has none."""
    if "earlier" in field.metadata:
        return {field.name: to_json(field.metadata["earlier"])}
    if field.default is not dataclasses.MISSING:
        return {field.name: to_json(field.default)}
    if field.default_factory is not dataclasses.MISSING:
        return {field.name: to_json(field.default_factory())}
    return {}


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two JSON values differ: lines such as `optimizer.learning_rate: 0.001 → 0.0003`."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get("class") == new.get("class"):
        return [
            line
            for key in [*old, *(key for key in new if key not in old)]
            for line in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name}: {json.dumps(old)} → {json.dumps(new)}"]


def _field_names(value: Any) -> list[str]:
    """The settings among the fields of a dataclass or of one of its values."""
    # A Linen module's `parent` and `name` are its place in a tree. Fields that are not compared are
    # no settings either, such as arrays in memory, whose hash is another field.
    cls = value if isinstance(value, type) else type(value)
    own = ("parent", "name") if issubclass(cls, nn.Module) else ()
    return [
        field.name for field in dataclasses.fields(value) if field.compare and field.name not in own
    ]


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _public_class(name: str) -> type:
    module_name, _, class_name = name.rpartition(".")
    found = None
    if module_name.split(".")[0] == "flaxdl" and not any(
        part.startswith("_") for part in name.split(".")
    ):
        with contextlib.suppress(ModuleNotFoundError):
            found = getattr(importlib.import_module(module_name), class_name, None)
    is_ours = getattr(found, "__module__", "").split(".")[0] == "flaxdl"  # not just imported there
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and is_ours):
        raise ValueError(
            f"config.json names {name!r}, which is no public class of flaxdl; "
            "give the config file that defines it with --config"
        )
    return found
