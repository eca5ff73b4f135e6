"""Comparison of several runs: results, curves, per-class metrics and disagreements."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from flaxdl.data import fingerprint
from flaxdl.report import charts, page, scores
from flaxdl.report.build import (
    LAST_CHARTS,
    class_names,
    example_name,
    example_of,
)
from flaxdl.report.metric_names import is_fraction, spelled
from flaxdl.report.predictions import Predictions, StoredPredictions
from flaxdl.runs.plan import Plan
from flaxdl.runs.workdir import Workdir
from flaxdl.training.writers.metrics_file import MetricsFile

_MAX_DISAGREEMENTS = 24
_MAX_OUTCOMES = 12


@dataclass(frozen=True)
class ComparedRun:
    """A run of a comparison."""

    folder: Workdir
    plan: Plan
    found: StoredPredictions | None
    shown: page.RunPage


def compare(runs: Sequence[ComparedRun]) -> page.Comparison:
    """Returns the contents of the report about several runs together."""
    shown = [run.shown for run in runs]
    names = [run.name for run in shown]
    metrics = [MetricsFile(run.folder.metrics) for run in runs]
    best = [
        run.plan.config.best_step(file.of_split("validation"))
        for run, file in zip(runs, metrics, strict=True)
    ]
    note = _test_data_note(runs)
    classified = [run for run in runs if isinstance(run.found, Predictions)]
    found = [run.found for run in classified if isinstance(run.found, Predictions)]
    classes: list[page.ClassDifference] = []
    agreement: dict[str, Any] = {}
    if len(found) > 1 and len({run.plan.classes for run in classified}) == 1:
        labels = class_names(found[0], classified[0].plan.classes)
        classes = class_differences(found, labels)
        if note is None:
            agreement = disagreements(found, labels)
    notes = [note] if note else []
    notes += [f"{run.name}: {run.unfinished}" for run in shown if run.unfinished]
    return page.Comparison(
        rows=rows(shown, mark_best=note is None),
        charts=curves(metrics, names, [run.plan.steps_per_epoch for run in runs], best),
        notes=notes,
        names=[run.shown.name for run in classified],
        classes=classes,
        **agreement,
    )


def _test_data_note(runs: Sequence[ComparedRun]) -> str | None:
    """Describes differences between the data on which runs were scored; None without any."""
    scored = [(run, data) for run in runs if (data := _scored_data(run)) is not None]
    if all(_may_be_equal(scored[0][1], other) for _, other in scored[1:]):
        return None
    described = [
        f"{run.shown.name}: {split['examples']:,} examples of the {name} split"
        if split
        else f"{run.shown.name}: {name} split"
        for run, (name, _, split) in scored
    ]
    return (
        "These runs were scored on different data, so their metrics are not comparable "
        f"({'; '.join(described)})."
    )


def _scored_data(run: ComparedRun) -> tuple[str, Any, Mapping[str, Any] | None] | None:
    """Returns the split of the headline metrics, its class names, and its size and fingerprint.

    A run that has not been evaluated yet has none.
    """
    metrics = MetricsFile(run.folder.metrics)
    for split in ("test", "validation"):
        if metrics.of_split(split):
            return split, run.plan.classes, run.folder.data().get("splits", {}).get(split)
    return None


def _may_be_equal(one: Any, other: Any) -> bool:
    """Returns True unless the records show that two runs were scored on different data."""
    (name, classes, split), (other_name, other_classes, other_split) = one, other
    if name != other_name or classes != other_classes:
        return False
    if split is None or other_split is None:  # runs of version 0.1.0
        return True
    return split["examples"] == other_split["examples"] and fingerprint.may_be_equal(
        split["fingerprint"], other_split["fingerprint"]
    )


def rows(runs: Sequence[page.RunPage], *, mark_best: bool = True) -> list[page.Row]:
    """Returns the results, and the settings that differ, with a value for each run.

    Args:
        runs: contents for each run.
        mark_best: True to mark the best of the results.
    """
    results = [{**run.results, "parameters": f"{run.parameters:,}"} for run in runs]
    found = []
    for facts, is_result in ((results, True), ([run.settings for run in runs], False)):
        for name in {name: None for fact in facts for name in fact}:
            values = [fact.get(name, "–") for fact in facts]
            if is_result or len(set(values)) > 1:
                best = _best_values(name, runs) if is_result and mark_best else [False] * len(runs)
                found.append(page.Row(name, values, best))
    return found


def _best_values(name: str, runs: Sequence[page.RunPage]) -> list[bool]:
    """Returns True for the runs with the best value, unless all have the same."""
    numbers = [run.numbers.get(name) for run in runs]
    known = [number for number in numbers if number is not None]
    if len({value for value, _ in known}) < 2 or len({better for _, better in known}) > 1:
        return [False] * len(runs)
    best = (min if known[0][1] == "lower" else max)(value for value, _ in known)
    return [number is not None and number[0] == best for number in numbers]


def curves(
    metrics: Sequence[MetricsFile],
    names: Sequence[str],
    steps_per_epoch: Sequence[int],
    best: Sequence[int | None],
) -> list[list[charts.Chart]]:
    """Returns charts of each metric on validation and on training, over epochs.

    Args:
        metrics: metrics of each run.
        names: names of the runs.
        steps_per_epoch: steps per epoch of each run.
        best: step of the best checkpoint of each run; marked on validation.
    """
    drawn = {}
    for split, title in (("validation", "Validation"), ("train", "Training")):
        lines = [file.of_split(split) for file in metrics]
        for name in {name: None for found in lines for line in found for name in line}:
            if name in ("step", "split", *LAST_CHARTS):
                continue
            series = [
                charts.Series(
                    label,
                    [line["step"] / per_epoch for line in found if name in line],
                    [line[name] for line in found if name in line],
                    best=None if step is None or split == "train" else step / per_epoch,
                )
                for label, found, per_epoch, step in zip(
                    names, lines, steps_per_epoch, best, strict=True
                )
            ]
            drawn[name, split] = charts.line_chart(
                f"{title} {spelled(name)}",
                series,
                unit="epoch",
                percent=is_fraction(name),
            )
    ordered = sorted(drawn, key=lambda key: list({name: 0 for name, _ in drawn}).index(key[0]))
    found = [drawn[key] for key in ordered]
    return [found[start : start + 2] for start in range(0, len(found), 2)]


def class_differences(
    found: Sequence[Predictions], classes: Sequence[str]
) -> list[page.ClassDifference]:
    """Returns the F1 of each class in each run, largest difference first."""
    by_run = [scores.class_scores(one.label, one.predicted, classes) for one in found]
    differences = []
    for name, of_class in zip(classes, zip(*by_run, strict=True), strict=True):
        values = [one.f1 for one in of_class]
        known = [value or 0.0 for value in values]
        spread = known[1] - known[0] if len(known) == 2 else max(known) - min(known)
        if any(one.examples for one in of_class):
            examples = of_class[0].examples
            differences.append(page.ClassDifference(name, examples, values, spread))
    return sorted(differences, key=lambda one: -abs(one.difference))


def disagreements(found: Sequence[Predictions], classes: Sequence[str]) -> dict[str, Any]:
    """Returns the examples for which runs predict different classes, as fields of `Comparison`.

    Nothing is returned if the stored predictions do not have the positions of their examples, or
    if these have other labels in another run. Examples that only some of the runs get right come
    first, the most confident mistakes before others.
    """
    if not all(len(one.index) for one in found):
        return {}
    common = found[0].index
    for one in found[1:]:
        common = np.intersect1d(common, one.index)
    numbers = [_numbers_of(one, common) for one in found]
    label = found[0].label[numbers[0]]
    pairs = list(zip(found, numbers, strict=True))
    if not len(common) or any((one.label[at] != label).any() for one, at in pairs):
        return {}
    predicted = np.stack([one.predicted[at] for one, at in pairs])  # [runs, examples]
    confidence = np.stack([one.confidence[at] for one, at in pairs])
    is_correct = predicted == label
    differs = np.flatnonzero((predicted != predicted[0]).any(axis=0))
    is_split = is_correct.any(axis=0) & ~is_correct.all(axis=0)
    mistaken = np.where(is_correct, 0, confidence).max(axis=0)
    order = sorted(differs.tolist(), key=lambda i: (not is_split[i], -mistaken[i]))
    examples = []
    for place in order[:_MAX_DISAGREEMENTS]:
        own = [int(at[place]) for at in numbers]
        examples.append(
            page.Disagreement(
                name=example_name(found[0], own[0]),
                label=classes[int(label[place])],
                predictions=[
                    (classes[int(p)], float(c), bool(r))
                    for p, c, r in zip(
                        predicted[:, place], confidence[:, place], is_correct[:, place], strict=True
                    )
                ],
                **_input_of(found, own, classes),
            )
        )
    outcomes = _outcomes(is_correct)
    return {
        "outcomes": outcomes[:_MAX_OUTCOMES],
        "other_outcomes": sum(count for _, count in outcomes[_MAX_OUTCOMES:]),
        "disagreements": examples,
        "disagreeing": len(order),
    }


def _numbers_of(found: Predictions, index: np.ndarray) -> np.ndarray:
    """Returns the numbers of the predictions for examples at these positions of the split."""
    order = np.argsort(found.index, kind="stable")
    return order[np.searchsorted(found.index[order], index)]


def _outcomes(is_correct: np.ndarray) -> list[tuple[tuple[bool, ...], int]]:
    """Returns the number of examples by the runs that get them right, bool[runs, examples].

    The most frequent combinations come first. Of two runs all four are returned.
    """
    counts = Counter(map(tuple, is_correct.T.tolist()))
    if len(is_correct) == 2:
        counts.update(dict.fromkeys(product((True, False), repeat=2), 0))
    return sorted(counts.items(), key=lambda one: (-one[1], [not right for right in one[0]]))


def _input_of(
    found: Sequence[Predictions], numbers: Sequence[int], classes: Sequence[str]
) -> dict[str, Any]:
    """Returns the picture or text of an example, if one of the runs has stored it."""
    for one, number in zip(found, numbers, strict=True):
        for kept, inputs in ((one.shown, one.inputs), (one.uncertain, one.uncertain_inputs)):
            places = np.flatnonzero(kept == number)
            if len(places) and len(inputs):
                example = example_of(one, number, classes, inputs, int(places[0]))
                return {"picture": example.picture, "text": example.text}
    return {}
