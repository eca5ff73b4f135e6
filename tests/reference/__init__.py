"""What PyTorch, torchvision and transformers compute in float64, and the inputs it was computed on.

`golden.npz` and `state_dicts.json` hold the results; weights and inputs follow from their names.
"""

import functools
import json
import math
import re
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
GOLDEN = np.load(FOLDER / "golden.npz")
STATE_DICTS = json.loads((FOLDER / "state_dicts.json").read_text())

# torch ties these pairs: the first carries the weights of the second.
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def generator(name, seed):
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def weight(key, shape, seed=0):
    """The value of the state-dict entry `key`, exact in float32."""
    # The largest are kept: all VGG networks share them, and drawing them takes seconds.
    draw = _kept if math.prod(shape) > 10**7 else _drawn
    return draw(key, tuple(shape), seed)


def _drawn(key, shape, seed):
    z = generator(TIED.get(key, key), seed).standard_normal(shape)
    if key.endswith("running_var"):
        w = 0.5 + z * z
    elif len(shape) >= 2:
        w = z * math.sqrt(2 / math.prod(shape[1:]))
    elif re.search(r"layer\d\.\d+\.bn[23]\.weight$", key):
        w = 0.3 + 0.03 * z
    elif key.endswith("weight"):
        w = 1 + 0.1 * z
    else:
        w = 0.1 * z
    w = w.astype(np.float32)
    w.flags.writeable = False
    return w


_kept = functools.lru_cache(maxsize=2)(_drawn)


def weights(shapes, seed=0):
    """A whole state dict for names and shapes as `STATE_DICTS` has them."""
    return {
        key: np.int64(0) if key.endswith("num_batches_tracked") else weight(key, shape, seed)
        for key, shape in shapes.items()
    }


def inputs(name, shape, seed=0):
    """Standard normal inputs; images come as PyTorch has them, [B, C, H, W]."""
    return generator(name, seed).standard_normal(shape).astype(np.float32)


def tokens(name, shape, high, seed=0):
    """Token ids from 1 to `high` - 1."""
    return generator(name, seed).integers(1, high, shape)


def golden(key):
    """A float64 result, such as `golden("resnet18/logits")`."""
    return GOLDEN[key]


def golden_with_prefix(prefix):
    """All results whose key starts with `prefix`, by the rest of their key."""
    return {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}
