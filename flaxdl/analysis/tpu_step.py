"""Memory and cost of a training step on a TPU that is not there, and the largest batch that fits.

The step is compiled ahead of time; nothing is run. All figures are the compiler's.
"""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from flaxdl.analysis.compiled_step import Cost, cost_of
from flaxdl.analysis.memory import Memory, compile_setup, compiled_memory
from flaxdl.runs.setup import Setup

_EXCEEDS = re.compile(
    r"\((?P<needed>[\d.]+[KMGTP]?)\) exceeds available HBM \((?P<limit>[\d.]+[KMGTP]?)\)"
    r"|Used (?P<used>[\d.]+[KMGTP]?) of (?P<of>[\d.]+[KMGTP]?) hbm"
)
_FACTORS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


@dataclass(frozen=True, kw_only=True)
class TPUStep:
    """Training step compiled for a TPU with a batch size."""

    batch_size: int
    memory: Memory
    needed: int
    """Memory per device in bytes; if the step does not fit, according to the error."""
    cost: Cost | None
    """None if the step does not fit."""
    message: str
    """Error of the compiler if the step does not fit; otherwise empty."""
    seconds: float
    """Time of compilation."""

    @property
    def fits(self) -> bool:
        """True if the step could be compiled."""
        return self.cost is not None


@dataclass(frozen=True)
class TPUCompiler:
    """Compiles the training step of a run with different batch sizes.

    The mesh of `setup` consists of compile-only devices, see `tpu_devices`.
    """

    setup: Setup

    @property
    def device(self) -> Any:
        """First device of the mesh."""
        return self.setup.mesh.devices.flat[0]

    @cached_property
    def limit(self) -> int:
        """Memory of a device in bytes, from the compiler's error about an array of 1 TiB."""
        place = SingleDeviceSharding(self.device)
        array = jax.ShapeDtypeStruct((2**40,), jnp.int8, sharding=place)
        try:
            jax.jit(lambda x: x + 1).lower(array).compile()
        except jax.errors.JaxRuntimeError as error:
            return exceeded_memory(error)[1]
        raise AssertionError("an array of 1 TiB fits")

    @property
    def unit(self) -> int:
        """Number that batch sizes must be a multiple of."""
        shape = self.setup.mesh.shape
        return shape["data"] * shape["fsdp"] * self.setup.config.accumulate_steps

    @property
    def largest(self) -> int:
        """Largest batch size of interest: the number of training examples."""
        examples = len(self.setup.splits.train) // self.unit * self.unit
        return max(examples, self.setup.config.batch_size)

    def compile(self, batch_size: int) -> TPUStep:
        """Compiles the step with a batch size."""
        setup = replace(self.setup, config=replace(self.setup.config, batch_size=batch_size))
        start = time.perf_counter()
        try:
            compiled, message = compile_setup(setup), ""
        except jax.errors.JaxRuntimeError as error:
            needed, _ = exceeded_memory(error)
            compiled, message = None, str(error).splitlines()[0]
        seconds = time.perf_counter() - start
        memory = compiled_memory(setup, compiled, available=self.limit)
        return TPUStep(
            batch_size=batch_size,
            memory=memory,
            needed=needed if compiled is None else memory.total,
            cost=None if compiled is None else cost_of(compiled),
            message=message,
            seconds=seconds,
        )

    def find_largest_batch(self, first: TPUStep) -> "LargestBatch":
        """Estimates the largest batch size that fits, given the step with the one of the config.

        Memory is extrapolated linearly from two batch sizes that fit, and the step is compiled with
        the estimate. If the first one does not fit, smaller ones are tried; these errors take only
        seconds.
        """
        steps = [first]
        while not steps[-1].fits:
            size = smaller_batch_size(steps[-1], unit=self.unit, limit=self.limit)
            if size is None:
                return LargestBatch(0, steps)
            steps.append(self.compile(size))
        base = steps[-1]
        most = self.largest
        if not first.fits:
            most = steps[-2].batch_size - self.unit
        size = other_batch_size(base, unit=self.unit, most=most, limit=self.limit)
        if size is None:
            return LargestBatch(base.batch_size, steps)
        steps.append(self.compile(size))
        points = [(step.batch_size, step.needed) for step in steps[-2:]]
        estimate = extrapolate(*points, limit=self.limit, unit=self.unit, most=most)
        if estimate and all(step.batch_size != estimate for step in steps):
            steps.append(self.compile(estimate))
        return LargestBatch(estimate, steps)


@dataclass(frozen=True)
class LargestBatch:
    """Estimate of the largest batch size that fits."""

    batch_size: int
    """0 if no batch size fits."""
    steps: Sequence[TPUStep]
    """Compiled steps, among them that with the estimated batch size."""


def smaller_batch_size(step: TPUStep, *, unit: int, limit: int) -> int | None:
    """Returns a smaller batch size for a step that does not fit; None if there is none.

    It is half of the size that would fit if memory were proportional to it.

    Args:
        step: step that does not fit.
        unit: number that batch sizes must be a multiple of.
        limit: memory of a device in bytes.
    """
    if step.batch_size <= unit:
        return None
    size = min(step.batch_size * limit / step.needed, step.batch_size) / 2
    return max(int(size) // unit, 1) * unit


def other_batch_size(step: TPUStep, *, unit: int, most: int, limit: int) -> int | None:
    """Returns another batch size that should fit, given a step that fits; None if there is none.

    It is up to 16 times as large, and half as large if there is no room for twice as large. Small
    batches are no good basis for extrapolation, since their activations fit in the on-chip memory
    of a TPU (VMEM), which is not part of the memory that is reported.

    Args:
        step: step that fits.
        unit: number that batch sizes must be a multiple of.
        most: largest batch size of interest.
        limit: memory of a device in bytes.
    """
    times = min(limit / 2 / step.needed, 16)
    larger = min(int(step.batch_size * times), most) // unit * unit
    if larger >= 2 * step.batch_size:
        return larger
    return step.batch_size // 2 // unit * unit or None


def extrapolate(
    first: tuple[int, int], second: tuple[int, int], *, limit: int, unit: int, most: int
) -> int:
    """Returns the largest batch size that fits if memory is a linear function of the batch size.

    Args:
        first: batch size, and memory in bytes.
        second: the same for another batch size.
        limit: memory of a device in bytes.
        unit: number that batch sizes must be a multiple of.
        most: largest batch size of interest.

    Returns:
        A multiple of `unit`, at most `most`; 0 if none fits.
    """
    (size, needed), (other_size, other_needed) = first, second
    slope = (other_needed - needed) / (other_size - size)
    if slope <= 0:
        return most if min(needed, other_needed) <= limit else 0
    found = size + (limit - needed) / slope
    return min(max(math.floor(found / unit), 0) * unit, most)


def exceeded_memory(error: Exception) -> tuple[int, int]:
    """Returns needed and available memory in bytes, according to an error of the TPU compiler.

    Raises:
        jax.errors.JaxRuntimeError: the same error, if it does not state them.
    """
    match = _EXCEEDS.search(str(error))
    if match is None:
        raise error
    sizes = [size for size in match.groups() if size is not None]
    needed, limit = (
        round(float(size.rstrip("KMGTP")) * _FACTORS[size.lstrip("0123456789.")]) for size in sizes
    )
    return needed, limit
