"""Runs with a workdir in a bucket that are stopped, lose their disk, and go on from the bucket."""

import os
import shutil
import signal
import time
from collections import Counter

from flaxdl.filesystem.paths import cache_folder
from flaxdl.runs.remote_workdir import _local_copy, reading_copy
from helpers import stopping

_PASSED_ON = ("FLAXDL_CACHE", "AWS_", "STORAGE_EMULATOR_HOST")


def remote_run(url, **settings):
    """A run of the small CNN in a bucket; its local copies are in `$FLAXDL_CACHE`."""
    passed_on = {key: x for key, x in os.environ.items() if key.startswith(_PASSED_ON)}
    local = _local_copy(url, "training")
    config = stopping.CONFIGS["small_cnn"]
    return stopping.Run(config, local, url=url, environment=passed_on, **settings)


def kill_and_compare(url, whole, seconds, kills, random):
    """Kills a run so often at random moments, each time with the loss of all local files.

    A run that ends in between must equal the uninterrupted one, and the next begins.

    Returns:
        Number of kills by phase.
    """
    phases, count = Counter(), 0
    run = remote_run(f"{url}-{count}")
    while phases.total() < kills:
        run.start()
        if random.integers(2):
            while run.process.is_alive() and run.phase in stopping.BEFORE_TRAINING:
                time.sleep(0.001)
        run.process.join(random.uniform(0, seconds))
        if run.process.is_alive():
            phases[run.stop(signal.SIGKILL)[0]] += 1
        elif run.process.exitcode == 0:
            _assert_same(run, whole)
            count += 1
            run = remote_run(f"{url}-{count}")
        else:
            raise AssertionError(run.output)
        shutil.rmtree(cache_folder() / "runs", ignore_errors=True)
    run_and_compare(run, whole)
    return phases


def run_and_compare(run, whole):
    """Lets a run end; what is then in the bucket must equal the uninterrupted one."""
    run.start()
    assert run.wait() == 0, run.output
    _assert_same(run, whole)
    return run


def _assert_same(run, whole):
    shutil.rmtree(cache_folder() / "runs")
    stopping.assert_same(reading_copy(run.url), whole)


def stop_and_time(url):
    """Ends a long run by SIGTERM; returns the step of its last local checkpoint, and seconds."""
    run = remote_run(url, flags=("--epochs", "1e6"))
    run.start()
    while len(stopping.metric_lines_so_far(run.workdir, "validation")) < 3:
        assert run.process.is_alive(), run.output
        time.sleep(0.05)
    _, seconds = run.stop(signal.SIGTERM)
    assert run.process.exitcode == 143, run.output
    return max(stopping.last_checkpoints(run.workdir)), seconds
