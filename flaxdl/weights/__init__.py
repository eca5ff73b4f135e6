"""Conversion of weights between PyTorch and Flax."""

from flaxdl.weights.files import read_weights, write_weights
from flaxdl.weights.loading import export_weights, load_weights
from flaxdl.weights.names import matching, pattern_mask, pytorch_key, state_dict

__all__ = [
    "export_weights",
    "load_weights",
    "matching",
    "pattern_mask",
    "pytorch_key",
    "read_weights",
    "state_dict",
    "write_weights",
]
