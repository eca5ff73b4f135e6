"""A run tried out in memory: everything is built and works once, and nothing is written."""

from contextlib import closing

import jax

from flaxdl.analysis.memory import memory_explained
from flaxdl.runs.evaluation import measure
from flaxdl.runs.initial_weights import initial_state
from flaxdl.runs.setup import Setup
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.distributed.placement import put_batch
from flaxdl.training.loop import Diverged

_MOST_SKIPPED = 20  # halvings of the loss scale, which starts at 2**16


def dry_run(setup: Setup) -> dict[str, dict[str, float]]:
    """Trains one step, and evaluates once on all examples of validation, or of test without it.

    In float16 steps are skipped until the scale of the loss is found.

    Returns:
        The metrics of the step's batch under `train`, and those of the split under its name.

    Raises:
        UserError: if the weights of `config.init` do not fit, or the step the memory.
        Diverged: if the loss or the gradients of the step are not finite.
    """
    state = initial_state(setup)
    data = setup.data_on_devices
    train = compile_train(setup.steps, setup.mesh, setup.config.parallel, state, data=data)
    with closing(setup.fed_batches()) as batches, memory_explained(setup):
        for batch in batches:
            state = jax.block_until_ready(train(state, batch))
            may_skip = state.loss_scale is not None and not state.has_diverged(_MOST_SKIPPED)
            if int(state.updates) or not may_skip:
                break
    if not int(state.updates):
        raise Diverged(
            "dry run: loss or gradients of the first batch are not finite; look for values that "
            "are not finite, or far too large, in the data and in --init.weights"
        )
    metrics = {"train": state.sums.means()}
    splits = [name for name in ("validation", "test") if getattr(setup.splits, name) is not None]
    for split in splits[:1]:
        with closing(setup.evaluation_batches(split)) as batches:
            placed = (put_batch(batch, setup.mesh) for batch in batches)
            metrics[split] = measure(setup.steps, state, placed, mesh=setup.mesh)
    return metrics
