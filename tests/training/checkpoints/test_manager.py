"""Checkpoints know the structure of what they hold."""

from contextlib import closing
from functools import partial

import jax
import numpy as np
import pytest

from flaxdl.models import SimpleCNN
from flaxdl.training import SGD, Adam, AdamW, Classification, Steps
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.distributed.mesh import make_mesh
from flaxdl.training.distributed.placement import Placement, create_on, shapes_on

EXAMPLES = {
    "inputs": jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32),
    "label": jax.ShapeDtypeStruct((1,), np.int32),
    "weight": jax.ShapeDtypeStruct((1,), np.float32),
}
OPTIMIZERS = [
    SGD(learning_rate=0.1, momentum=0.0),
    SGD(learning_rate=0.1, weight_decay=0.1),
    Adam(weight_decay=0.1),
    AdamW(),
]


def initial(optimizer, **changes):
    model = SimpleCNN(num_classes=4)
    steps = Steps(model=model, task=Classification(), optimizer=optimizer, total_steps=1, **changes)
    return partial(steps.initial_state, EXAMPLES)


@pytest.mark.parametrize("freeze", [(), ("features.*",)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_what_was_saved_comes_back_and_nothing_else_does(tmp_path, optimizer, freeze):
    placement = Placement(make_mesh(devices=jax.devices()[:1]))
    create = initial(optimizer, freeze=freeze)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        state = create_on(placement, create)
        checkpoints.save(state)
        checkpoints.wait()
        restored = checkpoints.restore(shapes_on(placement, create), 0)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        if optimizer == OPTIMIZERS[0]:
            return  # it keeps nothing of any parameter, so that freezing makes no difference
        other = initial(optimizer, freeze=() if freeze else ("features.*",))
        with pytest.raises(ValueError, match="from another model, optimizer, `freeze` or `ema`"):
            checkpoints.restore(shapes_on(placement, other), 0)
