"""Parameters between PyTorch and Flax."""

from flaxdl.weights.loading import load_weights
from flaxdl.weights.names import matching, pattern_mask, pytorch_key, state_dict

__all__ = ["load_weights", "matching", "pattern_mask", "pytorch_key", "state_dict"]
