"""Real runs that are stopped from outside at random moments, started again, and compared.

Each is a process of its own, forked from one that has imported everything.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from flaxdl.runs import mirror
from helpers.own_cache import own_cache

CONFIGS = {path.stem: path for path in (Path(__file__).parent / "stopped_configs").glob("*.py")}
WALL_CLOCK = {"examples_per_second"}
BEFORE_TRAINING = ("starting", "preparing data", "compiling")
LONGEST = 120  # seconds after which a run hangs

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "flaxdl.cli",
        "orbax.checkpoint",
        "grain",
        "tensorboard.summary.writer.record_writer",
        "absl.flags",
    ]
)


@dataclass
class Run:
    """A run of one of the configs in a workdir, which can be started again and again."""

    config: Path
    workdir: Path
    cache: str | None = field(default_factory=own_cache)
    """Folder of the compilation cache; None compiles again at each start."""
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    url: str | None = None
    """Workdir in a bucket; `workdir` must then be its local copy."""
    process: object = None
    _phase: object = field(default_factory=lambda: _FORKS.Array("c", 32))

    @property
    def phase(self):
        """What the run is doing."""
        phase = self._phase.value.decode()
        if phase not in BEFORE_TRAINING and list(self.workdir.glob("checkpoints/*.partial*")):
            return "saving"
        return phase

    @property
    def is_reported(self):
        """Whether all is done: a signal that comes now comes too late."""
        return (self.workdir / "report.html").exists()

    @property
    def output(self):
        """What it has printed since it was started."""
        return self.workdir.with_suffix(".log").read_text()

    def start(self):
        self._phase.value = b"starting"
        log = self.workdir.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self.process = _FORKS.Process(
            target=_train,
            args=(self.config, self.url or self.workdir, self.flags, self.cache, log, self._phase),
            kwargs=self.environment,
        )
        self.process.start()

    def stop(self, number):
        """Sends a signal; returns the phase it came in and the seconds until the end."""
        phase, start = self.phase, time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        self.wait()
        return phase, time.monotonic() - start

    def wait(self, seconds=LONGEST):
        """Waits for the end and returns the exit code."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"the run goes on after {seconds} s:\n{self.output}")
        return self.process.exitcode


def uninterrupted(name, folder, **settings):
    """The workdir of a whole run, and how many seconds a second one takes, which must be equal."""
    run = Run(CONFIGS[name], folder / name, **settings)
    run.start()
    assert run.wait() == 0, run.output
    again = Run(CONFIGS[name], folder / f"{name}-again", **settings)
    start = time.monotonic()
    again.start()
    assert again.wait() == 0, again.output
    seconds = time.monotonic() - start
    assert_same(again.workdir, run.workdir)
    return run.workdir, seconds


def stop_and_compare(name, whole, seconds, folder, number, stops, random, **settings):
    """Stops runs so often, each time at a random moment, and lets them end; all must end the same.

    Half of the moments are counted from the start, half from the first step.
    A run is started again in its workdir until it ends; then the next one begins.

    Returns:
        By phase, the seconds between signal and end of each stop in it.
    """
    phases = {}
    count = sum(1 for _ in folder.iterdir())
    run = Run(CONFIGS[name], folder / f"{name}-{count}", **settings)
    while sum(map(len, phases.values())) < stops:
        run.start()
        if random.integers(2):
            while run.process.is_alive() and run.phase in BEFORE_TRAINING:
                time.sleep(0.001)
        run.process.join(random.uniform(0, seconds / 2))
        if run.process.is_alive():
            phase, took = run.stop(number)
            phases.setdefault(phase, []).append(took)
            if phase == "reporting" and run.is_reported:
                continue  # the report ended between our question for the phase and the signal
            if number != signal.SIGKILL and phase != "starting":
                assert run.process.exitcode == 128 + number, f"{phase}: {run.output}"
        assert "Traceback" not in run.output, run.output
        if run.process.exitcode == 0:
            assert_same(run.workdir, whole)
            shutil.rmtree(run.workdir)
    run.start()
    assert run.wait() == 0, run.output
    assert_same(run.workdir, whole)
    return phases


def assert_same(workdir, whole):
    """What two runs have come to is the same, bit for bit, but for the wall clock.

    A run that was asked to stop has saved where it was: of that step the other one has nothing.
    """
    assert metric_lines(workdir) == metric_lines(whole)
    steps, expected = (last_checkpoints(folder) for folder in (workdir, whole))
    assert max(steps) == max(expected)
    for step in steps.keys() & expected.keys():
        ours, theirs = read(steps[step]), read(expected[step])
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def metric_lines(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    seen = Counter((line["step"], line["split"]) for line in lines)
    assert max(seen.values()) == 1, seen
    return [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]


def metric_lines_so_far(workdir, split):
    """The whole lines that a running run has written."""
    file = workdir / "metrics.jsonl"
    whole = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [line for line in whole if line.endswith("\n") and f'"{split}"' in line]


def last_checkpoints(workdir):
    return {int(p.name): p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}


def read(checkpoint):
    """All arrays of a checkpoint, without knowing what it holds."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return jax.tree.map(np.asarray, checkpointer.restore(checkpoint))


def _train(config, workdir, flags, cache, log, phase, **environment):
    """The process of a run."""
    os.environ.update(environment)
    mirror._POLL, mirror._CHECKPOINT_INTERVAL, mirror._INTERVAL = 0.02, 0.0, 0.0
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    settings = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(s for s in settings if "device_count" not in s)

    jax.config.update("jax_compilation_cache_dir", cache)

    from flaxdl.cli import leave, main
    from flaxdl.report.write import ReportWriter
    from flaxdl.runs.session import Session
    from flaxdl.training.loop import Loop
    from flaxdl.training.writers.console import ConsoleWriter

    @contextlib.contextmanager
    def during(name):
        before, phase.value = phase.value, name
        yield
        phase.value = before

    def wrapped(owner, method, name):
        original = getattr(owner, method)

        def call(*args, **kwargs):
            with during(name):
                return original(*args, **kwargs)

        setattr(owner, method, call)

    def progress(self, step):
        phase.value = b"compiling" if self._first is None else b"training"
        self._first = step

    original_finish = ReportWriter.finish

    def finish(*args):
        phase.value = b"reporting"  # until the process ends
        original_finish(*args)

    ReportWriter.finish = finish
    ConsoleWriter._first, ConsoleWriter.progress = None, progress
    wrapped(Session, "set_up", b"preparing data")
    wrapped(Loop, "evaluate", b"evaluating")
    leave(main(["train", "--config", str(config), "--workdir", str(workdir), *flags]))
