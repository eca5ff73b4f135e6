"""Recorded results of the experiments, one JSON file and one SVG file per experiment."""

import json
import os
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from flaxdl.course.experiment import PILOT_SEEDS, Results, Verdict, load_experiment, save_figure
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path


@dataclass(frozen=True)
class Record:
    """Results of an experiment, with the circumstances of the run."""

    claim: str
    verdict: Verdict
    results: Results
    seeds: tuple[int, ...]
    quick: bool
    """True if the experiment was reduced to a first impression."""
    seconds: float
    """Duration of the run."""
    date: str
    """Date of the run, as YYYY-MM-DD."""
    processor: str
    versions: dict[str, str]
    """Versions of Python and of the libraries that compute."""


def run(name: str, seeds: Sequence[int] | None = None, *, quick: bool = False) -> Record:
    """Runs an experiment.

    Args:
        name: name of the experiment.
        seeds: seeds to measure; by default, those of the recorded results.
        quick: whether to reduce the experiment to a minute or less.

    Raises:
        UserError: if there is no experiment of this name, or if the seeds do not suit it.
    """
    experiment = load_experiment(name)
    seeds = tuple(range(experiment.SEEDS) if seeds is None else seeds)
    if (
        len(set(seeds)) < max(len(seeds), experiment.SEEDS)
        or min(seeds) < 0
        or not set(seeds).isdisjoint(PILOT_SEEDS)
    ):
        raise UserError(
            f"seeds must be at least {experiment.SEEDS} different integers of at least 0, without "
            f"{' and '.join(map(str, PILOT_SEEDS))} (those that learning rates are chosen on), "
            f"got {' '.join(map(str, seeds))}"
        )
    start = time.perf_counter()
    # As written to a file and read again, so that verdicts and figures see what is stored.
    results = json.loads(json.dumps(experiment.measure(seeds, quick=quick)))
    return Record(
        claim=experiment.CLAIM,
        verdict=experiment.verdict(results),
        results=results,
        seeds=seeds,
        quick=quick,
        seconds=round(time.perf_counter() - start, 1),
        date=date.today().isoformat(),
        processor=_processor(),
        versions={"python": sys.version.split()[0]}
        | {name: metadata.version(name) for name in ("flaxdl", "jax", "flax", "optax")},
    )


def prepare(name: str, folder: Path, *, quick: bool) -> None:
    """Creates the folder of a record, so that nothing is measured that cannot be written.

    Raises:
        UserError: if the folder cannot be created, or if a reduced experiment would replace a whole
            one.
    """
    folder = local_path(folder)
    existing = read(name, folder)
    if existing is not None and quick and not existing.quick:
        raise UserError(
            f"{folder / name}.json has the results of the whole experiment, which --quick does not "
            "replace; choose another folder (--to)"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def write(name: str, record: Record, folder: Path) -> None:
    """Writes NAME.svg and NAME.json to a folder; the JSON file last, as the mark of a whole record.

    Raises:
        UserError: if the folder cannot be written.
    """
    folder = local_path(folder)
    try:
        draw = partial(load_experiment(name).draw, record.results)
        save_figure(draw, folder / f"{name}.svg")
        text = json.dumps(asdict(record), indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def read(name: str, folder: Path | None = None) -> Record | None:
    """Reads the record of an experiment; None if there is none.

    Args:
        name: name of the experiment.
        folder: folder of the record; by default, the records that flaxdl includes.

    Raises:
        UserError: if the file is not a record.
    """
    place = resources.files("flaxdl.course") / "results" if folder is None else local_path(folder)
    path = place / f"{name}.json"
    if not path.is_file():
        return None
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        verdict = Verdict(**stored.pop("verdict"))
        return Record(**stored | {"verdict": verdict, "seeds": tuple(stored["seeds"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a record of an experiment: {error}") from error


def _processor() -> str:
    """Returns the model name of the processor and the number of cores that can be used."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else sysconfig.get_platform()
    return f"{name}, {len(os.sched_getaffinity(0)) if names else os.cpu_count()} cores"
