"""Limits on the time that a piece of code computes."""

import gc
import time
from contextlib import contextmanager


@contextmanager
def takes_at_most(seconds):
    """Fails if the calling thread computes longer than this; other threads do not count."""
    start = time.thread_time()
    yield
    taken = time.thread_time() - start
    assert taken < seconds, f"{taken:.1f} s of processor time instead of less than {seconds} s"


@contextmanager
def earlier_objects_frozen():
    """Keeps the garbage collector from the objects of earlier tests.

    Late in the suite there are so many that a collection takes longer than the code under test.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
