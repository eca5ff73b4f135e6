"""Starts a run as several real processes on this machine, each with simulated CPU devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from helpers.own_cache import own_cache

TESTS = Path(__file__).parent.parent

CONFIG = """
from helpers.small_runs import small_config
from flaxdl.training import Classification
task = Classification(extra_metrics=("macro_f1", "auroc"))
config = small_config(epochs=60, evaluate_every=15, log_every=25, task=task)
"""


def write_config(folder):
    """A config file of small images: 4 steps an epoch, 37 test examples."""
    path = folder / "quadrants.py"
    path.write_text(CONFIG)
    return path


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def by_flags(process, count, port):
    """How a process is told of the others by the command line."""
    flags = {"coordinator": f"localhost:{port}", "num-processes": count, "process-id": process}
    return {}, [word for k, v in flags.items() for word in (f"--distributed.{k}", str(v))]


def by_slurm(process, count, port):
    """How srun tells it."""
    names = {
        "SLURM_JOB_ID": 1,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": count,
        "SLURM_STEP_NUM_TASKS": count,
        "SLURM_PROCID": process,
        "SLURM_LOCALID": process,
        "JAX_COORDINATOR_PORT": port,
    }
    return {name: str(value) for name, value in names.items()}, []


def by_open_mpi(process, count, port):
    """How mpirun tells it."""
    names = {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": count,
        "OMPI_COMM_WORLD_RANK": process,
        "OMPI_COMM_WORLD_LOCAL_RANK": process,
        "JAX_COORDINATOR_PORT": port,
    }
    return {name: str(value) for name, value in names.items()}, []


def start(config, workdir, *flags, count=2, devices=2, told=by_flags, flags_of=None):
    """Starts `count` processes of one run; `flags_of` gives some of them other flags."""
    port = free_port()
    processes = []
    for process in range(count):
        variables, words = told(process, count, port) if count > 1 else ({}, [])
        own = (flags_of or {}).get(process, ())
        environment = os.environ | variables | {"PYTHONPATH": str(TESTS)}
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        environment["JAX_COMPILATION_CACHE_DIR"] = own_cache()
        command = [sys.executable, "-m", "flaxdl", "train", "--config", str(config)]
        command += ["--workdir", str(workdir), *flags, *own, *words]
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        )
    return processes


def finish(processes, *, timeout=240):
    """Waits for all; returns the exit code and the messages of each."""
    ends = []
    try:
        for process in processes:
            _, errors = process.communicate(timeout=timeout)
            ends.append((process.returncode, errors))
    finally:
        for process in processes:
            process.kill()
    return ends
