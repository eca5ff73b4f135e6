"""Compiler flags that must be set before JAX starts its backend."""

import os
from importlib import metadata

_VERSIONS_WITH_FAULTY_FUSION = frozenset({"0.10.2"})
_LAST_VERSION_TRIED = (0, 12)


def set_cpu_flags() -> None:
    """Sets what XLA's compiler for CPUs should have and has not by itself.

    - Vectors of 512 bits, where the processor has them, instead of 256: networks are faster by 1 to
      5 %. A jaxlib that does not know a flag ends the process, so one that is newer than those it
      was tried with goes without.
    - No fused reductions on the one release where they give wrong numbers: jaxlib 0.10.2 loses rows
      when a reduction follows a matrix product in one fusion
      (https://github.com/jax-ml/jax/issues/39103) and can crash on reductions of rank seven
      (https://github.com/jax-ml/jax/issues/40412). 0.10.0, 0.10.1 and everything from 0.11.0 on
      give the right numbers. Products stay in the fast library, which is right for them.

    A flag that the user has given in `XLA_FLAGS` is left alone.
    """
    version = metadata.version("jaxlib")
    flags = {}
    if tuple(map(int, version.split(".")[:2])) <= _LAST_VERSION_TRIED:
        flags["--xla_cpu_prefer_vector_width"] = "512"
    if version in _VERSIONS_WITH_FAULTY_FUSION:
        flags["--xla_cpu_experimental_ynn_fusion_type"] = "individual_dot"
    given = os.environ.get("XLA_FLAGS", "")
    ours = [f"{flag}={value}" for flag, value in flags.items() if flag not in given]
    if ours:
        os.environ["XLA_FLAGS"] = " ".join([*given.split(), *ours])
