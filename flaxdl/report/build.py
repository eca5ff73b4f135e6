"""Contents of the report about one run: results, charts, classes, samples and settings."""

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from flaxdl.report import charts, estimates, forecasts, label_sets, page, scores
from flaxdl.report.estimates import Estimates
from flaxdl.report.forecasts import Forecasts
from flaxdl.report.label_sets import LabelSets
from flaxdl.report.metric_names import figure, is_fraction, spelled, title_of
from flaxdl.report.predictions import Generations, Predictions, StoredPredictions
from flaxdl.runs.config_json import to_json
from flaxdl.runs.plan import Plan
from flaxdl.runs.workdir import Workdir
from flaxdl.training.freezing import split as split_frozen
from flaxdl.training.tasks import Regression
from flaxdl.training.times import load_times
from flaxdl.training.writers.metrics_file import MetricsFile
from flaxdl.weights.names import pytorch_key

LAST_CHARTS = ("learning_rate", "gradient_norm", "examples_per_second")
_PATHS = re.compile(r"[\\/]|^~|^[A-Za-z]:")  # paths and URLs
_ABSOLUTE_PATHS = re.compile(r"^[\\/~]|^[A-Za-z]:|\.\.[\\/]|://")
_FEW_MISTAKES = 12  # with fewer, uncertain predictions are shown as well
_MIN_BIN = 5  # predictions of a bin in the calibration chart


def run_page(
    folder: Workdir,
    plan: Plan,
    found: StoredPredictions | None,
    missing: str | None,
) -> page.RunPage:
    """Returns the contents of the report about one run.

    Args:
        folder: workdir of the run.
        plan: the run.
        found: predictions of its model.
        missing: reason why there are no predictions, if there should be.
    """
    metrics = MetricsFile(folder.metrics)
    seconds, devices = load_times(folder.times)
    sizes = [leaf.size for leaf in jax.tree.leaves(plan.shapes().params)]
    results, numbers = _results(plan, metrics, sum(seconds.values()))
    updated = datetime.fromtimestamp(folder.metrics.stat().st_mtime).astimezone()
    command = folder.command()
    return page.RunPage(
        name=folder.path.resolve().name,
        model=type(plan.config.model).__name__,
        parameters=sum(sizes),
        results=results,
        numbers=numbers,
        charts=_charts(plan, metrics),
        settings=settings(to_json(plan.config), shorten=True),
        versions=folder.versions(),
        updated=f"{updated:%Y-%m-%d %H:%M %Z}",
        command=None if command is None else _command(command),
        selection=_selection(plan, metrics, folder.has_checkpoints),
        unfinished=_unfinished(plan, metrics),
        seconds=seconds,
        devices=devices,
        classes=_classes(found, plan) if isinstance(found, Predictions) else None,
        labels=label_sets.section(found, plan.classes or ())
        if isinstance(found, LabelSets)
        else None,
        forecasts=forecasts.section(found) if isinstance(found, Forecasts) else None,
        estimates=estimates.section(found) if isinstance(found, Estimates) else None,
        frozen=_frozen(plan),
        missing=missing,
        **(_samples(found) if isinstance(found, Generations) else {}),
    )


def _results(
    plan: Plan, metrics: MetricsFile, seconds: float
) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the headline figures: metrics of the best checkpoint, speed and time.

    Returns:
        The figures as text, and the values of those that can be compared between runs, with the
        direction in which they are better.
    """
    test, best = metrics.of_split("test"), _best_line(plan, metrics)
    line = test[-1] if test else best or metrics.lines[-1]
    metric, task = plan.config.selection.metric, plan.config.task
    results, numbers = {}, {}
    split = "training" if line["split"] == "train" else line["split"]

    def add(label: str, name: str, value: float | None) -> None:
        results[label] = figure(name, value)
        direction = task.direction(name)
        if value is not None and direction is not None:
            numbers[label] = (value, direction)

    for name, value in line.items():
        if name not in ("step", "split", *LAST_CHARTS) and not _is_of_target(plan, name):
            add(f"{split} {spelled(name)}", name, value)
    if test and best is not None:
        add(f"best validation {spelled(metric)}", metric, best.get(metric))
    last = max(line["step"] for line in metrics.lines)
    results["last step" if split == "training" else "checkpoint"] = (
        f"{last:,}" if split == "training" else f"step {line['step']:,} of {last:,}"
    )
    speeds = [
        line["examples_per_second"]
        for line in metrics.of_split("train")
        if line.get("examples_per_second")
    ]
    if speeds:
        results["examples per second"] = f"{np.median(speeds):,.0f}"
        numbers["examples per second"] = (float(np.median(speeds)), "higher")
    if seconds:
        results["time"] = page.duration(seconds)
        numbers["time"] = (seconds, "lower")
    return results, numbers


def _is_of_target(plan: Plan, name: str) -> bool:
    """Returns True for a metric of one target of a regression; the table of errors has these."""
    config = plan.config
    return isinstance(config.task, Regression) and "/" in name and name != config.selection.metric


def _best_line(plan: Plan, metrics: MetricsFile) -> dict[str, Any] | None:
    """Returns the validation metrics of the best checkpoint; None without validation."""
    lines = metrics.of_split("validation")
    best = plan.config.best_step(lines)
    return next((line for line in lines if line["step"] == best), None)


def _selection(plan: Plan, metrics: MetricsFile, has_checkpoints: bool) -> str:
    """Returns the rule by which the checkpoint was selected, with its value, step and epoch."""
    line, total = _best_line(plan, metrics), f"{plan.total_steps:,}"
    if line is None and not has_checkpoints:
        return ""
    if line is None:
        return (
            "The last checkpoint was used, since the run has no validation metrics to select the "
            f"best one. The run has {total} steps."
        )
    metric = plan.config.selection.metric
    direction = "highest" if plan.config.task.direction(metric) == "higher" else "lowest"
    epoch = f"epoch {line['step'] / plan.steps_per_epoch:.4g} of {plan.config.epochs:.4g}"
    return (
        f"Checkpoint with the {direction} validation {spelled(metric)}: "
        f"{figure(metric, line.get(metric))} at step {line['step']:,} of {total} ({epoch})."
    )


def _unfinished(plan: Plan, metrics: MetricsFile) -> str | None:
    """Describes the progress of a run that has not reached its end."""
    last = max(line["step"] for line in metrics.lines)
    validation = metrics.of_split("validation")
    is_over = plan.config.selection.should_stop(validation, plan.config.task)
    if last >= plan.total_steps or metrics.of_split("test") or is_over:
        return None
    return f"This run is not finished: step {last:,} of {plan.total_steps:,}."


def _charts(plan: Plan, metrics: MetricsFile) -> list[list[charts.Chart]]:
    """Returns rows of charts, one for each metric, with a line for each split."""
    splits = ("train", "validation")
    names = {
        name: None
        for split in splits
        for line in metrics.of_split(split)
        for name in line
        if name not in ("step", "split") and not _is_of_target(plan, name)
    }
    best = plan.config.best_step(metrics.of_split("validation"))
    drawn: dict[str, charts.Chart] = {}
    for name in [
        *(n for n in names if n not in LAST_CHARTS),
        *(n for n in LAST_CHARTS if n in names),
    ]:
        is_speed = name == "examples_per_second"
        lines = {
            {"train": "training"}.get(split, split): [
                line for line in metrics.of_split(split) if name in line
            ]
            for split in splits
        }
        lines = {label: found for label, found in lines.items() if found}
        series = [
            charts.Series(
                label,
                [line["step"] for line in found],
                [line[name] for line in found],
                best=best if label == list(lines)[-1] and name not in LAST_CHARTS else None,
            )
            for label, found in lines.items()
        ]
        drawn[name] = charts.line_chart(
            title_of(name),
            series,
            steps_per_epoch=plan.steps_per_epoch,
            from_zero=is_speed or name == "learning_rate",
            percent=is_fraction(name),
            width=charts.SMALL_WIDTH if is_speed else charts.WIDTH,
        )
    details = [chart for name, chart in drawn.items() if name in LAST_CHARTS]
    return charts.rows_of(
        [chart for name, chart in drawn.items() if name not in LAST_CHARTS], details
    )


def class_names(found: Predictions, names: Sequence[str] | None) -> Sequence[str]:
    """Returns the names of the classes, or their numbers if they have no names."""
    return names or [str(number) for number in range(1 + int(found.label.max()))]


def _classes(found: Predictions, plan: Plan) -> page.Classes:
    names = class_names(found, plan.classes)
    is_correct = found.label == found.predicted
    confusion = scores.confusion_matrix(found.label, found.predicted, len(names))
    by_class = scores.class_scores(found.label, found.predicted, names)
    is_small = len(names) <= page.MAX_CLASSES
    ranked = sorted((one for one in by_class if one.examples), key=lambda one: one.f1 or 0)
    calibration = scores.calibrate(found.confidence, is_correct)
    is_drawn = calibration.count >= _MIN_BIN
    chart = None
    if is_drawn.any():
        chart = charts.calibration_chart(
            calibration.confidence[is_drawn],
            calibration.accuracy[is_drawn],
            calibration.count[is_drawn],
            calibration.error,
        )
    wrong = int(np.sum(~is_correct))
    uncertain = len(found.uncertain) if wrong < _FEW_MISTAKES else 0
    return page.Classes(
        split=found.split,
        evaluated=len(found.label),
        available=found.available,
        names=names,
        confusion=confusion if is_small else None,
        confused=scores.most_confused(confusion, names),
        scores=by_class if is_small else ranked,
        lowest=[one for one in ranked if (one.f1 or 0) < 1][: min(3, len(names) // 2)],
        unrecognized=sum(not one.f1 for one in ranked),
        calibration=chart,
        calibration_error=calibration.error,
        calibration_note=_calibration_note(plan, len(names), int((~is_drawn).sum())),
        mistakes=[
            example_of(found, int(number), names, found.inputs, place)
            for place, number in enumerate(found.shown)
        ],
        wrong=wrong,
        uncertain=[
            example_of(found, int(number), names, found.uncertain_inputs, place)
            for place, number in enumerate(found.uncertain[:uncertain])
        ],
    )


def _calibration_note(plan: Plan, num_classes: int, hidden: int) -> str:
    smoothing = getattr(plan.config.task, "label_smoothing", 0.0)
    notes = []
    if smoothing:
        target = 1 - smoothing + smoothing / num_classes
        notes.append(
            f"Training with label smoothing {smoothing:g} aims at a confidence of {target:.0%}, so "
            "a model that is always correct looks underconfident, with an error of about "
            f"{1 - target:.0%}."
        )
    if hidden:
        bins = "1 bin" if hidden == 1 else f"{hidden} bins"
        verb = "is" if hidden == 1 else "are"
        notes.append(f"{bins} with fewer than {_MIN_BIN} predictions {verb} not shown.")
    return " ".join(notes)


def example_of(
    found: Predictions, number: int, names: Sequence[str], inputs: np.ndarray, place: int
) -> page.Example:
    """Returns an example with its prediction.

    Args:
        found: predictions.
        number: which of them.
        names: names of the classes.
        inputs: inputs of some examples, see `Predictions.inputs`; may be empty.
        place: place of the example in `inputs`.
    """
    shown: dict[str, Any] = {}
    if place < len(inputs):
        one = inputs[place]
        is_text = inputs.dtype.kind == "U"
        shown = {"text": str(one)} if is_text else {"picture": page.data_uri(one)}
    if len(found.label_probability):
        shown["label_probability"] = float(found.label_probability[number])
    return page.Example(
        name=example_name(found, number),
        label=names[int(found.label[number])],
        predicted=names[int(found.predicted[number])],
        confidence=float(found.confidence[number]),
        **shown,
    )


def example_name(found: Predictions, number: int) -> str:
    """Returns the file name of an example, or its position in the split; empty if unknown."""
    if len(found.names):
        return str(found.names[number])
    return f"{found.split} example {found.index[number]:,}" if len(found.index) else ""


def _samples(found: Generations) -> dict[str, Any]:
    if not len(found.expected):
        note = "Text after the highlighted prompt was sampled token by token."
        texts = [t.removeprefix(i) for t, i in zip(found.texts, found.items, strict=True)]
        return {
            "samples": [page.Sample(str(i), t) for i, t in zip(found.items, texts, strict=True)],
            "samples_note": note,
        }
    rows = zip(found.items, found.texts, found.expected, strict=True)
    return {
        "samples": [page.Sample(str(i), str(t), str(e)) for i, t, e in rows],
        "samples_note": f"{len(found.items)} of the first {found.tried} texts of the {found.split} "
        "split; wrong outputs come first.",
    }


def _frozen(plan: Plan) -> page.Frozen | None:
    config = plan.config
    if config.init.weights is None and not config.freeze:
        return None
    leaves: dict[Any, Any] = {}
    if config.freeze:
        _, frozen = split_frozen(plan.shapes().params, config.freeze)
        leaves = {path: leaf for path, leaf in flatten_dict(frozen).items() if leaf is not None}
    return page.Frozen(
        source=None if config.init.weights is None else _shortened(config.init.weights),
        omitted=config.init.omit,
        patterns=config.freeze,
        epochs=config.freeze_epochs,
        names=[pytorch_key(path) for path in leaves],
        count=sum(leaf.size for leaf in leaves.values()),
    )


def settings(record: Any, name: str = "", *, shorten: bool = False) -> dict[str, str]:
    """Flattens a config to one text per field, with names such as `optimizer.learning_rate`.

    Args:
        record: the config as JSON, or a part of it.
        name: prefix of the names, for a part.
        shorten: True to keep only the last component of paths and URLs, for reports that are
            shared.
    """
    if isinstance(record, Mapping):
        own = {name: record["class"].rpartition(".")[2]} if name and "class" in record else {}
        inner = (
            settings(value, f"{name}.{field}" if name else field, shorten=shorten)
            for field, value in record.items()
            if field != "class"
        )
        return {k: v for part in (own, *inner) for k, v in part.items()}
    if isinstance(record, list) and any(isinstance(value, Mapping) for value in record):
        numbered = {str(number): value for number, value in enumerate(record)}
        return settings(numbered, name, shorten=shorten)
    if isinstance(record, list):
        return {name: ", ".join(_shown(value, shorten) for value in record) or "none"}
    return {name: _shown(record, shorten)}


def _shown(value: Any, shorten: bool) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):  # a pair of class name and number
        return " ".join(_shown(one, shorten) for one in value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # 30 and 30.0 epochs are no difference
    return _shortened(value) if shorten and isinstance(value, str) else str(value)


def _command(arguments: Sequence[str]) -> str:
    """Returns a command line in which only the last component of absolute paths is left."""
    shown = []
    for argument in arguments:
        flag, equals, text = _divided(argument)
        text = _shortened(text) if _ABSOLUTE_PATHS.search(text) else shlex.quote(text)
        shown.append(f"{flag}{equals}{text}")
    return " ".join(shown)


def _divided(argument: str) -> tuple[str, str, str]:
    """Divides `--flag=value` into its parts; anything else is a value alone."""
    flag, equals, value = argument.partition("=")
    return (flag, equals, value) if argument.startswith("--") and equals else ("", "", argument)


def _shortened(text: str) -> str:
    if not _PATHS.search(text):
        return text
    last = re.split(r"[\\/]", re.split(r"[?#]", text)[0].rstrip("\\/"))[-1]
    return f"…/{last}"
