"""Broken files, by the thousand, are refused: with ValueError, quickly, in little memory.

They are drawn anew from a seed for as long as FLAXDL_FUZZ_SECONDS says, by default 20 in all.
"""

import os
import resource
import signal
import time

import numpy as np
import pytest
from broken_files import mutate, sound_files

from flaxdl.weights import read_weights
from flaxdl.weights.pickles import read_pickle

SECONDS = float(os.environ.get("FLAXDL_FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("FLAXDL_FUZZ_SEED", "0"))
FILES = sound_files()

SLOWEST = 2  # seconds of processor time for one file
LONGEST = 30  # seconds on the clock, after which the reader hangs
MOST_MEMORY = 200 * 2**20  # bytes that all files together may add

# Instructions of pickles, with arguments where they have one.
INSTRUCTIONS = [
    *(bytes([code]) for code in b"()]}.0t\x85\x86\x87aesubQRN\x88\x89\x94\x932o\x81l"),
    b"K\x02",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"q\x00",
    b"q\x01",
    b"h\x00",
    b"h\x01",
    b"r\xff\xff\xff\xff",
    b"X\x07\x00\x00\x00storage",
    b"X\x01\x00\x00\x000",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nSize\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n",
    b"cos\nsystem\n",
]


def hang(*_):
    raise TimeoutError(f"one file has taken more than {LONGEST} seconds")


def fuzz(read, draw, seconds):
    """Calls `read(draw(random))` until the time is up; it returns arrays or raises ValueError."""
    random = np.random.default_rng(SEED)
    most_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, hang)
    count = refused = 0
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            case = draw(random)
            start = time.process_time()
            signal.alarm(LONGEST)
            try:
                touch(read(case))
            except ValueError:
                refused += 1
            signal.alarm(0)
            count += 1
            assert time.process_time() - start < SLOWEST
    except BaseException as error:
        error.add_note(f"file {count} of FLAXDL_FUZZ_SEED={SEED}")
        raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_before) * 1024
    print(f"{count} files, {refused} refused, {grown / 2**20:.1f} MiB more")
    assert grown < MOST_MEMORY
    assert count > 20 * seconds
    assert refused > count / 10


def touch(arrays):
    """Every element can be read: one outside of the mapped file would end the process."""
    for array in arrays.values():
        assert not array.flags.writeable
        if array.size < 2**16:
            array.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_mutated_files(name, tmp_path):
    (path, data), *rest = FILES[name].items()
    for other, content in rest:
        (tmp_path / other).write_bytes(content)
    others = [next(iter(files.values())) for files in FILES.values()]

    def draw(random):
        return mutate(data, others[random.integers(len(others))], random)

    def read(mutated):
        # A file of its own each time: one that is still mapped must not be cut short.
        (tmp_path / path).unlink(missing_ok=True)
        (tmp_path / path).write_bytes(mutated)
        return read_weights(tmp_path / path)

    fuzz(read, draw, SECONDS / (len(FILES) + 2))


def test_mutated_shards(tmp_path):
    (index, index_content), (shard, data) = FILES["index"].items()
    (tmp_path / index).write_bytes(index_content)

    def read(mutated):
        (tmp_path / shard).unlink(missing_ok=True)
        (tmp_path / shard).write_bytes(mutated)
        return read_weights(tmp_path)

    fuzz(read, lambda random: mutate(data, index_content, random), SECONDS / (len(FILES) + 2))


def test_random_pickles():
    def draw(random):
        chosen = random.choice(len(INSTRUCTIONS), random.integers(1, 40))
        return b"\x80\x02" + b"".join(INSTRUCTIONS[i] for i in chosen) + b"."

    def read(data):
        read_pickle(data, 0)
        return {}

    fuzz(read, draw, SECONDS / (len(FILES) + 2))
