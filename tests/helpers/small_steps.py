"""Steps of a small network on small images or texts, and trees of arrays compared."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np

from flaxdl.layers import BatchNorm, Dropout, Linear
from flaxdl.models import BertForSequenceClassification
from flaxdl.training import AdamW, Classification, Steps
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.distributed.placement import Placement, create_on, put_batch
from helpers.small_runs import bright_quadrants


class NormalizedMlp(nn.Module):
    """BatchNorm and dropout in a few parameters."""

    num_classes: int = 4
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x, train=False):
        x = Linear(16, name="fc1")(x.reshape(len(x), -1))
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        return Linear(self.num_classes, name="fc2")(Dropout(self.dropout, name="drop")(x, train))


def quadrant_batch(count=16, seed=0):
    images, labels = bright_quadrants(count, seed)
    inputs = (images / 255).astype(np.float32)
    return {"inputs": inputs, "label": labels, "weight": np.ones(count, np.float32)}


def small_bert(**changes):
    sizes = {"hidden_size": 64, "num_heads": 8, "num_layers": 2, "feed_forward_size": 256}
    return BertForSequenceClassification(
        vocab_size=128, num_classes=4, max_length=16, **(sizes | changes)
    )


def text_batch(count=16, length=16):
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.integers(1, 64, (count, length)).astype(np.int32),
        "label": rng.integers(0, 4, count).astype(np.int32),
        "weight": np.ones(count, np.float32),
    }


def make_steps(**changes):
    settings = {
        "model": NormalizedMlp(),
        "task": Classification(),
        "optimizer": AdamW(learning_rate=1e-2, clip_norm=1.0),
        "total_steps": 10,
    }
    return Steps(**(settings | changes))


def train_on(mesh, steps, batches, state=None):
    first = put_batch(batches[0], mesh)
    if state is None:
        state = create_on(Placement(mesh), partial(steps.initial_state, first))
    traces = []

    def step(state, batch):
        traces.append(None)
        return steps.train(state, batch)

    train = jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))
    for batch in batches:
        # Simulated devices share threads: steps in flight starve each other's collectives.
        state = jax.block_until_ready(train(state, put_batch(batch, mesh)))
    assert len(traces) == 1
    # A second entry is a second program; JAX does not keep one in every case.
    assert train._cache_size() <= 1
    return state


def assert_trees_close(ours, theirs, **tolerances):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerances), ours, theirs)
