"""Compile-only TPU devices, so that programs can be compiled for a TPU that is not there."""

import importlib.util
import math
import os
import re
from typing import Any

from flaxdl.errors import UserError

# libtpu reads them when it is loaded. It would otherwise ask Google Cloud's metadata server for the
# type of the machine, abort if another process holds its lock file, and log to a folder in /tmp.
_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}
_TOPOLOGY = re.compile(r"[a-z]\w*:(\d+x\d+(?:x\d+)?)", re.ASCII)
_MOST_CHIPS = 9216  # of a TPU7x pod, the largest one


def tpu_devices(topology: str) -> list[Any]:
    """Returns the compile-only devices of a TPU topology, for use in a mesh.

    JAX then uses only the CPU of this machine, so that a TPU in use by another process is not
    needed. Must be called before JAX initializes its backends.

    Args:
        topology: type of chip and number of chips along each axis, such as `v5e:2x4`.

    Raises:
        UserError: if libtpu is not installed, or if it does not support the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"compiling for {topology} needs the TPU compiler, the package libtpu: run "
            "`pip install 'flaxdl[tpu]'`"
        )
    match = _TOPOLOGY.fullmatch(topology)
    sizes = [int(size) for size in match[1].split("x")] if match else [0]
    if not 0 < math.prod(sizes) <= _MOST_CHIPS:
        raise _unknown(topology)
    os.environ.update(_SETTINGS)
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    # The default of 2x2 chips per host does not divide a topology of a single chip.
    hosts = (min(sizes[0], 2), min(sizes[1], 2), 1)
    # The two cores of a v4 chip are one device, as in runs; on other chips, this is the default.
    cores = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        found = topologies.get_topology_desc(topology, "tpu", chips_per_host_bounds=hosts, **cores)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise _unknown(topology, str(error).splitlines()[0]) from error
    return list(found.devices)


def _unknown(topology: str, reason: str = "") -> UserError:
    details = f" ({reason})" if reason else ""
    return UserError(
        f"there is no TPU topology {topology!r}{details}; it must be a type of chip, v2, v3, v4, "
        "v5e, v5p, v6e or tpu7x, and the number of chips along each axis, 1 or even, such as "
        "v5e:1x1, v5e:2x4, v6e:1x1, v4:2x2x1 or v5p:2x2x2"
    )
