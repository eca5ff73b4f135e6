"""Fuzzing: thousands of broken files are rejected with ValueError, quickly and in little memory.

FLAXDL_FUZZ_CASES files of each kind are generated from a seed, by default 300. Each kind is tested
in a separate process, without free memory from other tests that would hide the reader's use;
`python test_fuzz.py KIND FOLDER` runs this process.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.broken_files import mutate, sound_files
from helpers.pytorch_pickles import WEIGHTS

from flaxdl.weights import read_weights
from flaxdl.weights.members import select_weights
from flaxdl.weights.pickles import read_pickle
from flaxdl.weights.renaming import rename_keys

CASES = int(os.environ.get("FLAXDL_FUZZ_CASES", "300"))
SEED = int(os.environ.get("FLAXDL_FUZZ_SEED", "0"))
FILES = sound_files()

SLOWEST = 2  # seconds of processor time for one file
LONGEST = 30  # seconds on the clock, after which the reader hangs
MOST_MEMORY = 200 * 2**20  # bytes that a file, and what is kept of those before, may add

# Instructions of pickles, with arguments where they have one.
INSTRUCTIONS = [
    *(
        bytes([code])
        for code in b"()]}.01t\x85\x86\x87aesubQRN\x88\x89\x94\x932o\x81\x92\x8f\x90\x91l"
    ),
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
    b"cargparse\nNamespace\n",
    b"ccollections\ndefaultdict\n",
    b"ctorch.storage\nUntypedStorage\n",
    b"ctorch.nn.parameter\nParameter\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch._utils\n_rebuild_parameter_with_state\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"X\x05\x00\x00\x00model",
    b"X\x05\x00\x00\x00state",
    b"X\x0c\x00\x00\x00param_groups",
    b"X\x0b\x00\x00\x00_parameters",
    b"X\x08\x00\x00\x00_modules",
    b"C\x02ab",
    b"\x96\x02\x00\x00\x00\x00\x00\x00\x00ab",
    b"G?\xe0\x00\x00\x00\x00\x00\x00",
    # A tensor, so that some of the pickles hold weights.
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00K\x06\x85K\x01\x85tR",
]


def run(kind, folder):
    """The finished process that tested one kind of file."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", __file__, kind, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=120 + CASES,
    )


@pytest.mark.parametrize("kind", [*FILES, "shards", "pickles"])
def test_broken_files(kind, tmp_path):
    done = run(kind, tmp_path)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_jump_in_memory_is_seen(tmp_path):
    """Even if as much memory was used before, and even if it is not written to."""
    done = run("greedy", tmp_path)
    assert done.returncode != 0
    assert done.stderr.rstrip().endswith("MemoryError\nfile 100 of FLAXDL_FUZZ_SEED=0")


def hang(*_):
    raise TimeoutError(f"one file has taken more than {LONGEST} seconds")


def size_in_memory():
    """Bytes mapped into this process, including code and libraries."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def fuzz(read, draw, seed=SEED):
    """Calls `read(draw(random))` for all cases; it must return arrays or raise ValueError."""
    random = np.random.default_rng(seed)
    # What goes beyond is a MemoryError in Python, and the end of the process elsewhere.
    before = size_in_memory()
    resource.setrlimit(resource.RLIMIT_AS, (before + MOST_MEMORY, -1))
    signal.signal(signal.SIGALRM, hang)
    count = refused = 0
    try:
        while count < CASES:
            case = draw(random)
            start = time.process_time()
            signal.alarm(LONGEST)
            try:
                touch(read(case))
            except ValueError:
                refused += 1
            signal.alarm(0)
            assert time.process_time() - start < SLOWEST
            count += 1
    except BaseException as error:
        error.add_note(f"file {count} of FLAXDL_FUZZ_SEED={seed}")
        raise
    grown = (size_in_memory() - before) / 2**20
    print(f"{CASES} files, {refused} refused, {grown:.1f} MiB more")
    assert refused > CASES / 10


def touch(arrays):
    """Reads every element: one outside the mapped file would crash the process."""
    for array in arrays.values():
        assert not array.flags.writeable
        if array.size < 2**16:
            array.tobytes()


def fuzz_mutated_files(name, folder):
    (path, data), *rest = FILES[name].items()
    for other, content in rest:
        (folder / other).write_bytes(content)
    others = [next(iter(files.values())) for files in FILES.values()]

    def draw(random):
        return mutate(data, others[random.integers(len(others))], random)

    def read(mutated):
        # A file of its own each time: one that is still mapped must not be cut short.
        (folder / path).unlink(missing_ok=True)
        (folder / path).write_bytes(mutated)
        return read_weights(folder / path)

    fuzz(read, draw)


def fuzz_mutated_shards(folder):
    (index, index_content), (shard, data) = FILES["index"].items()
    (folder / index).write_bytes(index_content)

    def read(mutated):
        (folder / shard).unlink(missing_ok=True)
        (folder / shard).write_bytes(mutated)
        return read_weights(folder)

    fuzz(read, lambda random: mutate(data, index_content, random))


def fuzz_random_pickles():
    def draw(random):
        beside_weights = random.integers(2)
        chosen = random.choice(len(INSTRUCTIONS), random.integers(1, 6 if beside_weights else 40))
        code = b"".join(INSTRUCTIONS[i] for i in chosen)
        if beside_weights:
            code = b"}" + b"X\x01\x00\x00\x00a" + WEIGHTS + b"sX\x01\x00\x00\x00b" + code + b"s"
        return b"\x80\x02" + code + b"."

    def read(data):
        value = read_pickle(data, 0).value
        names = select_weights(value, "model" if len(data) % 2 else None)
        rename_keys(names, ["0", "model.0", "bert.state"], ["storage*"])
        return {}

    fuzz(read, draw)


def fuzz_a_greedy_reader():
    cases = iter(range(10**9))
    bytearray(b"x") * (2 * MOST_MEMORY)

    def read(case):
        if case == 100:
            bytearray(MOST_MEMORY + 2**24)
        raise ValueError("refused")

    fuzz(read, lambda _: next(cases), seed=0)


if __name__ == "__main__":
    match sys.argv[1], Path(sys.argv[2]):
        case "shards", folder:
            fuzz_mutated_shards(folder)
        case "pickles", _:
            fuzz_random_pickles()
        case "greedy", _:
            fuzz_a_greedy_reader()
        case name, folder:
            fuzz_mutated_files(name, folder)
