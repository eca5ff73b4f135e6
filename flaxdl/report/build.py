"""One run as a page of a report: figures, charts, classes, samples and settings."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from flaxdl.report import charts, page, scores
from flaxdl.report.predictions import Answers, Writings
from flaxdl.runs.config_json import to_json
from flaxdl.runs.plan import Plan
from flaxdl.runs.workdir import Workdir
from flaxdl.training.freezing import split as split_frozen
from flaxdl.training.times import load_times
from flaxdl.training.writers.metrics_file import MetricsFile
from flaxdl.weights.names import pytorch_key

LAST_CHARTS = ("learning_rate", "gradient_norm", "examples_per_second")
_FRACTIONS = ("accuracy", "top_5_accuracy", "exact_match")  # shown as percent
_PLACES = re.compile(r"[\\/]|^~|^[A-Za-z]:")  # what makes a text look like a path or an address


def run_page(
    folder: Workdir,
    plan: Plan,
    found: Answers | Writings | None,
    missing: str | None,
) -> page.RunPage:
    """What the report shows of one run.

    Args:
        folder: where the run is kept.
        plan: the run.
        found: what its network answers.
        missing: why there are no answers, where there could be.
    """
    metrics = MetricsFile(folder.metrics)
    seconds, devices = load_times(folder.times)
    sizes = [leaf.size for leaf in jax.tree.leaves(plan.shapes().params)]
    return page.RunPage(
        name=folder.path.resolve().name,
        model=type(plan.config.model).__name__,
        parameters=sum(sizes),
        results=_results(plan, metrics, sum(seconds.values())),
        charts=_charts(plan, metrics),
        settings=settings(to_json(plan.config), shorten=True),
        versions=folder.versions(),
        seconds=seconds,
        devices=devices,
        classes=_classes(found, plan.classes) if isinstance(found, Answers) else None,
        frozen=_frozen(plan),
        missing=missing,
        **(_samples(found) if isinstance(found, Writings) else {}),
    )


def _results(plan: Plan, metrics: MetricsFile, seconds: float) -> dict[str, str]:
    """The figures at the top: those of the best checkpoint, and what they took."""
    test, validation = metrics.of_split("test"), metrics.of_split("validation")
    if test:
        line = test[-1]
    elif validation:
        best = plan.config.best_step(validation)
        line = next(line for line in validation if line["step"] == best)
    else:
        line = metrics.lines[-1]
    results = {
        f"{line['split']} {name.replace('_', ' ')}": _figure(name, value)
        for name, value in line.items()
        if name not in ("step", "split", *LAST_CHARTS)
    }
    last = max(line["step"] for line in metrics.lines)
    results["checkpoint"] = f"step {line['step']:,} of {last:,}"
    speeds = [
        line["examples_per_second"]
        for line in metrics.of_split("train")
        if line.get("examples_per_second")
    ]
    if speeds:
        results["examples per second"] = f"{np.median(speeds):,.0f}"
    if seconds:
        results["time"] = page.duration(seconds)
    return results


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.2%}" if name in _FRACTIONS else f"{value:.4g}"


def _charts(plan: Plan, metrics: MetricsFile) -> list[charts.Chart]:
    """A chart for each metric, those of training and validation together."""
    splits = ("train", "validation")
    names = {
        name: None
        for split in splits
        for line in metrics.of_split(split)
        for name in line
        if name not in ("step", "split")
    }
    ordered = [
        *(name for name in names if name not in LAST_CHARTS),
        *(name for name in LAST_CHARTS if name in names),
    ]
    lines = metrics.of_split("validation")
    best = plan.config.best_step(lines)
    drawn = []
    for name in ordered:
        series = [
            charts.Series(
                {"train": "training"}.get(split, split),
                [line["step"] for line in metrics.of_split(split) if name in line],
                [line[name] for line in metrics.of_split(split) if name in line],
            )
            for split in splits
        ]
        mark = (best, "best checkpoint") if best and name == plan.config.selection.metric else None
        drawn.append(charts.line_chart(title_of(name), [one for one in series if one.x], best=mark))
    return drawn


def title_of(name: str) -> str:
    """A metric's name as the title of its chart."""
    return name.replace("_", " ").capitalize()


def _classes(found: Answers, names: Sequence[str] | None) -> page.Classes:
    names = names or [str(number) for number in range(1 + int(found.label.max()))]
    is_right = found.label == found.predicted
    confusion = scores.confusion_matrix(found.label, found.predicted, len(names))
    by_class = scores.class_scores(found.label, found.predicted, names)
    is_small = len(names) <= page.MOST_CLASSES
    if not is_small:
        with_examples = [score for score in by_class if score.examples]
        by_class = sorted(with_examples, key=lambda one: one.f1 or 0)[: page.MOST_CLASSES]
    calibration = scores.calibrate(found.confidence, is_right)
    return page.Classes(
        split=found.split,
        answered=len(found.label),
        available=found.available,
        names=names,
        confusion=confusion if is_small else None,
        confused=scores.most_confused(confusion, names),
        scores=by_class,
        calibration=charts.calibration_chart(
            calibration.confidence, calibration.accuracy, calibration.count, calibration.error
        ),
        calibration_error=calibration.error,
        mistakes=[_mistake(found, place, names) for place in range(len(found.shown))],
        wrong=int(np.sum(~is_right)),
    )


def _mistake(found: Answers, place: int, names: Sequence[str]) -> page.Mistake:
    number = found.shown[place]
    shown: dict[str, Any] = {}
    if len(found.inputs):
        one = found.inputs[place]
        is_text = found.inputs.dtype.kind == "U"
        shown = {"text": str(one)} if is_text else {"picture": page.data_uri(one)}
    return page.Mistake(
        label=names[int(found.label[number])],
        answer=names[int(found.predicted[number])],
        confidence=float(found.confidence[number]),
        **shown,
    )


def _samples(found: Writings) -> dict[str, Any]:
    if not len(found.expected):
        note = "What follows the highlighted prompt was drawn token by token."
        texts = [t.removeprefix(i) for t, i in zip(found.texts, found.items, strict=True)]
        return {
            "samples": [page.Sample(str(i), t) for i, t in zip(found.items, texts, strict=True)],
            "samples_note": note,
        }
    rows = zip(found.items, found.texts, found.expected, strict=True)
    return {
        "samples": [page.Sample(str(i), str(t), str(e)) for i, t, e in rows],
        "samples_note": f"{len(found.items)} of {found.tried} texts of the {found.split} split; "
        "those that came out wrong come first.",
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
    """The fields of a config, one line each, as in `optimizer.learning_rate`.

    Args:
        record: the config as JSON, or a part of it.
        name: the field that the part is, if it is one.
        shorten: whether only the last part of paths and addresses is left, as in reports, which are
            made to be handed around.
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
    return _shortened(value) if shorten and isinstance(value, str) else str(value)


def _shortened(text: str) -> str:
    if not _PLACES.search(text):
        return text
    last = re.split(r"[\\/]", re.split(r"[?#]", text)[0].rstrip("\\/"))[-1]
    return f"…/{last}"
