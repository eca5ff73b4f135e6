"""A config file with optimizers of its own, made of optax's transformations."""

from dataclasses import dataclass

import flax.linen as nn
import optax

from flaxdl.layers import Linear
from flaxdl.training import OneCycle, Optimizer
from helpers.small_runs import small_config


class Mlp(nn.Module):
    """Two layers, whose kernels have factored moments."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(Linear(16, name="hidden")(x.reshape(len(x), -1)))
        return Linear(self.num_classes, name="out")(x)


@dataclass(frozen=True, kw_only=True)
class Factored(Optimizer):
    """A direction of optax's; the rest of the chain is flaxdl's."""

    learning_rate: float = 1e-2
    schedule: OneCycle = OneCycle()
    decay_rate: float = 0.8

    def direction(self, params):
        scale = optax.scale_by_factored_rms(decay_rate=self.decay_rate, min_dim_size_to_factor=4)
        return optax.chain(scale, self.decay(params))


@dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """A transformation of optax's with everything in it, and noise drawn from a random key."""

    learning_rate: float = 1e-2
    schedule: OneCycle = OneCycle()

    def build(self, params, *, total_steps, create=None):
        adafactor = optax.adafactor(self.learning_rates(total_steps), min_dim_size_to_factor=4)
        return optax.chain(optax.add_noise(0.01, 0.55, key=0), adafactor)


config = small_config(model=Mlp(), optimizer=Adafactor())
