"""Regression: one or several numbers for each example.

B: examples, K: targets, N: examples of a split.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.checks import check_choice, check_shape
from flaxdl.errors import UserError
from flaxdl.training.tasks.losses import POINT_LOSSES, Batch
from flaxdl.training.tasks.task import Better, Metrics, Task

MIXING_ERROR = (
    "mixup and cutmix need classes, and Regression has numbers: set transform.mixup_alpha and "
    "transform.cutmix_alpha to 0"
)
_PER_TARGET = ("mae", "rmse", "r2")


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Regression: a model with outputs [B, K] predicts K numbers per example.

    `label` is float[B, K], or float[B] for a single target; NaN is a missing entry of weight 0. The
    outputs are standardized: output k stands for `mean[k] + std[k] * output`. The loss is computed
    on standardized values, so that all targets have equal weight. Metrics are in the targets' own
    units, and averages over all known entries:

    - `mae`, the mean absolute error, and `rmse`, the root of the mean squared error.
    - `r2`, the coefficient of determination, of evaluation only: the mean over targets, as in
      scikit-learn. It is NaN for a target with fewer than two examples or with a single value, and
      such a target is left out of the mean.

    With several targets that have names, evaluation also has `mae/NAME`, `rmse/NAME` and `r2/NAME`.
    """

    better: ClassVar[Mapping[str, Better]] = {
        "loss": "lower",
        "mae": "lower",
        "rmse": "lower",
        "r2": "higher",
    }

    point_loss: Literal["mse", "mae", "huber"] = "mse"
    """Loss of an error in standard deviations: its square, its absolute value, or half its square
    up to `delta` and linear beyond, as `torch.nn.HuberLoss`."""
    delta: float = 1.0
    """Error, in standard deviations, from which the Huber loss is linear."""
    mean: tuple[float, ...] | None = None
    """Mean of each target, by default that of the known entries of the training split. With mean 0
    and `std` 1, outputs are in the targets' own units."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each target, by default that of the known entries of the training
    split, or 1 for a target with a single value there."""
    targets: tuple[str, ...] | None = None
    """Names of the targets; by default, those of the data, if any."""

    def __post_init__(self):
        check_choice("point_loss", self.point_loss, POINT_LOSSES)
        if not 0 < self.delta < math.inf:
            raise UserError(f"delta must be positive and finite, got {self.delta}")
        if self.delta != 1 and self.point_loss != "huber":
            raise UserError(
                f"delta applies to point_loss 'huber', got delta {self.delta} and point_loss "
                f"{self.point_loss!r}"
            )
        self._check_statistics()
        if isinstance(self.targets, str) or len({*(self.targets or ())}) < len(self.targets or ()):
            raise UserError(f"targets must be a tuple of different names, got {self.targets!r}")

    def _check_statistics(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is None:
                continue
            if not (isinstance(value, tuple) and value and all(map(_is_finite, value))):
                raise UserError(
                    f"{name} must be a tuple of finite numbers, one per target, or None, "
                    f"got {value!r:.200}"
                )
        if (self.mean is None) != (self.std is None):
            raise UserError(
                f"mean and std must be given together, got mean {self.mean} and std {self.std}"
            )
        if self.mean is None or self.std is None:
            return
        if len(self.mean) != len(self.std):
            raise UserError(
                f"mean and std must have one number per target, got {len(self.mean)} and "
                f"{len(self.std)}"
            )
        if min(self.std) <= 0:
            raise UserError(f"std must be positive, got {self.std}")

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets; if they have none, `target`, or `target_0`, `target_1`, ..."""
        if self.targets is not None:
            return self.targets
        count = len(self._statistics()[0])
        return ("target",) if count == 1 else tuple(f"target_{k}" for k in range(count))

    def fit(self, labels: np.ndarray | None, classes: tuple[str, ...] | None) -> Self:
        """Returns the task with mean, standard deviation and names of the targets.

        Args:
            labels: labels of the training split, float[N] or [N, K]; None if unknown.
            classes: names of the targets; None if they have none.
        """
        if classes is not None and self.targets not in (None, classes):
            raise UserError(
                f"task.targets must be the names in the data, {', '.join(classes)}, got "
                f"{', '.join(self.targets or ())}"
            )
        task = replace(self, targets=classes or self.targets)
        if task.mean is None:
            if labels is None:
                raise UserError(
                    "Regression computes mean and standard deviation of the targets, which needs "
                    "labels that are known without reading every example; set task.mean and "
                    "task.std instead"
                )
            mean, std = _mean_and_std(labels.reshape(len(labels), -1), task.targets)
            task = replace(task, mean=mean, std=std)
        count = len(task.mean or ())
        sizes = [len(task.targets)] if task.targets is not None else []
        sizes += [] if labels is None else [labels.reshape(len(labels), -1).shape[1]]
        if set(sizes) - {count}:
            raise UserError(
                f"task.mean, task.std and task.targets must have one entry for each of the "
                f"{sizes[-1]} targets in the data, got {count} means and "
                f"{count if task.targets is None else len(task.targets)} names"
            )
        return task

    def num_outputs(self, classes: Sequence[str] | None) -> int | None:
        """Returns the number of targets; None before `fit`."""
        return None if self.mean is None else len(self.mean)

    def in_own_units(self, outputs: np.ndarray) -> np.ndarray:
        """Returns outputs [..., K] in the targets' own units, as float64."""
        mean, std = self._statistics()
        return np.asarray(outputs, np.float64) * np.array(std) + np.array(mean)

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the loss of each entry, and its weight, [B, K].

        Raises:
            UserError: if examples are mixed (mixup or cutmix): the mixed loss is that of the mixed
                target only for squared errors.
        """
        if "mix" in batch:
            raise UserError(MIXING_ERROR)
        return self.metrics(outputs, batch)["loss"]

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """Returns the loss and the errors of each entry, [B, K].

        Errors are in units of the largest standard deviation, so that squares do not overflow.
        """
        outputs, label = self._standardized(outputs, batch)
        is_known = ~jnp.isnan(label)
        # A label of weight 0 must not be NaN, or else the gradient is.
        error = outputs - jnp.where(is_known, label, 0)
        weight = batch["weight"][:, None] * is_known
        _, std = self._statistics()
        own = error * jnp.array(std, error.dtype) / max(std)
        return {
            "loss": (POINT_LOSSES[self.point_loss](error, self.delta), weight),
            "mae": (jnp.abs(own), weight),
            "mean_squared_error": (jnp.square(own), weight),
        }

    def finish(self, means: Mapping[str, float]) -> dict[str, float]:
        """Returns `loss`, `mae` and `rmse`, the latter two in the targets' own units."""
        unit = max(self._statistics()[1])
        return {
            "loss": means["loss"],
            "mae": unit * means["mae"],
            "rmse": unit * math.sqrt(means["mean_squared_error"]),
        }

    def evaluation_names(self) -> tuple[str, ...]:
        """Returns `r2`, and the metrics of each target if there are several with names."""
        names = self.targets or ()
        of_targets = (f"{metric}/{name}" for name in names for metric in _PER_TARGET)
        return ("r2", *(of_targets if len(names) > 1 else ()))

    def evaluation_rows(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns standardized outputs and labels, [B, K]; a missing label is NaN."""
        outputs, label = self._standardized(outputs, batch)
        return {"output": outputs, "label": label}

    def evaluation_metrics(
        self,
        totals: Mapping[str, np.ndarray],
        rows: Mapping[str, np.ndarray],
        classes: Sequence[str] | None,
    ) -> dict[str, float]:
        """Returns `r2`, and the metrics of each target if there are several with names."""
        columns = zip(rows["output"].T, rows["label"].T, self._statistics()[1], strict=True)
        scores = [target_scores(output, label, std) for output, label, std in columns]
        defined = [one["r2"] for one in scores if not math.isnan(one["r2"])]
        mean = sum(defined) / len(defined) if defined else math.nan
        if len(scores) == 1 or self.targets is None:
            return {"r2": mean}
        named = zip(self.targets, scores, strict=True)
        return {"r2": mean} | {
            f"{k}/{name}": x for name, of_one in named for k, x in of_one.items()
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is one output per target."""
        check_shape("the model's outputs", outputs, "B K")
        count = len(self._statistics()[0])
        if outputs.shape[-1] != count:
            raise UserError(
                f"the data have {count} target{'' if count == 1 else 's'}, but the model has "
                f"{outputs.shape[-1]} outputs; set --model.num-classes {count}"
            )

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.mean is None or self.std is None:
            raise UserError("Regression has no mean and std of the targets; call fit on it first")
        return self.mean, self.std

    def _standardized(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns outputs and standardized labels, [B, K], in float32 or higher precision."""
        self.check(outputs, None)
        mean, std = self._statistics()
        label = batch["label"]
        label = label[:, None] if label.ndim == 1 else label
        if outputs.shape != label.shape:
            raise UserError(
                f"label must have shape [B, {len(mean)}] for {len(mean)} targets, as the model's "
                f"outputs, got {list(batch['label'].shape)} for outputs {list(outputs.shape)}"
            )
        wide = jnp.promote_types(outputs.dtype, jnp.float32)
        label = (label.astype(wide) - jnp.array(mean, wide)) / jnp.array(std, wide)
        return outputs.astype(wide), label


def target_scores(output: np.ndarray, label: np.ndarray, std: float) -> dict[str, float]:
    """Returns `mae`, `rmse` and `r2` of one target; NaN where one is not defined.

    Args:
        output: standardized predictions, float[N].
        label: standardized labels, float[N]; NaN for missing ones.
        std: standard deviation, the unit of both.
    """
    is_known = ~np.isnan(label)
    label = label[is_known].astype(np.float64)
    error = output[is_known].astype(np.float64) - label
    if not len(label):
        return dict.fromkeys(_PER_TARGET, math.nan)
    squared = float(np.mean(np.square(error)))
    is_varied = label.min() < label.max()  # False for a single example
    return {
        "mae": std * float(np.mean(np.abs(error))),
        "rmse": std * math.sqrt(squared),
        "r2": 1 - squared / float(np.var(label)) if is_varied else math.nan,
    }


def _mean_and_std(
    labels: np.ndarray, names: Sequence[str] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of the known entries in each column of [N, K].

    Both are float32 numbers, so that labels are standardized and predictions converted back with
    exactly the same numbers.
    """
    labels = np.asarray(labels, np.float64)
    known = ~np.isnan(labels)
    if not known.any(0).all():
        empty = np.flatnonzero(~known.any(0)).tolist()
        raise UserError(
            "Regression needs known training labels of each target, but there are none of "
            f"{', '.join(str(k) if names is None else names[k] for k in empty)}"
        )
    mean = np.mean(labels, axis=0, where=known).astype(np.float32)
    std = np.std(labels, axis=0, where=known).astype(np.float32)
    lowest = np.min(labels, axis=0, where=known, initial=np.inf)
    highest = np.max(labels, axis=0, where=known, initial=-np.inf)
    is_constant = (lowest == highest) | (std < np.finfo(np.float32).tiny)
    return tuple(mean.tolist()), tuple(np.where(is_constant, 1, std).tolist())


def _is_finite(number: Any) -> bool:
    is_number = isinstance(number, int | float | np.number) and not isinstance(number, bool)
    return is_number and math.isfinite(number)
