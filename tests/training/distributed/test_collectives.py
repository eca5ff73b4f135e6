"""What processes agree on, by two real processes that call each function together."""

import json
import os
import subprocess
import sys

import pytest
from helpers.launch import free_port

SCRIPT = """
import json, os, sys
import jax
from flaxdl.errors import SaveError, UserError
from flaxdl.training.distributed.cluster import Distributed
from flaxdl.training.distributed import collectives

port, process = sys.argv[1:]
Distributed(coordinator=f"localhost:{port}", num_processes=2, process_id=int(process)).connect()

def attempt(errors, call=lambda: None):
    def function():
        call()
        if errors.get(process) is not None:
            raise errors[process]
        return f"result of {process}"
    try:
        return collectives.run_on_all(function)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

def users(*_):
    if process == "1":
        from users_code import fail
        fail()

found = {
    "none": attempt({}),
    "user": attempt({"1": UserError("no such file")}),
    "save": attempt({"0": SaveError("disk full")}),
    "type": attempt({"1": TypeError("unhashable")}),
    "system": attempt({"0": FileNotFoundError(2, "No such file", "a.txt")}),
    "interrupted": attempt({"1": KeyboardInterrupt()}),
    "exited": attempt({"0": SystemExit(3)}),
    "users": attempt({"1": None}, users),
    "both": attempt({"0": KeyError("a"), "1": UserError("b")}),
    "first": collectives.broadcast_from_first({"process": process, "text": "x" * int(process)}),
    "is_first": collectives.is_first(),
}
try:
    collectives.check_agreement([process], lambda a, b: [f"{a} and {b}"])
except UserError as error:
    found["agreement"] = str(error)
print(json.dumps(found))
"""

DISAGREEMENT = (
    "all processes of a run must have the same config, data and versions, but these differ "
    "from process 0:\n"
    "  process 1: ['0'] and ['1']"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes gets."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "users_code.py").write_text("def fail():\n    {}['no']\n")
    port = str(free_port())
    environment = os.environ | {"XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, port, str(number)],
            env=environment | {"PYTHONPATH": str(folder)},
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.parametrize(
    ("case", "first", "second"),
    [
        ("none", "result of 0", "result of 1"),
        ("user", "UserError: process 1 has stopped: no such file", "UserError: no such file"),
        ("save", "SaveError: disk full", "UserError: process 0 has stopped: disk full"),
        ("type", "RuntimeError: process 1 failed: TypeError: unhashable", "TypeError: unhashable"),
        (
            "system",
            "FileNotFoundError: [Errno 2] No such file: 'a.txt'",
            "RuntimeError: process 0 failed: FileNotFoundError: [Errno 2] No such file: 'a.txt'",
        ),
        ("interrupted", "UserError: process 1 was interrupted", "KeyboardInterrupt: "),
        ("exited", "SystemExit: 3", "UserError: process 0 has exited"),
        (
            "users",
            "UserError: process 1 has stopped: KeyError: 'no' "
            "(in your code: users_code.py, line 2)",
            "KeyError: 'no'",
        ),
        ("both", "KeyError: 'a'", "UserError: b"),
        ("first", {"process": "0", "text": ""}, {"process": "0", "text": ""}),
        ("is_first", True, False),
        ("agreement", DISAGREEMENT, DISAGREEMENT),
    ],
)
def test_all_processes_end_alike(results, case, first, second):
    assert [result[case] for result in results] == [first, second]
