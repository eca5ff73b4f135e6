"""A run that goes on for long, and what it takes of the machine meanwhile."""

import os
import signal
import statistics
import time
from pathlib import Path

from helpers import stopping

ENDLESS = ("--epochs", "1e7", "--log-every", "250", "--evaluate-every", "25")


def soak(run, seconds, every):
    """Samples memory (MiB), threads and open files of a run every few seconds, and ends it.

    The first sample is taken once the run has saved three times, when nothing is new any more.
    """
    run.start()
    while len(stopping.metric_lines_so_far(run.workdir, "validation")) < 4:
        assert run.process.is_alive(), run.output
        time.sleep(0.1)
    samples, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        assert run.process.is_alive(), run.output
        samples.append(_sample(run.process.pid))
        time.sleep(every)
    saved = len(stopping.metric_lines_so_far(run.workdir, "validation"))
    run.stop(signal.SIGTERM)
    assert run.process.exitcode == 143, run.output
    return samples, saved


def growth(samples):
    """By what is measured, how much more of it there is in the last third than in the first.

    Of memory that is its median. Threads and files come and go with every save, so of them it is
    the least that there are.
    """
    third = max(len(samples) // 3, 1)
    typical = {"memory": statistics.median, "threads": min, "files": min}
    return {
        name: of([s[name] for s in samples[-third:]]) - of([s[name] for s in samples[:third]])
        for name, of in typical.items()
    }


def _sample(pid):
    status = Path(f"/proc/{pid}/status").read_text().split("\n")
    values = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    return {
        "memory": int(values["VmRSS"].split()[0]) / 1024,
        "threads": int(values["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
    }
