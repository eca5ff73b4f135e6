"""Evaluation of the examples of a split for the report."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import jax
import numpy as np

from flaxdl.data import Dataset, evaluation_batches
from flaxdl.data.dataset import Subset
from flaxdl.data.pipeline import evaluation_order
from flaxdl.runs.restored import RestoredRun
from flaxdl.training.distributed.mesh import replicated

_MAX_EXAMPLES = 10_000  # evenly spaced examples of larger splits
_MAX_BATCH_SIZE = 128


def evaluated(
    run: RestoredRun, dataset: Dataset, function: Callable[[Any, Mapping[str, Any]], Any]
) -> Generator[tuple[np.ndarray, dict[str, np.ndarray], Any]]:
    """Evaluates a transformed split, or evenly spaced examples of a large one, in batches.

    Args:
        run: restored run.
        dataset: transformed split.
        function: function of the model's outputs and the batch, compiled, with results [B, ...].

    Yields:
        The positions in the split of the n readable examples of a batch, int[n]; the batch, and the
        results of `function`, both of these examples only: [n, ...].
    """
    positions = np.arange(len(dataset))
    if len(dataset) > _MAX_EXAMPLES:
        positions = np.linspace(0, len(dataset) - 1, _MAX_EXAMPLES).astype(np.int64)
        dataset = Subset(dataset, positions)
    positions = positions[evaluation_order(dataset)]

    @partial(jax.jit, out_shardings=replicated(run.mesh))
    def results_of(state: Any, batch: Any) -> Any:
        return function(run.inference.predict(state, batch), batch)

    size = run.inference_size(min(len(dataset), run.config.batch_size, _MAX_BATCH_SIZE))
    with closing(evaluation_batches(dataset, run.transform, batch_size=size)) as batches:
        for number, batch in enumerate(batches):
            results = jax.device_get(results_of(run.state, run.put(batch)))
            rows = np.flatnonzero(batch["weight"] > 0)  # not padding, and readable
            of_rows = jax.tree.map(partial(np.take, indices=rows, axis=0), (dict(batch), results))
            yield positions[number * size + rows], *of_rows
