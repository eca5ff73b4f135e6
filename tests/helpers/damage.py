"""Checkpoints damaged at random: a bit flipped, a file cut short or removed."""

import shutil
from contextlib import closing
from functools import partial

import flax.linen as nn
import jax
import numpy as np

from flaxdl.layers import BatchNorm, Linear
from flaxdl.training import AdamW, Classification, Steps
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.distributed.mesh import make_mesh
from flaxdl.training.distributed.placement import Placement, create_on, shapes_on

EXAMPLES = {
    "inputs": jax.ShapeDtypeStruct((1, 8), np.float32),
    "label": jax.ShapeDtypeStruct((1,), np.int32),
    "weight": jax.ShapeDtypeStruct((1,), np.float32),
}


class Small(nn.Module):
    """Something with parameters and statistics."""

    @nn.compact
    def __call__(self, inputs, train=False):
        return Linear(4, name="fc")(BatchNorm(name="bn")(inputs, train))


STEPS = Steps(
    model=Small(), task=Classification(), optimizer=AdamW(), total_steps=9, precision="float16"
)
CREATE = partial(STEPS.initial_state, EXAMPLES)
PLACEMENT = Placement(make_mesh(devices=jax.devices()[:1]))


def save_two(folder):
    """Saves checkpoints of steps 1 and 2 and returns the states in them."""
    state = create_on(PLACEMENT, CREATE)
    states = [state.replace(step=state.step + step) for step in (1, 2)]
    with closing(Checkpoints(folder)) as checkpoints:
        for state in states:
            checkpoints.save(state)
    return states


def damage(checkpoint, random):
    """Damages a random file of a checkpoint; returns how, and its name."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    file = files[random.integers(len(files))]
    return damage_file(file, random), file.name


def damage_file(file, random):
    """Flips a bit of a file, cuts it short or removes it; returns which."""
    data = bytearray(file.read_bytes())
    kind = ("bit", "cut", "removed")[random.integers(3)] if data else "removed"
    if kind == "bit":
        data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        file.write_bytes(data)
    elif kind == "cut":
        file.write_bytes(data[: random.integers(len(data))])
    else:
        file.unlink()
    return kind


def recover(sound, work, before, random):
    """Damages the newer one of two checkpoints; it must be set aside, and the older one restored.

    Args:
        sound: a folder that `save_two` has filled.
        work: where the damage is done.
        before: the older state.
        random: decides the damage.

    Returns:
        What was done, and to which file.
    """
    shutil.copytree(sound, work)
    done = damage(work / "2", random)
    with closing(Checkpoints(work)) as checkpoints:
        assert checkpoints.recover() == 1, done
        assert sorted(path.name for path in work.iterdir()) == ["1", "damaged"], done
        restored = checkpoints.restore(shapes_on(PLACEMENT, CREATE), 1)
    jax.tree.map(np.testing.assert_array_equal, restored, before)
    shutil.rmtree(work)
    return done
