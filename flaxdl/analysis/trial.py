"""Dry run: one training step and one evaluation, in memory."""

from contextlib import closing

import jax

from flaxdl.analysis.memory import memory_explained
from flaxdl.runs.initial_weights import initial_state
from flaxdl.runs.setup import Setup
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.distributed.placement import put_batch
from flaxdl.training.evaluation import Evaluator
from flaxdl.training.loop import Diverged

_MOST_SKIPPED = 20  # steps; each one halves the float16 loss scale, initially 2**16


def dry_run(setup: Setup) -> dict[str, dict[str, float]]:
    """Trains one step and evaluates once, on the validation split or, without one, the test split.

    In float16, steps are skipped until the loss scale is small enough.

    Returns:
        The metrics by split: `train` for the training batch, and the name of the evaluated split.

    Raises:
        UserError: if the weights in `config.init` do not fit, or if the device is out of memory.
        Diverged: if loss or gradients of the step are not finite.
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
            "dry run: loss or gradients of the first batch are not finite; check the data and "
            "--init.weights for non-finite or very large values"
        )
    metrics = {"train": setup.config.task.finish(state.sums.means())}
    splits = [name for name in ("validation", "test") if getattr(setup.splits, name) is not None]
    for split in splits[:1]:
        with closing(setup.evaluation_batches(split)) as batches:
            placed = (put_batch(batch, setup.mesh) for batch in batches)
            evaluator = Evaluator(setup.steps, setup.mesh, setup.classes)
            metrics[split] = evaluator.measure(state, placed)
    return metrics
