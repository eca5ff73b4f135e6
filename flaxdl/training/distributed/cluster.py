"""Connection of the processes of a run.

Each process runs the same program on its own devices. JAX's distributed runtime connects the
processes. If one of them dies, it ends the others within a minute.
"""

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import jax

from flaxdl.errors import UserError
from flaxdl.training.distributed.rendezvous import Rendezvous

_START_SECONDS = 60  # timeout for all processes to connect
_NOTICE_SECONDS = 10
_NOTICE = "waiting for the other processes of this cluster job"
_HEARTBEAT_SECONDS = 30  # timeout after which a silent process counts as dead
_SHUTDOWN_SECONDS = 120  # timeout for a finished process to wait for the others
_METADATA_SERVER = "metadata.google.internal"

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """Connection between the processes of a run; not needed on clusters that JAX detects.

    JAX detects Cloud TPU, GKE, SLURM and Open MPI.
    """

    coordinator: str | None = None
    """Address of process 0, as HOST:PORT."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Index of this process, from 0."""

    def __post_init__(self):
        given = (self.coordinator, self.num_processes, self.process_id)
        if any(value is not None for value in given) and None in given:
            raise UserError(
                "distributed needs all of coordinator, num_processes and process_id, or none; "
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
        """Connects the processes, if there are several. Must be called before using JAX.

        Missing processes are logged after ten seconds and raise an error after a minute.

        Raises:
            UserError: if the processes cannot connect, if two have the same id, or if
                `num_processes` differs.
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
            raise UserError(f"the processes of the run could not connect: {error}") from error
        finally:
            notice.cancel()


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) < 2**16


def _is_on_cluster() -> bool:
    """Returns whether the environment shows that this is one of several processes."""
    # These are set for processes started by srun and mpirun, but not for the script that calls
    # them. In an sbatch script, SLURM_NTASKS is the number of the whole job and SLURM_PROCID is 0.
    for count in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(os.environ.get(count, 1)) > 1:
            return True
    if "MEGASCALE_COORDINATOR_ADDRESS" in os.environ:
        return True
    hosts = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    return any("," in os.environ.get(name, "") for name in hosts) or _is_in_tpu_pod()


def _is_in_tpu_pod() -> bool:
    """Returns whether the metadata server reports a host of a multi-host Cloud TPU slice."""
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
