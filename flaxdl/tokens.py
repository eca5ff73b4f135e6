"""Whether a model has a vector for each token, and a place for each position.

Nothing can raise inside a compiled step, where a token id out of range reads as NaN; so ids are
checked where data and model meet.
"""

from collections.abc import Mapping

import flax.linen as nn
import numpy as np


def check_tokens(
    model: nn.Module, arrays: Mapping[str, np.ndarray], *, vocab_size: int | None = None
) -> None:
    """Checks token ids, int[N, T], against the model; other inputs and models pass.

    Args:
        model: its field `vocab_size` says what it takes; `target_vocab_size`, if there is one,
            does so for `targets`, and `max_length` for both.
        arrays: examples or a batch by name.
        vocab_size: how many tokens the data know, whether they are in these arrays or not.

    Raises:
        ValueError: naming the field of the model that is too small or not given, what the data
            need, and the flag to set.
    """
    sizes = {"inputs": "vocab_size", "targets": "target_vocab_size"}
    for name, size in sizes.items():
        if getattr(model, size, None) is None:
            size = "vocab_size"
        if name not in arrays or not hasattr(model, size):
            continue
        taken = getattr(model, size)
        tokens = arrays[name]
        if tokens.min(initial=0) < 0:
            raise ValueError(f"{name} must be token ids from 0 on, got {tokens.min()}")
        needed = max(vocab_size or 0, int(tokens.max(initial=0)) + 1)
        if taken is None:
            raise ValueError(
                f"model.{size} is None, which takes it from the vocabulary of the transform, but "
                f"there is none; the largest token id is {needed - 1}, so set "
                f"--model.{size.replace('_', '-')} {needed} or more"
            )
        if needed > taken:
            raise ValueError(
                f"{name} have {needed} different tokens, but model.{size} is {taken}; "
                f"set --model.{size.replace('_', '-')} {needed}"
            )
        positions, length = getattr(model, "max_length", None), tokens.shape[1]
        if positions is not None and length > positions:
            raise ValueError(
                f"{name} are {length} tokens long, but model.max_length is {positions}; "
                f"set --model.max-length {length}, or shorten the texts with --transform.max-length"
            )
