"""A flag for XLA's CPU compiler that avoids wrong results, and a check of its results."""

import functools
import importlib.util
import logging
import mmap
import os
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

_LOGGER = logging.getLogger(__name__)

_FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_FIRST_FAULTY = (0, 10, 2)
_NEWEST_TESTED = (0, 12, 0, 1)


def set_cpu_flags() -> None:
    """Turns off fusions in XLA's CPU compiler that compute wrong results.

    Since jaxlib 0.10.2, the YNN library fuses matrix products with subsequent operations. A sum
    after a product then loses rows (0.10.2, https://github.com/jax-ml/jax/issues/39103). A batched
    product with a constant matrix, followed by a multiplication and a sum, yields garbage, up to
    1e35 or NaN (0.10.2 to 0.12.0.1). With the flag set by this function, YNN computes only single
    products, and these are correct. Training SimpleCNN, ResNet-18 and a Transformer encoder was not
    slower with the flag (jaxlib 0.12.0.1 on an AMD EPYC).

    This function must be called before JAX initializes its backend. A flag that the user has set in
    `XLA_FLAGS` is kept. jaxlib aborts the process on an unknown flag, so for releases newer than
    those tested, the flag is set only if the library contains its name; `warn_if_cpu_is_wrong`
    checks the results in any case.
    """
    given = os.environ.get("XLA_FLAGS", "")
    version = tuple(map(int, re.findall(r"\d+", metadata.version("jaxlib"))))
    if _FUSION_FLAG in given or version < _FIRST_FAULTY:
        return
    if version <= _NEWEST_TESTED or _library_contains(_FUSION_FLAG.removeprefix("--")):
        os.environ["XLA_FLAGS"] = " ".join([*given.split(), f"{_FUSION_FLAG}=individual_dot"])


def _library_contains(name: str) -> bool:
    """Returns True if a name occurs in jaxlib's largest shared library, which contains XLA."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        return False
    suffixes = (".so", ".dylib", ".pyd", ".dll")
    files = [path for path in Path(spec.origin).parent.iterdir() if path.suffix in suffixes]
    if not files:
        return False
    library = max(files, key=lambda path: path.stat().st_size)
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(name.encode()) >= 0


@functools.cache
def warn_if_cpu_is_wrong() -> None:
    """Logs a warning, once per process, if JAX computes wrong results on CPU.

    This happens if `set_cpu_flags` was called too late, `XLA_FLAGS` overrides it, or jaxlib has the
    bug but not the flag.
    """
    import jax

    if jax.default_backend() != "cpu":
        return
    errors = {name: error for name, error in cpu_errors().items() if not error < 1e-4}
    if errors:
        found = " and ".join(f"{name} is off by {error:.1e}" for name, error in errors.items())
        _LOGGER.warning(
            "jaxlib %s computes wrong results on this CPU: %s (relative error). Do not trust the "
            "results. Import flaxdl before anything uses JAX, or set XLA_FLAGS=%s=individual_dot "
            "in the environment; if the warning persists, install jaxlib %s",
            metadata.version("jaxlib"),
            found,
            _FUSION_FLAG,
            ".".join(map(str, _NEWEST_TESTED)),
        )


def cpu_errors(calls: int = 5) -> dict[str, float]:
    """Runs two programs that faulty releases compute incorrectly; returns their relative errors.

    Args:
        calls: number of calls per program; incorrect values differ from call to call.

    Returns:
        Maximum relative error of each program, by its description; NaN if a result is NaN.
    """
    import jax
    import jax.numpy as jnp

    rows = np.zeros((2**15 + 1, 3), np.float32)
    rows[:, 0] = np.arange(len(rows))
    matrices = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    row_sums = matrices.astype(np.float64).sum(axis=-1, keepdims=True)  # elements of E @ ones
    programs = {
        "a sum of squares after a product": (
            jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)),
            rows,
            rows[:, 0].astype(np.float64) ** 2,
        ),
        "a batched product that is multiplied and summed": (
            lambda E: jnp.sum((E @ jnp.ones_like(E)) * E, axis=-1),
            matrices,
            (row_sums * matrices).sum(axis=-1),
        ),
    }
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return {
            name: _relative_error(jax.jit(program), inputs, expected, calls)
            for name, (program, inputs, expected) in programs.items()
        }


def _relative_error(
    program: Callable[[np.ndarray], object], inputs: np.ndarray, expected: np.ndarray, calls: int
) -> float:
    results = np.stack([np.asarray(program(inputs), np.float64) for _ in range(calls)])
    return float(np.abs(results - expected).max() / np.abs(expected).max())
