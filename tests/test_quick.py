"""The quick subset names tests that there are."""

from pathlib import Path

import pytest
from quick import QUICK, is_quick

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", QUICK)
def test_it_is_there(name):
    file, _, test = name.partition("::")
    assert (TESTS / file).exists()
    assert f"def {test.partition('[')[0]}(" in (TESTS / file).read_text() or not test


def test_every_area_is_in_it():
    areas = {path.name for path in TESTS.iterdir() if list(path.glob("test_*.py"))}
    assert {name.partition("/")[0] for name in QUICK if "/" in name} == areas
    assert is_quick("test_run.py::test_a_run_leaves_what_it_promises")
    assert not is_quick("test_run.py::test_a_run_leaves_what_it_promises_and_more")
    assert not is_quick("test_run.py::test_interrupted_anywhere_it_ends_the_same[11]")
