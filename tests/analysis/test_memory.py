"""Memory that a step takes: estimated beforehand, and explained when it does not fit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from helpers.small_runs import small_config

import flaxdl
from flaxdl.analysis.memory import memory_of, memory_savers
from flaxdl.analysis.trial import dry_run
from flaxdl.cli import main
from flaxdl.layers import Linear
from flaxdl.runs.setup import set_up
from flaxdl.training.distributed.mesh import MeshShape

pytestmark = [pytest.mark.eight_devices, pytest.mark.usefixtures("own_cache")]


class Terabytes(nn.Module):
    """Sorts more numbers than any machine holds."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = Linear(self.num_classes, name="fc")(x.reshape(len(x), -1))
        numbers = jnp.arange(2**20, dtype=jnp.float32)
        many = jnp.sort(x[:, :1, None] * numbers[:, None] - numbers, axis=-1)  # [B, 2**20, 2**20]
        return x + many[:, 0, :1]


@pytest.mark.parametrize("is_dry", [False, True])
def test_a_step_that_does_not_fit_says_what_takes_the_memory_and_what_helps(tmp_path, is_dry):
    config = small_config(model=Terabytes())
    with pytest.raises(ValueError, match="the training step does not fit on a device") as error:
        dry_run(set_up(config)) if is_dry else flaxdl.train(config, tmp_path)
    for words in ("parameters 0.0 MiB", "optimizer", "activations", "--precision bfloat16"):
        assert words in str(error.value)


def test_the_figures_are_those_of_the_arrays():
    memory = memory_of(set_up(small_config()))
    shapes = set_up(small_config()).shapes()
    parameters = sum(x.size * 4 for x in jax.tree.leaves(shapes.params))
    assert memory.parameters == parameters
    assert memory.optimizer == 2 * parameters + 4  # both running means, and Adam's count
    assert memory.batch == 2 * (8 * 8 * 1 + 4 + 4)  # two examples on each of eight devices
    assert memory.padding == 0  # which only a TPU has
    state = memory.parameters + memory.optimizer + memory.other_state
    program = memory.temporary + memory.output + memory.generated_code
    assert memory.total == state + memory.batch + program


def test_fsdp_splits_parameters_and_optimizer():
    whole = memory_of(set_up(small_config()))
    split = memory_of(set_up(small_config(mesh=MeshShape(fsdp=8))))
    assert split.parameters < whole.parameters / 7.5
    assert split.optimizer < whole.optimizer / 7.5
    assert split.batch == whole.batch


def test_switches_that_are_set_are_not_offered():
    offered = " ".join(memory_savers(set_up(small_config())))
    for flag in ("--precision", "--mesh.fsdp 8", "--optimizer.momentum-dtype", "--freeze"):
        assert flag in offered
    config = small_config(precision="bfloat16", mesh=MeshShape(fsdp=8))
    offered = " ".join(memory_savers(set_up(config)))
    assert "--precision" not in offered
    assert "--mesh" not in offered
    assert "--model.remat" not in offered  # which SimpleCNN does not have


def test_inspect_prints_the_memory_of_a_config(tmp_path, capsys):
    file = tmp_path / "quadrants.py"
    file.write_text("from helpers.small_runs import small_config\nconfig = small_config()\n")
    assert main(["inspect", "--config", str(file), "--memory", "--batch-size", "32"]) == 0
    printed = capsys.readouterr().out
    for words in ("parameters", "optimizer", "batch", "activations", "total", "--accumulate-steps"):
        assert words in printed
    assert main(["inspect", "--config", str(file)]) == 0
    assert "classifier.1" in capsys.readouterr().out
