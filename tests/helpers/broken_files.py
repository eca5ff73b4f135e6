"""Small sound files of weights in every format, and ways to break them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

FIXTURES = Path(__file__).parent.parent / "weights" / "fixtures"

# Numbers that lengths, offsets and counts are likely to be checked against, or not.
BORDERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def safetensors_bytes():
    return save(
        {
            "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
            "conv.bias": np.arange(2, dtype=np.float16),
            "steps": np.asarray(np.int64(7)),
        },
        metadata={"format": "pt"},
    )


def sound_files():
    """Name → the files of a folder; the first of them is the one to read, and to break."""
    shard = safetensors_bytes()
    index = {
        "metadata": {"total_size": 108},
        "weight_map": dict.fromkeys(("conv.weight", "conv.bias", "steps"), "shard.safetensors"),
    }
    index = json.dumps(index, indent=2).encode()
    return {
        "safetensors": {"model.safetensors": shard},
        "index": {"model.safetensors.index.json": index, "shard.safetensors": shard},
        **{
            name: {f"{name}.pth": (FIXTURES / f"{name}.pth").read_bytes()}
            for name in ("archive", "legacy", "checkpoint", "objects")
        },
    }


def mutate(data, other, random):
    """The bytes with one to four changes, some of them pieces of `other`."""
    data = bytearray(data)
    for _ in range(random.integers(1, 5)):
        position = _position(data, random)
        size = int(2 ** random.uniform(0, 8))
        match random.integers(9):
            case 0:
                if data:
                    data[position] ^= 1 << int(random.integers(8))
            case 1:
                data[position : position + 1] = random.bytes(1)
            case 2 | 3:
                width = int(random.choice([1, 2, 4, 8]))
                number = int(random.choice(len(BORDERS) + 1))
                number = len(data) if number == len(BORDERS) else BORDERS[number]
                number = (number + int(random.integers(-1, 2))) % 256**width
                data[position : position + width] = number.to_bytes(width, "little")
            case 4:
                del data[position:]
            case 5:
                del data[position : position + size]
            case 6:
                data[position:position] = data[position : position + size]
            case 7:
                start = _position(other, random)
                data[position : position + size] = other[start : start + size]
            case 8:
                data[position:position] = random.bytes(size)
    return bytes(data)


def _position(data, random):
    """Anywhere, or, since padding is long, where something stands."""
    places = np.flatnonzero(np.frombuffer(bytes(data), np.uint8))
    if not places.size:
        return 0
    return int(random.choice(places) if random.integers(2) else random.integers(len(data)))
