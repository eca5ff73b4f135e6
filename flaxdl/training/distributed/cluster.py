"""Connects the processes of a run.

Each process runs the same program on its own devices. JAX's distributed runtime connects them, and
ends the others within a minute when one of them dies.
"""

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import jax

from flaxdl.errors import UserError
from flaxdl.training.distributed.rendezvous import Rendezvous

_START_SECONDS = 60  # for which processes wait for each other
_NOTICE_SECONDS = 10
_NOTICE = "waiting for the other processes that this cluster has started"
_HEARTBEAT_SECONDS = 30  # after which a silent process counts as dead
_SHUTDOWN_SECONDS = 120  # for which a finished process waits for the others
_METADATA_SERVER = "metadata.google.internal"

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """How the processes of a run find each other; not needed on a cluster that JAX recognizes.

    JAX recognizes Cloud TPU, GKE, SLURM and Open MPI.
    """

    coordinator: str | None = None
    """HOST:PORT at which all processes reach process 0."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""

    def __post_init__(self):
        given = (self.coordinator, self.num_processes, self.process_id)
        if any(value is not None for value in given) and None in given:
            raise UserError(
                "distributed takes coordinator, num_processes and process_id together, "
                f"got {self.coordinator}, {self.num_processes} and {self.process_id}"
            )
        if self.num_processes is not None and not 0 <= (self.process_id or 0) < self.num_processes:
            raise UserError(
                f"distributed.process_id must be from 0 to num_processes - 1, got "
                f"{self.process_id} of {self.num_processes}"
            )
        if self.coordinator is not None and not _is_port(self.coordinator.rpartition(":")[2]):
            raise UserError(
                f"distributed.coordinator must be HOST:PORT, with a port from 1 to 65535, got "
                f"{self.coordinator!r}"
            )

    def connect(self) -> None:
        """Connects the processes, if there are several; before anything else is computed.

        After ten seconds a warning says who is missing; it is an error after a minute.

        Raises:
            UserError: if they do not find each other, two have the same id, or they do not agree
                about how many there are.
        """
        if self.coordinator is None and not _is_on_cluster():
            return
        notice = threading.Timer(_NOTICE_SECONDS, _LOGGER.warning, [_NOTICE])
        try:
            if self.coordinator is None:
                notice.start()
            else:
                assert self.num_processes is not None
                assert self.process_id is not None
                Rendezvous(self.coordinator, self.num_processes, self.process_id).meet()
            jax.distributed.initialize(
                self.coordinator,
                self.num_processes,
                self.process_id,
                cluster_detection_method=None if self.coordinator is None else "deactivate",
                initialization_timeout=_START_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the processes of the run did not find each other: {error}") from error
        finally:
            notice.cancel()


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) < 2**16


def _is_on_cluster() -> bool:
    """Returns whether the environment says that this is one of several processes."""
    # Of what srun and mpirun start, and not of the script that calls them: in one of sbatch
    # SLURM_NTASKS is that of the whole job, and SLURM_PROCID is 0.
    for count in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(os.environ.get(count, 1)) > 1:
            return True
    if "MEGASCALE_COORDINATOR_ADDRESS" in os.environ:
        return True
    hosts = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    return any("," in os.environ.get(name, "") for name in hosts) or _is_in_tpu_pod()


def _is_in_tpu_pod() -> bool:
    """Returns whether this is a machine of a Cloud TPU slice; only the metadata server says so."""
    is_alone = "TPU_SKIP_MDS_QUERY" in os.environ or "COLAB_RELEASE_TAG" in os.environ
    if is_alone or not _has_accelerator():
        return False
    import requests

    server = os.environ.get("GCE_METADATA_IP", _METADATA_SERVER)
    address = f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
    try:
        answer = requests.get(address, headers={"Metadata-Flavor": "Google"}, timeout=5)
    except requests.RequestException:
        return False  # a GPU machine of another kind
    return answer.ok and "," in answer.text


def _has_accelerator() -> bool:
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
