"""Long families of tests: `pytest` runs a sample of each, `pytest -m "whole or not whole"` all."""

import pytest


def sampled(cases, chosen):
    """The cases as parameters, of which only those that are `chosen` run in a plain `pytest`.

    Args:
        cases: what is tested.
        chosen: whether a case is in the sample.
    """
    cases = list(cases)
    assert any(map(chosen, cases))
    return [
        pytest.param(
            *(one if type(one) is tuple else (one,)),
            marks=() if chosen(one) else pytest.mark.whole,
        )
        for one in cases
    ]
