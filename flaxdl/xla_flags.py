"""Compiler flags that must be set before JAX starts its backend."""

import os
from importlib import metadata

_FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_VERSIONS_WITH_FAULTY_FUSION = frozenset({"0.10.2"})


def avoid_faulty_cpu_fusions() -> None:
    """Switches off the CPU's fused reductions on the one release where they give wrong numbers.

    jaxlib 0.10.2 loses rows when a reduction follows a matrix product in one fusion
    (https://github.com/jax-ml/jax/issues/39103) and can crash on reductions of rank seven
    (https://github.com/jax-ml/jax/issues/40412). 0.10.0, 0.10.1 and everything from 0.11.0 on give
    the right numbers without it. A value that the user has given in `XLA_FLAGS` is left alone.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if metadata.version("jaxlib") in _VERSIONS_WITH_FAULTY_FUSION and _FUSION_FLAG not in flags:
        # Products stay in the fast library, which is right for them; reductions leave it.
        os.environ["XLA_FLAGS"] = f"{flags} {_FUSION_FLAG}=individual_dot".strip()
