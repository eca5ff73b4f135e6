"""Forecasters of time series: recurrent, and linear as a baseline.

Legend: B batch, T steps of the context, S steps of the horizon, C series.
"""

from typing import Literal

import flax.linen as nn
import jax

from flaxdl.checks import check_choice, check_shape
from flaxdl.layers import GRU, LSTM, RNN, Linear
from flaxdl.models.sizes import required_size
from flaxdl.ops.recurrence import hidden

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class RNNForecaster(nn.Module):
    """Recurrent layers over the context, and a linear layer from their final state to the horizon.

    All steps and series of the horizon are forecast together. The outputs are differences from the
    last value of each series, so a series whose level drifts needs no further preparation.

    >>> model = flaxdl.models.RNNForecaster(horizon=12, hidden_size=32)
    >>> context = jnp.zeros((2, 48, 3))  # [B, T, C]
    >>> variables = model.init(jax.random.key(0), context)
    >>> model.apply(variables, context).shape
    (2, 12, 3)
    """

    horizon: int | None
    """Number of steps to forecast; inferred from the data if None."""
    hidden_size: int
    """Size of the hidden state."""
    cell: Literal["rnn", "lstm", "gru"] = "gru"
    """Type of the recurrent layers."""
    num_layers: int = 1
    """Number of stacked recurrent layers."""
    dropout: float = 0.0
    """Dropout rate between recurrent layers."""

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps contexts [B, T, C] to forecasts [B, S, C].

        Raises:
            UserError: if shapes do not match.
        """
        check_shape("inputs", inputs, "B T C")
        check_choice("cell", self.cell, CELLS)
        rnn = CELLS[self.cell](
            required_size("hidden_size", self.hidden_size),
            num_layers=self.num_layers,
            dropout=self.dropout,
            name="rnn",
        )
        _, final_state = rnn(inputs, train=train)
        horizon, series = required_size("horizon", self.horizon), inputs.shape[-1]
        changes = Linear(horizon * series, name="fc")(hidden(final_state)[-1])  # [B, S * C]
        return inputs[:, -1:] + changes.reshape(-1, horizon, series)


class LinearForecaster(nn.Module):
    """Linear map from the context to the horizon: a linear autoregression for each step of it.

    All series share the weights [S, T] and biases [S]. Zeng et al., "Are Transformers Effective for
    Time Series Forecasting?", 2023, found that such maps are hard to beat.
    """

    horizon: int | None
    """Number of steps to forecast; inferred from the data if None."""

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps contexts [B, T, C] to forecasts [B, S, C].

        Raises:
            UserError: if the inputs do not have three axes, or if the parameters were initialized
                for contexts of another length.
        """
        check_shape("inputs", inputs, "B T C")
        horizon = required_size("horizon", self.horizon)
        return Linear(horizon, name="linear")(inputs.swapaxes(1, 2)).swapaxes(1, 2)
